//! A container as the runtime is asked for it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, VolumeMount};

use crate::containers::SpecContainer;
use crate::expansion::expand;
use crate::hash::container_hash;
use crate::labels;
use crate::ports::MountedVolume;
use crate::resources::{ResourcePolicy, container_resources};
use crate::runtime::{ContainerSpec, DeviceSpec, MountSpec, Propagation};
use crate::sandbox_spec::pod_labels;
use crate::security::{ImageUser, NodeSecurity, container_security};
use crate::user_namespaces::IdMapping;

/// Where a container's termination message goes unless the pod says otherwise.
pub const TERMINATION_MESSAGE_PATH: &str = "/dev/termination-log";

/// Why a container can't be made as the pod defines it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContainerSpecError {
    /// A mount names a volume that is not set up.
    #[error("cannot find volume {volume:?} to mount into container {container:?}")]
    NoVolume {
        /// The volume.
        volume: String,
        /// The container.
        container: String,
    },
    /// A subPath leaves its volume.
    #[error("subPath {path:?} of volume {volume:?} must be relative and must not contain '..'")]
    SubPath {
        /// The path.
        path: String,
        /// The volume.
        volume: String,
    },
    /// A mount can't be read-only all the way down.
    #[error("volume {volume:?} requested recursive read-only mode, but {why}")]
    RecursiveReadOnly {
        /// The volume.
        volume: String,
        /// Why not.
        why: String,
    },
    /// A subPathExpr names a variable that is not there.
    #[error("missing value for {name:?} in subPathExpr of volume {volume:?}")]
    SubPathVariable {
        /// The variable.
        name: String,
        /// The volume.
        volume: String,
    },
}

/// A mount whose path on the node may still have to be made from a subPath.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountPlan {
    /// The mount; its host path is the volume's.
    pub mount: MountSpec,
    /// Name of the volume.
    pub volume: String,
    /// Path within the volume.
    pub sub_path: Option<String>,
}

/// Whether a mount is read-only with all below it; `supported` is whether the runtime can do that.
///
/// # Errors
/// When the mount asks for what can't be.
pub fn recursive_read_only(mount: &VolumeMount, supported: bool) -> Result<bool, ContainerSpecError> {
    let refuse = |why: String| Err(ContainerSpecError::RecursiveReadOnly { volume: mount.name.clone(), why });
    let mode = match mount.recursive_read_only.as_deref() {
        None | Some("Disabled") => return Ok(false),
        Some(mode) => mode,
    };
    if mount.read_only != Some(true) {
        return refuse("it is not read-only".to_owned());
    }
    if let Some(other) = mount.mount_propagation.as_deref().filter(|other| *other != "None") {
        return refuse(format!("it is not compatible with propagation {other:?}"));
    }
    match mode {
        "IfPossible" => Ok(supported),
        "Enabled" if supported => Ok(true),
        "Enabled" => refuse("it is not supported by the runtime".to_owned()),
        other => refuse(format!("{other:?} is not Disabled, IfPossible or Enabled")),
    }
}

/// The mounts and devices of a container's volumes; `supported` is whether mounts can be read-only recursively.
pub fn plan_mounts(
    container: &SpecContainer<'_>,
    volumes: &BTreeMap<String, MountedVolume>,
    env: &[(String, String)],
    supported: bool,
) -> Result<(Vec<MountPlan>, Vec<DeviceSpec>), ContainerSpecError> {
    let missing = |volume: &str| ContainerSpecError::NoVolume {
        volume: volume.to_owned(),
        container: container.name().to_owned(),
    };
    let mut mounts = Vec::new();
    for mount in container.container.volume_mounts.iter().flatten() {
        let volume = volumes.get(&mount.name).ok_or_else(|| missing(&mount.name))?;
        let sub_path = sub_path(mount, env)?;
        let read_only = mount.read_only == Some(true) || volume.read_only || volume.image.is_some();
        let image_sub_path = volume.image.as_ref().and(sub_path.clone()).unwrap_or_default();
        mounts.push(MountPlan {
            mount: MountSpec {
                container_path: absolute(&mount.mount_path),
                host_path: if volume.image.is_some() {
                    String::new()
                } else {
                    volume.host_path.to_string_lossy().into_owned()
                },
                read_only,
                recursive_read_only: recursive_read_only(mount, supported)?,
                selinux_relabel: false,
                propagation: match mount.mount_propagation.as_deref() {
                    Some("HostToContainer") => Propagation::HostToContainer,
                    Some("Bidirectional") => Propagation::Bidirectional,
                    _ => Propagation::Private,
                },
                image: volume.image.clone(),
                image_sub_path,
            },
            volume: mount.name.clone(),
            sub_path: if volume.image.is_some() { None } else { sub_path },
        });
    }
    let mut devices = Vec::new();
    for device in container.container.volume_devices.iter().flatten() {
        let volume = volumes.get(&device.name).ok_or_else(|| missing(&device.name))?;
        devices.push(DeviceSpec {
            container_path: device.device_path.clone(),
            host_path: volume.host_path.to_string_lossy().into_owned(),
            permissions: if volume.read_only { "r" } else { "mrw" }.to_owned(),
        });
    }
    Ok((mounts, devices))
}

