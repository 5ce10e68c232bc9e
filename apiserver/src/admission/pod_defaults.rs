//! What a pod has when it does not say (Kubernetes' `SetDefaults_Pod…`).

use serde_json::{Value, json};

use super::container_defaults::default_container;
use crate::object;

/// Mode of files of secrets, config maps and their like (0644).
const FILE_MODE: i64 = 0o644;
/// Life of a projected token, in seconds.
const TOKEN_SECONDS: i64 = 3600;

/// Fills in the defaults of a pod.
pub fn default_pod(pod: &mut Value) {
    let spec = object::map(pod, "spec");
    for (key, value) in [
        ("restartPolicy", json!("Always")),
        ("dnsPolicy", json!("ClusterFirst")),
        ("schedulerName", json!("default-scheduler")),
        ("terminationGracePeriodSeconds", json!(30)),
        ("securityContext", json!({})),
        ("enableServiceLinks", json!(true)),
    ] {
        let slot = spec.entry(key).or_insert_with(|| value.clone());
        // An empty string is no choice to a typed server.
        if slot.as_str() == Some("") {
            *slot = value;
        }
    }
    // `serviceAccount` is the old name of `serviceAccountName`; both are shown.
    let account = [spec.get("serviceAccountName"), spec.get("serviceAccount")]
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .find(|name| !name.is_empty())
        .map(String::from);
    if let Some(account) = account {
        spec.insert("serviceAccountName".into(), json!(account));
        spec.insert("serviceAccount".into(), json!(account));
    }
    let host_network = spec.get("hostNetwork").and_then(Value::as_bool) == Some(true);
    for key in ["hostNetwork", "hostPID", "hostIPC"] {
        // False is not written by a typed server.
        if spec.get(key).and_then(Value::as_bool) == Some(false) {
            spec.remove(key);
        }
    }
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            default_container(container, host_network);
        }
    }
    for volume in spec.get_mut("volumes").and_then(Value::as_array_mut).into_iter().flatten() {
        default_volume(volume);
    }
    for constraint in spec.get_mut("topologySpreadConstraints").and_then(Value::as_array_mut).into_iter().flatten() {
        object::default(constraint, "nodeAffinityPolicy", || json!("Honor"));
        object::default(constraint, "nodeTaintsPolicy", || json!("Ignore"));
    }
    default_requests(spec.get_mut("resources"));
}

/// What is limited and not requested is requested as limited.
pub fn default_requests(resources: Option<&mut Value>) {
    let Some(resources) = resources else { return };
    let Some(limits) = resources.get("limits").and_then(Value::as_object).cloned() else { return };
    let requests = object::map(resources, "requests");
    for (name, limit) in limits {
        requests.entry(name).or_insert(limit);
    }
}

fn default_volume(volume: &mut Value) {
    let sources = volume.as_object().map_or(0, |map| map.len() - usize::from(map.contains_key("name")));
    if sources == 0 {
        object::default(volume, "emptyDir", || json!({}));
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = volume.get_mut(source) {
            object::default(source, "defaultMode", || json!(FILE_MODE));
        }
    }
    if let Some(path) = volume.get_mut("hostPath") {
        object::default(path, "type", || json!(""));
    }
    if let Some(items) = volume.pointer_mut("/downwardAPI/items") {
        default_field_references(items);
    }
    for source in volume.pointer_mut("/projected/sources").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(token) = source.get_mut("serviceAccountToken") {
            object::default(token, "expirationSeconds", || json!(TOKEN_SECONDS));
        }
        if let Some(items) = source.pointer_mut("/downwardAPI/items") {
            default_field_references(items);
        }
    }
    if let Some(spec) = volume.pointer_mut("/ephemeral/volumeClaimTemplate/spec") {
        object::default(spec, "volumeMode", || json!("Filesystem"));
    }
    if let Some(image) = volume.get_mut("image") {
        let reference = object::text(image, "/reference").to_string();
        object::default(image, "pullPolicy", || json!(super::container_defaults::pull_policy(&reference)));
    }
}

fn default_field_references(items: &mut Value) {
    for item in items.as_array_mut().into_iter().flatten() {
        if let Some(reference) = item.get_mut("fieldRef") {
            object::default(reference, "apiVersion", || json!("v1"));
        }
    }
}
