//! A volume as a driver is asked for it. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{CSIVolumeSource, PersistentVolumeSpec, Pod, SecretReference};
use orlop_agent_core::containers;
use orlop_proto::csi::VolumeCapability;
use orlop_proto::csi::volume_capability::access_mode::Mode;
use orlop_proto::csi::volume_capability::{AccessMode, AccessType, MountVolume};
use sha2::{Digest, Sha256};

use crate::csi::rules::NodeAbilities;

/// Namespace and name of a secret.
pub(super) type SecretName = (String, String);

/// A volume of a driver.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CsiVolume {
    /// Name of its folder in the pod: the persistent volume's, or the pod's own for an inline one.
    pub(crate) spec_name: String,
    pub(crate) driver: String,
    pub(crate) handle: String,
    pub(crate) read_only: bool,
    /// It is in the pod's own words and lives as long as the pod.
    pub(crate) inline: bool,
    pub(super) attributes: BTreeMap<String, String>,
    pub(super) fs_type: String,
    pub(super) mount_options: Vec<String>,
    pub(super) access_modes: Vec<String>,
    pub(super) stage_secret: Option<SecretName>,
    pub(super) publish_secret: Option<SecretName>,
}

impl CsiVolume {
    /// A persistent volume. None when it is no CSI volume.
    pub(crate) fn persistent(name: &str, spec: &PersistentVolumeSpec, read_only: bool) -> Option<CsiVolume> {
        let source = spec.csi.clone()?;
        let secret = |reference: Option<SecretReference>| {
            reference.map(|secret| (secret.namespace.unwrap_or_default(), secret.name.unwrap_or_default()))
        };
        Some(CsiVolume {
            spec_name: name.to_owned(),
            driver: source.driver,
            handle: source.volume_handle,
            read_only: read_only || source.read_only == Some(true),
            inline: false,
            attributes: source.volume_attributes.unwrap_or_default(),
            fs_type: source.fs_type.unwrap_or_default(),
            mount_options: spec.mount_options.clone().unwrap_or_default(),
            access_modes: spec.access_modes.clone().unwrap_or_default(),
            stage_secret: secret(source.node_stage_secret_ref),
            publish_secret: secret(source.node_publish_secret_ref),
        })
    }

    /// An inline volume of a pod; its handle is the kubelet's `makeVolumeHandle`.
    pub(crate) fn inline(pod: &Pod, name: &str, source: &CSIVolumeSource) -> CsiVolume {
        let namespace = containers::namespace(pod).to_owned();
        let text = format!("{}{name}", containers::uid(pod));
        CsiVolume {
            spec_name: name.to_owned(),
            driver: source.driver.clone(),
            handle: format!("csi-{}", hex::encode(Sha256::digest(text))),
            read_only: source.read_only == Some(true),
            inline: true,
            attributes: source.volume_attributes.clone().unwrap_or_default(),
            fs_type: source.fs_type.clone().unwrap_or_default(),
            publish_secret: source.node_publish_secret_ref.clone().map(|secret| (namespace, secret.name)),
            ..CsiVolume::default()
        }
    }

    /// `volumeLifecycleMode`.
    pub(super) fn lifecycle(&self) -> &'static str {
        if self.inline { "Ephemeral" } else { "Persistent" }
    }

    /// Only one pod may have it.
    pub(super) fn is_for_one_pod(&self) -> bool {
        self.access_modes.iter().any(|mode| mode == "ReadWriteOncePod")
    }

    /// Name of its VolumeAttachment on a node (kubelet `getAttachmentName`).
    pub(super) fn attachment_name(&self, node_name: &str) -> String {
        let text = format!("{}{}{node_name}", self.handle, self.driver);
        format!("csi-{}", hex::encode(Sha256::digest(text)))
    }

    /// Key of the lock under which it is staged and unstaged.
    pub(super) fn key(&self) -> String {
        key(&self.driver, &self.handle)
    }

    /// What the pod does with it. `group` is told to drivers that set the group themselves.
    pub(super) fn capability(&self, abilities: NodeAbilities, group: Option<u32>) -> VolumeCapability {
        let multi = abilities.multi_writer;
        let mode = match self.access_modes.first().map_or("ReadWriteOnce", String::as_str) {
            "ReadWriteOnce" if multi => Mode::SingleNodeMultiWriter,
            "ReadWriteOncePod" if multi => Mode::SingleNodeSingleWriter,
            "ReadOnlyMany" => Mode::MultiNodeReaderOnly,
            "ReadWriteMany" => Mode::MultiNodeMultiWriter,
            _ => Mode::SingleNodeWriter,
        };
        let group = group.filter(|_| abilities.mount_group).map(|group| group.to_string());
        VolumeCapability {
            access_mode: Some(AccessMode { mode: mode.into() }),
            access_type: Some(AccessType::Mount(MountVolume {
                fs_type: self.fs_type.clone(),
                mount_flags: self.mount_options.clone(),
                volume_mount_group: group.unwrap_or_default(),
            })),
        }
    }
}

/// Key of a volume's lock.
pub(super) fn key(driver: &str, handle: &str) -> String {
    format!("{driver}\n{handle}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_are_the_kubelets() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"uid": "u", "namespace": "n"}})).unwrap();
        let source: CSIVolumeSource =
            serde_json::from_value(json!({"driver": "d", "nodePublishSecretRef": {"name": "s"}})).unwrap();
        let inline = CsiVolume::inline(&pod, "v", &source);
        // sha256 of "uv".
        assert_eq!(inline.handle, format!("csi-{}", hex::encode(Sha256::digest("uv"))));
        assert_eq!(inline.publish_secret, Some(("n".into(), "s".into())));
        let volume = CsiVolume { handle: "h".into(), driver: "d".into(), ..CsiVolume::default() };
        assert_eq!(volume.attachment_name("node"), format!("csi-{}", hex::encode(Sha256::digest("hdnode"))));
    }

    #[test]
    fn modes_follow_what_the_driver_can_tell_apart() {
        let abilities = |multi_writer| NodeAbilities { multi_writer, ..NodeAbilities::default() };
        for (mode, multi, want) in [
            ("ReadWriteOnce", false, Mode::SingleNodeWriter),
            ("ReadWriteOnce", true, Mode::SingleNodeMultiWriter),
            ("ReadWriteOncePod", false, Mode::SingleNodeWriter),
            ("ReadWriteOncePod", true, Mode::SingleNodeSingleWriter),
            ("ReadOnlyMany", true, Mode::MultiNodeReaderOnly),
            ("ReadWriteMany", false, Mode::MultiNodeMultiWriter),
        ] {
            let volume = CsiVolume { access_modes: vec![mode.into()], ..CsiVolume::default() };
            let found = volume.capability(abilities(multi), None).access_mode.unwrap().mode;
            assert_eq!(found, i32::from(want), "{mode} {multi}");
        }
        let grouped = NodeAbilities { mount_group: true, ..NodeAbilities::default() };
        let Some(AccessType::Mount(mount)) = CsiVolume::default().capability(grouped, Some(7)).access_type else {
            panic!("a mount")
        };
        assert_eq!(mount.volume_mount_group, "7");
    }
}
