//! Security contexts of pod and container merged into what the runtime is told.

use k8s_openapi::api::core::v1::{
    Capabilities, Container, Pod, PodSecurityContext, SELinuxOptions, SeccompProfile, SecurityContext,
};

use crate::containers::spec;
use crate::user_namespaces::IdMapping;

/// A seccomp or AppArmor profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Profile {
    /// The runtime's own.
    RuntimeDefault,
    /// None.
    Unconfined,
    /// One of the node's: a path for seccomp, a loaded name for AppArmor.
    Localhost(String),
}

/// Whose namespace a container uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NamespaceMode {
    /// The pod's.
    #[default]
    Pod,
    /// Its own.
    Container,
    /// The node's.
    Node,
    /// That of the container with this id.
    Target(String),
}

/// Namespaces of a pod or container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespaces {
    /// Network.
    pub network: NamespaceMode,
    /// Processes.
    pub pid: NamespaceMode,
    /// System V IPC and message queues.
    pub ipc: NamespaceMode,
    /// Ids of the pod's own user namespace; none for the node's.
    pub user: Option<IdMapping>,
}

/// Security of the sandbox.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SandboxSecurity {
    /// Namespaces.
    pub namespaces: Namespaces,
    /// SELinux label parts.
    pub selinux: Option<SELinuxOptions>,
    /// User of the infra process.
    pub run_as_user: Option<i64>,
    /// Group of the infra process.
    pub run_as_group: Option<i64>,
    /// More groups, the fsGroup included.
    pub supplemental_groups: Vec<i64>,
    /// Ignore the image's groups.
    pub strict_groups: bool,
    /// Some container is privileged.
    pub privileged: bool,
    /// Seccomp profile; the sandbox always has the runtime's, unless told otherwise.
    pub seccomp: Option<Profile>,
}

/// Security of a container.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ContainerSecurity {
    /// Namespaces.
    pub namespaces: Namespaces,
    /// Capabilities to add.
    pub add_capabilities: Vec<String>,
    /// Capabilities to drop; `ALL` drops all.
    pub drop_capabilities: Vec<String>,
    /// No confinement at all.
    pub privileged: bool,
    /// SELinux label parts.
    pub selinux: Option<SELinuxOptions>,
    /// Numeric user.
    pub run_as_user: Option<i64>,
    /// Numeric group.
    pub run_as_group: Option<i64>,
    /// User by name, as the image has it.
    pub run_as_username: Option<String>,
    /// The root file system can't be written.
    pub read_only_rootfs: bool,
    /// More groups, the fsGroup included.
    pub supplemental_groups: Vec<i64>,
    /// Ignore the image's groups.
    pub strict_groups: bool,
    /// exec gives no new privileges.
    pub no_new_privileges: bool,
    /// Paths that are hidden.
    pub masked_paths: Vec<String>,
    /// Paths that can't be written.
    pub read_only_paths: Vec<String>,
    /// Seccomp profile.
    pub seccomp: Option<Profile>,
    /// AppArmor profile.
    pub apparmor: Option<Profile>,
}

/// Why a container may not run as it is; the text is the message of `CreateContainerConfigError`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecurityError {
    /// runAsUser 0 against runAsNonRoot.
    #[error("container's runAsUser breaks non-root policy (pod: \"{pod}\", container: {container})")]
    UserIsRoot {
        /// The pod.
        pod: String,
        /// The container.
        container: String,
    },
    /// The image's user is root against runAsNonRoot.
    #[error("container has runAsNonRoot and image will run as root (pod: \"{pod}\", container: {container})")]
    ImageIsRoot {
        /// The pod.
        pod: String,
        /// The container.
        container: String,
    },
    /// The image names its user by a word.
    #[error(
        "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root (pod: \"{pod}\", container: {container})"
    )]
    UserByName {
        /// The word.
        user: String,
        /// The pod.
        pod: String,
        /// The container.
        container: String,
    },
    /// A profile that says neither what it is nor where: run without it would be less than was asked for.
    #[error("{field} is no profile: {why} (pod: \"{pod}\", container: {container})")]
    NoProfile {
        /// Which one.
        field: &'static str,
        /// What is wrong.
        why: String,
        /// The pod.
        pod: String,
        /// The container.
        container: String,
    },
}

/// The user that an image sets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageUser {
    /// By number.
    pub uid: Option<i64>,
    /// By name.
    pub name: String,
}

/// The node's part in security.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeSecurity {
    /// A container without seccomp profile gets the runtime's instead of none.
    pub seccomp_default: bool,
    /// Directory of the node's seccomp profiles.
    pub seccomp_root: String,
}

