//! Small files written whole or not at all, private directories, and a place for damaged records.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use crate::error::ImageError;

/// Largest record read, in bytes.
const RECORD_BYTES_MAX: u64 = 1024 * 1024;

/// Makes a directory that only its owner may enter: setuid programs in layers must not be reachable from outside.
pub(super) fn make_private_directory(path: &Path) -> Result<(), ImageError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(ImageError::store("create", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(ImageError::store("set mode of", path))
}

/// Writes a file beside its place, syncs it, renames it and syncs the directory.
pub(super) fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), ImageError> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut name = std::ffi::OsString::from(format!(".new-{}-", uuid::Uuid::new_v4().simple()));
    name.push(path.file_name().unwrap_or_default());
    let temporary = directory.join(name);
    let written = (|| {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        sync_directory(directory)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written.map_err(ImageError::store("write", path))
}

/// Makes renames and removals in a directory last.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Reads a record, bounded.
pub(super) fn read_record(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(RECORD_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > RECORD_BYTES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("the record is larger than {RECORD_BYTES_MAX} bytes"),
        ));
    }
    Ok(bytes)
}

/// Reads every record of a folder; damaged ones are put aside, unfinished ones removed.
pub(super) fn load_records<T: serde::de::DeserializeOwned>(root: &Path, folder: &str) -> Result<Vec<T>, ImageError> {
    let path = root.join(folder);
    let mut found = Vec::new();
    for entry in fs::read_dir(&path).map_err(ImageError::store("list", &path))? {
        let entry = entry.map_err(ImageError::store("list", &path))?;
        if entry.file_name().as_encoded_bytes().starts_with(b".new-") {
            let _ = fs::remove_file(entry.path());
            continue;
        }
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
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(ImageError::store("remove", path)(error)),
        _ => Ok(()),
    }
}
