//! Names of images: one record each, so that moving a tag is one rename.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::file;
use crate::digest::Digest;
use crate::error::ImageError;

/// Version of the record's form.
const VERSION: u32 = 1;

/// A name and what it stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NameRecord {
    version: u32,
    /// Normalised reference, or the bare image id for an image without a name.
    pub name: String,
    /// Digest that the registry gave for the name: of an index or a manifest.
    pub target: Option<Digest>,
    /// Manifest of our platform.
    pub manifest: Option<Digest>,
    /// Configuration: the image id. Of an artifact, the manifest.
    pub config: Digest,
    /// What an artifact says it is; none for an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// Compressed size of the image in bytes, as the registry counts it.
    pub size_bytes: u64,
    /// When the name was set, in seconds since 1970.
    pub created_at_seconds: i64,
}

impl NameRecord {
    pub(crate) fn new(
        name: String,
        target: Option<Digest>,
        manifest: Option<Digest>,
        config: Digest,
        size_bytes: u64,
    ) -> Self {
        let created_at_seconds = jiff::Timestamp::now().as_second();
        Self { version: VERSION, name, target, manifest, config, artifact_type: None, size_bytes, created_at_seconds }
    }
}

impl NameRecord {
    /// The same, of an artifact where a type is given.
    pub(crate) fn with_type(self, artifact_type: Option<String>) -> Self {
        Self { artifact_type, ..self }
    }
}

/// Where the record of a name is.
pub(super) fn path_of(root: &Path, name: &str) -> PathBuf {
    root.join("names").join(Digest::of(name.as_bytes()).hex())
}

pub(super) fn load(root: &Path) -> Result<Vec<NameRecord>, ImageError> {
    let records: Vec<NameRecord> = file::load_records(root, "names")?;
    Ok(records
        .into_iter()
        .filter(|record| {
            let known = record.version == VERSION;
            if !known {
                tracing::warn!(name = %record.name, version = record.version, "name record of an unknown version is ignored");
            }
            known
        })
        .collect())
}

pub(super) fn write(root: &Path, record: &NameRecord) -> Result<(), ImageError> {
    let path = path_of(root, &record.name);
    let bytes = serde_json::to_vec(record).map_err(|error| ImageError::store("write", &path)(error.into()))?;
    file::write_atomic(&path, &bytes)
}

pub(super) fn remove(root: &Path, name: &str) -> Result<(), ImageError> {
    file::remove(&path_of(root, name))
}

/// Makes removals last.
pub(super) fn sync(root: &Path) -> Result<(), ImageError> {
    let folder = root.join("names");
    orlop_kernel::file::sync_folder(&folder).map_err(ImageError::store("sync", folder))
}
