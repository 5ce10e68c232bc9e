//! Errors as the CNI specification has them (section 5, "Error").

use std::fmt::Display;

use serde_json::{Value, json};

/// Codes of the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    /// The version of the configuration is not spoken.
    IncompatibleVersion = 1,
    /// A field of the configuration is not supported.
    UnsupportedField = 2,
    /// A variable of the environment is missing or wrong.
    Environment = 4,
    /// Something can't be read.
    Io = 5,
    /// The configuration is no JSON.
    Decoding = 6,
    /// The configuration is wrong.
    InvalidConfig = 7,
    /// The network namespace is none, or the wrong one.
    InvalidNetns = 8,
    /// Anything else.
    Failed = 999,
}

/// Why a plugin failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CniError {
    /// One of the codes, or a delegated plugin's own.
    pub(crate) code: u64,
    /// What was done, with the object.
    pub(crate) message: String,
    /// Why.
    pub(crate) details: String,
}

impl CniError {
    /// An error with its message.
    pub(crate) fn new(code: Code, message: impl Into<String>) -> CniError {
        CniError { code: code as u64, message: message.into(), details: String::new() }
    }

    /// A wrong field of the configuration.
    pub(crate) fn field(field: &str, message: impl Display) -> CniError {
        CniError::new(Code::InvalidConfig, format!("{field}: {message}"))
    }

    /// A step that failed.
    pub(crate) fn step(step: impl Into<String>) -> impl FnOnce(&dyn std::error::Error) -> CniError {
        let step = step.into();
        move |error| {
            let mut text = format!("{step}: {error}");
            let mut source = error.source();
            while let Some(cause) = source {
                text.push_str(&format!(": {cause}"));
                source = cause.source();
            }
            CniError::new(Code::Failed, text)
        }
    }

    /// The answer on standard output, in the version of the configuration when that is known.
    pub(crate) fn to_json(&self, version: &str) -> Value {
        let version = if version.is_empty() { "1.1.0" } else { version };
        let mut value = json!({"cniVersion": version, "code": self.code, "msg": self.message});
        if !self.details.is_empty() {
            value["details"] = json!(self.details);
        }
        value
    }
}
