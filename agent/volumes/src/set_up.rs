//! Making a pod's volumes available, one after the other; each step may be repeated.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Volume};
use orlop_agent_core::containers;
use orlop_agent_core::ports::{MountedVolume, VolumeError};

use crate::contents::Contents;
use crate::{PodVolumes, blocking, contents, csi, folders, ownership, volume_folder};

/// Bytes of a tmpfs for contents of the API, which bounds an object to 1 MiB.
const CONTENTS_TMPFS: &str = "64m";

/// Makes every volume that a container mounts available.
pub(crate) async fn set_up(
    volumes: &PodVolumes,
    pod: &Arc<Pod>,
) -> Result<BTreeMap<String, MountedVolume>, VolumeError> {
    let used = used_names(pod);
    let all = pod.spec.as_ref().and_then(|spec| spec.volumes.clone()).unwrap_or_default();
    let mut mounted = BTreeMap::new();
    for volume in all.iter().filter(|volume| used.contains(&volume.name)) {
        let made = set_up_one(volumes, pod, volume).await;
        let made = made.map_err(|message| VolumeError::SetUp { volume: volume.name.clone(), message })?;
        mounted.insert(volume.name.clone(), made);
    }
    Ok(mounted)
}

/// Names that a container of the pod mounts.
fn used_names(pod: &Pod) -> BTreeSet<String> {
    let Some(spec) = &pod.spec else { return BTreeSet::new() };
    let apps = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let ephemeral = spec.ephemeral_containers.iter().flatten();
    apps.flat_map(|container| container.volume_mounts.iter().flatten())
        .chain(ephemeral.flat_map(|container| container.volume_mounts.iter().flatten()))
        .map(|mount| mount.name.clone())
        .collect()
}

async fn set_up_one(volumes: &PodVolumes, pod: &Arc<Pod>, volume: &Volume) -> Result<MountedVolume, String> {
    let uid = containers::uid(pod).to_owned();
    let base = volumes.folder(&uid);
    let group = ownership::group(pod);
    let plain = |host_path: PathBuf| MountedVolume { host_path, read_only: false, image: None };
    if let Some(empty) = &volume.empty_dir {
        let folder = volume_folder(&base, "empty-dir", &volume.name);
        let size = folders::size_limit(empty)?;
        let memory = match empty.medium.as_deref().unwrap_or_default() {
            "" => false,
            "Memory" => true,
            other => return Err(format!("emptyDir.medium {other:?} is not supported; use \"\" or Memory")),
        };
        let made = folder.clone();
        blocking(move || {
            folders::make_empty(&made, memory, size)?;
            ownership::apply(&made, group, false)
        })
        .await?;
        return Ok(plain(folder));
    }
    if let Some(host) = &volume.host_path {
        let (path, kind) = (PathBuf::from(&host.path), host.type_.clone().unwrap_or_default());
        let checked = path.clone();
        blocking(move || folders::check_host(&checked, &kind)).await?;
        return Ok(plain(path));
    }
    if let Some(image) = &volume.image {
        let reference = image.reference.clone().unwrap_or_default();
        return Ok(MountedVolume { host_path: PathBuf::new(), read_only: true, image: Some(reference) });
    }
    if let Some((kind, memory)) = contents_kind(volume) {
        let contents = contents::collect(volumes, pod, volume).await?;
        volumes.refresh.note(pod, contents.refresh_after);
        let folder = volume_folder(&base, kind, &volume.name);
        write_contents(folder.clone(), contents, memory, group).await?;
        return Ok(plain(folder));
    }
    if volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some() || volume.csi.is_some() {
        return csi::set_up(&volumes.config, pod, volume, &base, group).await;
    }
    Err("this kind of volume is not supported by this node; use a claim of a CSI driver".into())
}

/// Folder name of the kinds whose contents come from the API, and whether they are kept in memory.
fn contents_kind(volume: &Volume) -> Option<(&'static str, bool)> {
    [
        (volume.config_map.is_some(), ("configmap", false)),
        (volume.secret.is_some(), ("secret", true)),
        (volume.downward_api.is_some(), ("downward-api", true)),
        (volume.projected.is_some(), ("projected", true)),
    ]
    .into_iter()
    .find_map(|(is, kind)| is.then_some(kind))
}

async fn write_contents(folder: PathBuf, contents: Contents, memory: bool, group: Option<u32>) -> Result<(), String> {
    blocking(move || {
        folders::make(&folder, 0o755)?;
        if memory {
            folders::mount_tmpfs(&folder, CONTENTS_TMPFS, 0o777)?;
        }
        let changed = crate::atomic_writer::write(&folder, &contents.files, |part| ownership::apply(part, group, true));
        changed.map_err(|error| format!("write {}: {error}", folder.display()))
    })
    .await
}
