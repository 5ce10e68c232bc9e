//! What a driver's CSIDriver object and capabilities ask of the node. Pure.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::storage::v1::{CSIDriver, TokenRequest};
use orlop_agent_core::containers;
use orlop_proto::csi::NodeServiceCapability;
use orlop_proto::csi::node_service_capability::Type;
use orlop_proto::csi::node_service_capability::rpc::Type as Rpc;

use crate::csi::volume::CsiVolume;

/// What the CSIDriver object says; its absence is the API's defaults.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct DriverRules {
    pub(super) attach: bool,
    pub(super) pod_info: bool,
    pub(super) republish: bool,
    pub(super) tokens: Vec<TokenRequest>,
    pub(super) tokens_in_secrets: bool,
    group_policy: String,
    lifecycle_modes: Vec<String>,
}

impl DriverRules {
    pub(super) fn of(driver: Option<&CSIDriver>) -> DriverRules {
        let spec = driver.map(|driver| driver.spec.clone()).unwrap_or_default();
        DriverRules {
            attach: spec.attach_required.unwrap_or(true),
            pod_info: spec.pod_info_on_mount == Some(true),
            republish: spec.requires_republish == Some(true),
            tokens: spec.token_requests.unwrap_or_default(),
            tokens_in_secrets: spec.service_account_token_in_secrets == Some(true),
            group_policy: spec.fs_group_policy.unwrap_or_default(),
            lifecycle_modes: spec.volume_lifecycle_modes.unwrap_or_else(|| vec!["Persistent".to_owned()]),
        }
    }

    /// Whether the driver serves volumes of that life, or why not, in the kubelet's words.
    pub(super) fn check_lifecycle(&self, volume: &CsiVolume) -> Result<(), String> {
        let mode = volume.lifecycle();
        if self.lifecycle_modes.iter().any(|known| known == mode) {
            return Ok(());
        }
        let (driver, modes) = (&volume.driver, &self.lifecycle_modes);
        Err(format!("volume mode {mode:?} not supported by driver {driver} (only supports {modes:?})"))
    }

    /// Whether the node gives the volume to the pod's group (`fsGroupPolicy`).
    pub(super) fn changes_group(&self, volume: &CsiVolume) -> bool {
        let single_writer =
            volume.access_modes.iter().any(|mode| mode == "ReadWriteOnce" || mode == "ReadWriteOncePod");
        match self.group_policy.as_str() {
            _ if volume.read_only => false,
            "File" => true,
            "None" => false,
            _ => !volume.fs_type.is_empty() && single_writer,
        }
    }

    /// What the driver is told of the pod (`podInfoOnMount`), besides the volume's attributes.
    pub(super) fn pod_context(&self, pod: &Pod, inline: bool) -> Vec<(String, String)> {
        if !self.pod_info {
            return Vec::new();
        }
        let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone()).unwrap_or_default();
        [
            ("pod.name", containers::name(pod).to_owned()),
            ("pod.namespace", containers::namespace(pod).to_owned()),
            ("pod.uid", containers::uid(pod).to_owned()),
            ("serviceAccount.name", account),
            ("ephemeral", inline.to_string()),
        ]
        .map(|(name, value)| (format!("csi.storage.k8s.io/{name}"), value))
        .into()
    }
}

/// What a driver's node service can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct NodeAbilities {
    /// STAGE_UNSTAGE_VOLUME.
    pub(super) stages: bool,
    /// SINGLE_NODE_MULTI_WRITER.
    pub(super) multi_writer: bool,
    /// VOLUME_MOUNT_GROUP.
    pub(super) mount_group: bool,
}

impl NodeAbilities {
    pub(super) fn of(capabilities: &[NodeServiceCapability]) -> NodeAbilities {
        let has = |wanted: Rpc| {
            let is = |found: &NodeServiceCapability| matches!(&found.r#type, Some(Type::Rpc(rpc)) if rpc.r#type == i32::from(wanted));
            capabilities.iter().any(is)
        };
        NodeAbilities {
            stages: has(Rpc::StageUnstageVolume),
            multi_writer: has(Rpc::SingleNodeMultiWriter),
            mount_group: has(Rpc::VolumeMountGroup),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rules(spec: serde_json::Value) -> DriverRules {
        let driver: CSIDriver = serde_json::from_value(json!({"metadata": {"name": "d"}, "spec": spec})).unwrap();
        DriverRules::of(Some(&driver))
    }

    #[test]
    fn the_object_and_its_absence() {
        let none = DriverRules::of(None);
        assert!(none.attach && !none.pod_info && !none.republish);
        let own = rules(json!({"attachRequired": false, "podInfoOnMount": true, "requiresRepublish": true}));
        assert!(!own.attach && own.pod_info && own.republish);
        let inline = CsiVolume { inline: true, driver: "d".into(), ..CsiVolume::default() };
        assert_eq!(
            none.check_lifecycle(&inline).unwrap_err(),
            r#"volume mode "Ephemeral" not supported by driver d (only supports ["Persistent"])"#
        );
        assert!(rules(json!({"volumeLifecycleModes": ["Ephemeral"]})).check_lifecycle(&inline).is_ok());
        assert!(none.check_lifecycle(&CsiVolume::default()).is_ok());
        assert_eq!(own.pod_context(&Pod::default(), true).len(), 5);
        assert!(none.pod_context(&Pod::default(), true).is_empty());
    }

    #[test]
    fn who_gives_the_volume_to_the_group() {
        let volume = |fs_type: &str, mode: &str, read_only| CsiVolume {
            fs_type: fs_type.into(),
            access_modes: vec![mode.into()],
            read_only,
            ..CsiVolume::default()
        };
        for (policy, volume, want) in [
            ("File", volume("", "ReadWriteMany", false), true),
            ("File", volume("", "ReadWriteMany", true), false),
            ("None", volume("ext4", "ReadWriteOnce", false), false),
            ("ReadWriteOnceWithFSType", volume("ext4", "ReadWriteOnce", false), true),
            ("ReadWriteOnceWithFSType", volume("", "ReadWriteOnce", false), false),
            ("ReadWriteOnceWithFSType", volume("ext4", "ReadWriteMany", false), false),
        ] {
            assert_eq!(rules(json!({"fsGroupPolicy": policy})).changes_group(&volume), want, "{policy} {volume:?}");
        }
    }
}