fn absolute(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}

fn sub_path(mount: &VolumeMount, env: &[(String, String)]) -> Result<Option<String>, ContainerSpecError> {
    let missing = std::cell::RefCell::new(None);
    let text = match (&mount.sub_path, &mount.sub_path_expr) {
        (Some(path), _) if !path.is_empty() => path.clone(),
        (_, Some(template)) if !template.is_empty() => expand(template, &|name| {
            let value = env.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
            if value.is_none() {
                missing.borrow_mut().get_or_insert_with(|| name.to_owned());
            }
            value
        }),
        _ => return Ok(None),
    };
    if let Some(name) = missing.into_inner() {
        return Err(ContainerSpecError::SubPathVariable { name, volume: mount.name.clone() });
    }
    if text.starts_with('/') || text.split('/').any(|part| part == "..") {
        return Err(ContainerSpecError::SubPath { path: text, volume: mount.name.clone() });
    }
    Ok(Some(text))
}

/// What a container is made with besides the pod.
#[derive(Clone, Debug)]
pub struct ContainerContext<'a> {
    /// How many instances came before.
    pub attempt: u32,
    /// Reference of the image, from the runtime.
    pub image: String,
    /// User of the image.
    pub image_user: &'a ImageUser,
    /// Environment.
    pub env: Vec<(String, String)>,
    /// Mounts, with final paths.
    pub mounts: Vec<MountSpec>,
    /// Devices.
    pub devices: Vec<DeviceSpec>,
    /// Id of the container whose processes an ephemeral one joins.
    pub target_id: Option<&'a str>,
    /// Ids of the pod's user namespace.
    pub user_namespace: Option<IdMapping>,
    /// The node's part in security.
    pub security: &'a NodeSecurity,
    /// The node's part in resources.
    pub resources: &'a ResourcePolicy,
}

/// The container of a pod.
pub fn container_spec(pod: &Pod, container: &SpecContainer<'_>, context: ContainerContext<'_>) -> ContainerSpec {
    let definition = &container.container;
    let lookup = |name: &str| context.env.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
    let expanded =
        |list: &Option<Vec<String>>| list.iter().flatten().map(|text| expand(text, &lookup)).collect::<Vec<_>>();
    let mut container_labels = pod_labels(pod);
    container_labels.insert(labels::CONTAINER_NAME.to_owned(), container.name().to_owned());
    ContainerSpec {
        name: container.name().to_owned(),
        attempt: context.attempt,
        image: context.image,
        user_image: definition.image.clone().unwrap_or_default(),
        command: expanded(&definition.command),
        args: expanded(&definition.args),
        working_dir: definition.working_dir.clone().unwrap_or_default(),
        mounts: context.mounts,
        devices: context.devices,
        labels: container_labels,
        annotations: annotations(pod, container, context.attempt),
        log_path: format!("{}/{}.log", container.name(), context.attempt),
        stdin: definition.stdin == Some(true),
        stdin_once: definition.stdin_once == Some(true),
        tty: definition.tty == Some(true),
        stop_signal: definition.lifecycle.as_ref().and_then(|lifecycle| lifecycle.stop_signal.clone()),
        resources: container_resources(pod, definition, container.kind, context.resources),
        security: container_security(
            pod,
            definition,
            context.image_user,
            context.target_id,
            context.user_namespace,
            context.security,
        ),
        env: context.env,
    }
}

