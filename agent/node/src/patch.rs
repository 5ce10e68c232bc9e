//! Whether a status says something new, and the patch that says it.

use k8s_openapi::api::core::v1::NodeStatus;
use serde_json::{Map, Value, json};

use crate::status::OWN_CONDITIONS;

/// Whether `new` says more than that the agent is alive.
pub(crate) fn says_something_new(old: &NodeStatus, new: &NodeStatus) -> bool {
    let without_heartbeat = |status: &NodeStatus| {
        let mut status = status.clone();
        for condition in status.conditions.iter_mut().flatten() {
            condition.last_heartbeat_time = None;
        }
        status
    };
    without_heartbeat(old) != without_heartbeat(new)
}

/// The strategic-merge patch of `nodes/status`: our conditions always, since their heartbeat moves; addresses as a
/// whole, since a merge by type would lose the second of a type; all else where it differs.
pub(crate) fn status_patch(old: &NodeStatus, new: &NodeStatus) -> Value {
    let fields = |status: &NodeStatus| match serde_json::to_value(status) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    };
    let (before, after) = (fields(old), fields(new));
    let mut patch = Map::new();
    for (field, value) in &after {
        match field.as_str() {
            "conditions" => {
                let ours = value.as_array().into_iter().flatten();
                let ours = ours.filter(|condition| {
                    condition.get("type").and_then(Value::as_str).is_some_and(|kind| OWN_CONDITIONS.contains(&kind))
                });
                patch.insert(field.clone(), Value::Array(ours.cloned().collect()));
            }
            _ if before.get(field) == Some(value) => {}
            "addresses" => {
                let mut list = value.as_array().cloned().unwrap_or_default();
                list.push(json!({"$patch": "replace"}));
                patch.insert(field.clone(), Value::Array(list));
            }
            "capacity" | "allocatable" => {
                let mut amounts = value.as_object().cloned().unwrap_or_default();
                for gone in before.get(field).and_then(Value::as_object).into_iter().flat_map(Map::keys) {
                    amounts.entry(gone.clone()).or_insert(Value::Null);
                }
                patch.insert(field.clone(), Value::Object(amounts));
            }
            _ => {
                patch.insert(field.clone(), value.clone());
            }
        }
    }
    for gone in before.keys().filter(|field| !after.contains_key(*field)) {
        patch.insert(gone.clone(), Value::Null);
    }
    json!({"status": patch})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(value: Value) -> NodeStatus {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn patches_hold_what_differs_and_our_conditions() {
        let ready = json!({"type": "Ready", "status": "True", "lastHeartbeatTime": "2026-01-01T00:00:10Z"});
        let foreign = json!({"type": "NetworkUnavailable", "status": "False"});
        let old = status(json!({
            "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
            "capacity": {"cpu": "2", "hugepages-2Mi": "0"},
            "conditions": [foreign],
            "images": [{"names": ["a"], "sizeBytes": 1}],
            "volumesInUse": ["v"],
        }));
        let new = status(json!({
            "addresses": [{"type": "InternalIP", "address": "10.0.0.2"}],
            "capacity": {"cpu": "2"},
            "conditions": [foreign, ready],
            "images": [{"names": ["a"], "sizeBytes": 1}],
        }));
        let want = json!({"status": {
            "addresses": [{"type": "InternalIP", "address": "10.0.0.2"}, {"$patch": "replace"}],
            "capacity": {"cpu": "2", "hugepages-2Mi": null},
            "conditions": [ready],
            "volumesInUse": null,
        }});
        assert_eq!(status_patch(&old, &new), want);
        assert!(says_something_new(&old, &new));
        let mut beat = new.clone();
        beat.conditions.as_mut().unwrap()[1].last_heartbeat_time = None;
        assert!(!says_something_new(&new, &beat), "a heartbeat alone is nothing new");
    }
}
