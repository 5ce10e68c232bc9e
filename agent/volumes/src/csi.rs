//! Volumes of CSI drivers, under the kubelet's paths.
//!
//! `plugins/kubernetes.io/csi/<driver>/<sha256 of the handle>/globalmount` is staged once per node;
//! `pods/<uid>/volumes/kubernetes.io~csi/<volume>/mount` is published once per pod. `vol_data.json` beside each tells
//! what it is, so that it can be taken down without the API.

mod client;
mod find;
mod record;

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Pod, Volume};
use orlop_agent_core::containers;
use orlop_agent_core::ports::{MountedVolume, PortError};
use orlop_proto::csi::{NodePublishVolumeRequest, NodeStageVolumeRequest};
use sha2::{Digest, Sha256};

use crate::{VolumesConfig, blocking, folders, ownership, volume_folder};
use client::NodeDriver;
use find::{CsiVolume, Found};
use record::VolumeData;

/// Stages and publishes a volume; fine when it is there.
pub(crate) async fn set_up(
    config: &VolumesConfig,
    pod: &Pod,
    volume: &Volume,
    volumes: &Path,
    group: Option<u32>,
) -> Result<MountedVolume, String> {
    let found = match find::find(config, pod, volume).await? {
        Found::Path(host_path, read_only) => return Ok(MountedVolume { host_path, read_only, image: None }),
        Found::Csi(found) => *found,
    };
    let folder = volume_folder(volumes, "csi", &found.name);
    let target = folder.join("mount");
    let mounted = MountedVolume { host_path: target.clone(), read_only: found.read_only, image: None };
    let (data_file, place) = (folder.join(record::FILE), target.clone());
    if blocking(move || Ok(data_file.is_file() && folders::is_mounted(&place))).await? {
        return Ok(mounted);
    }
    let policy = driver_policy(config, &found.driver).await?;
    let driver = NodeDriver::connect(config, &found.driver).await?;
    let mut context = found.attributes.clone();
    if policy.pod_info {
        context.extend(pod_info(pod, found.ephemeral));
    }
    let stage = if found.ephemeral || !driver.stages().await? {
        PathBuf::new()
    } else {
        stage(config, &driver, &found).await?
    };
    let data = VolumeData::new(&found, &config.node_name);
    let made = folder.clone();
    blocking(move || {
        folders::make(&made, 0o750)?;
        record::write(&made, &data)
    })
    .await?;
    let request = NodePublishVolumeRequest {
        volume_id: found.handle.clone(),
        staging_target_path: stage.display().to_string(),
        target_path: target.display().to_string(),
        volume_capability: Some(found.capability()),
        readonly: found.read_only,
        secrets: found.publish_secrets.clone(),
        volume_context: context,
        ..Default::default()
    };
    driver.publish(request).await?;
    if policy.changes_group(&found) {
        let path = target.clone();
        blocking(move || ownership::apply(&path, group, false)).await?;
    }
    Ok(mounted)
}

async fn stage(config: &VolumesConfig, driver: &NodeDriver, found: &CsiVolume) -> Result<PathBuf, String> {
    let folder = stage_folder(&config.kubelet_root, &found.driver, &found.handle);
    let mount = folder.join("globalmount");
    let (made, place) = (folder.clone(), mount.clone());
    let data = VolumeData::new(found, &config.node_name);
    blocking(move || {
        folders::make(&place, 0o750)?;
        record::write(&made, &data)
    })
    .await?;
    let request = NodeStageVolumeRequest {
        volume_id: found.handle.clone(),
        staging_target_path: mount.display().to_string(),
        volume_capability: Some(found.capability()),
        secrets: found.stage_secrets.clone(),
        volume_context: found.attributes.clone(),
        ..Default::default()
    };
    driver.stage(request).await?;
    Ok(mount)
}

/// Where a volume of a driver is staged.
fn stage_folder(kubelet_root: &Path, driver: &str, handle: &str) -> PathBuf {
    let name = hex::encode(Sha256::digest(handle.as_bytes()));
    kubelet_root.join("plugins/kubernetes.io/csi").join(driver).join(name)
}

/// Unpublishes a volume of a pod, and unstages it with its last user.
pub(crate) async fn tear_down(config: &VolumesConfig, uid: &str, folder: &Path) -> Result<(), String> {
    let Some(data) = record::read(folder)? else { return Ok(()) };
    let driver = NodeDriver::connect(config, &data.driver_name).await?;
    let target = folder.join("mount");
    driver.unpublish(&data.volume_handle, &target).await?;
    let stage = stage_folder(&config.kubelet_root, &data.driver_name, &data.volume_handle);
    let (pods, own, handle) = (config.kubelet_root.join("pods"), uid.to_owned(), data.volume_handle.clone());
    let name = data.driver_name.clone();
    let used = blocking(move || Ok(record::users(&pods, &name, &handle).iter().any(|user| *user != own))).await?;
    if stage.is_dir() && !used {
        driver.unstage(&data.volume_handle, &stage.join("globalmount")).await?;
        blocking(move || {
            if folders::is_mounted(&stage.join("globalmount")) {
                return Err(format!("the driver left {} mounted", stage.join("globalmount").display()));
            }
            std::fs::remove_dir_all(&stage).map_err(|error| format!("remove {}: {error}", stage.display()))
        })
        .await?;
    }
    let gone = folder.to_path_buf();
    blocking(move || record::remove(&gone)).await
}

/// What a CSIDriver object asks of the node.
struct Policy {
    pod_info: bool,
    group: String,
}

impl Policy {
    /// Whether the node gives the volume to the pod's group (`fsGroupPolicy`).
    fn changes_group(&self, volume: &CsiVolume) -> bool {
        match self.group.as_str() {
            "File" => !volume.read_only,
            "None" => false,
            _ => !volume.read_only && !volume.fs_type.is_empty() && volume.is_single_writer(),
        }
    }
}

async fn driver_policy(config: &VolumesConfig, name: &str) -> Result<Policy, String> {
    let spec = match config.objects.csi_driver(name).await {
        Ok(driver) => driver.spec.clone(),
        Err(PortError::NotFound { .. }) => Default::default(),
        Err(error) => return Err(error.to_string()),
    };
    if spec.attach_required.unwrap_or(true) {
        return Err(format!(
            "the CSI driver {name} wants volumes to be attached first, which this node does not wait for yet; \
             set attachRequired: false in its CSIDriver object"
        ));
    }
    Ok(Policy { pod_info: spec.pod_info_on_mount.unwrap_or_default(), group: spec.fs_group_policy.unwrap_or_default() })
}

/// What a driver is told of the pod (`podInfoOnMount`).
fn pod_info(pod: &Pod, ephemeral: bool) -> [(String, String); 5] {
    let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone()).unwrap_or_default();
    [
        ("csi.storage.k8s.io/pod.name", containers::name(pod).to_owned()),
        ("csi.storage.k8s.io/pod.namespace", containers::namespace(pod).to_owned()),
        ("csi.storage.k8s.io/pod.uid", containers::uid(pod).to_owned()),
        ("csi.storage.k8s.io/serviceAccount.name", account),
        ("csi.storage.k8s.io/ephemeral", ephemeral.to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
}
