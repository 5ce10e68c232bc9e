//! Whether the node takes a pod that was given to it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::containers::{host_network, init_containers, is_static, spec};
use crate::quantity::{milli, units};
use crate::resources::pod_requests;

/// A pod is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// status.reason and reason of the event.
    pub reason: String,
    /// The cause, without the kubelet's `Pod was rejected: `.
    pub message: String,
}

/// What the node gives.
#[derive(Clone, Debug, Default)]
pub struct NodeOffer {
    /// Name of the node.
    pub name: String,
    /// Allocatable resources.
    pub allocatable: BTreeMap<String, Quantity>,
    /// Labels; empty while unknown, which skips the checks by label.
    pub labels: BTreeMap<String, String>,
}

/// Checks a pod against the node and the pods that it has already taken.
pub fn admit(pod: &Pod, node: &NodeOffer, taken: &[&Pod]) -> Result<(), Refusal> {
    check_sysctls(pod)?;
    check_resources(pod, node, taken)?;
    if let Some(wanted) =
        spec(pod).and_then(|spec| spec.node_name.as_deref()).filter(|name| !name.is_empty() && *name != node.name)
    {
        return Err(Refusal {
            reason: "NodeName".into(),
            message: format!("Predicate NodeName failed: node(s) didn't match the requested node name ({wanted})"),
        });
    }
    check_ports(pod, taken)?;
    check_selector(pod, node)
}

fn check_resources(pod: &Pod, node: &NodeOffer, taken: &[&Pod]) -> Result<(), Refusal> {
    if node.allocatable.is_empty() {
        return Ok(());
    }
    let short = |name: &str, requested: i64, used: i64, capacity: i64| {
        Err(Refusal {
            reason: format!("OutOf{name}"),
            message: format!(
                "Node didn't have enough resource: {name}, requested: {requested}, used: {used}, capacity: {capacity}"
            ),
        })
    };
    if let Some(capacity) = node.allocatable.get("pods").and_then(|quantity| units(quantity).ok())
        && taken.len() as i64 + 1 > capacity
    {
        return short("pods", 1, taken.len() as i64, capacity);
    }
    for (name, requested) in pod_requests(pod).into_iter().filter(|(_, requested)| *requested > 0) {
        let Some(quantity) = node.allocatable.get(&name) else { continue };
        let capacity = if name == "cpu" { milli(quantity) } else { units(quantity) }.unwrap_or(i64::MAX);
        let used: i64 = taken.iter().map(|other| crate::resources::pod_request(other, &name)).sum();
        if used.saturating_add(requested) > capacity {
            return short(&name, requested, used, capacity);
        }
    }
    Ok(())
}

type Port = (String, i32, Option<IpAddr>);

fn host_ports(pod: &Pod) -> BTreeSet<Port> {
    let Some(spec) = spec(pod) else { return BTreeSet::new() };
    let host = host_network(pod);
    let sidecars = spec.init_containers.iter().flatten().filter(|container| crate::containers::is_sidecar(container));
    spec.containers
        .iter()
        .chain(sidecars)
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            let number = port.host_port.filter(|number| *number > 0).or(host.then_some(port.container_port))?;
            let ip = port.host_ip.as_deref().and_then(|ip| ip.parse().ok()).filter(|ip: &IpAddr| !ip.is_unspecified());
            Some((port.protocol.clone().unwrap_or_else(|| "TCP".into()), number, ip))
        })
        .collect()
}

fn check_ports(pod: &Pod, taken: &[&Pod]) -> Result<(), Refusal> {
    let wanted = host_ports(pod);
    if wanted.is_empty() {
        return Ok(());
    }
    let used: BTreeSet<Port> = taken.iter().flat_map(|other| host_ports(other)).collect();
    let clash = wanted.iter().any(|(protocol, number, ip)| {
        used.iter().any(|(p, n, i)| p == protocol && n == number && (i == ip || i.is_none() || ip.is_none()))
    });
    if clash {
        return Err(Refusal {
            reason: "NodePorts".into(),
            message: "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports".into(),
        });
    }
    Ok(())
}

fn check_selector(pod: &Pod, node: &NodeOffer) -> Result<(), Refusal> {
    if node.labels.is_empty() || is_static(pod) {
        return Ok(());
    }
    let selector = spec(pod).and_then(|spec| spec.node_selector.as_ref());
    if selector.into_iter().flatten().any(|(key, value)| node.labels.get(key) != Some(value)) {
        return Err(Refusal {
            reason: "NodeAffinity".into(),
            message: "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector".into(),
        });
    }
    Ok(())
}

