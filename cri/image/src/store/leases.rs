//! Leases: the layers that a container stands on stay, even when its image is removed.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::file;
use crate::digest::Digest;
use crate::error::ImageError;

/// The hold of one container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LeaseRecord {
    /// The container.
    pub container_id: String,
    /// Its image.
    pub image_id: Digest,
    /// Chain ids of its layers.
    pub layers: Vec<Digest>,
}

/// Ids come from the runtime, but a path is a path: the name on disk is a hash.
fn path_of(root: &Path, container_id: &str) -> PathBuf {
    root.join("leases").join(Digest::of(container_id.as_bytes()).hex())
}

pub(super) fn load(root: &Path) -> Result<std::collections::BTreeMap<String, LeaseRecord>, ImageError> {
    let records: Vec<LeaseRecord> = file::load_records(root, "leases")?;
    Ok(records.into_iter().map(|record| (record.container_id.clone(), record)).collect())
}

pub(super) fn write(root: &Path, record: &LeaseRecord) -> Result<(), ImageError> {
    let path = path_of(root, &record.container_id);
    let bytes = serde_json::to_vec(record).map_err(|error| ImageError::store("write", &path)(error.into()))?;
    file::write_atomic(&path, &bytes)
}

pub(super) fn remove(root: &Path, container_id: &str) -> Result<(), ImageError> {
    file::remove(&path_of(root, container_id))
}
