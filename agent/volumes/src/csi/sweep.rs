//! Staged volumes that no pod has any more: what a crash between unpublish and unstage leaves, or a damaged record.

use std::path::Path;
use std::sync::Arc;

use crate::csi::client::NodeDriver;
use crate::csi::record::{self, VolumeData};
use crate::csi::unmounting::unstage;
use crate::csi::volume::key;
use crate::file::blocking;
use crate::pod_volumes::Shared;

/// Unstages what no pod has, as far as the drivers are there. Failures are tried again by the next sweep.
pub(crate) async fn sweep_stages(shared: &Arc<Shared>) {
    let (stages, pods) = (shared.layout.stages(), shared.layout.pods());
    let unused = blocking(move || Ok::<_, String>(unused_stages(&stages, &pods))).await.unwrap_or_default();
    for data in unused {
        let registered = shared.config.drivers.borrow().iter().any(|driver| driver.name == data.driver_name);
        if !registered {
            continue;
        }
        if let Err(error) = sweep(shared, &data).await {
            tracing::warn!(
                volume = data.volume_handle,
                driver = data.driver_name,
                error,
                "a volume that no pod has is still staged"
            );
        }
    }
}

async fn sweep(shared: &Arc<Shared>, data: &VolumeData) -> Result<(), String> {
    let lock = shared.locks.get(&key(&data.driver_name, &data.volume_handle));
    let _held = lock.lock().await;
    // A pod may have come for it meanwhile: it writes its record under this lock.
    let (pods, wanted) = (shared.layout.pods(), data.clone());
    let users = blocking(move || Ok::<_, String>(record::users(&pods, &wanted.driver_name, &wanted.volume_handle)));
    if !users.await?.is_empty() {
        return Ok(());
    }
    let driver = NodeDriver::connect(&shared.config, &data.driver_name).await.map_err(|error| error.to_string())?;
    unstage(shared, &driver, data).await?;
    tracing::info!(volume = data.volume_handle, driver = data.driver_name, "a volume that no pod has was unstaged");
    Ok(())
}

/// Records of staged volumes that no pod on disk has.
fn unused_stages(stages: &Path, pods: &Path) -> Vec<VolumeData> {
    let entries = |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().flatten();
    let volumes = entries(stages).flat_map(|driver| entries(&driver.path()).collect::<Vec<_>>());
    let records = volumes.filter_map(|volume| match record::read(&volume.path()) {
        Ok(found) => found,
        Err(error) => {
            tracing::warn!(%error, "a staged volume is left alone; unmount it and remove its folder by hand");
            None
        }
    });
    records.filter(|data| record::users(pods, &data.driver_name, &data.volume_handle).is_empty()).collect()
}
