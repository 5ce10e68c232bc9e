//! What a node may do: read what its pods need, write itself and the status of its pods (the Node authoriser and the
//! NodeRestriction admission of Kubernetes).

use serde_json::Value;

use super::User;
use super::authorize::{Attributes, Decision};
use crate::api::Api;
use crate::error::ApiError;
use crate::object;
use crate::registry::{self, Resource};
use crate::rest::Part;
use crate::storage::ObjectKey;

/// Labels of a node that it may set itself, besides those with a prefix below.
const OWN_LABELS: [&str; 10] = [
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/zone",
];
/// Prefixes of labels that a node may set itself.
const OWN_LABEL_PREFIXES: [&str; 2] = ["kubelet.kubernetes.io/", "node.kubernetes.io/"];

fn denied(why: impl Into<String>) -> Decision {
    Decision::Denied(why.into())
}

/// Decides for a node.
pub(super) fn authorize(api: &Api, user: &User, asked: &Attributes) -> Decision {
    let Some(node) = user.node() else { return denied("") };
    let verb = asked.verb.as_str();
    let reads = matches!(verb, "get" | "list" | "watch");
    match (asked.group.as_str(), asked.resource.as_str(), asked.subresource.as_str()) {
        ("", "nodes", "" | "status") => own_node(node, asked),
        ("", "nodes", part) => {
            if asked.name == node && verb == "get" && part != "proxy" {
                Decision::Allowed
            } else {
                denied(format!("node {node:?} may not use nodes/{part}"))
            }
        }
        ("", "pods", "") if reads => pods(api, node, asked),
        ("", "pods", "") if matches!(verb, "create" | "delete") => Decision::Allowed,
        ("", "pods", "status") if matches!(verb, "get" | "patch" | "update") => Decision::Allowed,
        ("", "pods", "eviction") if verb == "create" => Decision::Allowed,
        ("", "secrets" | "configmaps" | "persistentvolumeclaims", "") if reads => {
            if asked.name.is_empty() {
                return denied("No Object name found");
            }
            if pods_refer(api, node, asked) { Decision::Allowed } else { unrelated(node, asked) }
        }
        ("", "persistentvolumeclaims", "status") if matches!(verb, "get" | "patch" | "update") => {
            if pods_refer(api, node, asked) { Decision::Allowed } else { unrelated(node, asked) }
        }
        ("", "persistentvolumes", "") if verb == "get" => {
            if volume_is_used(api, node, &asked.name) {
                Decision::Allowed
            } else {
                unrelated(node, asked)
            }
        }
        ("", "serviceaccounts", "token") if verb == "create" => {
            if pods_refer(api, node, asked) {
                Decision::Allowed
            } else {
                unrelated(node, asked)
            }
        }
        ("", "serviceaccounts", "") if verb == "get" => {
            if pods_refer(api, node, asked) {
                Decision::Allowed
            } else {
                unrelated(node, asked)
            }
        }
        ("" | "events.k8s.io", "events", "") if matches!(verb, "create" | "patch" | "update") => Decision::Allowed,
        ("", "services", "") if reads => Decision::Allowed,
        ("storage.k8s.io", "csinodes", "") => {
            if asked.name == node || (verb == "create" && asked.name.is_empty()) {
                Decision::Allowed
            } else {
                denied(format!("node {node:?} may only use its own CSINode"))
            }
        }
        ("storage.k8s.io", "csidrivers", "") | ("node.k8s.io", "runtimeclasses", "") if reads => Decision::Allowed,
        ("coordination.k8s.io", "leases", "") => lease(node, asked),
        ("authentication.k8s.io", "tokenreviews", "") if verb == "create" => Decision::Allowed,
        ("authorization.k8s.io", "subjectaccessreviews" | "localsubjectaccessreviews", "") if verb == "create" => {
            Decision::Allowed
        }
        _ => denied(""),
    }
}

