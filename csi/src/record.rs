//! `volume.json`: what a volume is and where it is mounted.

use std::io::Write;
use std::path::{Path, PathBuf};

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
    use std::io::Read;
    let path = folder.join(FILE);
    let failed = |source| RecordError::Io { path: path.clone(), source };
    let mut bytes = Vec::new();
    std::fs::File::open(&path).map_err(failed)?.take(BYTES_MAX).read_to_end(&mut bytes).map_err(failed)?;
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
    let draft = folder.join(".volume.json.new");
    let mut file = std::fs::File::create(&draft).map_err(failed)?;
    file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(failed)?;
    std::fs::rename(&draft, &path).map_err(failed)?;
    sync_folder(folder).map_err(failed)
}

/// Makes the names in a folder last.
pub(crate) fn sync_folder(folder: &Path) -> std::io::Result<()> {
    std::fs::File::open(folder)?.sync_all()
}
