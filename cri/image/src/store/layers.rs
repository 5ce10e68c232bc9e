//! Unpacked layers by chain id: staged aside, synced, marked, renamed into place.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::file;
use crate::digest::Digest;
use crate::error::ImageError;
use crate::unpack::{measure, remove_tree};

/// The mark of a complete layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    /// Names the layer and everything below it.
    pub chain_id: Digest,
    /// Digest of the unpacked tar.
    pub diff_id: Digest,
    /// Bytes on disk.
    pub disk_bytes: u64,
    /// Inodes on disk.
    pub inodes: u64,
}

impl LayerRecord {
    /// A record whose sizes are measured on commit.
    pub(crate) fn new(chain_id: Digest, diff_id: Digest) -> Self {
        Self { chain_id, diff_id, disk_bytes: 0, inodes: 0 }
    }
}

/// A layer in the making. Dropped without commit, it is removed.
pub(crate) struct Staged {
    path: PathBuf,
    committed: bool,
}

impl Staged {
    /// Where the layer's files go.
    pub(crate) fn files_path(&self) -> PathBuf {
        self.path.join("fs")
    }

    /// The directory that the layer is unpacked into.
    pub(crate) fn open_files(&self) -> Result<File, ImageError> {
        let path = self.files_path();
        File::open(&path).map_err(ImageError::store("open", path))
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.committed
            && let Err(error) = remove_path(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "unfinished layer can't be removed; it is tried again at the next start");
        }
    }
}

/// Directory of a layer's files.
pub(super) fn files_of(root: &Path, chain: &Digest) -> PathBuf {
    directory_of(root, chain).join("fs")
}

fn directory_of(root: &Path, chain: &Digest) -> PathBuf {
    root.join("layers").join(chain.hex())
}

/// Finds all complete layers; whatever has no valid mark is put aside.
pub(super) fn load(root: &Path) -> Result<BTreeMap<Digest, LayerRecord>, ImageError> {
    let folder = root.join("layers");
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(&folder).map_err(ImageError::store("list", &folder))? {
        let entry = entry.map_err(ImageError::store("list", &folder))?;
        match read_mark(&entry.path()) {
            Ok(record) if directory_of(root, &record.chain_id) == entry.path() => {
                found.insert(record.chain_id, record);
            }
            outcome => {
                let why = outcome.err().unwrap_or_else(|| "its mark names another layer".into());
                tracing::warn!(path = %entry.path().display(), why, "incomplete layer is removed");
                let aside = root.join("staging").join(format!("discarded-{}", uuid::Uuid::new_v4().simple()));
                if fs::rename(entry.path(), aside).is_err() {
                    file::quarantine(root, &entry.path());
                }
            }
        }
    }
    empty_staging_of_discarded(root)?;
    Ok(found)
}

fn read_mark(directory: &Path) -> Result<LayerRecord, String> {
    let bytes = file::read_record(&directory.join("layer.json")).map_err(|error| error.to_string())?;
    let record = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
    if directory.join("fs").is_dir() { Ok(record) } else { Err("its files are lost".into()) }
}

/// Removes everything that an earlier process left unfinished.
pub(super) fn empty_staging(root: &Path) -> Result<(), ImageError> {
    empty(root, "")
}

/// Removes layers that were moved out of use.
pub(super) fn empty_staging_of_discarded(root: &Path) -> Result<(), ImageError> {
    empty(root, "discarded-")
}

fn empty(root: &Path, prefix: &str) -> Result<(), ImageError> {
    let folder = root.join("staging");
    for entry in fs::read_dir(&folder).map_err(ImageError::store("list", &folder))? {
        let entry = entry.map_err(ImageError::store("list", &folder))?;
        if entry.file_name().as_encoded_bytes().starts_with(prefix.as_bytes()) {
            let path = entry.path();
            remove_path(&path).map_err(ImageError::store("remove", path))?;
        }
    }
    Ok(())
}

fn remove_path(path: &Path) -> std::io::Result<()> {
    let parent = File::open(path.parent().unwrap_or(Path::new("/")))?;
    let name = CString::new(path.file_name().unwrap_or_default().as_encoded_bytes())?;
    Ok(remove_tree(&parent, &name)?)
}

pub(super) fn stage(root: &Path) -> Result<Staged, ImageError> {
    let path = root.join("staging").join(uuid::Uuid::new_v4().simple().to_string());
    file::make_private_directory(&path)?;
    let staged = Staged { path, committed: false };
    let files = staged.files_path();
    fs::create_dir(&files).map_err(ImageError::store("create", &files))?;
    // The root of a container; a layer that describes its root changes it.
    fs::set_permissions(&files, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .map_err(ImageError::store("set mode of", &files))?;
    Ok(staged)
}

/// Syncs the file system first and writes the mark last: a marked layer is whole even after a power cut.
pub(super) fn commit(root: &Path, mut staged: Staged, mut record: LayerRecord) -> Result<LayerRecord, ImageError> {
    let files = staged.open_files()?;
    let measured = measure(files.as_fd()).map_err(|error| ImageError::store("measure", &staged.path)(error.into()))?;
    (record.disk_bytes, record.inodes) = measured;
    rustix::fs::syncfs(&files).map_err(|error| ImageError::store("sync", &staged.path)(error.into()))?;
    let mark = staged.path.join("layer.json");
    let bytes = serde_json::to_vec(&record).map_err(|error| ImageError::store("write", &mark)(error.into()))?;
    file::write_atomic(&mark, &bytes)?;
    let place = directory_of(root, &record.chain_id);
    match fs::rename(&staged.path, &place) {
        Ok(()) => staged.committed = true,
        // Somebody else made the same layer meanwhile; theirs is as good.
        Err(error)
            if matches!(error.kind(), std::io::ErrorKind::DirectoryNotEmpty | std::io::ErrorKind::AlreadyExists) => {}
        Err(error) => return Err(ImageError::store("rename", place)(error)),
    }
    sync(root)?;
    Ok(record)
}

/// Makes renames into and out of the folder last.
pub(super) fn sync(root: &Path) -> Result<(), ImageError> {
    let layers = root.join("layers");
    orlop_kernel::file::sync_folder(&layers).map_err(ImageError::store("sync", layers))
}

/// Whether a layer was made at least so long ago. One whose time can't be told is old.
pub(super) fn is_older(root: &Path, chain: &Digest, age: Duration) -> bool {
    let made = fs::metadata(directory_of(root, chain)).and_then(|metadata| metadata.modified());
    let lived = made.ok().and_then(|made| made.elapsed().ok());
    age.is_zero() || lived.is_none_or(|lived| lived >= age)
}

/// Moves a layer out of use at once; its files are removed afterwards.
pub(super) fn discard(root: &Path, chain: &Digest) -> Result<(), ImageError> {
    let place = directory_of(root, chain);
    let aside = root.join("staging").join(format!("discarded-{}", uuid::Uuid::new_v4().simple()));
    match fs::rename(&place, &aside) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(ImageError::store("discard", place)(error)),
        _ => Ok(()),
    }
}