const SAFE_SYSCTLS: [&str; 12] = [
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

fn check_sysctls(pod: &Pod) -> Result<(), Refusal> {
    let context = spec(pod).and_then(|spec| spec.security_context.as_ref());
    for sysctl in context.and_then(|context| context.sysctls.as_ref()).into_iter().flatten() {
        let name = sysctl.name.replace('/', ".");
        let forbidden = |message: String| Err(Refusal { reason: "SysctlForbidden".into(), message });
        if !SAFE_SYSCTLS.contains(&name.as_str()) {
            return forbidden(format!("forbidden sysctl: {:?} not allowlisted", sysctl.name));
        }
        if host_network(pod) && name.starts_with("net.") {
            return forbidden(format!("forbidden sysctl: {:?} not allowed with host net enabled", sysctl.name));
        }
        if spec(pod).and_then(|spec| spec.host_ipc) == Some(true) && name.starts_with("kernel.") {
            return forbidden(format!("forbidden sysctl: {:?} not allowed with host ipc enabled", sysctl.name));
        }
    }
    Ok(())
}

/// Names of API objects that a static pod refers to, which it may not.
pub fn static_pod_references(pod: &Pod) -> Vec<String> {
    let mut found = Vec::new();
    let Some(spec) = spec(pod) else { return found };
    if spec.service_account_name.as_deref().is_some_and(|name| !name.is_empty()) {
        found.push("serviceAccountName".to_owned());
    }
    for volume in spec.volumes.iter().flatten() {
        let kinds = [
            ("configMap", volume.config_map.is_some()),
            ("secret", volume.secret.is_some()),
            ("persistentVolumeClaim", volume.persistent_volume_claim.is_some()),
            ("ephemeral", volume.ephemeral.is_some()),
            ("projected", volume.projected.is_some()),
            ("csi", volume.csi.as_ref().is_some_and(|csi| csi.node_publish_secret_ref.is_some())),
        ];
        found.extend(kinds.iter().filter(|(_, set)| *set).map(|(kind, _)| format!("volumes[{}].{kind}", volume.name)));
    }
    for container in spec
        .containers
        .iter()
        .chain(init_containers(pod).map(|container| container.container.into_owned()).collect::<Vec<_>>().iter())
    {
        let (config_maps, secrets) = crate::env::env_references(container);
        found.extend(
            config_maps.into_iter().chain(secrets).map(|name| format!("containers[{}].env ({name})", container.name)),
        );
    }
    if spec.resource_claims.as_ref().is_some_and(|claims| !claims.is_empty()) {
        found.push("resourceClaims".to_owned());
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(serde_json::json!({ "metadata": {"name": "p"}, "spec": spec })).unwrap()
    }

    #[test]
    fn refusals_name_their_reason() {
        let node = NodeOffer {
            name: "n1".into(),
            allocatable: [("cpu", "2"), ("memory", "1Gi"), ("pods", "3")]
                .map(|(k, v)| (k.to_owned(), Quantity(v.into())))
                .into(),
            labels: BTreeMap::from([("disk".into(), "ssd".into())]),
        };
        let taken = pod(
            serde_json::json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": "1"}}, "ports": [{"containerPort": 80, "hostPort": 8080}]}]}),
        );
        let request = |name: &str, value: &str| serde_json::json!({"containers": [{"name": "a", "resources": {"requests": {name: value}}}]});
        let port = |number: i32, ip: &str| serde_json::json!({"containers": [{"name": "a", "ports": [{"containerPort": 80, "hostPort": number, "hostIP": ip}]}]});
        for (spec, reason) in [
            (request("cpu", "1"), None),
            (request("cpu", "1001m"), Some("OutOfcpu")),
            (request("memory", "2Gi"), Some("OutOfmemory")),
            (request("example.com/gpu", "2"), None),
            (port(8080, ""), Some("NodePorts")),
            (port(8080, "127.0.0.1"), Some("NodePorts")),
            (port(8081, ""), None),
            (serde_json::json!({"nodeName": "n2", "containers": []}), Some("NodeName")),
            (serde_json::json!({"nodeSelector": {"disk": "hdd"}, "containers": []}), Some("NodeAffinity")),
            (
                serde_json::json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}, "containers": []}),
                Some("SysctlForbidden"),
            ),
        ] {
            let refusal = admit(&pod(spec.clone()), &node, &[&taken]).err().map(|refusal| refusal.reason);
            assert_eq!(refusal.as_deref(), reason, "{spec}");
        }
        let all = [&taken, &taken, &taken];
        assert_eq!(admit(&pod(serde_json::json!({"containers": []})), &node, &all).unwrap_err().reason, "OutOfpods");
    }
}