fn annotations(pod: &Pod, container: &SpecContainer<'_>, attempt: u32) -> BTreeMap<String, String> {
    let definition = &container.container;
    let mut annotations = BTreeMap::from([
        (labels::CONTAINER_HASH.to_owned(), container_hash(definition)),
        (labels::RESTART_COUNT.to_owned(), attempt.to_string()),
        (
            labels::TERMINATION_MESSAGE_PATH.to_owned(),
            definition
                .termination_message_path
                .clone()
                .filter(|path| !path.is_empty())
                .unwrap_or_else(|| TERMINATION_MESSAGE_PATH.to_owned()),
        ),
        (
            labels::TERMINATION_MESSAGE_POLICY.to_owned(),
            definition.termination_message_policy.clone().unwrap_or_else(|| "File".to_owned()),
        ),
    ]);
    if let Some(handler) = definition.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.as_ref())
        && let Ok(text) = serde_json::to_string(handler)
    {
        annotations.insert(labels::PRE_STOP_HANDLER.to_owned(), text);
    }
    if let Some(text) =
        definition.ports.as_ref().filter(|ports| !ports.is_empty()).and_then(|ports| serde_json::to_string(ports).ok())
    {
        annotations.insert(labels::CONTAINER_PORTS.to_owned(), text);
    }
    if let Some(seconds) = pod.metadata.deletion_grace_period_seconds {
        annotations.insert(labels::DELETION_GRACE.to_owned(), seconds.to_string());
    }
    if let Some(seconds) = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds) {
        annotations.insert(labels::TERMINATION_GRACE.to_owned(), seconds.to_string());
    }
    annotations
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containers::find_container;

    fn pod() -> Pod {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"containers": [{"name": "c", "image": "x:1", "command": ["$(A)"], "args": ["$$(A)", "b$(A)"],
                "volumeMounts": [
                    {"name": "v", "mountPath": "data", "subPathExpr": "$(A)/x", "readOnly": true},
                    {"name": "i", "mountPath": "/image"}
                ]}]}
        }))
        .unwrap()
    }

    fn volume(path: &str, image: Option<&str>) -> MountedVolume {
        MountedVolume { host_path: path.into(), read_only: false, image: image.map(str::to_owned) }
    }

    #[test]
    fn a_container_is_described_in_full() {
        let pod = pod();
        let container = find_container(&pod, "c").unwrap();
        let env = vec![("A".to_owned(), "1".to_owned())];
        let volumes =
            BTreeMap::from([("v".to_owned(), volume("/v", None)), ("i".to_owned(), volume("", Some("img:1")))]);
        let (mounts, _) = plan_mounts(&container, &volumes, &env, true).unwrap();
        assert_eq!(
            (mounts[0].mount.container_path.as_str(), mounts[0].sub_path.as_deref(), mounts[0].mount.read_only),
            ("/data", Some("1/x"), true)
        );
        assert_eq!(mounts[1].mount.image.as_deref(), Some("img:1"));
        let policy =
            ResourcePolicy { cpu_period_us: 100_000, cpu_quota: true, node_memory_bytes: 1 << 30, cgroup_v2: false };
        let spec = container_spec(
            &pod,
            &container,
            ContainerContext {
                attempt: 2,
                image: "sha256:1".into(),
                image_user: &ImageUser::default(),
                env,
                mounts: vec![],
                devices: vec![],
                target_id: None,
                user_namespace: None,
                security: &NodeSecurity::default(),
                resources: &policy,
            },
        );
        assert_eq!((spec.command, spec.args), (vec!["1".to_owned()], vec!["$(A)".to_owned(), "b1".to_owned()]));
        assert_eq!(spec.log_path, "c/2.log");
        assert_eq!(spec.annotations[labels::RESTART_COUNT], "2");
        assert_eq!(spec.labels[labels::CONTAINER_NAME], "c");
        assert_eq!(spec.resources.oom_score_adj, 1000);
    }

    #[test]
    fn read_only_all_the_way_down() {
        for (mode, read_only, propagation, supported, want) in [
            (None, true, None, true, Some(false)),
            (Some("Disabled"), false, None, true, Some(false)),
            (Some("IfPossible"), true, None, true, Some(true)),
            (Some("IfPossible"), true, None, false, Some(false)),
            (Some("Enabled"), true, Some("None"), true, Some(true)),
            (Some("Enabled"), true, None, false, None),
            (Some("Enabled"), false, None, true, None),
            (Some("Enabled"), true, Some("HostToContainer"), true, None),
            (Some("Sometimes"), true, None, true, None),
        ] {
            let mount = VolumeMount {
                recursive_read_only: mode.map(str::to_owned),
                read_only: Some(read_only),
                mount_propagation: propagation.map(str::to_owned),
                ..VolumeMount::default()
            };
            assert_eq!(
                recursive_read_only(&mount, supported).ok(),
                want,
                "{mode:?} {read_only} {propagation:?} {supported}"
            );
        }
    }

    #[test]
    fn mounts_that_can_not_be() {
        let pod = pod();
        let container = find_container(&pod, "c").unwrap();
        assert!(matches!(
            plan_mounts(&container, &BTreeMap::new(), &[], true),
            Err(ContainerSpecError::NoVolume { .. })
        ));
        let volumes = BTreeMap::from([("v".to_owned(), volume("/v", None)), ("i".to_owned(), volume("/i", None))]);
        assert!(matches!(
            plan_mounts(&container, &volumes, &[], true),
            Err(ContainerSpecError::SubPathVariable { .. })
        ));
        let up = vec![("A".to_owned(), "..".to_owned())];
        assert!(matches!(plan_mounts(&container, &volumes, &up, true), Err(ContainerSpecError::SubPath { .. })));
    }
}
