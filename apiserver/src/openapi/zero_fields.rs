//! Fields that a typed server always writes: structures and times that are no pointers, and lists without `omitempty`.
//!
//! What a schema requires is written too; this table has the rest (Go types of Kubernetes 1.36).

use serde_json::{Value, json};

use super::definitions::definitions;
use crate::openapi::referred;

/// What is written for a field that is not set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Zero {
    /// `null`: a time or a list.
    Null,
    /// A structure, with its own such fields.
    Structure,
}

const TABLE: &[(&str, &str, Zero)] = &[
    ("CSINodeDriver", "topologyKeys", Zero::Null),
    ("ContainerStateRunning", "startedAt", Zero::Null),
    ("ContainerStateTerminated", "finishedAt", Zero::Null),
    ("ContainerStateTerminated", "startedAt", Zero::Null),
    ("ContainerStatus", "lastState", Zero::Structure),
    ("ContainerStatus", "state", Zero::Structure),
    ("Endpoint", "conditions", Zero::Structure),
    ("EndpointSlice", "ports", Zero::Null),
    ("Lease", "spec", Zero::Structure),
    ("Namespace", "spec", Zero::Structure),
    ("Namespace", "status", Zero::Structure),
    ("NamespaceCondition", "lastTransitionTime", Zero::Null),
    ("Node", "spec", Zero::Structure),
    ("Node", "status", Zero::Structure),
    ("NodeCondition", "lastHeartbeatTime", Zero::Null),
    ("NodeCondition", "lastTransitionTime", Zero::Null),
    ("NodeDaemonEndpoints", "kubeletEndpoint", Zero::Structure),
    ("NodeStatus", "daemonEndpoints", Zero::Structure),
    ("NodeStatus", "nodeInfo", Zero::Structure),
    ("PersistentVolume", "spec", Zero::Structure),
    ("PersistentVolume", "status", Zero::Structure),
    ("PersistentVolumeClaim", "spec", Zero::Structure),
    ("PersistentVolumeClaim", "status", Zero::Structure),
    ("PersistentVolumeClaimCondition", "lastProbeTime", Zero::Null),
    ("PersistentVolumeClaimCondition", "lastTransitionTime", Zero::Null),
    ("PersistentVolumeClaimSpec", "resources", Zero::Structure),
    ("Pod", "spec", Zero::Structure),
    ("PodCondition", "lastProbeTime", Zero::Null),
    ("PodCondition", "lastTransitionTime", Zero::Null),
    ("Service", "spec", Zero::Structure),
    ("Service", "status", Zero::Structure),
    ("ServiceStatus", "loadBalancer", Zero::Structure),
    ("TypedLocalObjectReference", "apiGroup", Zero::Null),
    ("TypedObjectReference", "apiGroup", Zero::Null),
];

/// Fields of the core Event that are always written.
const EVENT_TABLE: &[(&str, Zero)] = &[
    ("eventTime", Zero::Null),
    ("firstTimestamp", Zero::Null),
    ("lastTimestamp", Zero::Null),
    ("source", Zero::Structure),
];

/// The fields that are written even when nothing sets them, with what is written.
pub(super) fn zero_fields(owner: &str, schema: &Value) -> Vec<(&'static str, Value)> {
    let name = owner.rsplit('.').next().unwrap_or(owner);
    let Some(own) = definitions().get(owner) else { return Vec::new() };
    let property = |field: &str| own.pointer(&format!("/properties/{field}"));
    let table = TABLE.iter().filter(|(kind, ..)| *kind == name).map(|(_, field, zero)| (*field, *zero));
    let events = EVENT_TABLE.iter().copied().filter(|_| owner == "io.k8s.api.core.v1.Event");
    let mut found: Vec<(&'static str, Value)> = table
        .chain(events)
        .filter_map(|(field, zero)| {
            Some((field, if zero == Zero::Null { Value::Null } else { zero_value(property(field)?) }))
        })
        .collect();
    debug_assert!(schema.is_object());
    for field in own.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
        if let Some(property) = property(field)
            && field != "metadata"
        {
            found.push((field, zero_value(property)));
        }
    }
    found
}

