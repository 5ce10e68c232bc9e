//! A pod sandbox: its shim's specification, its files, its cgroup.

use std::path::{Path, PathBuf};

use orlop_container::protocol::{NamespaceSource, SandboxSpec};
use orlop_kernel::cgroup::unit::{Driver, Scope, slice_at, slice_path};
use orlop_proto::cri;

use crate::{SpecError, check_name, check_path, selinux, user_namespace, wrong};

/// Bytes of a pod's `/dev/shm`.
const SHM_BYTES: u64 = 64 << 20;
/// `oom_score_adj` of pause (the kubelet's `PodInfraOOMAdj`).
const PAUSE_OOM_SCORE: i32 = -998;
/// Groups that may open sockets for ping.
const PING_GROUPS: &str = "net.ipv4.ping_group_range";
/// Sysctls that every pod with a network of its own gets, as containerd sets them.
const DEFAULT_SYSCTLS: [(&str, &str); 2] =
    [("net.ipv4.ip_unprivileged_port_start", "0"), (PING_GROUPS, "0 2147483647")];

/// Where a pod says which namespaces it has.
const NAMESPACES: &str = "config.linux.security_context.namespace_options";

/// Checks the parts of a sandbox's configuration that become paths or names.
///
/// # Errors
/// Names the field.
pub fn check(config: &cri::PodSandboxConfig) -> Result<&cri::PodSandboxMetadata, SpecError> {
    let metadata = config.metadata.as_ref().ok_or_else(|| wrong("config.metadata", "is missing"))?;
    check_name("config.metadata.name", &metadata.name)?;
    check_name("config.metadata.namespace", &metadata.namespace)?;
    check_name("config.metadata.uid", &metadata.uid)?;
    if !config.log_directory.is_empty() {
        check_path("config.log_directory", &config.log_directory)?;
    }
    if config.hostname.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(wrong("config.hostname", "holds white space or control characters"));
    }
    let security = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    selinux::check("config.linux.security_context", security.and_then(|security| security.selinux_options.as_ref()))?;
    Ok(metadata)
}

/// The namespace options of a sandbox.
#[must_use]
pub fn namespaces(config: &cri::PodSandboxConfig) -> cri::NamespaceOption {
    let security = config.linux.as_ref().and_then(|linux| linux.security_context.clone()).unwrap_or_default();
    security.namespace_options.unwrap_or_default()
}

/// Whether the pod has a user namespace of its own.
#[must_use]
pub fn has_user_namespace(config: &cri::PodSandboxConfig) -> bool {
    user_namespace::mappings(NAMESPACES, &namespaces(config)).is_ok_and(|mappings| mappings.is_some())
}

/// Whether the pod uses the machine's network.
#[must_use]
pub fn is_host_network(config: &cri::PodSandboxConfig) -> bool {
    namespaces(config).network == cri::NamespaceMode::Node as i32
}

/// Where the kubelet tells the pod's cgroup.
const PARENT: &str = "config.linux.cgroup_parent";

/// The cgroup of the pod below each hierarchy, without a slash at the end; none where the caller has made none, and the
/// pod's processes are put beside those of others.
///
/// # Errors
/// When the parent is no cgroup path, or with systemd no slice.
pub fn pod_cgroup(config: &cri::PodSandboxConfig, driver: Driver) -> Result<Option<String>, SpecError> {
    let parent = config.linux.as_ref().map_or("", |linux| linux.cgroup_parent.as_str());
    match driver {
        _ if parent.is_empty() => Ok(None),
        Driver::Cgroupfs => {
            check_path(PARENT, parent)?;
            Ok(Some(parent.trim_end_matches('/').into()))
        }
        Driver::Systemd => {
            slice_at(parent).and_then(slice_path).map(Some).map_err(|error| wrong(PARENT, error.to_string()))
        }
    }
}

/// The cgroup of a container of the sandbox (or of its pause) below each hierarchy; with systemd that of a scope.
///
/// # Errors
/// As [`pod_cgroup`].
pub fn cgroup(config: &cri::PodSandboxConfig, driver: Driver, id: &str) -> Result<String, SpecError> {
    let parent = pod_cgroup(config, driver)?;
    match driver {
        Driver::Cgroupfs => Ok(format!("{}/{id}", parent.as_deref().unwrap_or("/orlop"))),
        Driver::Systemd => {
            let scope = Scope::of(parent.as_deref().unwrap_or("orlop.slice"), id).and_then(|scope| scope.path());
            scope.map_err(|error| wrong(PARENT, error.to_string()))
        }
    }
}

