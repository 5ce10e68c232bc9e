//! `vol_data.json`: what a staged or published volume is, with the kubelet's field names. Owner of the file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use orlop_kernel::file::{self, Outlives};
use serde::{Deserialize, Serialize};

use crate::csi::volume::CsiVolume;
use crate::file::{FileError, failed};
use crate::layout::plugin;

/// Name of the file.
pub(super) const FILE: &str = "vol_data.json";
/// Largest file that is read, in bytes.
const BYTES_MAX: u64 = 1 << 20;
/// Mark of ours: the volume has been given to the pod's group, which is not done again after a restart.
const GROUP_MARK: &str = "orlop.dev/group";

/// The kubelet's fields; those that we don't know are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct VolumeData {
    #[serde(rename = "specVolID", default)]
    pub(super) spec_vol_id: String,
    pub(super) volume_handle: String,
    pub(super) driver_name: String,
    #[serde(default)]
    node_name: String,
    #[serde(rename = "attachmentID", default)]
    attachment_id: String,
    #[serde(default)]
    volume_lifecycle_mode: String,
    #[serde(flatten)]
    others: BTreeMap<String, String>,
}

/// Why a record can't be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum RecordError {
    /// The file.
    #[error(transparent)]
    File(#[from] FileError),
    /// Its contents.
    #[error("{path} is damaged: {source}")]
    Damaged {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
}

impl VolumeData {
    pub(super) fn new(volume: &CsiVolume, node_name: &str) -> VolumeData {
        VolumeData {
            spec_vol_id: volume.spec_name.clone(),
            volume_handle: volume.handle.clone(),
            driver_name: volume.driver.clone(),
            node_name: node_name.to_owned(),
            attachment_id: volume.attachment_name(node_name),
            volume_lifecycle_mode: volume.lifecycle().to_owned(),
            others: BTreeMap::new(),
        }
    }

    /// Whether it is of that volume.
    pub(super) fn is_of(&self, driver: &str, handle: &str) -> bool {
        self.driver_name == driver && self.volume_handle == handle
    }

    /// The group that the volume has been given to.
    pub(super) fn group(&self) -> Option<&str> {
        self.others.get(GROUP_MARK).map(String::as_str)
    }

    /// The same with a group.
    pub(super) fn with_group(mut self, group: Option<u32>) -> VolumeData {
        self.others.extend(group.map(|group| (GROUP_MARK.to_owned(), group.to_string())));
        self
    }
}

/// Writes it into a folder: complete or not at all.
pub(super) fn write(folder: &Path, data: &VolumeData) -> Result<(), RecordError> {
    let path = folder.join(FILE);
    let text = serde_json::to_vec(data).map_err(|source| RecordError::Damaged { path: path.clone(), source })?;
    Ok(file::replace(&path, &text, 0o644, Outlives::Power).map_err(failed("write", &path))?)
}

/// Reads it; none when there is none.
pub(super) fn read(folder: &Path) -> Result<Option<VolumeData>, RecordError> {
    let path = folder.join(FILE);
    let Some(text) = file::read(&path, BYTES_MAX).map_err(failed("read", &path))? else { return Ok(None) };
    serde_json::from_slice(&text).map(Some).map_err(|source| RecordError::Damaged { path, source })
}

/// Uids of pods on disk that have the volume. A record that can't be read counts for no volume: it has been told of
/// where it was met first.
pub(super) fn users(pods: &Path, driver: &str, handle: &str) -> Vec<String> {
    let entries = |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut users = Vec::new();
    for pod in entries(pods) {
        let uses = |folder: &Path| read(folder).ok().flatten().is_some_and(|data| data.is_of(driver, handle));
        if entries(&pod.path().join("volumes").join(plugin::CSI)).any(|volume| uses(&volume.path())) {
            users.extend(pod.file_name().into_string());
        }
    }
    users
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_the_kubelets_and_keep_what_we_do_not_know() {
        let place = tempfile::tempdir().unwrap();
        assert_eq!(read(place.path()).unwrap(), None);
        let volume =
            CsiVolume { spec_name: "pv".into(), driver: "d".into(), handle: "h".into(), ..CsiVolume::default() };
        let data = VolumeData::new(&volume, "node").with_group(Some(5));
        write(place.path(), &data).unwrap();
        assert_eq!(read(place.path()).unwrap(), Some(data.clone()));
        let text: serde_json::Value = serde_json::from_slice(&std::fs::read(place.path().join(FILE)).unwrap()).unwrap();
        assert_eq!((&text["specVolID"], &text["volumeHandle"]), (&"pv".into(), &"h".into()));
        assert_eq!(data.group(), Some("5"));
        std::fs::write(place.path().join(FILE), r#"{"driverName":"d","volumeHandle":"h","seLinuxMountContext":"x"}"#)
            .unwrap();
        let foreign = read(place.path()).unwrap().unwrap();
        assert!(foreign.is_of("d", "h") && foreign.others["seLinuxMountContext"] == "x");
        for damaged in ["", "{", "[]", r#"{"driverName":"d"}"#] {
            std::fs::write(place.path().join(FILE), damaged).unwrap();
            assert!(matches!(read(place.path()), Err(RecordError::Damaged { .. })), "{damaged:?}");
        }
    }

    #[test]
    fn users_are_found_by_their_records() {
        let place = tempfile::tempdir().unwrap();
        let volume = CsiVolume { driver: "d".into(), handle: "h".into(), ..CsiVolume::default() };
        for pod in ["a", "b"] {
            let folder = place.path().join(pod).join("volumes/kubernetes.io~csi/pv");
            std::fs::create_dir_all(&folder).unwrap();
            write(&folder, &VolumeData::new(&volume, "n")).unwrap();
        }
        std::fs::create_dir_all(place.path().join("c/volumes/kubernetes.io~csi/other")).unwrap();
        let mut found = users(place.path(), "d", "h");
        found.sort();
        assert_eq!(found, ["a", "b"]);
        assert!(users(place.path(), "d", "other").is_empty());
    }
}
