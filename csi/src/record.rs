//! `volume.json`: what a volume is and where it is mounted.

use std::path::{Path, PathBuf};

use orlop_kernel::file::{self, Outlives};
use serde::{Deserialize, Serialize};

/// Version of the record.
pub(crate) const VERSION: u32 = 1;
/// Name of the record in the volume's folder.
pub(crate) const FILE: &str = "volume.json";
/// Largest record that is read, in bytes.
const BYTES_MAX: u64 = 1 << 20;

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct VolumeRecord {
    /// Version of this record; 1.
    pub(crate) version: u32,
    /// Id of the volume.
    pub(crate) id: String,
    /// Name that it was made by.
    pub(crate) name: String,
    /// Size that was asked for, in bytes.
    pub(crate) capacity_bytes: i64,
    /// Volumes are listed in the order in which they were made.
    pub(crate) serial: u64,
    /// Where it is mounted for pods, or was before the machine last started.
    pub(crate) published: Vec<Publication>,
}

/// A mount of a volume for a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Publication {
    /// Mount point.
    pub(crate) target: PathBuf,
    /// The pod may not write.
    pub(crate) read_only: bool,
    /// CSI access mode.
    pub(crate) mode: i32,
    /// Mount options.
    pub(crate) options: Vec<String>,
}

/// Why a record can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    /// Not readable.
    #[error("{path}: {source}")]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// Not a record.
    #[error("{path} is damaged: {source}")]
    Damaged {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    /// From another program.
    #[error("{path}: {why}")]
    Foreign { path: PathBuf, why: String },
}

/// Reads the record of a volume's folder.
pub(crate) fn read(folder: &Path) -> Result<VolumeRecord, RecordError> {
    let path = folder.join(FILE);
    let failed = |source| RecordError::Io { path: path.clone(), source };
    let bytes = file::read(&path, BYTES_MAX).map_err(failed)?;
    let bytes = bytes.ok_or_else(|| failed(std::io::ErrorKind::NotFound.into()))?;
    let record: VolumeRecord =
        serde_json::from_slice(&bytes).map_err(|source| RecordError::Damaged { path: path.clone(), source })?;
    let foreign = |why: String| RecordError::Foreign { path: path.clone(), why };
    if record.version != VERSION {
        return Err(foreign(format!("version {} is from a newer program; {VERSION} is understood", record.version)));
    }
    if folder.file_name().and_then(|name| name.to_str()) != Some(record.id.as_str()) {
        return Err(foreign(format!("it names volume {:?}, which belongs elsewhere", record.id)));
    }
    Ok(record)
}

/// Writes the record into a volume's folder: complete or not at all, whatever happens.
pub(crate) fn write(folder: &Path, record: &VolumeRecord) -> Result<(), RecordError> {
    let path = folder.join(FILE);
    let failed = |source| RecordError::Io { path: path.clone(), source };
    let bytes = serde_json::to_vec(record).map_err(|source| RecordError::Damaged { path: path.clone(), source })?;
    file::replace(&path, &bytes, 0o644, Outlives::Power).map_err(failed)
}