fn unrelated(node: &str, asked: &Attributes) -> Decision {
    denied(format!("no relationship found between node '{node}' and this object ({})", asked.resource))
}

fn own_node(node: &str, asked: &Attributes) -> Decision {
    let verb = asked.verb.as_str();
    let own = asked.name == node;
    // A list or watch is of itself only, by name.
    let selects_itself = asked.required_fields.iter().any(|(field, value)| field == "metadata.name" && value == node);
    match verb {
        "create" if asked.subresource.is_empty() && (own || asked.name.is_empty()) => Decision::Allowed,
        "get" | "update" | "patch" if own => Decision::Allowed,
        "list" | "watch" if own || selects_itself => Decision::Allowed,
        _ => denied(format!("node {node:?} cannot {verb} other nodes or delete itself")),
    }
}

fn pods(api: &Api, node: &str, asked: &Attributes) -> Decision {
    let selects_own = asked.required_fields.iter().any(|(field, value)| field == "spec.nodeName" && value == node);
    if asked.name.is_empty() {
        return if selects_own {
            Decision::Allowed
        } else {
            denied("can only list/watch pods with spec.nodeName field selector")
        };
    }
    let key = ObjectKey::new(registry::core("pods"), &asked.namespace, &asked.name);
    match api.store.get_value(&key) {
        // What is gone is told as gone.
        Ok(None) => Decision::Allowed,
        Ok(Some(pod)) if object::text(&pod, "/spec/nodeName") == node => Decision::Allowed,
        _ => unrelated(node, asked),
    }
}

fn lease(node: &str, asked: &Attributes) -> Decision {
    let known = matches!(asked.verb.as_str(), "get" | "create" | "update" | "patch" | "delete");
    if asked.namespace != "kube-node-lease" {
        return denied(format!(
            "can only access leases in the \"kube-node-lease\" system namespace, not {:?}",
            asked.namespace
        ));
    }
    if known && (asked.name == node || (asked.verb == "create" && asked.name.is_empty())) {
        Decision::Allowed
    } else {
        denied("can only access node lease with the same name as the requesting node")
    }
}

/// The pods of a node.
fn node_pods(api: &Api, node: &str, namespace: Option<&str>) -> Vec<Value> {
    let pods = api.store.list_values(registry::core("pods"), namespace).unwrap_or_default();
    pods.into_iter().filter(|pod| object::text(pod, "/spec/nodeName") == node).collect()
}

/// True when a pod of the node names the object.
fn pods_refer(api: &Api, node: &str, asked: &Attributes) -> bool {
    let pods = node_pods(api, node, Some(&asked.namespace));
    let by_pod = |pod: &Value| match asked.resource.as_str() {
        "serviceaccounts" => object::text(pod, "/spec/serviceAccountName") == asked.name,
        "persistentvolumeclaims" => claims(pod).contains(&asked.name),
        "secrets" => secrets(pod).contains(&asked.name.as_str()),
        _ => config_maps(pod).contains(&asked.name.as_str()),
    };
    // Secrets of the volumes that the node's pods use.
    pods.iter().any(by_pod) || (asked.resource == "secrets" && volume_secret(api, node, asked))
}

/// Claims of a pod, generic ephemeral volumes too.
fn claims(pod: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for volume in object::items(pod, "/spec/volumes") {
        let claim = object::text(volume, "/persistentVolumeClaim/claimName");
        if !claim.is_empty() {
            found.push(claim.to_string());
        }
        if volume.get("ephemeral").is_some() {
            found.push(format!("{}-{}", object::name(pod), object::text(volume, "/name")));
        }
    }
    found
}

/// Every container of a pod: app, init, ephemeral.
fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    ["/spec/containers", "/spec/initContainers", "/spec/ephemeralContainers"]
        .into_iter()
        .flat_map(|pointer| object::items(pod, pointer))
}