/// What the shim is told.
///
/// # Errors
/// Names the field that can't be had.
pub fn spec(
    id: &str,
    config: &cri::PodSandboxConfig,
    driver: Driver,
    netns: Option<PathBuf>,
    pause: &Path,
) -> Result<SandboxSpec, SpecError> {
    let metadata = check(config)?;
    let options = namespaces(config);
    let node = cri::NamespaceMode::Node as i32;
    let of = |mode: i32| if mode == node { NamespaceSource::Host } else { NamespaceSource::New };
    let user = user_namespace::mappings(NAMESPACES, &options)?;
    let host_network = netns.is_none();
    let mut sysctls: std::collections::BTreeMap<String, String> = if host_network {
        Default::default()
    } else {
        DEFAULT_SYSCTLS.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
    };
    if let Some(groups) = user.as_ref().filter(|_| !host_network).and_then(|user| user.gid_mappings.first()) {
        // Groups that the namespace doesn't have can't be named in it.
        sysctls.insert(PING_GROUPS.into(), format!("0 {}", groups.size - 1));
    }
    sysctls.extend(config.linux.iter().flat_map(|linux| linux.sysctls.clone()));
    Ok(SandboxSpec {
        version: 1,
        id: id.into(),
        pod: format!("{}/{}", metadata.namespace, metadata.name),
        hostname: Some(config.hostname.clone()).filter(|name| !name.is_empty()),
        network: match (netns, &user) {
            (None, _) => NamespaceSource::Host,
            (Some(path), None) => NamespaceSource::Path(path),
            // It has to belong to the pod's user namespace, which the shim makes.
            (Some(path), Some(_)) => NamespaceSource::Bound(path),
        },
        user,
        ipc: of(options.ipc),
        uts: if host_network { NamespaceSource::Host } else { NamespaceSource::New },
        pid: if options.pid == cri::NamespaceMode::Pod as i32 { NamespaceSource::New } else { NamespaceSource::Host },
        sysctls,
        cgroup: cgroup(config, driver, id)?,
        pause_program: pause.to_path_buf(),
        shm_bytes: SHM_BYTES,
        mount_label: None,
        oom_score_adj: PAUSE_OOM_SCORE,
        runtime: None,
    })
}

/// The pod's `resolv.conf`; none means the machine's own.
#[must_use]
pub fn resolv_conf(dns: &cri::DnsConfig) -> Option<String> {
    if dns.servers.is_empty() && dns.searches.is_empty() && dns.options.is_empty() {
        return None;
    }
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(parent: &str) -> cri::PodSandboxConfig {
        let linux = cri::LinuxPodSandboxConfig { cgroup_parent: parent.into(), ..Default::default() };
        cri::PodSandboxConfig { linux: Some(linux), ..Default::default() }
    }

    #[test]
    fn each_driver_has_its_own_places() {
        use Driver::{Cgroupfs, Systemd};
        for (driver, parent, pod, container) in [
            (Cgroupfs, "", None, "/orlop/0f"),
            (Cgroupfs, "/kubepods/pod1/", Some("/kubepods/pod1"), "/kubepods/pod1/0f"),
            (Systemd, "", None, "/orlop.slice/orlop-0f.scope"),
            (Systemd, "a-b.slice", Some("/a.slice/a-b.slice"), "/a.slice/a-b.slice/orlop-0f.scope"),
            (Systemd, "/a.slice/a-b.slice", Some("/a.slice/a-b.slice"), "/a.slice/a-b.slice/orlop-0f.scope"),
        ] {
            let config = config(parent);
            assert_eq!(pod_cgroup(&config, driver).unwrap().as_deref(), pod, "{parent}");
            assert_eq!(cgroup(&config, driver, "0f").unwrap(), container, "{parent}");
        }
        for (driver, parent) in [(Cgroupfs, "a-b.slice"), (Systemd, "/kubepods/pod1"), (Systemd, "/b.slice/a-b.slice")]
        {
            let said = cgroup(&config(parent), driver, "0f").expect_err(parent).to_string();
            assert!(said.contains(PARENT), "{said}");
        }
    }
}
