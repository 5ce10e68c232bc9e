//! Taking a pod's volumes down by what is on disk; every step may be repeated.

use std::path::{Path, PathBuf};

use orlop_agent_core::ports::VolumeError;
use orlop_kernel::mount;

use crate::{VolumesConfig, blocking, csi};

/// Takes down everything below `pods/<uid>/volumes`.
pub(crate) async fn tear_down(config: &VolumesConfig, uid: &str, volumes: &Path) -> Result<(), VolumeError> {
    let listed = volumes.to_path_buf();
    let failed = |volume: &str| {
        let volume = volume.to_owned();
        move |message| VolumeError::TearDown { volume, message }
    };
    for (kind, name, folder) in blocking(move || Ok(list(&listed))).await.map_err(failed("all"))? {
        if kind == "kubernetes.io~csi" {
            csi::tear_down(config, uid, &folder).await.map_err(failed(&name))?;
        }
        blocking(move || remove(&folder)).await.map_err(failed(&name))?;
    }
    Ok(())
}

/// Kind, name and folder of each volume.
fn list(volumes: &Path) -> Vec<(String, String, PathBuf)> {
    let entries = |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().flatten().collect::<Vec<_>>();
    let mut found = Vec::new();
    for kind in entries(volumes) {
        for volume in entries(&kind.path()) {
            let text = |name: std::ffi::OsString| name.to_string_lossy().into_owned();
            found.push((text(kind.file_name()), text(volume.file_name()), volume.path()));
        }
    }
    found
}

/// Unmounts what is mounted at and below a folder and removes it. Nothing is removed through a mount: a volume of
/// somebody else's that could not be unmounted keeps its contents.
fn remove(folder: &Path) -> Result<(), String> {
    let below = |folder: &Path| mount::mounts_below(folder).map_err(|error| format!("read the mount table: {error}"));
    for path in below(folder)?.iter().rev() {
        mount::unmount_path(path)
            .or_else(|_| mount::detach(path))
            .map_err(|error| format!("unmount {}: {error}", path.display()))?;
    }
    if let Some(path) = below(folder)?.first() {
        return Err(format!("{} is still mounted", path.display()));
    }
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("remove {}: {error}", folder.display()))
        }
        _ => Ok(()),
    }
}
