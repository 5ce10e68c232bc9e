//! What the error stream says at the end: a `metav1.Status` from protocol v4 on, plain text before.

use serde_json::json;

use crate::runtime::{Outcome, RuntimeError};

/// The end of a stream in the form of protocol v4 and v5.
pub(crate) fn status_json(result: &Result<Outcome, RuntimeError>) -> Vec<u8> {
    let status = match result {
        Ok(Outcome { exit_code: 0 }) => json!({"metadata": {}, "status": "Success"}),
        Ok(Outcome { exit_code }) => json!({
            "metadata": {},
            "status": "Failure",
            "message": format!("command terminated with non-zero exit code: exit status {exit_code}"),
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": exit_code.to_string()}]}
        }),
        Err(RuntimeError(message)) => json!({
            "metadata": {}, "status": "Failure", "message": message, "reason": "InternalError", "code": 500,
            "details": {"causes": [{"message": message}]}
        }),
    };
    status.to_string().into_bytes()
}

/// The end of a stream in the form of the protocols before v4: nothing for success.
pub(crate) fn status_text(result: &Result<Outcome, RuntimeError>) -> Vec<u8> {
    match result {
        Ok(Outcome { exit_code: 0 }) => Vec::new(),
        Ok(Outcome { exit_code }) => {
            format!("error executing command in container: command terminated with exit code {exit_code}").into_bytes()
        }
        Err(RuntimeError(message)) => message.clone().into_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_code_is_a_cause() {
        let status: serde_json::Value = serde_json::from_slice(&status_json(&Ok(Outcome { exit_code: 3 }))).unwrap();
        assert_eq!(status["details"]["causes"][0], json!({"reason": "ExitCode", "message": "3"}));
        assert_eq!(status["reason"], "NonZeroExitCode");
        let status: serde_json::Value = serde_json::from_slice(&status_json(&Ok(Outcome { exit_code: 0 }))).unwrap();
        assert_eq!(status["status"], "Success");
        assert!(status_text(&Ok(Outcome { exit_code: 0 })).is_empty());
    }
}
