//! Events about the node from one status to the next. Pure.

use k8s_openapi::api::core::v1::NodeStatus;
use orlop_agent_core::ports::{EventType, ObjectRef};

/// The node as events name it: the kubelet puts the name where a uid belongs, and `kubectl describe` looks for that.
pub(crate) fn node_reference(node_name: &str) -> ObjectRef {
    ObjectRef {
        kind: "Node".to_owned(),
        namespace: String::new(),
        name: node_name.to_owned(),
        uid: node_name.to_owned(),
        field_path: None,
    }
}

/// An event: type, reason, message.
pub(crate) type NodeEvent = (EventType, &'static str, String);

/// Events that the change from `old` to `new` is worth.
pub(crate) fn status_events(node_name: &str, old: &NodeStatus, new: &NodeStatus) -> Vec<NodeEvent> {
    let mut events = Vec::new();
    let boot = |status: &NodeStatus| status.node_info.as_ref().map(|info| info.boot_id.clone()).unwrap_or_default();
    if !boot(old).is_empty() && boot(old) != boot(new) {
        let message = format!("Node {node_name} has been rebooted, boot id: {}", boot(new));
        events.push((EventType::Warning, "Rebooted", message));
    }
    let is_true = |status: &NodeStatus, kind: &str| {
        let condition = status.conditions.iter().flatten().find(|condition| condition.type_ == kind)?;
        Some(condition.status == "True")
    };
    let names = [
        ("MemoryPressure", "NodeHasInsufficientMemory", "NodeHasSufficientMemory"),
        ("DiskPressure", "NodeHasDiskPressure", "NodeHasNoDiskPressure"),
        ("PIDPressure", "NodeHasInsufficientPID", "NodeHasSufficientPID"),
        ("Ready", "NodeReady", "NodeNotReady"),
    ];
    for (kind, yes, no) in names {
        let (before, after) = (is_true(old, kind), is_true(new, kind));
        // A node that starts without being ready is no event.
        if before == after || (kind == "Ready" && before.is_none() && after == Some(false)) {
            continue;
        }
        let reason = if after == Some(true) { yes } else { no };
        events.push((EventType::Normal, reason, format!("Node {node_name} status is now: {reason}")));
    }
    events
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_changes_are_events() {
        let status = |ready: &str, boot: &str| -> NodeStatus {
            let system: Vec<(&str, &str)> = [
                "architecture",
                "containerRuntimeVersion",
                "kernelVersion",
                "kubeProxyVersion",
                "kubeletVersion",
                "machineID",
                "operatingSystem",
                "osImage",
                "systemUUID",
            ]
            .map(|key| (key, "x"))
            .into_iter()
            .chain([("bootID", boot)])
            .collect();
            let info: serde_json::Map<String, serde_json::Value> =
                system.into_iter().map(|(key, value)| (key.to_owned(), json!(value))).collect();
            serde_json::from_value(json!({"nodeInfo": info, "conditions": [{"type": "Ready", "status": ready}]}))
                .unwrap()
        };
        let reasons = |old: &NodeStatus, new: &NodeStatus| -> Vec<&'static str> {
            status_events("n", old, new).into_iter().map(|(_, reason, _)| reason).collect()
        };
        assert_eq!(reasons(&NodeStatus::default(), &status("False", "b")), [""; 0]);
        assert_eq!(reasons(&NodeStatus::default(), &status("True", "b")), ["NodeReady"]);
        assert_eq!(reasons(&status("True", "b"), &status("True", "b")), [""; 0]);
        assert_eq!(reasons(&status("True", "b"), &status("False", "b")), ["NodeNotReady"]);
        assert_eq!(reasons(&status("True", "a"), &status("True", "b")), ["Rebooted"]);
    }
}
