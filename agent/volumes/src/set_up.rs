//! Making a pod's volumes available, side by side; each step may be repeated.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::core::v1::{PersistentVolumeSpec, Pod};
use orlop_agent_core::ports::{MountedVolume, VolumeError};
use orlop_kernel::mount;
use tokio::time::Instant;

use crate::claim::{ClaimError, bound_volume, check_volume, claim_of};
use crate::csi::{self, CsiVolume};
use crate::file::{blocking, make_folder};
use crate::kinds::{empty_dir, host_path, local};
use crate::layout::{check_name, plugin};
use crate::ownership::{self, FsGroup};
use crate::plan::{Desired, Kind, desired};
use crate::pod_volumes::Shared;
use crate::slots::Slot;
use crate::{atomic_writer, contents};

/// Between two looks at a claim that is not bound.
const CLAIM_INTERVAL: Duration = Duration::from_millis(500);

/// A pod whose volumes are being made.
#[derive(Clone)]
pub(crate) struct PodContext {
    pub(crate) shared: Arc<Shared>,
    pub(crate) pod: Arc<Pod>,
    pub(crate) uid: String,
    pub(crate) slot: Arc<Slot>,
}

/// Makes every volume that a container uses available. All are tried; the first failure in the pod's order is told.
pub(crate) async fn set_up(pod: PodContext) -> Result<BTreeMap<String, MountedVolume>, VolumeError> {
    if pod.slot.ending.is_cancelled() {
        return Err(VolumeError::Waiting { volumes: String::new(), message: "the pod is ending".to_owned() });
    }
    let wanted = desired(&pod.pod);
    if wanted.is_empty() {
        return Ok(BTreeMap::new());
    }
    let folder = pod.shared.layout.volumes(&pod.uid);
    let named = check_name("uid", &pod.uid).map_err(|error| error.to_string());
    let made = match named {
        Ok(()) => blocking(move || make_folder(&folder, 0o750)).await,
        Err(message) => Err(message),
    };
    made.map_err(|message| VolumeError::SetUp { volume: wanted[0].volume.name.clone(), message })?;
    let made = join_all(wanted.iter().map(|volume| pod.set_up(volume))).await;
    wanted.iter().zip(made).map(|(wanted, made)| Ok((wanted.volume.name.clone(), made?))).collect()
}

impl PodContext {
    async fn set_up(&self, wanted: &Desired<'_>) -> Result<MountedVolume, VolumeError> {
        let name = &wanted.volume.name;
        let failed = |message: String| VolumeError::SetUp { volume: name.clone(), message };
        check_name("volume", name).map_err(|error| failed(error.to_string()))?;
        if wanted.as_device && wanted.kind != Kind::Claim {
            return Err(failed("only a claim can be a block device".to_owned()));
        }
        match wanted.kind {
            Kind::EmptyDir => self.empty_dir(wanted).await.map_err(failed),
            Kind::HostPath => self.host_path(wanted).await.map_err(failed),
            Kind::Contents => self.contents(wanted).await.map_err(failed),
            Kind::Claim => self.claim(wanted).await,
            Kind::InlineCsi => match (&wanted.volume.csi, self.still_mounted(name).await) {
                (_, Some(mounted)) => Ok(mounted),
                (Some(source), None) => csi::set_up(self, name, &CsiVolume::inline(&self.pod, name, source)).await,
                (None, None) => Err(failed("the volume has no source".to_owned())),
            },
            Kind::Image => {
                let reference = wanted.volume.image.as_ref().and_then(|image| image.reference.clone());
                Ok(MountedVolume { host_path: PathBuf::new(), read_only: true, image: reference })
            }
            Kind::Unsupported(kind, instead) => {
                Err(failed(format!("no volume plugin matched: volumes {kind} are not served by this node; {instead}")))
            }
        }
    }

    async fn empty_dir(&self, wanted: &Desired<'_>) -> Result<MountedVolume, String> {
        let name = &wanted.volume.name;
        let _step = self.slot.step(name, "making the emptyDir");
        let source = wanted.volume.empty_dir.as_ref();
        let medium = empty_dir::medium(source, &self.pod, &self.shared.config.allocatable);
        let medium = medium.map_err(|error| error.to_string())?;
        let folder = self.shared.layout.volume(&self.uid, plugin::EMPTY_DIR, name);
        let mark = empty_dir::ready_mark(&self.shared.layout.marks(&self.uid), name);
        let group = FsGroup::of(&self.pod);
        let made = folder.clone();
        blocking(move || {
            if empty_dir::make(&made, &mark, &medium)? {
                group.map(|group| ownership::apply(&made, group, false)).transpose()?;
                empty_dir::set_ready(&mark)?;
            }
            Ok::<_, crate::file::FileError>(())
        })
        .await?;
        Ok(MountedVolume { host_path: folder, read_only: false, image: None })
    }

    async fn host_path(&self, wanted: &Desired<'_>) -> Result<MountedVolume, String> {
        let Some(source) = &wanted.volume.host_path else { return Err("the volume has no source".to_owned()) };
        self.check_path(&wanted.volume.name, &source.path, source.type_.as_deref().unwrap_or_default()).await?;
        Ok(MountedVolume { host_path: PathBuf::from(&source.path), read_only: false, image: None })
    }

    async fn check_path(&self, name: &str, path: &str, kind: &str) -> Result<(), String> {
        let _step = self.slot.step(name, "looking at the path of the node");
        let (path, kind) = (PathBuf::from(path), kind.to_owned());
        blocking(move || host_path::check(&path, &kind)).await
    }

