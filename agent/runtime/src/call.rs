//! Deadlines of calls and the words of their errors.

use std::future::Future;
use std::time::Duration;

use orlop_agent_core::runtime::{RuntimeError, RuntimeFailure};
use tonic::{Code, Response, Status};

/// Awaits an answer until the deadline.
pub(crate) async fn within<T>(
    deadline: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, RuntimeError> {
    match tokio::time::timeout(deadline, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(from_status(&status)),
        Err(_) => Err(RuntimeError {
            failure: RuntimeFailure::Deadline,
            message: "rpc error: code = DeadlineExceeded desc = context deadline exceeded".to_owned(),
        }),
    }
}

/// An error as the kubelet words it.
pub(crate) fn from_status(status: &Status) -> RuntimeError {
    let failure = match status.code() {
        Code::NotFound => RuntimeFailure::NotFound,
        Code::DeadlineExceeded => RuntimeFailure::Deadline,
        Code::Unavailable => RuntimeFailure::Unavailable,
        Code::Unimplemented => RuntimeFailure::Unimplemented,
        _ => RuntimeFailure::Other,
    };
    let code = match status.code() {
        Code::Cancelled => "Canceled".to_owned(),
        code => format!("{code:?}"),
    };
    RuntimeError { failure, message: format!("rpc error: code = {code} desc = {}", status.message()) }
}

/// What is gone needs no stopping and no removing.
pub(crate) fn gone_is_done(result: Result<(), RuntimeError>) -> Result<(), RuntimeError> {
    match result {
        Err(error) if error.failure == RuntimeFailure::NotFound => Ok(()),
        other => other,
    }
}
