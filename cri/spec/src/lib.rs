//! Pure translation of validated CRI requests into OCI runtime specifications.

pub mod cdi;
mod container;
pub mod devices;
pub mod sandbox;
mod security;
mod selinux;
pub mod user;
pub mod user_namespace;

pub use container::{ContainerInputs, ImageDefaults, ImageVolume, container_config, resources};

/// What is wrong with a request; the field is named as in the CRI.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct SpecError {
    /// The field.
    pub field: String,
    /// What is wrong with it and what would be right.
    pub message: String,
}

/// A failure of a field.
pub(crate) fn wrong(field: impl Into<String>, message: impl Into<String>) -> SpecError {
    SpecError { field: field.into(), message: message.into() }
}

/// Checks a text that becomes part of a path or of a file's line: not empty, no slash, no control characters.
///
/// # Errors
/// Names the field.
pub fn check_name(field: &str, text: &str) -> Result<(), SpecError> {
    let plain = !text.is_empty() && text.len() <= 253 && text != "." && text != "..";
    if plain && !text.contains('/') && !text.chars().any(char::is_control) {
        return Ok(());
    }
    Err(wrong(field, format!("{text:?} must be 1 to 253 characters without slashes and control characters")))
}

/// Checks a path on the machine: absolute, without `..` parts and control characters.
///
/// # Errors
/// Names the field.
pub fn check_path(field: &str, path: &str) -> Result<(), SpecError> {
    let clean =
        path.starts_with('/') && !path.split('/').any(|part| part == "..") && !path.chars().any(char::is_control);
    if clean { Ok(()) } else { Err(wrong(field, format!("{path:?} must be an absolute path without .. parts"))) }
}