fn secrets(pod: &Value) -> Vec<&str> {
    let mut found: Vec<&str> =
        object::items(pod, "/spec/imagePullSecrets").iter().map(|item| object::text(item, "/name")).collect();
    for volume in object::items(pod, "/spec/volumes") {
        found.push(object::text(volume, "/secret/secretName"));
        for source in [
            "/csi/nodePublishSecretRef/name",
            "/flexVolume/secretRef/name",
            "/iscsi/secretRef/name",
            "/cephfs/secretRef/name",
        ] {
            found.push(object::text(volume, source));
        }
        found.extend(
            object::items(volume, "/projected/sources").iter().map(|source| object::text(source, "/secret/name")),
        );
    }
    for container in containers(pod) {
        found.extend(
            object::items(container, "/env").iter().map(|item| object::text(item, "/valueFrom/secretKeyRef/name")),
        );
        found.extend(object::items(container, "/envFrom").iter().map(|item| object::text(item, "/secretRef/name")));
    }
    found
}

fn config_maps(pod: &Value) -> Vec<&str> {
    let mut found = Vec::new();
    for volume in object::items(pod, "/spec/volumes") {
        found.push(object::text(volume, "/configMap/name"));
        found.extend(
            object::items(volume, "/projected/sources").iter().map(|source| object::text(source, "/configMap/name")),
        );
    }
    for container in containers(pod) {
        found.extend(
            object::items(container, "/env").iter().map(|item| object::text(item, "/valueFrom/configMapKeyRef/name")),
        );
        found.extend(object::items(container, "/envFrom").iter().map(|item| object::text(item, "/configMapRef/name")));
    }
    found
}

/// Volumes bound to claims of the node's pods.
fn node_volumes(api: &Api, node: &str) -> Vec<Value> {
    let claimed: Vec<(String, String)> = node_pods(api, node, None)
        .iter()
        .flat_map(|pod| claims(pod).into_iter().map(|claim| (object::namespace(pod).to_string(), claim)))
        .collect();
    let volumes = api.store.list_values(registry::core("persistentvolumes"), None).unwrap_or_default();
    volumes
        .into_iter()
        .filter(|volume| {
            let namespace = object::text(volume, "/spec/claimRef/namespace");
            let name = object::text(volume, "/spec/claimRef/name");
            claimed.iter().any(|(other_namespace, other)| other_namespace == namespace && other == name)
        })
        .collect()
}

fn volume_is_used(api: &Api, node: &str, name: &str) -> bool {
    node_volumes(api, node).iter().any(|volume| object::name(volume) == name)
}

fn volume_secret(api: &Api, node: &str, asked: &Attributes) -> bool {
    node_volumes(api, node).iter().any(|volume| {
        ["nodePublishSecretRef", "nodeStageSecretRef", "nodeExpandSecretRef"].iter().any(|reference| {
            object::text(volume, &format!("/spec/csi/{reference}/name")) == asked.name
                && object::text(volume, &format!("/spec/csi/{reference}/namespace")) == asked.namespace
        })
    })
}

/// Checks what a node writes: its own mirror pods, status of its own pods, its own labels and taints.
///
/// # Errors
/// 403.
pub fn check_node_write(
    user: &User,
    resource: &Resource,
    part: Option<Part>,
    new: &Value,
    old: Option<&Value>,
) -> Result<(), ApiError> {
    let Some(node) = user.node() else { return Ok(()) };
    let refuse = |why: String| Err(ApiError::forbidden(resource, object::name(new), &why));
    match (resource.plural, old, part) {
        ("pods", None, _) => check_mirror_pod(node, new).map_or(Ok(()), refuse),
        ("pods", Some(old), _) if object::text(old, "/spec/nodeName") != node => {
            refuse(format!("node {node:?} can only update pod status for pods with spec.nodeName set to itself"))
        }
        ("pods", Some(old), Some(Part::Status))
            if old.pointer("/metadata/labels") != new.pointer("/metadata/labels") =>
        {
            refuse(format!("node {node:?} cannot update labels through pod status"))
        }
        ("nodes", None, _) if object::name(new) != node => {
            refuse(format!("node {node:?} is not allowed to modify node {:?}", object::name(new)))
        }
        ("nodes", ..) => check_own_node(node, new, old).map_or(Ok(()), refuse),
        ("leases", None, _) if object::name(new) != node => {
            refuse("can only access node lease with the same name as the requesting node".into())
        }
        ("csinodes", None, _) if object::name(new) != node => {
            refuse(format!("can only create CSINode with the same name as the requesting node {node:?}"))
        }
        _ => Ok(()),
    }
}

