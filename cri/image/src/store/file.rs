//! Small files written whole or not at all, private directories, and a place for damaged records.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use orlop_kernel::file::{self, Outlives};

use crate::error::ImageError;

/// Largest record read, in bytes.
const RECORD_BYTES_MAX: u64 = 1024 * 1024;

/// Makes a directory that only its owner may enter: setuid programs in layers must not be reachable from outside.
pub(super) fn make_private_directory(path: &Path) -> Result<(), ImageError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(ImageError::store("create", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(ImageError::store("set mode of", path))
}

/// Writes a file, over a loss of power.
pub(super) fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), ImageError> {
    file::replace(path, bytes, 0o600, Outlives::Power).map_err(ImageError::store("write", path))
}

/// Reads a record, bounded.
pub(super) fn read_record(path: &Path) -> io::Result<Vec<u8>> {
    file::read(path, RECORD_BYTES_MAX)?.ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Reads every record of a folder; damaged ones are put aside, unfinished ones removed.
pub(super) fn load_records<T: serde::de::DeserializeOwned>(root: &Path, folder: &str) -> Result<Vec<T>, ImageError> {
    let path = root.join(folder);
    file::sweep(&path).map_err(ImageError::store("sweep", &path))?;
    let mut found = Vec::new();
    for entry in fs::read_dir(&path).map_err(ImageError::store("list", &path))? {
        let entry = entry.map_err(ImageError::store("list", &path))?;
        let parsed = read_record(&entry.path()).map_err(|error| error.to_string());
        match parsed.and_then(|bytes| serde_json::from_slice(&bytes).map_err(|error| error.to_string())) {
            Ok(record) => found.push(record),
            Err(why) => {
                tracing::warn!(file = %entry.path().display(), why, "damaged record is put aside");
                quarantine(root, &entry.path());
            }
        }
    }
    Ok(found)
}

/// Moves a damaged file or directory out of the way; removes it where that fails.
pub(super) fn quarantine(root: &Path, path: &Path) {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let stamp = jiff::Timestamp::now().as_second();
    let aside = root.join("quarantine").join(format!("{name}-{stamp}-{}", uuid::Uuid::new_v4().simple()));
    if fs::rename(path, &aside).is_err() {
        let _ = fs::remove_file(path);
    }
}

/// Removes a file; absent is fine.
pub(super) fn remove(path: &Path) -> Result<(), ImageError> {
    file::remove(path).map(drop).map_err(ImageError::store("remove", path))
}