    /// Files of the API in a folder that containers can only read.
    async fn contents(&self, wanted: &Desired<'_>) -> Result<MountedVolume, String> {
        let name = &wanted.volume.name;
        let _step = self.slot.step(name, "fetching and writing the files");
        let config = &self.shared.config;
        let files = contents::collect(config, &self.pod, wanted.volume).await.map_err(|error| error.to_string())?;
        let (plugin, in_memory) = contents::place(wanted.volume);
        let folder = self.shared.layout.volume(&self.uid, plugin, name);
        let mark = empty_dir::ready_mark(&self.shared.layout.marks(&self.uid), &format!("wrapped_{name}"));
        let medium = match in_memory {
            true => empty_dir::Medium::Memory(empty_dir::memory_bytes(None, &self.pod, &config.allocatable)),
            false => empty_dir::Medium::Disk,
        };
        let group = FsGroup::of(&self.pod);
        let made = folder.clone();
        blocking(move || {
            let fresh = empty_dir::make(&made, &mark, &medium).map_err(|error| error.to_string())?;
            let give = |path: &std::path::Path| match group {
                Some(group) => ownership::apply(path, group, true).map_err(|error| error.to_string()),
                None => Ok(()),
            };
            let written = atomic_writer::write(&made, &files, give).map_err(|error| error.to_string())?;
            if fresh || written {
                give(&made)?;
                empty_dir::set_ready(&mark).map_err(|error| error.to_string())?;
            }
            Ok::<_, String>(())
        })
        .await?;
        Ok(MountedVolume { host_path: folder, read_only: true, image: None })
    }

    /// A volume of a driver that this run of the agent has mounted and that is still there, unless its driver wants to
    /// be told again.
    async fn still_mounted(&self, name: &str) -> Option<MountedVolume> {
        let known = self.slot.mounted(name)?;
        let (path, is_mount) = (known.volume.host_path.clone(), known.is_mount);
        let look = move || Ok::<_, std::io::Error>(path.exists() && mount::is_mount_point(&path)? == is_mount);
        if !blocking(look).await.unwrap_or(false) {
            self.slot.lose(name);
            return None;
        }
        (!known.republish).then_some(known.volume)
    }

    async fn claim(&self, wanted: &Desired<'_>) -> Result<MountedVolume, VolumeError> {
        let name = &wanted.volume.name;
        if let Some(mounted) = self.still_mounted(name).await {
            return Ok(mounted);
        }
        let waiting = |message: String| VolumeError::Waiting { volumes: name.clone(), message };
        let config = &self.shared.config;
        let (claim_name, read_only) = claim_of(&self.pod, wanted.volume);
        let namespace = orlop_agent_core::containers::namespace(&self.pod);
        let until = Instant::now() + config.patience;
        let (claim, volume_name) = loop {
            let claim = config.objects.claim(namespace, &claim_name).await;
            let claim =
                claim.map_err(|error| waiting(format!("error processing PVC {namespace}/{claim_name}: {error}")))?;
            let known = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone()).unwrap_or_default();
            let folder = self.shared.layout.volume(&self.uid, plugin::CSI, &known);
            match bound_volume(&self.pod, wanted.volume, &claim, known.is_empty() || !folder.is_dir()) {
                Ok(volume) => break (claim, volume),
                Err(ClaimError::Unbound(_)) if Instant::now() + CLAIM_INTERVAL < until => {
                    let _step = self.slot.step(name, "waiting for the claim to be bound");
                    tokio::select! {
                        () = tokio::time::sleep(CLAIM_INTERVAL) => {}
                        () = self.slot.ending.cancelled() => return Err(waiting("the pod is ending".to_owned())),
                    }
                }
                Err(error) => return Err(waiting(error.to_string())),
            }
        };
        let volume = config.objects.volume(&volume_name).await.map_err(|error| waiting(error.to_string()))?;
        let labels = config.node.labels();
        let spec = check_volume(&claim, &volume, &config.node_name, &labels, wanted.as_device);
        let spec = spec.map_err(|error| waiting(error.to_string()))?;
        self.persistent(name, &volume_name, &spec, read_only).await
    }

    async fn persistent(
        &self,
        name: &str,
        volume_name: &str,
        spec: &PersistentVolumeSpec,
        read_only: bool,
    ) -> Result<MountedVolume, VolumeError> {
        let failed = |message: String| VolumeError::SetUp { volume: volume_name.to_owned(), message };
        if let Some(volume) = CsiVolume::persistent(volume_name, spec, read_only) {
            return csi::set_up(self, name, &volume).await;
        }
        if let Some(source) = &spec.host_path {
            let kind = source.type_.as_deref().unwrap_or_default();
            self.check_path(name, &source.path, kind).await.map_err(failed)?;
            return Ok(MountedVolume { host_path: PathBuf::from(&source.path), read_only, image: None });
        }
        let Some(source) = &spec.local else { return Err(failed("the volume has no source".to_owned())) };
        check_name("volume", volume_name).map_err(|error| failed(error.to_string()))?;
        let _step = self.slot.step(name, "mounting the local volume");
        let folder = self.shared.layout.volume(&self.uid, plugin::LOCAL, volume_name);
        let (path, made, group) = (PathBuf::from(&source.path), folder.clone(), FsGroup::of(&self.pod));
        let made = blocking(move || {
            local::make(&path, &made, read_only)?;
            match group.filter(|_| !read_only) {
                Some(group) => ownership::apply(&made, group, false),
                None => Ok(()),
            }
        });
        made.await.map_err(failed)?;
        Ok(MountedVolume { host_path: folder, read_only, image: None })
    }
}
