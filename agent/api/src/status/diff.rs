//! The smallest strategic-merge patch between two statuses of a pod.

use k8s_openapi::api::core::v1::PodStatus;
use serde_json::{Map, Value, json};

/// Fields of a pod's status that the agent owns; all others (qosClass, nominatedNodeName, …) are the API server's or
/// a controller's and are never removed.
const OWNED_FIELDS: [&str; 14] = [
    "phase",
    "message",
    "reason",
    "hostIP",
    "podIP",
    "startTime",
    "initContainerStatuses",
    "containerStatuses",
    "ephemeralContainerStatuses",
    "observedGeneration",
    "allocatedResources",
    "resources",
    "resize",
    "resourceClaimStatuses",
];
/// Lists that a strategic merge joins by `ip`; they are replaced as a whole instead.
const ADDRESS_LISTS: [&str; 2] = ["podIPs", "hostIPs"];
/// Condition types that nobody but the agent writes and that go away again (kubelet's resize and restart conditions).
const PASSING_CONDITIONS: [&str; 3] = ["PodResizePending", "PodResizeInProgress", "AllContainersRestarting"];

/// The patch of `pods/status` that turns what `old` has of the agent's fields into `new`; none where they agree.
/// The uid in it makes the API server refuse (422: the field is immutable) where another pod has the name by now. Conditions that `new` does
/// not name stay, apart from those that only the agent writes.
pub fn status_patch(uid: &str, old: &PodStatus, new: &PodStatus) -> Option<Value> {
    let (Ok(Value::Object(old)), Ok(Value::Object(new))) = (serde_json::to_value(old), serde_json::to_value(new))
    else {
        return None;
    };
    let mut status = Map::new();
    for field in new.keys().filter(|key| !ADDRESS_LISTS.contains(&key.as_str()) && *key != "conditions") {
        if let Some(value) = difference(old.get(field), new.get(field)) {
            status.insert(field.clone(), value);
        }
    }
    for field in OWNED_FIELDS.into_iter().filter(|field| !new.contains_key(*field)) {
        if old.get(field).is_some_and(|value| !is_empty(value)) {
            status.insert(field.to_owned(), Value::Null);
        }
    }
    for field in ADDRESS_LISTS {
        let list =
            |status: &Map<String, Value>| status.get(field).and_then(Value::as_array).cloned().unwrap_or_default();
        let (before, mut after) = (list(&old), list(&new));
        if before != after {
            after.push(json!({"$patch": "replace"}));
            status.insert(field.to_owned(), Value::Array(after));
        }
    }
    let conditions = conditions_difference(&old, &new);
    if !conditions.is_empty() {
        status.insert("conditions".to_owned(), Value::Array(conditions));
    }
    (!status.is_empty()).then(|| json!({"metadata": {"uid": uid}, "status": status}))
}

/// Elements of the conditions list, which is merged by `type`.
fn conditions_difference(old: &Map<String, Value>, new: &Map<String, Value>) -> Vec<Value> {
    let list = |status: &Map<String, Value>| -> Vec<Value> {
        status.get("conditions").and_then(Value::as_array).cloned().unwrap_or_default()
    };
    let type_of = |condition: &Value| condition.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    let (before, after) = (list(old), list(new));
    let mut changed = Vec::new();
    for condition in &after {
        let known = before.iter().find(|known| type_of(known) == type_of(condition));
        if let Some(mut part) = difference(known, Some(condition)) {
            part["type"] = Value::String(type_of(condition));
            changed.push(part);
        }
    }
    for gone in before.iter().map(type_of) {
        if PASSING_CONDITIONS.contains(&gone.as_str()) && !after.iter().any(|condition| type_of(condition) == gone) {
            changed.push(json!({"$patch": "delete", "type": gone}));
        }
    }
    changed
}

/// What a merge needs to turn `old` into `new`: objects by key with null for what goes, all else as a whole.
fn difference(old: Option<&Value>, new: Option<&Value>) -> Option<Value> {
    match (old, new) {
        (Some(Value::Object(old)), Some(Value::Object(new))) => {
            let mut part = Map::new();
            for (key, value) in new {
                if let Some(value) = difference(old.get(key), Some(value)) {
                    part.insert(key.clone(), value);
                }
            }
            for key in old.keys().filter(|key| !new.contains_key(*key) && !is_empty(&old[*key])) {
                part.insert(key.clone(), Value::Null);
            }
            (!part.is_empty()).then_some(Value::Object(part))
        }
        (old, Some(new)) if old == Some(new) || (old.is_none() && is_empty(new)) => None,
        (_, Some(new)) => Some(new.clone()),
        (Some(_), None) => Some(Value::Null),
        (None, None) => None,
    }
}

/// Null, empty text, list or object: the API server does not keep these.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(value: Value) -> PodStatus {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn patches_hold_what_differs_and_nothing_else() {
        let cases: Vec<(&str, Value, Value, Option<Value>)> = vec![
            ("equal", json!({"phase": "Running"}), json!({"phase": "Running"}), None),
            (
                "the server's own fields stay",
                json!({"phase": "Running", "qosClass": "Burstable"}),
                json!({"phase": "Running"}),
                None,
            ),
            (
                "a field changes",
                json!({"phase": "Pending"}),
                json!({"phase": "Running"}),
                Some(json!({"phase": "Running"})),
            ),
            (
                "a field goes",
                json!({"phase": "Running", "reason": "Evicted"}),
                json!({"phase": "Running"}),
                Some(json!({"reason": null})),
            ),
            (
                "addresses are replaced, not merged",
                json!({"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}]}),
                json!({"podIP": "10.0.0.2", "podIPs": [{"ip": "10.0.0.2"}]}),
                Some(json!({"podIP": "10.0.0.2", "podIPs": [{"ip": "10.0.0.2"}, {"$patch": "replace"}]})),
            ),
            (
                "a condition loses its reason",
                json!({"conditions": [
                    {"type": "Ready", "status": "False", "reason": "ContainersNotReady", "message": "m"},
                    {"type": "my/gate", "status": "True"},
                ]}),
                json!({"conditions": [{"type": "Ready", "status": "True"}]}),
                Some(json!({"conditions": [{"type": "Ready", "status": "True", "reason": null, "message": null}]})),
            ),
            (
                "a condition is new",
                json!({}),
                json!({"conditions": [{"type": "Ready", "status": "True"}]}),
                Some(json!({"conditions": [{"type": "Ready", "status": "True"}]})),
            ),
            (
                "a passing condition goes, others stay",
                json!({"conditions": [
                    {"type": "PodResizePending", "status": "True"}, {"type": "DisruptionTarget", "status": "True"},
                ]}),
                json!({"conditions": []}),
                Some(json!({"conditions": [{"$patch": "delete", "type": "PodResizePending"}]})),
            ),
            (
                "container statuses are one value",
                json!({"containerStatuses": [{"name": "a", "ready": false, "restartCount": 0, "image": "i", "imageID": ""}]}),
                json!({"containerStatuses": [{"name": "a", "ready": true, "restartCount": 0, "image": "i", "imageID": ""}]}),
                Some(
                    json!({"containerStatuses": [{"name": "a", "ready": true, "restartCount": 0, "image": "i", "imageID": ""}]}),
                ),
            ),
        ];
        for (what, old, new, want) in cases {
            let got = status_patch("u", &status(old), &status(new));
            assert_eq!(got, want.map(|status| json!({"metadata": {"uid": "u"}, "status": status})), "{what}");
        }
    }
}
