//! Security contexts in CRI.

use k8s_openapi::api::core::v1::SELinuxOptions;
use orlop_agent_core::security::{ContainerSecurity, NamespaceMode, Namespaces, Profile, SandboxSecurity};
use orlop_agent_core::user_namespaces::IdMapping;
use orlop_proto::cri;

fn mode(mode: &NamespaceMode) -> (i32, String) {
    match mode {
        NamespaceMode::Pod => (cri::NamespaceMode::Pod as i32, String::new()),
        NamespaceMode::Container => (cri::NamespaceMode::Container as i32, String::new()),
        NamespaceMode::Node => (cri::NamespaceMode::Node as i32, String::new()),
        NamespaceMode::Target(id) => (cri::NamespaceMode::Target as i32, id.clone()),
    }
}

fn namespace_options(from: &Namespaces) -> cri::NamespaceOption {
    let (pid, target_id) = mode(&from.pid);
    cri::NamespaceOption {
        network: mode(&from.network).0,
        pid,
        ipc: mode(&from.ipc).0,
        target_id,
        userns_options: from.user.map(|mapping| cri::UserNamespace {
            mode: cri::NamespaceMode::Pod as i32,
            uids: vec![id_mapping(mapping)],
            gids: vec![id_mapping(mapping)],
        }),
    }
}

/// A range of ids.
pub(super) fn id_mapping(from: IdMapping) -> cri::IdMapping {
    cri::IdMapping { host_id: from.host_id, container_id: from.container_id, length: from.length }
}

fn selinux(from: &Option<SELinuxOptions>) -> Option<cri::SeLinuxOption> {
    let from = from.as_ref()?.clone();
    Some(cri::SeLinuxOption {
        user: from.user.unwrap_or_default(),
        role: from.role.unwrap_or_default(),
        r#type: from.type_.unwrap_or_default(),
        level: from.level.unwrap_or_default(),
    })
}

fn profile(from: &Option<Profile>) -> Option<cri::SecurityProfile> {
    use cri::security_profile::ProfileType;
    Some(match from.as_ref()? {
        Profile::RuntimeDefault => {
            cri::SecurityProfile { profile_type: ProfileType::RuntimeDefault as i32, localhost_ref: String::new() }
        }
        Profile::Unconfined => {
            cri::SecurityProfile { profile_type: ProfileType::Unconfined as i32, localhost_ref: String::new() }
        }
        Profile::Localhost(name) => {
            cri::SecurityProfile { profile_type: ProfileType::Localhost as i32, localhost_ref: name.clone() }
        }
    })
}

fn number(value: Option<i64>) -> Option<cri::Int64Value> {
    value.map(|value| cri::Int64Value { value })
}

fn group_policy(strict: bool) -> i32 {
    if strict { cri::SupplementalGroupsPolicy::Strict as i32 } else { cri::SupplementalGroupsPolicy::Merge as i32 }
}

#[allow(deprecated, reason = "the struct still has the fields that older runtimes read")]
pub(super) fn sandbox_security(from: &SandboxSecurity) -> cri::LinuxSandboxSecurityContext {
    cri::LinuxSandboxSecurityContext {
        namespace_options: Some(namespace_options(&from.namespaces)),
        selinux_options: selinux(&from.selinux),
        run_as_user: number(from.run_as_user),
        run_as_group: number(from.run_as_group),
        supplemental_groups: from.supplemental_groups.clone(),
        supplemental_groups_policy: group_policy(from.strict_groups),
        privileged: from.privileged,
        seccomp: profile(&from.seccomp),
        ..Default::default()
    }
}

#[allow(deprecated, reason = "the struct still has the fields that older runtimes read")]
pub(super) fn container_security(from: &ContainerSecurity) -> cri::LinuxContainerSecurityContext {
    let capabilities = cri::Capability {
        add_capabilities: from.add_capabilities.clone(),
        drop_capabilities: from.drop_capabilities.clone(),
        add_ambient_capabilities: Vec::new(),
    };
    let apparmor_profile = match &from.apparmor {
        Some(Profile::RuntimeDefault) => "runtime/default".to_owned(),
        Some(Profile::Unconfined) => "unconfined".to_owned(),
        Some(Profile::Localhost(name)) => format!("localhost/{name}"),
        None => String::new(),
    };
    cri::LinuxContainerSecurityContext {
        capabilities: Some(capabilities),
        privileged: from.privileged,
        namespace_options: Some(namespace_options(&from.namespaces)),
        selinux_options: selinux(&from.selinux),
        run_as_user: number(from.run_as_user),
        run_as_group: number(from.run_as_group),
        run_as_username: from.run_as_username.clone().unwrap_or_default(),
        readonly_rootfs: from.read_only_rootfs,
        supplemental_groups: from.supplemental_groups.clone(),
        supplemental_groups_policy: group_policy(from.strict_groups),
        no_new_privs: from.no_new_privileges,
        masked_paths: from.masked_paths.clone(),
        readonly_paths: from.read_only_paths.clone(),
        seccomp: profile(&from.seccomp),
        apparmor: profile(&from.apparmor),
        apparmor_profile,
        ..Default::default()
    }
}
