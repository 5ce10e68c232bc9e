//! Whether the node takes a pod that was given to it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Pod, Taint};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::containers::{all_containers, host_network, init_containers, is_static, spec};
use crate::quantity::{milli, units};
use crate::resources::pod_requests;
use preemption::Shortage;

mod affinity;
mod preemption;
mod sysctls;

pub use preemption::{PREEMPTED, PREEMPTED_CONDITION, PREEMPTED_MESSAGE, is_critical};
pub use sysctls::{check_pattern as check_sysctl_pattern, sysctl_name};

/// Label by which pods and nodes tell their operating system.
const OS_LABEL: &str = "kubernetes.io/os";
/// Resources of every node, in the order in which they are checked.
const COMMON: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];
/// The operating system of this node.
const OS: &str = "linux";

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
    /// Taints.
    pub taints: Vec<Taint>,
    /// Sysctls that pods may set besides the safe ones (`allowedUnsafeSysctls`).
    pub unsafe_sysctls: Vec<String>,
    /// The runtime can leave out the groups that an image gives to its user.
    pub strict_groups: bool,
    /// The kernel enforces AppArmor profiles.
    pub apparmor: bool,
}

fn refusal<T>(reason: &str, message: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { reason: reason.to_owned(), message: message.into() })
}

/// What must end before a pod that is not refused can start.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Room<'a> {
    /// Pods that make room for it; that happens for a critical pod only.
    pub victims: Vec<&'a Pod>,
    /// The first resource that is missing; empty if none is.
    pub missing: String,
}

/// Checks a pod against the node and the pods that it has already taken, in the kubelet's order.
///
/// # Errors
/// The first reason why the node does not take the pod.
pub fn admit<'a>(pod: &Pod, node: &NodeOffer, taken: &[&'a Pod]) -> Result<Room<'a>, Refusal> {
    if let Some(why) = sysctls::forbidden(pod, &node.unsafe_sysctls) {
        return refusal("SysctlForbidden", format!("forbidden sysctl: {why}"));
    }
    check_system(pod, node)?;
    let shortages = shortages(pod, node, taken);
    if let Some(shortage) = shortages.first().filter(|_| !is_critical(pod)) {
        return refusal(&format!("OutOf{}", shortage.name), shortage.to_string());
    }
    check_predicates(pod, node, taken)?;
    let missing: Shortage = shortages.iter().map(|shortage| (shortage.name.clone(), shortage.missing())).collect();
    let victims = preemption::victims(pod, taken, &missing).or_else(|why| {
        refusal(
            "UnexpectedAdmissionError",
            format!("Unexpected error while attempting to recover from admission failure: preemption: {why}"),
        )
    })?;
    check_apparmor(pod, node)?;
    Ok(Room { victims, missing: shortages.into_iter().next().map(|shortage| shortage.name).unwrap_or_default() })
}

/// Operating system and runtime: what no other pod could make room for.
fn check_system(pod: &Pod, node: &NodeOffer) -> Result<(), Refusal> {
    let label = pod.metadata.labels.as_ref().and_then(|labels| labels.get(OS_LABEL));
    if label.is_some_and(|label| label != OS) {
        return refusal(
            "PodOSSelectorNodeLabelDoesNotMatch",
            "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label",
        );
    }
    let os = spec(pod).and_then(|spec| spec.os.as_ref());
    if os.is_some_and(|os| os.name != OS) {
        return refusal("PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS");
    }
    let context = spec(pod).and_then(|spec| spec.security_context.as_ref());
    let policy = context.and_then(|context| context.supplemental_groups_policy.as_deref());
    if policy == Some("Strict") && !node.strict_groups {
        return refusal(
            "SupplementalGroupsPolicyNotSupported",
            "SupplementalGroupsPolicy=Strict is not supported in this node",
        );
    }
    Ok(())
}

/// A resource that the pod asks for more of than is left.
struct Short {
    name: String,
    requested: i64,
    used: i64,
    capacity: i64,
}

impl Short {
    fn missing(&self) -> i64 {
        self.requested - (self.capacity - self.used)
    }
}

impl std::fmt::Display for Short {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Short { name, requested, used, capacity } = self;
        write!(
            f,
            "Node didn't have enough resource: {name}, requested: {requested}, used: {used}, capacity: {capacity}"
        )
    }
}