const MASKED: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

fn pod_context(pod: &Pod) -> Option<&PodSecurityContext> {
    spec(pod)?.security_context.as_ref()
}

fn namespaces(pod: &Pod, user: Option<IdMapping>) -> Namespaces {
    let blank = Default::default();
    let spec = spec(pod).unwrap_or(&blank);
    let node = |flag: Option<bool>, other| if flag == Some(true) { NamespaceMode::Node } else { other };
    Namespaces {
        network: node(spec.host_network, NamespaceMode::Pod),
        ipc: node(spec.host_ipc, NamespaceMode::Pod),
        pid: node(
            spec.host_pid,
            if spec.share_process_namespace == Some(true) { NamespaceMode::Pod } else { NamespaceMode::Container },
        ),
        user,
    }
}

fn groups(pod: &Pod) -> (Vec<i64>, bool) {
    let Some(context) = pod_context(pod) else { return (Vec::new(), false) };
    let mut groups = context.supplemental_groups.clone().unwrap_or_default();
    groups.extend(context.fs_group);
    (groups, context.supplemental_groups_policy.as_deref() == Some("Strict"))
}

fn seccomp(profile: Option<&SeccompProfile>, node: &NodeSecurity) -> Profile {
    match profile.map(|profile| (profile.type_.as_str(), profile.localhost_profile.as_deref())) {
        Some(("RuntimeDefault", _)) => Profile::RuntimeDefault,
        Some(("Localhost", Some(file))) => Profile::Localhost(format!("{}/{file}", node.seccomp_root)),
        Some(_) => Profile::Unconfined,
        None if node.seccomp_default => Profile::RuntimeDefault,
        None => Profile::Unconfined,
    }
}

/// Security of a pod's sandbox; `user` are the ids of its user namespace.
pub fn sandbox_security(pod: &Pod, user: Option<IdMapping>, node: &NodeSecurity) -> SandboxSecurity {
    let context = pod_context(pod);
    let (supplemental_groups, strict_groups) = groups(pod);
    let privileged = crate::containers::all_containers(pod).any(|container| {
        container.container.security_context.as_ref().is_some_and(|context| context.privileged == Some(true))
    });
    SandboxSecurity {
        namespaces: namespaces(pod, user),
        selinux: context.and_then(|context| context.se_linux_options.clone()),
        run_as_user: context.and_then(|context| context.run_as_user),
        run_as_group: context.and_then(|context| context.run_as_user.and(context.run_as_group)),
        supplemental_groups,
        strict_groups,
        privileged,
        seccomp: Some(match context.and_then(|context| context.seccomp_profile.as_ref()) {
            Some(profile) => seccomp(Some(profile), node),
            None => Profile::RuntimeDefault,
        }),
    }
}

/// Checks runAsNonRoot against the user that the container would have.
pub fn check_non_root(pod: &Pod, container: &Container, image: &ImageUser) -> Result<(), SecurityError> {
    let own = container.security_context.as_ref();
    let context = pod_context(pod);
    let required =
        own.and_then(|own| own.run_as_non_root).or_else(|| context.and_then(|context| context.run_as_non_root));
    if required != Some(true) {
        return Ok(());
    }
    let (pod_name, name) = (crate::containers::display(pod), container.name.clone());
    let user = own.and_then(|own| own.run_as_user).or_else(|| context.and_then(|context| context.run_as_user));
    match (user, image.uid) {
        (Some(0), _) => Err(SecurityError::UserIsRoot { pod: pod_name, container: name }),
        (Some(_), _) => Ok(()),
        (None, Some(0)) => Err(SecurityError::ImageIsRoot { pod: pod_name, container: name }),
        (None, None) if !image.name.is_empty() => {
            Err(SecurityError::UserByName { user: image.name.clone(), pod: pod_name, container: name })
        }
        (None, None) => Err(SecurityError::ImageIsRoot { pod: pod_name, container: name }),
        (None, Some(_)) => Ok(()),
    }
}

/// Whether the pod asks for a user namespace of its own.
pub fn wants_user_namespace(pod: &Pod) -> bool {
    spec(pod).and_then(|spec| spec.host_users) == Some(false)
}