fn check_mirror_pod(node: &str, pod: &Value) -> Option<String> {
    if object::text(pod, "/metadata/annotations/kubernetes.io~1config.mirror").is_empty() {
        return Some(format!(
            "pod does not have \"kubernetes.io/config.mirror\" annotation, node {node:?} can only create mirror pods"
        ));
    }
    if object::text(pod, "/spec/nodeName") != node {
        return Some(format!("node {node:?} can only create pods with spec.nodeName set to itself"));
    }
    let owners = object::items(pod, "/metadata/ownerReferences");
    let owned = |owner: &Value| {
        object::text(owner, "/apiVersion") == "v1"
            && object::text(owner, "/kind") == "Node"
            && object::text(owner, "/name") == node
            && owner.get("controller").and_then(Value::as_bool) == Some(true)
    };
    if owners.len() != 1 || !owned(&owners[0]) {
        return Some(format!("node {node:?} can only create pods with an owner reference set to itself"));
    }
    let account = object::text(pod, "/spec/serviceAccountName");
    let refers = !account.is_empty()
        || !claims(pod).is_empty()
        || !object::items(pod, "/spec/resourceClaims").is_empty()
        || secrets(pod).iter().chain(config_maps(pod).iter()).any(|name| !name.is_empty());
    if refers {
        return Some(format!(
            "node {node:?} can not create pods that reference service accounts, secrets, configmaps, persistentvolumeclaims or resourceclaims"
        ));
    }
    let projected = object::items(pod, "/spec/volumes").iter().any(|volume| {
        object::items(volume, "/projected/sources").iter().any(|source| source.get("serviceAccountToken").is_some())
    });
    projected.then(|| format!("node {node:?} can not create pods that reference service account tokens"))
}

fn check_own_node(node: &str, new: &Value, old: Option<&Value>) -> Option<String> {
    let own_label = |key: &str| {
        let domain = key.split_once('/').map_or("", |(domain, _)| domain);
        let reserved =
            ["kubernetes.io", "k8s.io"].iter().any(|end| domain == *end || domain.ends_with(&format!(".{end}")));
        if domain == "node-restriction.kubernetes.io" || domain.ends_with(".node-restriction.kubernetes.io") {
            return false;
        }
        !reserved || OWN_LABELS.contains(&key) || OWN_LABEL_PREFIXES.iter().any(|prefix| key.starts_with(prefix))
    };
    let empty = Value::Null;
    let labels = |object: &Value| object.pointer("/metadata/labels").cloned().unwrap_or_default();
    let (before, after) = (old.map(labels).unwrap_or_default(), labels(new));
    let changed = |key: &String| before.get(key).unwrap_or(&empty) != after.get(key).unwrap_or(&empty);
    let keys = before.as_object().into_iter().chain(after.as_object()).flat_map(|map| map.keys());
    let forbidden: Vec<String> = keys.filter(|key| changed(key) && !own_label(key)).cloned().collect();
    if !forbidden.is_empty() {
        return Some(format!("is not allowed to modify labels: {}", forbidden.join(", ")));
    }
    let old = old?;
    if old.pointer("/metadata/ownerReferences") != new.pointer("/metadata/ownerReferences") {
        return Some(format!("node {node:?} is not allowed to modify ownerReferences"));
    }
    if old.pointer("/spec/taints") != new.pointer("/spec/taints") {
        return Some(format!("node {node:?} is not allowed to modify taints"));
    }
    None
}
