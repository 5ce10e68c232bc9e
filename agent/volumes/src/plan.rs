//! Which volumes of a pod have to be there, and of what kind each is. Pure.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Pod, Volume};
use orlop_agent_core::containers::all_containers;

/// A kind of volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A folder, or memory, that lives as long as the pod.
    EmptyDir,
    /// A path of the node.
    HostPath,
    /// Files from the API.
    Contents,
    /// A claim: named, or made for the pod.
    Claim,
    /// A volume of a CSI driver in the pod's own words.
    InlineCsi,
    /// An image; the runtime mounts it.
    Image,
    /// What this node does not serve, and what to do instead.
    Unsupported(&'static str, &'static str),
}

/// A volume that a container uses.
#[derive(Clone, Debug)]
pub(crate) struct Desired<'a> {
    pub(crate) volume: &'a Volume,
    pub(crate) kind: Kind,
    /// A container wants it as a block device.
    pub(crate) as_device: bool,
}

/// The volumes that the pod's containers use, in the order of the pod; the others are left alone.
pub(crate) fn desired(pod: &Pod) -> Vec<Desired<'_>> {
    let (mut mounts, mut devices) = (BTreeSet::new(), BTreeSet::new());
    for container in all_containers(pod) {
        mounts.extend(container.container.volume_mounts.iter().flatten().map(|mount| mount.name.clone()));
        devices.extend(container.container.volume_devices.iter().flatten().map(|device| device.name.clone()));
    }
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes
        .filter(|volume| mounts.contains(&volume.name) || devices.contains(&volume.name))
        .map(|volume| Desired { volume, kind: kind(volume), as_device: devices.contains(&volume.name) })
        .collect()
}

fn kind(volume: &Volume) -> Kind {
    const USE_CSI: &str = "use a claim of a CSI driver";
    let table: [(bool, Kind); 18] = [
        (volume.empty_dir.is_some(), Kind::EmptyDir),
        (volume.host_path.is_some(), Kind::HostPath),
        (volume.config_map.is_some() || volume.secret.is_some(), Kind::Contents),
        (volume.downward_api.is_some() || volume.projected.is_some(), Kind::Contents),
        (volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some(), Kind::Claim),
        (volume.csi.is_some(), Kind::InlineCsi),
        (volume.image.is_some(), Kind::Image),
        (
            volume.git_repo.is_some(),
            Kind::Unsupported("gitRepo", "clone in an init container, since a repository can run programs"),
        ),
        (volume.nfs.is_some(), Kind::Unsupported("nfs", USE_CSI)),
        (volume.iscsi.is_some(), Kind::Unsupported("iscsi", USE_CSI)),
        (volume.fc.is_some(), Kind::Unsupported("fc", USE_CSI)),
        (volume.flex_volume.is_some(), Kind::Unsupported("flexVolume", USE_CSI)),
        (volume.cephfs.is_some(), Kind::Unsupported("cephfs", USE_CSI)),
        (volume.rbd.is_some(), Kind::Unsupported("rbd", USE_CSI)),
        (volume.glusterfs.is_some(), Kind::Unsupported("glusterfs", USE_CSI)),
        (volume.aws_elastic_block_store.is_some(), Kind::Unsupported("awsElasticBlockStore", USE_CSI)),
        (volume.gce_persistent_disk.is_some(), Kind::Unsupported("gcePersistentDisk", USE_CSI)),
        (volume.azure_disk.is_some() || volume.azure_file.is_some(), Kind::Unsupported("azure", USE_CSI)),
    ];
    let found = table.into_iter().find_map(|(is, kind)| is.then_some(kind));
    // A volume without any source is an emptyDir (API default); one with a source that isn't in the table is not.
    found.unwrap_or_else(|| {
        if *volume == (Volume { name: volume.name.clone(), ..Volume::default() }) {
            Kind::EmptyDir
        } else {
            Kind::Unsupported("of this kind", USE_CSI)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_containers_use_is_wanted() {
        let pod: Pod = serde_json::from_value(serde_json::json!({"spec": {
            "containers": [{"name": "a", "volumeMounts": [{"name": "e", "mountPath": "/e"}, {"name": "g", "mountPath": "/g"}]}],
            "initContainers": [{"name": "i", "volumeMounts": [{"name": "h", "mountPath": "/h"}]}],
            "ephemeralContainers": [{"name": "d", "volumeDevices": [{"name": "c", "devicePath": "/dev/c"}]}],
            "volumes": [
                {"name": "unused", "secret": {"secretName": "s"}}, {"name": "e"}, {"name": "h", "hostPath": {"path": "/x"}},
                {"name": "c", "persistentVolumeClaim": {"claimName": "c"}}, {"name": "g", "gitRepo": {"repository": "r"}}
            ]
        }}))
        .unwrap();
        let found: Vec<(&str, Kind, bool)> =
            desired(&pod).into_iter().map(|d| (d.volume.name.as_str(), d.kind, d.as_device)).collect();
        assert_eq!(found[..3], [("e", Kind::EmptyDir, false), ("h", Kind::HostPath, false), ("c", Kind::Claim, true)]);
        assert!(matches!(found[3], ("g", Kind::Unsupported("gitRepo", _), false)));
        assert!(matches!(
            kind(&Volume { quobyte: Some(Default::default()), ..Volume::default() }),
            Kind::Unsupported(..)
        ));
    }
}