/// Checks that the profiles of a container are ones. Manifests on the node are checked by nobody else.
pub fn check_profiles(pod: &Pod, container: &Container) -> Result<(), SecurityError> {
    let own = container.security_context.as_ref();
    let context = pod_context(pod);
    let seccomp = own
        .and_then(|own| own.seccomp_profile.as_ref())
        .or_else(|| context.and_then(|context| context.seccomp_profile.as_ref()))
        .map(|profile| ("seccompProfile", &profile.type_, &profile.localhost_profile));
    let apparmor = own
        .and_then(|own| own.app_armor_profile.as_ref())
        .or_else(|| context.and_then(|context| context.app_armor_profile.as_ref()))
        .map(|profile| ("appArmorProfile", &profile.type_, &profile.localhost_profile));
    for (field, kind, name) in seccomp.into_iter().chain(apparmor) {
        let why = match (kind.as_str(), name.as_deref().unwrap_or_default()) {
            ("RuntimeDefault" | "Unconfined", _) => continue,
            ("Localhost", "") => "localhostProfile must be set when its type is Localhost".to_owned(),
            ("Localhost", name) if name.starts_with('/') || name.split('/').any(|part| part == "..") => {
                format!("localhostProfile {name:?} must be a path below the node's profiles")
            }
            ("Localhost", _) => continue,
            (other, _) => format!("type {other:?} is not Localhost, RuntimeDefault or Unconfined"),
        };
        let (pod, container) = (crate::containers::display(pod), container.name.clone());
        return Err(SecurityError::NoProfile { field, why, pod, container });
    }
    Ok(())
}

/// Security of a container; `target` is the id of the container whose processes an ephemeral one joins, `user` are the
/// ids of the pod's user namespace.
pub fn container_security(
    pod: &Pod,
    container: &Container,
    image: &ImageUser,
    target: Option<&str>,
    user: Option<IdMapping>,
    node: &NodeSecurity,
) -> ContainerSecurity {
    let blank = SecurityContext::default();
    let own = container.security_context.as_ref().unwrap_or(&blank);
    let context = pod_context(pod);
    let (supplemental_groups, strict_groups) = groups(pod);
    let privileged = own.privileged == Some(true);
    let no_capabilities = Capabilities::default();
    let capabilities = own.capabilities.as_ref().unwrap_or(&no_capabilities);
    let add_capabilities = capabilities.add.clone().unwrap_or_default();
    let admin = add_capabilities.iter().any(|name| matches!(name.trim_start_matches("CAP_"), "SYS_ADMIN"));
    let mut namespaces = namespaces(pod, user);
    // Where processes are the pod's or the node's, those of the target are among them.
    if let Some(id) = target.filter(|_| namespaces.pid == NamespaceMode::Container) {
        namespaces.pid = NamespaceMode::Target(id.to_owned());
    }
    let unmasked = privileged || own.proc_mount.as_deref() == Some("Unmasked");
    let paths =
        |list: &[&str]| if unmasked { Vec::new() } else { list.iter().map(|path| (*path).to_owned()).collect() };
    let run_as_user = own.run_as_user.or_else(|| context.and_then(|context| context.run_as_user));
    let (run_as_user, run_as_username) = match run_as_user {
        Some(uid) => (Some(uid), None),
        None => match image.uid {
            Some(uid) => (Some(uid), None),
            None => (None, (!image.name.is_empty()).then(|| image.name.clone())),
        },
    };
    ContainerSecurity {
        namespaces,
        add_capabilities,
        drop_capabilities: capabilities.drop.clone().unwrap_or_default(),
        privileged,
        selinux: own.se_linux_options.clone().or_else(|| context.and_then(|context| context.se_linux_options.clone())),
        run_as_user,
        run_as_group: own.run_as_group.or_else(|| context.and_then(|context| context.run_as_group)),
        run_as_username,
        read_only_rootfs: own.read_only_root_filesystem == Some(true),
        supplemental_groups,
        strict_groups,
        no_new_privileges: own.allow_privilege_escalation == Some(false) && !privileged && !admin,
        masked_paths: paths(&MASKED),
        read_only_paths: paths(&READ_ONLY),
        seccomp: Some(if privileged {
            Profile::Unconfined
        } else {
            seccomp(
                own.seccomp_profile.as_ref().or_else(|| context.and_then(|context| context.seccomp_profile.as_ref())),
                node,
            )
        }),
        apparmor: apparmor(pod, container, privileged),
    }
}

