//! The scheduler for one node: a pod without a node gets the node if it fits.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::on_change;
use super::recorder::{Note, record};
use crate::api::Api;
use crate::auth::User;
use crate::error::ApiError;
use crate::object;
use crate::quantity::Quantity;
use crate::registry;
use crate::rest::parts::bind_pod;
use crate::rest::{Part, Update, update_object};
use crate::storage::ObjectKey;

/// Name of the scheduler that pods ask for.
const NAME: &str = "default-scheduler";

pub(super) async fn run(api: Arc<Api>) {
    let watched = [
        registry::core("pods"),
        registry::core("nodes"),
        registry::core("persistentvolumeclaims"),
        registry::core("persistentvolumes"),
    ];
    on_change(&api, &watched, NAME, || pass(&api)).await;
}

async fn pass(api: &Arc<Api>) -> Result<(), ApiError> {
    let (pods, nodes) = (registry::core("pods"), registry::core("nodes"));
    let list = |resource| api.store.list_values(resource, None).map_err(|error| ApiError::from_store(error, resource, ""));
    let mut all = list(pods)?;
    let waiting: Vec<Value> = all.iter().filter(|pod| waits(pod)).cloned().collect();
    if waiting.is_empty() {
        return Ok(());
    }
    let nodes = list(nodes)?;
    for pod in waiting {
        let reasons = match find_node(api, &pod, &nodes, &all) {
            Ok(node) => {
                bind(api, &pod, &node).await?;
                // The next pod sees this one's share.
                if let Some(entry) = all.iter_mut().find(|other| object::uid(other) == object::uid(&pod)) {
                    entry["spec"]["nodeName"] = json!(node);
                }
                continue;
            }
            Err(reasons) => reasons,
        };
        tell_why_not(api, &pod, nodes.len(), &reasons).await?;
    }
    Ok(())
}

fn waits(pod: &Value) -> bool {
    object::text(pod, "/spec/nodeName").is_empty()
        && object::text(pod, "/spec/schedulerName") == NAME
        && !object::is_terminating(pod)
        && !matches!(object::text(pod, "/status/phase"), "Succeeded" | "Failed")
        && object::items(pod, "/spec/schedulingGates").is_empty()
}

/// The first node that fits, or how many nodes do not for which reason.
fn find_node(api: &Api, pod: &Value, nodes: &[Value], pods: &[Value]) -> Result<String, BTreeMap<String, usize>> {
    if let Some(why) = claims_wait(api, pod) {
        return Err(BTreeMap::from([(why, nodes.len())]));
    }
    let mut reasons = BTreeMap::new();
    for node in nodes {
        match why_not(pod, node, pods) {
            None => return Ok(object::name(node).to_string()),
            Some(why) => *reasons.entry(why).or_insert(0) += 1,
        }
    }
    Err(reasons)
}

/// A claim must be there, and bound unless it waits for its first consumer.
fn claims_wait(api: &Api, pod: &Value) -> Option<String> {
    let claims = registry::core("persistentvolumeclaims");
    for volume in object::items(pod, "/spec/volumes") {
        let name = match (object::text(volume, "/persistentVolumeClaim/claimName"), volume.get("ephemeral").is_some()) {
            ("", true) => format!("{}-{}", object::name(pod), object::text(volume, "/name")),
            ("", false) => continue,
            (name, _) => name.to_string(),
        };
        let key = ObjectKey::new(claims, object::namespace(pod), &name);
        let Some(claim) = api.store.get_value(&key).ok().flatten() else {
            return Some(format!("persistentvolumeclaim {name:?} not found"));
        };
        if object::is_terminating(&claim) {
            return Some(format!("persistentvolumeclaim {name:?} is being deleted"));
        }
        let bound = object::text(&claim, "/status/phase") == "Bound";
        if !bound && !waits_for_consumer(api, &claim) {
            return Some("pod has unbound immediate PersistentVolumeClaims".into());
        }
    }
    None
}

/// True when the claim's class binds only once a pod uses it.
pub(super) fn waits_for_consumer(api: &Api, claim: &Value) -> bool {
    let Some(classes) = registry::find("storage.k8s.io", "v1", "storageclasses") else { return false };
    let key = ObjectKey::new(classes, "", object::text(claim, "/spec/storageClassName"));
    let class = api.store.get_value(&key).ok().flatten();
    class.is_some_and(|class| object::text(&class, "/volumeBindingMode") == "WaitForFirstConsumer")
}

/// Why the node can't have the pod.
fn why_not(pod: &Value, node: &Value, pods: &[Value]) -> Option<String> {
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

fn term_matches(term: &Value, node: &Value, labels: &Value) -> bool {
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
        && fields.iter().all(|item| object::text(item, "/key") == "metadata.name" && matches(item, Some(object::name(node))))
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
        let here = object::text(other, "/spec/nodeName") == name && !matches!(object::text(other, "/status/phase"), "Succeeded" | "Failed");
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
        let allocatable = node.pointer("/status/allocatable").and_then(|map| map.get(&resource)).and_then(Value::as_str);
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

async fn bind(api: &Arc<Api>, pod: &Value, node: &str) -> Result<(), ApiError> {
    let user = User::server();
    let key = ObjectKey::new(registry::core("pods"), object::namespace(pod), object::name(pod));
    match bind_pod(api, Update { key: &key, part: Part::Binding, user: &user, dry_run: false }, node).await {
        // Gone or bound by somebody else meanwhile.
        Err(error) if matches!(error.code, 404 | 409) => return Ok(()),
        other => {
            other?;
        }
    }
    let message = format!("Successfully assigned {}/{} to {node}", object::namespace(pod), object::name(pod));
    let note = Note { kind: "Normal", reason: "Scheduled", message: &message, component: NAME };
    record(api, "Pod", "v1", pod, note).await;
    Ok(())
}

async fn tell_why_not(api: &Arc<Api>, pod: &Value, nodes: usize, reasons: &BTreeMap<String, usize>) -> Result<(), ApiError> {
    let list: Vec<String> = reasons.iter().map(|(why, count)| format!("{count} {why}")).collect();
    let message = match nodes {
        0 => "no nodes available to schedule pods".to_string(),
        nodes => format!("0/{nodes} nodes are available: {}.", list.join(", ")),
    };
    let told = object::items(pod, "/status/conditions")
        .iter()
        .any(|condition| object::text(condition, "/type") == "PodScheduled" && object::text(condition, "/message") == message);
    if told {
        return Ok(());
    }
    let user = User::server();
    let key = ObjectKey::new(registry::core("pods"), object::namespace(pod), object::name(pod));
    let update = Update { key: &key, part: Part::Status, user: &user, dry_run: false };
    let told = update_object(api, update, |old| {
        let mut new = old.clone();
        object::set_condition(&mut new, "PodScheduled", "False", "Unschedulable", &message);
        Ok(new)
    });
    match told.await {
        Err(error) if error.code == 404 => return Ok(()),
        other => {
            other?;
        }
    }
    let note = Note { kind: "Warning", reason: "FailedScheduling", message: &message, component: NAME };
    record(api, "Pod", "v1", pod, note).await;
    Ok(())
}
