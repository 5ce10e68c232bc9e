//! File work: errors that name step and path, folders with exact modes, threads that may block.

use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// A step on a file or folder failed.
#[derive(Debug, thiserror::Error)]
#[error("{step} {path}: {source}")]
pub(crate) struct FileError {
    step: &'static str,
    path: PathBuf,
    #[source]
    source: std::io::Error,
}

/// Gives an error its step and path.
pub(crate) fn failed<E: Into<std::io::Error>>(step: &'static str, path: &Path) -> impl FnOnce(E) -> FileError {
    let path = path.to_path_buf();
    move |error| FileError { step, path, source: error.into() }
}

/// Makes a folder and those above it, and gives it its mode whatever the process's mask is.
pub(crate) fn make_folder(folder: &Path, mode: u32) -> Result<(), FileError> {
    std::fs::DirBuilder::new().recursive(true).mode(0o750).create(folder).map_err(failed("make", folder))?;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(mode)).map_err(failed("set the mode of", folder))
}

/// Removes an empty folder; its absence is success.
pub(crate) fn remove_empty(folder: &Path) -> Result<(), FileError> {
    match std::fs::remove_dir(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed("remove", folder)(error)),
        _ => Ok(()),
    }
}

/// Removes a file; its absence is success.
pub(crate) fn remove_file(path: &Path) -> Result<(), FileError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Does file work on a thread that may block.
pub(crate) async fn blocking<T: Send + 'static, E: std::fmt::Display + Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, String> {
    let result = tokio::task::spawn_blocking(move || work().map_err(|error| error.to_string())).await;
    result.map_err(|error| format!("the operation ended by a fault of the agent: {error}"))?
}
