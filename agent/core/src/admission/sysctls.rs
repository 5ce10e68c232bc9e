//! Which sysctls a pod may set: the safe ones, and those that the node's configuration adds.

use k8s_openapi::api::core::v1::Pod;

use crate::containers::{host_network, spec};

/// Sysctls that harm nobody outside the pod (kubelet `SafeSysctlAllowlist`).
const SAFE: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

/// The kernel's namespace that a sysctl belongs to, as messages name it.
fn namespace(name: &str) -> Option<&'static str> {
    const IPC: [&str; 10] = [
        "kernel.sem",
        "kernel.shm",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
        "kernel.msg",
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
    ];
    if IPC.contains(&name) || name.starts_with("fs.mqueue.") {
        Some("IPC")
    } else if name.starts_with("net.") {
        Some("Net")
    } else {
        None
    }
}

/// The name with dots between its parts. With slashes, a dot is part of a network interface's name and becomes a slash.
pub fn sysctl_name(name: &str) -> String {
    match name.find(['.', '/']).map(|at| name.as_bytes()[at]) {
        Some(b'/') => name
            .chars()
            .map(|c| match c {
                '/' => '.',
                '.' => '/',
                other => other,
            })
            .collect(),
        _ => name.to_owned(),
    }
}

/// Checks an entry of `allowedUnsafeSysctls`: the name of a sysctl, or the beginning of names followed by `*`.
pub fn check_pattern(pattern: &str) -> Result<(), String> {
    let name = sysctl_name(pattern);
    let (stem, prefixed) = name.strip_suffix('*').map_or((name.as_str(), false), |stem| (stem, true));
    let valid = name.len() <= 253
        && !stem.is_empty()
        && stem.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-/".contains(&b));
    if !valid {
        return Err(format!("{pattern:?} is neither the name of a sysctl nor the beginning of names followed by '*'"));
    }
    // `net.*` covers the names below `net.`, `kernel.msg*` those that begin so.
    match namespace(stem).or_else(|| namespace(stem.trim_end_matches('.')).filter(|_| prefixed)) {
        Some(_) => Ok(()),
        None => Err(format!("the sysctls {stem:?} are not known to be namespaced: a pod would set them for the node")),
    }
}

/// Why the pod's sysctls are not allowed, if they aren't.
pub(super) fn forbidden(pod: &Pod, unsafe_patterns: &[String]) -> Option<String> {
    let spec = spec(pod)?;
    let host_ipc = spec.host_ipc == Some(true);
    for sysctl in spec.security_context.as_ref()?.sysctls.iter().flatten() {
        let name = sysctl_name(&sysctl.name);
        let stem = allowed_by(&name, unsafe_patterns);
        let Some(stem) = stem else { return Some(format!("{name:?} not allowlisted")) };
        match namespace(&name).or_else(|| namespace(&stem)) {
            Some("IPC") if host_ipc => return Some(format!("{name:?} not allowed with host IPC enabled")),
            Some("Net") if host_network(pod) => return Some(format!("{name:?} not allowed with host Net enabled")),
            _ => {}
        }
    }
    None
}

/// The name or beginning of names by which a sysctl is allowed.
fn allowed_by(name: &str, patterns: &[String]) -> Option<String> {
    if SAFE.contains(&name) {
        return Some(name.to_owned());
    }
    patterns.iter().map(|pattern| sysctl_name(pattern)).find_map(|pattern| match pattern.strip_suffix('*') {
        Some(stem) => name.starts_with(stem).then(|| stem.to_owned()),
        None => (name == pattern).then(|| pattern.clone()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_are_written_one_way() {
        for (given, want) in [
            ("net.ipv4.ip_forward", "net.ipv4.ip_forward"),
            ("net/ipv4/ip_forward", "net.ipv4.ip_forward"),
            ("net.ipv4.conf.eth0/1.forwarding", "net.ipv4.conf.eth0/1.forwarding"),
            ("net/ipv4/conf/eth0.1/forwarding", "net.ipv4.conf.eth0/1.forwarding"),
            ("plain", "plain"),
        ] {
            assert_eq!(sysctl_name(given), want);
        }
    }

    #[test]
    fn patterns_name_what_is_namespaced() {
        for (pattern, valid) in [
            ("kernel.msg*", true),
            ("kernel.shm*", true),
            ("kernel.sem", true),
            ("net.*", true),
            ("net.ipv4.route.min_pmtu", true),
            ("net/ipv4/*", true),
            ("fs.mqueue.*", true),
            ("kernel.*", false),
            ("vm.swappiness", false),
            ("*", false),
            ("net.*.x", false),
            ("Net.x", false),
            ("", false),
        ] {
            assert_eq!(check_pattern(pattern).is_ok(), valid, "{pattern}");
        }
    }

    #[test]
    fn what_a_pod_may_set() {
        let patterns = ["kernel.msg*".to_owned(), "net.core.somaxconn".to_owned(), "net/ipv4/conf/*".to_owned()];
        for (name, more, want) in [
            ("net.ipv4.tcp_syncookies", json!({}), None),
            ("net/ipv4/tcp_syncookies", json!({}), None),
            ("net.ipv4.tcp_syncookies", json!({"hostNetwork": true}), Some("host Net enabled")),
            ("kernel.shm_rmid_forced", json!({"hostIPC": true}), Some("host IPC enabled")),
            ("kernel.msgmax", json!({}), None),
            ("kernel.msgmax", json!({"hostIPC": true}), Some("host IPC enabled")),
            ("kernel.shmmax", json!({}), Some("not allowlisted")),
            ("net.core.somaxconn", json!({}), None),
            ("net.core.somaxconn_more", json!({}), Some("not allowlisted")),
            ("net.ipv4.conf.all.forwarding", json!({}), None),
            ("vm.swappiness", json!({}), Some("not allowlisted")),
        ] {
            let mut spec = more;
            spec["securityContext"] = json!({"sysctls": [{"name": name, "value": "1"}]});
            spec["containers"] = json!([]);
            let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap();
            let found = forbidden(&pod, &patterns);
            match want {
                None => assert_eq!(found, None, "{name}"),
                Some(text) => assert!(found.as_deref().is_some_and(|found| found.ends_with(text)), "{name}: {found:?}"),
            }
        }
    }
}
