//! `vol_data.json`: what a staged or published volume is, with the kubelet's field names.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::csi::find::CsiVolume;

/// Name of the file.
pub(super) const FILE: &str = "vol_data.json";

/// The kubelet's fields.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct VolumeData {
    #[serde(rename = "specVolID")]
    pub(super) spec_vol_id: String,
    pub(super) volume_handle: String,
    pub(super) driver_name: String,
    #[serde(default)]
    pub(super) node_name: String,
    #[serde(default)]
    pub(super) volume_lifecycle_mode: String,
}

impl VolumeData {
    pub(super) fn new(volume: &CsiVolume, node_name: &str) -> VolumeData {
        VolumeData {
            spec_vol_id: volume.name.clone(),
            volume_handle: volume.handle.clone(),
            driver_name: volume.driver.clone(),
            node_name: node_name.to_owned(),
            volume_lifecycle_mode: if volume.ephemeral { "Ephemeral" } else { "Persistent" }.to_owned(),
        }
    }
}

/// Writes it into a folder.
pub(super) fn write(folder: &Path, data: &VolumeData) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("write {}: {error}", folder.join(FILE).display());
    let text = serde_json::to_vec(data).map_err(|error| error.to_string())?;
    let draft = folder.join(".vol_data.draft");
    std::fs::write(&draft, text).map_err(failed)?;
    std::fs::rename(&draft, folder.join(FILE)).map_err(failed)
}

/// Reads it; none when there is none.
pub(super) fn read(folder: &Path) -> Result<Option<VolumeData>, String> {
    let path = folder.join(FILE);
    match std::fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| {
            format!("{} is damaged ({error}); unmount its volume and remove the folder", path.display())
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("read {}: {error}", path.display())),
    }
}

/// Removes it, after which nothing is left to do.
pub(super) fn remove(folder: &Path) -> Result<(), String> {
    match std::fs::remove_file(folder.join(FILE)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("remove {}: {error}", folder.join(FILE).display()))
        }
        _ => Ok(()),
    }
}

/// Uids of pods that have a volume published.
pub(super) fn users(pods: &Path, driver: &str, handle: &str) -> Vec<String> {
    let entries = |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().flatten().collect::<Vec<_>>();
    let mut users = Vec::new();
    for pod in entries(pods) {
        let volumes = entries(&pod.path().join("volumes/kubernetes.io~csi"));
        let uses = |data: VolumeData| data.driver_name == driver && data.volume_handle == handle;
        if volumes.iter().any(|volume| read(&volume.path()).ok().flatten().is_some_and(uses)) {
            users.extend(pod.file_name().into_string());
        }
    }
    users
}