/// The zero value of a field's type.
fn zero_value(property: &Value) -> Value {
    if let Some(name) = referred(property) {
        return match definitions().get(name) {
            _ if name.ends_with(".Quantity") => json!("0"),
            _ if name.ends_with(".IntOrString") => json!(0),
            _ if name.ends_with("Time") => Value::Null,
            Some(schema) if schema.get("properties").is_some() => Value::Object(
                zero_fields(name, schema).into_iter().map(|(field, zero)| (field.to_string(), zero)).collect(),
            ),
            _ => Value::Null,
        };
    }
    match property.get("type").and_then(Value::as_str) {
        Some("string") if property.get("format").is_none() => json!(""),
        Some("integer" | "number") => json!(0),
        Some("boolean") => json!(false),
        _ => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_its_structures() {
        let name = "io.k8s.api.core.v1.NodeStatus";
        let fields = zero_fields(name, &definitions()[name]);
        let get = |field: &str| {
            fields.iter().find(|(name, _)| *name == field).map(|(_, value)| value.clone()).unwrap_or_default()
        };
        assert_eq!(get("daemonEndpoints"), json!({"kubeletEndpoint": {"Port": 0}}));
        assert_eq!(get("nodeInfo")["kubeletVersion"], "");
    }

    #[test]
    fn rows_name_fields_that_are() {
        for (kind, field, _) in TABLE {
            let known = definitions().iter().any(|(name, schema)| {
                name.rsplit('.').next() == Some(kind) && schema.pointer(&format!("/properties/{field}")).is_some()
            });
            assert!(known, "{kind}.{field}");
        }
    }

    /// An almost empty document in its full form is one that typed clients read.
    fn reads<T: serde::de::DeserializeOwned>(schema: &str, mut document: Value) {
        crate::openapi::normalize(&mut document, schema).unwrap();
        if let Err(error) = serde_json::from_value::<T>(document.clone()) {
            panic!("{schema}: {error}: {document}");
        }
    }

    #[test]
    fn typed_clients_read_zeros() {
        use k8s_openapi::api::core::v1 as core;
        let pod = json!({"status": {
            "conditions": [{}], "containerStatuses": [{"state": {"running": {}}, "lastState": {"terminated": {}}}], "podIPs": [{}],
        }, "spec": {"containers": [{"env": [{}], "ports": [{}], "volumeMounts": [{}]}], "volumes": [{"projected": {}}]}});
        reads::<core::Pod>("io.k8s.api.core.v1.Pod", pod);
        reads::<core::Node>(
            "io.k8s.api.core.v1.Node",
            json!({"status": {"conditions": [{}], "addresses": [{}], "images": [{}]}}),
        );
        reads::<core::Event>("io.k8s.api.core.v1.Event", json!({}));
        reads::<core::Service>("io.k8s.api.core.v1.Service", json!({"spec": {"ports": [{}]}}));
        reads::<core::PersistentVolumeClaim>(
            "io.k8s.api.core.v1.PersistentVolumeClaim",
            json!({"status": {"conditions": [{}]}}),
        );
        reads::<k8s_openapi::api::storage::v1::CSINode>(
            "io.k8s.api.storage.v1.CSINode",
            json!({"spec": {"drivers": [{}]}}),
        );
        reads::<k8s_openapi::api::discovery::v1::EndpointSlice>(
            "io.k8s.api.discovery.v1.EndpointSlice",
            json!({"endpoints": [{}]}),
        );
        reads::<k8s_openapi::api::coordination::v1::Lease>("io.k8s.api.coordination.v1.Lease", json!({}));
        reads::<k8s_openapi::api::events::v1::Event>("io.k8s.api.events.v1.Event", json!({}));
    }
}