fn apparmor(pod: &Pod, container: &Container, privileged: bool) -> Option<Profile> {
    if privileged {
        return None;
    }
    let own = container.security_context.as_ref().and_then(|own| own.app_armor_profile.as_ref());
    let profile = own.or_else(|| pod_context(pod).and_then(|context| context.app_armor_profile.as_ref()));
    match profile.map(|profile| (profile.type_.as_str(), profile.localhost_profile.clone())) {
        Some(("RuntimeDefault", _)) => Some(Profile::RuntimeDefault),
        Some(("Localhost", Some(name))) => Some(Profile::Localhost(name)),
        Some(_) => Some(Profile::Unconfined),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(
            serde_json::json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": spec}),
        )
        .unwrap()
    }

    #[test]
    fn non_root_is_checked_before_the_container_is_made() {
        let image = |uid, name: &str| ImageUser { uid, name: name.into() };
        for (context, user, ok) in [
            (serde_json::json!({"runAsNonRoot": true}), image(Some(0), ""), false),
            (serde_json::json!({"runAsNonRoot": true}), image(None, ""), false),
            (serde_json::json!({"runAsNonRoot": true}), image(None, "www"), false),
            (serde_json::json!({"runAsNonRoot": true}), image(Some(5), ""), true),
            (serde_json::json!({"runAsNonRoot": true, "runAsUser": 0}), image(Some(5), ""), false),
            (serde_json::json!({"runAsNonRoot": true, "runAsUser": 7}), image(None, "www"), true),
            (serde_json::json!({}), image(Some(0), ""), true),
        ] {
            let pod = pod(serde_json::json!({"containers": [{"name": "c", "securityContext": context}]}));
            let container = &pod.spec.as_ref().unwrap().containers[0];
            assert_eq!(check_non_root(&pod, container, &user).is_ok(), ok, "{context} {user:?}");
        }
    }

    #[test]
    fn what_is_no_profile_is_refused() {
        for (context, ok) in [
            (serde_json::json!({}), true),
            (serde_json::json!({"seccompProfile": {"type": "RuntimeDefault"}}), true),
            (serde_json::json!({"seccompProfile": {"type": "Unconfined"}}), true),
            (serde_json::json!({"seccompProfile": {"type": "Localhost", "localhostProfile": "a/b"}}), true),
            (serde_json::json!({"seccompProfile": {"type": "Localhost"}}), false),
            (serde_json::json!({"seccompProfile": {"type": "Localhost", "localhostProfile": ""}}), false),
            (serde_json::json!({"seccompProfile": {"type": "Localhost", "localhostProfile": "../a"}}), false),
            (serde_json::json!({"seccompProfile": {"type": "Localhost", "localhostProfile": "/a"}}), false),
            (serde_json::json!({"seccompProfile": {"type": "Other"}}), false),
            (serde_json::json!({"appArmorProfile": {"type": "Localhost"}}), false),
            (serde_json::json!({"appArmorProfile": {"type": "Localhost", "localhostProfile": "a"}}), true),
        ] {
            for spec in [
                serde_json::json!({"containers": [{"name": "c", "securityContext": context}]}),
                serde_json::json!({"securityContext": context, "containers": [{"name": "c"}]}),
            ] {
                let pod = pod(spec);
                let container = &pod.spec.as_ref().unwrap().containers[0];
                assert_eq!(check_profiles(&pod, container).is_ok(), ok, "{context}");
            }
        }
    }

    #[test]
    fn contexts_merge() {
        let pod = pod(serde_json::json!({
            "hostPID": true,
            "securityContext": {"runAsUser": 1, "fsGroup": 9, "supplementalGroups": [8], "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [
                {"name": "a", "securityContext": {"runAsUser": 2, "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}},
                {"name": "b", "securityContext": {"privileged": true}}
            ]
        }));
        let node = NodeSecurity::default();
        let containers = &pod.spec.as_ref().unwrap().containers;
        let a = container_security(&pod, &containers[0], &ImageUser::default(), None, None, &node);
        assert_eq!((a.run_as_user, a.supplemental_groups.clone(), a.no_new_privileges), (Some(2), vec![8, 9], true));
        assert_eq!(
            (a.seccomp, a.namespaces.pid, a.masked_paths.len()),
            (Some(Profile::RuntimeDefault), NamespaceMode::Node, 12)
        );
        let b = container_security(&pod, &containers[1], &ImageUser::default(), None, None, &node);
        assert_eq!((b.seccomp, b.masked_paths.len(), b.run_as_user), (Some(Profile::Unconfined), 0, Some(1)));
        let mapping = IdMapping { host_id: 65_536, container_id: 0, length: 65_536 };
        let sandbox = sandbox_security(&pod, Some(mapping), &node);
        assert!(sandbox.privileged);
        assert_eq!(sandbox.namespaces.user, Some(mapping));
    }
}
