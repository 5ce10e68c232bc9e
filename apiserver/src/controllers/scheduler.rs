//! The scheduler for one node: a pod without a node gets the node if it fits.

mod fit;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::on_change;
use super::recorder::{Note, record};
use super::volumes::SELECTED_NODE;
use crate::api::Api;
use crate::auth::User;
use crate::error::ApiError;
use crate::object;
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
    let list =
        |resource| api.store.list_values(resource, None).map_err(|error| ApiError::from_store(error, resource, ""));
    // Most changes are of pods that run: their documents are not even parsed.
    let unbound =
        api.store.list_with(pods, |json| !has_node(json)).map_err(|error| ApiError::from_store(error, pods, ""))?;
    let waiting: Vec<Value> = unbound.into_iter().filter(waits).collect();
    if waiting.is_empty() {
        return Ok(());
    }
    let mut all = list(pods)?;
    let nodes = list(nodes)?;
    for pod in waiting {
        let reasons = match find_node(api, &pod, &nodes, &all) {
            Ok(node) => {
                // Claims that waited for this pod get their volumes first.
                if choose_node(api, &pod, &node).await? {
                    continue;
                }
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

/// What tells a bound pod, read without the rest.
#[derive(Default, serde::Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Binding {
    spec: BindingSpec,
}

#[derive(Default, serde::Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct BindingSpec {
    node_name: String,
}

fn has_node(json: &[u8]) -> bool {
    serde_json::from_slice::<Binding>(json).is_ok_and(|pod| !pod.spec.node_name.is_empty())
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
    let volumes = bound_volumes(api, pod);
    for node in nodes {
        let far = volumes.iter().any(|volume| !volume_reaches(volume, node));
        let why = if far {
            Some("node(s) didn't match PersistentVolume's node affinity".to_string())
        } else {
            fit::why_not(pod, node, pods)
        };
        match why {
            None => return Ok(object::name(node).to_string()),
            Some(why) => *reasons.entry(why).or_insert(0) += 1,
        }
    }
    Err(reasons)
}

/// Names of the claims of a pod.
fn claim_names(pod: &Value) -> Vec<String> {
    object::items(pod, "/spec/volumes")
        .iter()
        .filter_map(|volume| {
            match (object::text(volume, "/persistentVolumeClaim/claimName"), volume.get("ephemeral").is_some()) {
                ("", true) => Some(format!("{}-{}", object::name(pod), object::text(volume, "/name"))),
                ("", false) => None,
                (name, _) => Some(name.to_string()),
            }
        })
        .collect()
}

fn read_claim(api: &Api, pod: &Value, name: &str) -> Option<Value> {
    api.store
        .get_value(&ObjectKey::new(registry::core("persistentvolumeclaims"), object::namespace(pod), name))
        .ok()
        .flatten()
}

fn is_bound(claim: &Value) -> bool {
    object::text(claim, "/status/phase") == "Bound"
}

/// A claim must be there, and bound unless it waits for its first consumer.
fn claims_wait(api: &Api, pod: &Value) -> Option<String> {
    for name in claim_names(pod) {
        let Some(claim) = read_claim(api, pod, &name) else {
            return Some(format!("persistentvolumeclaim {name:?} not found"));
        };
        if object::is_terminating(&claim) {
            return Some(format!("persistentvolumeclaim {name:?} is being deleted"));
        }
        if object::text(&claim, "/status/phase") == "Lost" {
            return Some(format!("persistentvolumeclaim {name:?} bound to non-existent persistentvolume"));
        }
        if !is_bound(&claim) && !waits_for_consumer(api, &claim) {
            return Some("pod has unbound immediate PersistentVolumeClaims".into());
        }
    }
    None
}

/// Tells the claims that wait for a consumer which node it is; true when there are such claims.
async fn choose_node(api: &Api, pod: &Value, node: &str) -> Result<bool, ApiError> {
    let user = User::server();
    let mut waiting = false;
    for name in claim_names(pod) {
        if read_claim(api, pod, &name).is_none_or(|claim| is_bound(&claim)) {
            continue;
        }
        waiting = true;
        let key = ObjectKey::new(registry::core("persistentvolumeclaims"), object::namespace(pod), &name);
        let update = Update { key: &key, part: Part::Anything, user: &user, dry_run: false, patched: false };
        update_object(api, update, |old| {
            let mut new = old.clone();
            let annotations = object::metadata(&mut new).entry("annotations").or_insert_with(|| json!({}));
            annotations[SELECTED_NODE] = json!(node);
            Ok(new)
        })
        .await?;
    }
    Ok(waiting)
}

/// The volumes that the pod's claims are bound to.
fn bound_volumes(api: &Api, pod: &Value) -> Vec<Value> {
    claim_names(pod)
        .iter()
        .filter_map(|name| read_claim(api, pod, name))
        .filter_map(|claim| {
            let key = ObjectKey::new(registry::core("persistentvolumes"), "", object::text(&claim, "/spec/volumeName"));
            api.store.get_value(&key).ok().flatten()
        })
        .collect()
}

fn volume_reaches(volume: &Value, node: &Value) -> bool {
    let labels = node.pointer("/metadata/labels").cloned().unwrap_or_default();
    let terms = object::items(volume, "/spec/nodeAffinity/required/nodeSelectorTerms");
    terms.is_empty() || terms.iter().any(|term| fit::term_matches(term, node, &labels))
}

/// True when the claim's class binds only once a pod uses it.
fn waits_for_consumer(api: &Api, claim: &Value) -> bool {
    let Some(classes) = registry::find("storage.k8s.io", "v1", "storageclasses") else { return false };
    let key = ObjectKey::new(classes, "", object::text(claim, "/spec/storageClassName"));
    let class = api.store.get_value(&key).ok().flatten();
    class.is_some_and(|class| object::text(&class, "/volumeBindingMode") == "WaitForFirstConsumer")
}

async fn bind(api: &Arc<Api>, pod: &Value, node: &str) -> Result<(), ApiError> {
    let user = User::server();
    let key = ObjectKey::new(registry::core("pods"), object::namespace(pod), object::name(pod));
    match bind_pod(api, Update { key: &key, part: Part::Binding, user: &user, dry_run: false, patched: false }, node)
        .await
    {
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

async fn tell_why_not(
    api: &Arc<Api>,
    pod: &Value,
    nodes: usize,
    reasons: &BTreeMap<String, usize>,
) -> Result<(), ApiError> {
    let list: Vec<String> = reasons.iter().map(|(why, count)| format!("{count} {why}")).collect();
    let message = match nodes {
        0 => "no nodes available to schedule pods".to_string(),
        nodes => format!("0/{nodes} nodes are available: {}.", list.join(", ")),
    };
    let told = object::items(pod, "/status/conditions").iter().any(|condition| {
        object::text(condition, "/type") == "PodScheduled" && object::text(condition, "/message") == message
    });
    if told {
        return Ok(());
    }
    let user = User::server();
    let key = ObjectKey::new(registry::core("pods"), object::namespace(pod), object::name(pod));
    let update = Update { key: &key, part: Part::Status, user: &user, dry_run: false, patched: false };
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
