//! Whether a node can have a pod: labels, taints, readiness, room.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::object;
use crate::quantity::Quantity;

/// Why the node can't have the pod.
pub(super) fn why_not(pod: &Value, node: &Value, pods: &[Value]) -> Option<String> {
    let labels = node.pointer("/metadata/labels").cloned().unwrap_or_default();
    let selector = pod.pointer("/spec/nodeSelector").and_then(Value::as_object);
    let matches = selector.is_none_or(|selector| selector.iter().all(|(key, value)| labels.get(key) == Some(value)));
    if !matches || !affinity_matches(pod, node, &labels) {
        return Some("node(s) didn't match Pod's node affinity/selector".into());
    }
    if node.pointer("/spec/unschedulable").and_then(Value::as_bool) == Some(true)
        && !tolerates(pod, &json!({"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}))
    {
        return Some("node(s) were unschedulable".into());
    }
    for taint in object::items(node, "/spec/taints") {
        if matches!(object::text(taint, "/effect"), "NoSchedule" | "NoExecute") && !tolerates(pod, taint) {
            let (key, value) = (object::text(taint, "/key"), object::text(taint, "/value"));
            return Some(format!("node(s) had untolerated taint(s) {{{key}: {value}}}"));
        }
    }
    let ready = object::items(node, "/status/conditions")
        .iter()
        .any(|condition| object::text(condition, "/type") == "Ready" && object::text(condition, "/status") == "True");
    if !ready {
        return Some("node(s) were not ready".into());
    }
    lacks_room(pod, node, pods)
}

fn tolerates(pod: &Value, taint: &Value) -> bool {
    object::items(pod, "/spec/tolerations").iter().any(|toleration| {
        let text = |key: &str| object::text(toleration, key);
        let effect = text("/effect").is_empty() || text("/effect") == object::text(taint, "/effect");
        let key = text("/key").is_empty() || text("/key") == object::text(taint, "/key");
        let value = text("/operator") == "Exists" || text("/value") == object::text(taint, "/value");
        effect && key && value
    })
}

fn affinity_matches(pod: &Value, node: &Value, labels: &Value) -> bool {
    let pointer = "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms";
    let terms = object::items(pod, pointer);
    terms.is_empty() || terms.iter().any(|term| term_matches(term, node, labels))
}

/// True when a node matches a term of a selector.
pub(super) fn term_matches(term: &Value, node: &Value, labels: &Value) -> bool {
    let matches = |requirement: &Value, found: Option<&str>| {
        let values = object::strings(requirement, "/values");
        let number = |text: &str| text.parse::<i64>().ok();
        let bound = values.first().and_then(|value| number(value));
        match object::text(requirement, "/operator") {
            "In" => found.is_some_and(|found| values.contains(&found)),
            "NotIn" => found.is_none_or(|found| !values.contains(&found)),
            "Exists" => found.is_some(),
            "DoesNotExist" => found.is_none(),
            "Gt" => found.and_then(number).zip(bound).is_some_and(|(found, bound)| found > bound),
            "Lt" => found.and_then(number).zip(bound).is_some_and(|(found, bound)| found < bound),
            _ => false,
        }
    };
    let expressions = object::items(term, "/matchExpressions");
    let fields = object::items(term, "/matchFields");
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    expressions.iter().all(|item| matches(item, labels.get(object::text(item, "/key")).and_then(Value::as_str)))
        && fields
            .iter()
            .all(|item| object::text(item, "/key") == "metadata.name" && matches(item, Some(object::name(node))))
}

/// What a pod asks for, in thousandths; the pod itself counts as one `pods`.
fn requests(pod: &Value) -> BTreeMap<String, i128> {
    let read = |resources: &Value| -> BTreeMap<String, i128> {
        let requests = resources.get("requests").and_then(Value::as_object).into_iter().flatten();
        requests.filter_map(|(name, amount)| Some((name.clone(), Quantity::parse(amount.as_str()?)?.milli()))).collect()
    };
    let of = |container: &Value| read(container.get("resources").unwrap_or(&Value::Null));
    let mut running: BTreeMap<String, i128> = BTreeMap::new();
    for container in object::items(pod, "/spec/containers") {
        for (name, amount) in of(container) {
            *running.entry(name).or_default() += amount;
        }
    }
    // Sidecars stay beside everything that starts after them.
    let mut sidecars: BTreeMap<String, i128> = BTreeMap::new();
    let mut most: BTreeMap<String, i128> = BTreeMap::new();
    for container in object::items(pod, "/spec/initContainers") {
        let sidecar = object::text(container, "/restartPolicy") == "Always";
        for (name, amount) in of(container) {
            let beside = sidecars.get(&name).copied().unwrap_or(0) + amount;
            let entry = most.entry(name.clone()).or_default();
            *entry = (*entry).max(beside);
            if sidecar {
                sidecars.insert(name, beside);
            }
        }
    }
    for (name, amount) in sidecars {
        *running.entry(name).or_default() += amount;
    }
    for (name, amount) in most {
        let entry = running.entry(name).or_default();
        *entry = (*entry).max(amount);
    }
    for (name, amount) in read(&json!({"requests": pod.pointer("/spec/overhead")})) {
        *running.entry(name).or_default() += amount;
    }
    running.insert("pods".into(), 1000);
    running
}

fn lacks_room(pod: &Value, node: &Value, pods: &[Value]) -> Option<String> {
    let name = object::name(node);
    let mut used: BTreeMap<String, i128> = BTreeMap::new();
    let mut host_ports = Vec::new();
    for other in pods {
        let here = object::text(other, "/spec/nodeName") == name
            && !matches!(object::text(other, "/status/phase"), "Succeeded" | "Failed");
        if !here {
            continue;
        }
        for (resource, amount) in requests(other) {
            *used.entry(resource).or_default() += amount;
        }
        host_ports.extend(ports(other));
    }
    if ports(pod).iter().any(|port| host_ports.contains(port)) {
        return Some("node(s) didn't have free ports for the requested pod ports".into());
    }
    for (resource, amount) in requests(pod) {
        let allocatable =
            node.pointer("/status/allocatable").and_then(|map| map.get(&resource)).and_then(Value::as_str);
        let room = allocatable.and_then(Quantity::parse).map_or(0, |room| room.milli());
        if amount > 0 && used.get(&resource).copied().unwrap_or(0) + amount > room {
            return Some(if resource == "pods" { "Too many pods".into() } else { format!("Insufficient {resource}") });
        }
    }
    None
}

/// Host ports of a pod.
fn ports(pod: &Value) -> Vec<(String, i64, String)> {
    object::items(pod, "/spec/containers")
        .iter()
        .flat_map(|container| object::items(container, "/ports"))
        .filter_map(|port| {
            let number = object::number(port, "/hostPort").filter(|number| *number > 0)?;
            Some((object::text(port, "/protocol").to_string(), number, object::text(port, "/hostIP").to_string()))
        })
        .collect()
}
