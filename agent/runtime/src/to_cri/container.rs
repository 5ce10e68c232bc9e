//! A container in CRI.

use orlop_agent_core::runtime::{ContainerSpec, MountSpec, Propagation};
use orlop_agent_core::user_namespaces::IdMapping;
use orlop_proto::cri;

use super::{
    resources::resources,
    security::{container_security, id_mapping},
};

/// The container's configuration.
pub(crate) fn container_config(spec: &ContainerSpec) -> cri::ContainerConfig {
    cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: spec.name.clone(), attempt: spec.attempt }),
        image: Some(cri::ImageSpec {
            image: spec.image.clone(),
            user_specified_image: spec.user_image.clone(),
            ..Default::default()
        }),
        command: spec.command.clone(),
        args: spec.args.clone(),
        working_dir: spec.working_dir.clone(),
        envs: spec
            .env
            .iter()
            .map(|(key, value)| cri::KeyValue { key: key.clone(), value: value.clone().into_bytes() })
            .collect(),
        // Whatever is mounted is seen with the pod's ids, too.
        mounts: spec.mounts.iter().map(|from| mount(from, spec.security.namespaces.user)).collect(),
        devices: spec
            .devices
            .iter()
            .map(|device| cri::Device {
                container_path: device.container_path.clone(),
                host_path: device.host_path.clone(),
                permissions: device.permissions.clone(),
            })
            .collect(),
        labels: spec.labels.clone().into_iter().collect(),
        annotations: spec.annotations.clone().into_iter().collect(),
        log_path: spec.log_path.clone(),
        stdin: spec.stdin,
        stdin_once: spec.stdin_once,
        tty: spec.tty,
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(resources(&spec.resources)),
            security_context: Some(container_security(&spec.security)),
        }),
        windows: None,
        cdi_devices: Vec::new(),
        stop_signal: spec
            .stop_signal
            .as_deref()
            .and_then(cri::Signal::from_str_name)
            .unwrap_or(cri::Signal::RuntimeDefault) as i32,
    }
}

fn mount(from: &MountSpec, ids: Option<IdMapping>) -> cri::Mount {
    let mappings: Vec<cri::IdMapping> = ids.map(id_mapping).into_iter().collect();
    cri::Mount {
        container_path: from.container_path.clone(),
        host_path: from.host_path.clone(),
        readonly: from.read_only,
        selinux_relabel: from.selinux_relabel,
        propagation: match from.propagation {
            Propagation::Private => cri::MountPropagation::PropagationPrivate,
            Propagation::HostToContainer => cri::MountPropagation::PropagationHostToContainer,
            Propagation::Bidirectional => cri::MountPropagation::PropagationBidirectional,
        } as i32,
        recursive_read_only: from.recursive_read_only,
        image: from.image.as_ref().map(|image| cri::ImageSpec { image: image.clone(), ..Default::default() }),
        image_sub_path: from.image_sub_path.clone(),
        uid_mappings: mappings.clone(),
        gid_mappings: mappings,
    }
}
