//! From a pod's volume to the volume of a driver: claim, volume, inline source.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use k8s_openapi::api::core::v1::{CSIPersistentVolumeSource, PersistentVolume, Pod, SecretReference, Volume};
use orlop_agent_core::containers;
use orlop_proto::csi::VolumeCapability;
use orlop_proto::csi::volume_capability::access_mode::Mode;
use orlop_proto::csi::volume_capability::{AccessMode, AccessType, MountVolume};
use sha2::{Digest, Sha256};

use crate::VolumesConfig;

/// What a claim or inline volume leads to.
pub(super) enum Found {
    /// A path of the machine, and whether it is read-only.
    Path(PathBuf, bool),
    /// A volume of a driver.
    Csi(Box<CsiVolume>),
}

/// A volume of a driver.
#[derive(Clone, Debug, Default)]
pub(super) struct CsiVolume {
    /// Name of its folder in the pod.
    pub(super) name: String,
    pub(super) driver: String,
    pub(super) handle: String,
    pub(super) attributes: HashMap<String, String>,
    pub(super) fs_type: String,
    pub(super) read_only: bool,
    pub(super) mount_options: Vec<String>,
    pub(super) access_modes: Vec<String>,
    /// It lives as long as the pod.
    pub(super) ephemeral: bool,
    pub(super) stage_secrets: HashMap<String, String>,
    pub(super) publish_secrets: HashMap<String, String>,
}

impl CsiVolume {
    /// What the pod does with it.
    pub(super) fn capability(&self) -> VolumeCapability {
        let mode = match self.access_modes.first().map(String::as_str) {
            Some("ReadOnlyMany") => Mode::MultiNodeReaderOnly,
            Some("ReadWriteMany") => Mode::MultiNodeMultiWriter,
            _ => Mode::SingleNodeWriter,
        };
        VolumeCapability {
            access_mode: Some(AccessMode { mode: mode.into() }),
            access_type: Some(AccessType::Mount(MountVolume {
                fs_type: self.fs_type.clone(),
                mount_flags: self.mount_options.clone(),
                volume_mount_group: String::new(),
            })),
        }
    }

    /// One node writes to it.
    pub(super) fn is_single_writer(&self) -> bool {
        self.access_modes.iter().all(|mode| mode == "ReadWriteOnce" || mode == "ReadWriteOncePod")
    }
}

/// Follows a volume of a pod to its source.
pub(super) async fn find(config: &VolumesConfig, pod: &Pod, volume: &Volume) -> Result<Found, String> {
    if let Some(inline) = &volume.csi {
        let secret = inline.node_publish_secret_ref.as_ref().map(|reference| SecretReference {
            name: Some(reference.name.clone()),
            namespace: Some(containers::namespace(pod).to_owned()),
        });
        let attributes = inline.volume_attributes.clone().unwrap_or_default();
        return Ok(Found::Csi(Box::new(CsiVolume {
            name: volume.name.clone(),
            driver: inline.driver.clone(),
            handle: inline_handle(pod, &volume.name),
            attributes: attributes.into_iter().collect(),
            fs_type: inline.fs_type.clone().unwrap_or_default(),
            read_only: inline.read_only.unwrap_or_default(),
            ephemeral: true,
            publish_secrets: secrets(config, secret.as_ref()).await?,
            ..CsiVolume::default()
        })));
    }
    let source = volume.persistent_volume_claim.as_ref();
    let claim_name = match source {
        Some(source) => source.claim_name.clone(),
        None => format!("{}-{}", containers::name(pod), volume.name),
    };
    let read_only = source.and_then(|source| source.read_only).unwrap_or_default();
    let namespace = containers::namespace(pod);
    let claim = config.objects.claim(namespace, &claim_name).await.map_err(|error| error.to_string())?;
    let bound = claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound");
    let name = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone()).filter(|name| bound && !name.is_empty());
    let name = name.ok_or_else(|| format!("persistentvolumeclaim \"{claim_name}\" is not bound yet"))?;
    let volume = config.objects.volume(&name).await.map_err(|error| error.to_string())?;
    of_volume(config, &name, &volume, read_only).await
}

async fn of_volume(
    config: &VolumesConfig,
    name: &str,
    volume: &PersistentVolume,
    read_only: bool,
) -> Result<Found, String> {
    let spec = volume.spec.clone().unwrap_or_default();
    if let Some(source) = spec.host_path {
        return Ok(Found::Path(source.path.into(), read_only));
    }
    if let Some(source) = spec.local {
        return Ok(Found::Path(source.path.into(), read_only));
    }
    let Some(source) = spec.csi else {
        return Err(format!("persistentvolume \"{name}\" is of a kind that this node does not support; use CSI"));
    };
    if spec.volume_mode.as_deref() == Some("Block") {
        return Err(format!("persistentvolume \"{name}\" is a block device, which is not supported yet"));
    }
    let CSIPersistentVolumeSource { driver, volume_handle, fs_type, volume_attributes, .. } = source.clone();
    Ok(Found::Csi(Box::new(CsiVolume {
        name: name.to_owned(),
        driver,
        handle: volume_handle,
        attributes: volume_attributes.unwrap_or_default().into_iter().collect(),
        fs_type: fs_type.unwrap_or_default(),
        read_only: read_only || source.read_only.unwrap_or_default(),
        mount_options: spec.mount_options.unwrap_or_default(),
        access_modes: spec.access_modes.unwrap_or_default(),
        ephemeral: false,
        stage_secrets: secrets(config, source.node_stage_secret_ref.as_ref()).await?,
        publish_secrets: secrets(config, source.node_publish_secret_ref.as_ref()).await?,
    })))
}

async fn secrets(
    config: &VolumesConfig,
    reference: Option<&SecretReference>,
) -> Result<HashMap<String, String>, String> {
    let Some(reference) = reference else { return Ok(HashMap::new()) };
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let secret = config.objects.secret(&text(&reference.namespace), &text(&reference.name)).await;
    let secret = secret.map_err(|error| error.to_string())?;
    let data: BTreeMap<_, _> = secret.data.clone().unwrap_or_default();
    Ok(data.into_iter().map(|(key, value)| (key, String::from_utf8_lossy(&value.0).into_owned())).collect())
}

/// The handle of an inline volume (kubelet: `makeVolumeHandle`).
fn inline_handle(pod: &Pod, name: &str) -> String {
    let text = format!("{}{}", name, containers::uid(pod));
    format!("csi-{}", hex::encode(Sha256::digest(text.as_bytes())))
}