fn shortages(pod: &Pod, node: &NodeOffer, taken: &[&Pod]) -> Vec<Short> {
    let mut shortages = Vec::new();
    let mut check = |name: &str, requested: i64, used: i64, capacity: i64| {
        if used.saturating_add(requested) > capacity {
            shortages.push(Short { name: name.to_owned(), requested, used, capacity });
        }
    };
    if let Some(capacity) = node.allocatable.get("pods").and_then(|quantity| units(quantity).ok()) {
        check("pods", 1, taken.len() as i64, capacity);
    }
    let mut requests: Vec<(String, i64)> =
        pod_requests(pod).into_iter().filter(|(_, requested)| *requested > 0).collect();
    // The first that is short is told, so the order is the kubelet's: what every node has comes first.
    requests.sort_by_key(|(name, _)| COMMON.iter().position(|common| common == name).unwrap_or(COMMON.len()));
    for (name, requested) in requests {
        // What the node does not have at all is no business of the node (resources of the cluster).
        let Some(quantity) = node.allocatable.get(&name) else { continue };
        let capacity = if name == "cpu" { milli(quantity) } else { units(quantity) }.unwrap_or(i64::MAX);
        let used: i64 = taken.iter().map(|other| crate::resources::pod_request(other, &name)).sum();
        check(&name, requested, used, capacity);
    }
    shortages
}

fn check_predicates(pod: &Pod, node: &NodeOffer, taken: &[&Pod]) -> Result<(), Refusal> {
    let fails = |name: &str, why: &str| refusal(name, format!("Predicate {name} failed: {why}"));
    if !node.labels.is_empty() && !affinity::selects(pod, &node.name, &node.labels) {
        return fails("NodeAffinity", "node(s) didn't match Pod's node affinity/selector");
    }
    let wanted = spec(pod).and_then(|spec| spec.node_name.as_deref());
    if wanted.is_some_and(|name| !name.is_empty() && name != node.name) {
        return fails("NodeName", "node(s) didn't match the requested node name");
    }
    if !ports_free(pod, taken) {
        return fails("NodePorts", "node(s) didn't have free ports for the requested pod ports");
    }
    if !is_static(pod) && !affinity::tolerates(pod, &node.taints) {
        return fails("TaintToleration", "node(s) had taints that the pod didn't tolerate");
    }
    Ok(())
}

