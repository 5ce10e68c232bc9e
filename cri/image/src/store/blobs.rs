//! Documents by digest.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use super::file;
use crate::digest::Digest;
use crate::document::DOCUMENT_BYTES_MAX;
use crate::error::ImageError;

fn path_of(root: &Path, digest: &Digest) -> PathBuf {
    root.join("blobs/sha256").join(digest.hex())
}

/// Writes a document; returns the bytes added, 0 if it was there.
pub(super) fn write(root: &Path, digest: &Digest, bytes: &[u8]) -> Result<u64, ImageError> {
    let path = path_of(root, digest);
    if Digest::of(bytes) != *digest {
        let why = std::io::Error::new(std::io::ErrorKind::InvalidData, "the bytes are not those of the digest");
        return Err(ImageError::store("write", path)(why));
    }
    if read(root, digest).is_some() {
        return Ok(0);
    }
    file::write_atomic(&path, bytes)?;
    Ok(bytes.len() as u64)
}

pub(super) fn read(root: &Path, digest: &Digest) -> Option<Vec<u8>> {
    let path = path_of(root, digest);
    let mut bytes = Vec::new();
    File::open(&path).ok()?.take(DOCUMENT_BYTES_MAX + 1).read_to_end(&mut bytes).ok()?;
    if Digest::of(&bytes) == *digest {
        return Some(bytes);
    }
    tracing::warn!(file = %path.display(), "blob is damaged and put aside");
    file::quarantine(root, &path);
    None
}

/// Removes every blob that is not in the set; returns the bytes that stay.
pub(super) fn retain(root: &Path, keep: &BTreeSet<Digest>) -> Result<u64, ImageError> {
    let folder = root.join("blobs/sha256");
    let mut bytes = 0;
    for entry in fs::read_dir(&folder).map_err(ImageError::store("list", &folder))? {
        let entry = entry.map_err(ImageError::store("list", &folder))?;
        let digest = entry.file_name().to_str().and_then(|name| format!("sha256:{name}").parse::<Digest>().ok());
        match digest {
            Some(digest) if keep.contains(&digest) => bytes += entry.metadata().map_or(0, |metadata| metadata.len()),
            // Files being written belong to somebody.
            _ if orlop_kernel::file::is_draft(&entry.file_name()) => {}
            _ if entry.file_type().is_ok_and(|kind| kind.is_dir()) => file::quarantine(root, &entry.path()),
            _ => file::remove(&entry.path())?,
        }
    }
    Ok(bytes)
}

/// Removes what a process that died has left half-written.
pub(super) fn remove_unfinished(root: &Path) -> Result<(), ImageError> {
    let folder = root.join("blobs/sha256");
    orlop_kernel::file::sweep(&folder).map_err(ImageError::store("sweep", &folder))
}
