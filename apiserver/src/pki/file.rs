//! Reading and writing key files: whole or not at all, private from the first byte.

use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use orlop_kernel::file::{self, Outlives};

use super::PkiError;

/// Who may read a written file.
#[derive(Clone, Copy)]
pub(super) enum Access {
    /// Mode 0600.
    Private,
    /// Mode 0644.
    Public,
}

fn failed<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(std::io::Error) -> PkiError + 'a {
    move |source| PkiError::File { action, path: path.to_path_buf(), source }
}

/// Makes the folder with mode 0700 unless it is there.
pub(super) fn make_private_folder(path: &Path) -> Result<(), PkiError> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("make the folder", path))
}

/// Reads a file.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, PkiError> {
    std::fs::read(path).map_err(failed("read", path))
}

/// Reads a file that may be missing.
pub(super) fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, PkiError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", path)(error)),
    }
}

/// Writes a file: a power loss leaves the old or the new one.
pub(super) fn write(path: &Path, bytes: &[u8], access: Access) -> Result<(), PkiError> {
    let mode = match access {
        Access::Private => 0o600,
        Access::Public => 0o644,
    };
    file::replace(path, bytes, mode, Outlives::Power).map_err(failed("write", path))
}
