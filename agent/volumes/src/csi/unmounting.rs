//! Taking a driver's volume out of a pod, and off the node with its last pod, by what is on disk.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use orlop_kernel::mount;

use crate::csi::client::NodeDriver;
use crate::csi::record::{self, RecordError, VolumeData};
use crate::csi::state::VolumeEvent;
use crate::csi::volume::key;
use crate::file::{blocking, failed, remove_empty, remove_file};
use crate::pod_volumes::Shared;
use crate::slots::Slot;

/// Takes a volume out of a pod; each step may be repeated. The record goes last.
pub(crate) async fn tear_down(
    shared: &Arc<Shared>,
    uid: &str,
    slot: &Slot,
    name: &str,
    folder: &Path,
) -> Result<(), String> {
    let target = folder.join("mount");
    let (read, at) = (folder.to_path_buf(), target.clone());
    let data = blocking(move || look(&read, &at)).await?;
    let happened = |event| slot.set_state(name, slot.state(name).after(event));
    if let Some(data) = data {
        let driver = NodeDriver::connect(&shared.config, &data.driver_name).await.map_err(|error| error.to_string())?;
        let lock = shared.locks.get(&key(&data.driver_name, &data.volume_handle));
        let _held = lock.lock().await;
        if let Err(error) = driver.unpublish(&data.volume_handle, &target).await {
            happened(VolumeEvent::Unclear);
            return Err(error.to_string());
        }
        let at = target.clone();
        blocking(move || remove_target(&at)).await?;
        happened(VolumeEvent::Unpublished);
        let (pods, own, record) = (shared.layout.pods(), uid.to_owned(), data.clone());
        let used = blocking(move || {
            let users = record::users(&pods, &record.driver_name, &record.volume_handle);
            Ok::<_, String>(users.iter().any(|user| *user != own))
        });
        if !used.await? {
            unstage(shared, &driver, &data).await?;
        }
        happened(VolumeEvent::Unstaged);
    }
    let folder = folder.to_path_buf();
    blocking(move || forget(&folder, &target)).await
}

/// The record of a volume in a pod. A volume whose record is damaged is unmounted without its driver: its data stay
/// where they are, and its stage is seen to by the sweep.
fn look(folder: &Path, target: &Path) -> Result<Option<VolumeData>, String> {
    match record::read(folder) {
        Ok(None) => {}
        Ok(found) => return Ok(found),
        Err(error @ RecordError::Damaged { .. }) => {
            tracing::error!(%error, "a volume is unmounted without telling its CSI driver, whose name is lost");
        }
        Err(error) => return Err(error.to_string()),
    }
    if mount::is_mount_point(target).map_err(failed("look at", target)).map_err(|error| error.to_string())? {
        mount::unmount_path(target).map_err(failed("unmount", target)).map_err(|error| error.to_string())?;
    }
    Ok(None)
}

/// Takes a staged volume off the node. The caller holds its lock and knows that no pod has it.
pub(super) async fn unstage(shared: &Arc<Shared>, driver: &NodeDriver, data: &VolumeData) -> Result<(), String> {
    let stage = shared.layout.stage(&data.driver_name, &data.volume_handle);
    let (at, mounted) = (stage.clone(), stage.join("globalmount"));
    if !blocking(move || Ok::<_, String>(at.is_dir())).await? {
        return Ok(());
    }
    shared.set_staged(&key(&data.driver_name, &data.volume_handle), false);
    driver.unstage(&data.volume_handle, &mounted).await.map_err(|error| error.to_string())?;
    blocking(move || forget(&stage, &mounted)).await
}

/// Removes an empty mount point, unless something is still mounted: data below a mount are never touched.
fn remove_target(target: &Path) -> Result<(), String> {
    if mount::is_mount_point(target).map_err(failed("look at", target)).map_err(|error| error.to_string())? {
        return Err(format!("the driver reports success, but {} is still mounted", target.display()));
    }
    let removed = match std::fs::symlink_metadata(target) {
        Ok(found) if found.is_dir() => remove_empty(target),
        Ok(_) => remove_file(target),
        Err(_) => Ok(()),
    };
    removed.map_err(|error| error.to_string())
}

/// Removes mount point, record and folder of a volume that is not mounted any more.
pub(super) fn forget(folder: &Path, target: &Path) -> Result<(), String> {
    remove_target(target)?;
    let files: [PathBuf; 2] = [folder.join(record::FILE), folder.join(".vol_data.json.new")];
    for file in files {
        remove_file(&file).map_err(|error| error.to_string())?;
    }
    remove_empty(folder).map_err(|error| error.to_string())
}