/// A profile that can't be enforced would leave the pod with less than was asked for.
fn check_apparmor(pod: &Pod, node: &NodeOffer) -> Result<(), Refusal> {
    let context = spec(pod).and_then(|spec| spec.security_context.as_ref());
    let of_pod = context.and_then(|context| context.app_armor_profile.as_ref());
    for container in all_containers(pod) {
        let own = container.container.security_context.as_ref().and_then(|own| own.app_armor_profile.as_ref());
        let Some(profile) = own.or(of_pod).filter(|profile| profile.type_ != "Unconfined") else { continue };
        if !node.apparmor {
            return refusal("AppArmor", "Cannot enforce AppArmor: AppArmor is not enabled on the host");
        }
        let name = profile.localhost_profile.as_deref().unwrap_or_default();
        if profile.type_ == "Localhost" && name.trim().is_empty() {
            return refusal(
                "AppArmor",
                format!("Cannot enforce AppArmor: invalid empty AppArmor profile name: {name:?}"),
            );
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

fn ports_free(pod: &Pod, taken: &[&Pod]) -> bool {
    let wanted = host_ports(pod);
    if wanted.is_empty() {
        return true;
    }
    let used: BTreeSet<Port> = taken.iter().flat_map(|other| host_ports(other)).collect();
    !wanted.iter().any(|(protocol, number, ip)| {
        used.iter().any(|(p, n, i)| p == protocol && n == number && (i == ip || i.is_none() || ip.is_none()))
    })
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
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(serde_json::json!({ "metadata": {"name": "p"}, "spec": spec })).unwrap()
    }

    fn node() -> NodeOffer {
        NodeOffer {
            name: "n1".into(),
            allocatable: [("cpu", "2"), ("memory", "1Gi"), ("pods", "3")]
                .map(|(k, v)| (k.to_owned(), Quantity(v.into())))
                .into(),
            labels: BTreeMap::from([("disk".into(), "ssd".into())]),
            taints: vec![Taint { key: "down".into(), effect: "NoExecute".into(), ..Taint::default() }],
            unsafe_sysctls: vec!["kernel.msg*".into()],
            ..NodeOffer::default()
        }
    }

    fn tolerant(mut spec: serde_json::Value) -> serde_json::Value {
        spec["tolerations"] = json!([{"operator": "Exists"}]);
        spec
    }

    #[test]
    fn refusals_name_their_reason() {
        let node = node();
        let taken = pod(
            json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": "1"}}, "ports": [{"containerPort": 80, "hostPort": 8080}]}]}),
        );
        let request = |name: &str, value: &str| {
            tolerant(json!({"containers": [{"name": "a", "resources": {"requests": {name: value}}}]}))
        };
        let port = |number: i32, ip: &str| {
            tolerant(
                json!({"containers": [{"name": "a", "ports": [{"containerPort": 80, "hostPort": number, "hostIP": ip}]}]}),
            )
        };
        let sysctl = |name: &str| {
            tolerant(json!({"securityContext": {"sysctls": [{"name": name, "value": "1"}]}, "containers": []}))
        };
        let affinity = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
            {"nodeSelectorTerms": [{"matchExpressions": [{"key": "disk", "operator": "In", "values": ["hdd"]}]}]}}});
        let profile = |kind: &str| json!({"appArmorProfile": {"type": kind}});
        for (spec, reason) in [
            (request("cpu", "1"), None),
            (request("cpu", "1001m"), Some("OutOfcpu")),
            (request("memory", "2Gi"), Some("OutOfmemory")),
            (request("example.com/gpu", "2"), None),
            (port(8080, ""), Some("NodePorts")),
            (port(8080, "127.0.0.1"), Some("NodePorts")),
            (port(8081, ""), None),
            (tolerant(json!({"nodeName": "n2", "containers": []})), Some("NodeName")),
            (tolerant(json!({"nodeSelector": {"disk": "hdd"}, "containers": []})), Some("NodeAffinity")),
            (tolerant(json!({"affinity": affinity, "containers": []})), Some("NodeAffinity")),
            (json!({"containers": []}), Some("TaintToleration")),
            (sysctl("kernel.shmmax"), Some("SysctlForbidden")),
            (sysctl("kernel.msgmax"), None),
            (tolerant(json!({"os": {"name": "windows"}, "containers": []})), Some("PodOSNotSupported")),
            (tolerant(json!({"os": {"name": "linux"}, "containers": []})), None),
            (
                tolerant(json!({"securityContext": {"supplementalGroupsPolicy": "Strict"}, "containers": []})),
                Some("SupplementalGroupsPolicyNotSupported"),
            ),
            (
                tolerant(json!({"securityContext": profile("RuntimeDefault"), "containers": [{"name": "a"}]})),
                Some("AppArmor"),
            ),
            (tolerant(json!({"securityContext": profile("Unconfined"), "containers": [{"name": "a"}]})), None),
            (
                tolerant(json!({"containers": [{"name": "a", "securityContext": profile("Localhost")}]})),
                Some("AppArmor"),
            ),
        ] {
            let refusal = admit(&pod(spec.clone()), &node, &[&taken]).err().map(|refusal| refusal.reason);
            assert_eq!(refusal.as_deref(), reason, "{spec}");
        }
        let all = [&taken, &taken, &taken];
        let one_more = pod(tolerant(json!({"containers": []})));
        assert_eq!(admit(&one_more, &node, &all).unwrap_err().reason, "OutOfpods");
        let mut foreign = pod(json!({"containers": []}));
        foreign.metadata.labels = Some(BTreeMap::from([(OS_LABEL.to_owned(), "windows".to_owned())]));
        assert_eq!(admit(&foreign, &node, &[]).unwrap_err().reason, "PodOSSelectorNodeLabelDoesNotMatch");
    }

    #[test]
    fn texts_are_the_kubelets() {
        let taken = pod(json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": "1"}}}]}));
        let asks = pod(json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": "1500m"}}}]}));
        assert_eq!(
            admit(&asks, &node(), &[&taken]).unwrap_err().message,
            "Node didn't have enough resource: cpu, requested: 1500, used: 1000, capacity: 2000"
        );
        assert_eq!(
            admit(&pod(json!({"containers": []})), &node(), &[]).unwrap_err().message,
            "Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate"
        );
    }

    #[test]
    fn a_critical_pod_is_made_room_for_unless_something_else_is_wrong() {
        let cpu = |value: &str| json!([{"name": "a", "resources": {"requests": {"cpu": value}}}]);
        let critical = |mut spec: serde_json::Value| {
            spec["priority"] = crate::resources::CRITICAL_PRIORITY.into();
            pod(tolerant(spec))
        };
        let (first, second) = (pod(json!({"containers": cpu("500m")})), pod(json!({"containers": cpu("1")})));
        let taken = [&first, &second];
        let fits = critical(json!({"containers": cpu("500m")}));
        assert_eq!(admit(&fits, &node(), &taken).unwrap(), Room::default());
        let large = critical(json!({"containers": cpu("1")}));
        let room = Room { victims: vec![&first], missing: "cpu".into() };
        assert_eq!(admit(&large, &node(), &taken).unwrap(), room);
        let huge = critical(json!({"containers": cpu("3")}));
        assert_eq!(admit(&huge, &node(), &taken).unwrap_err().reason, "UnexpectedAdmissionError");
        let elsewhere = critical(json!({"containers": cpu("1"), "nodeName": "n2"}));
        assert_eq!(admit(&elsewhere, &node(), &taken).unwrap_err().reason, "NodeName");
    }
}
