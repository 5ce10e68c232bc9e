//! What a client is warned of although it is done.

use serde_json::Value;

use crate::object;
use crate::registry::Resource;

/// Old labels of nodes and what took their place.
const OLD_NODE_LABELS: [(&str, &str); 6] = [
    ("beta.kubernetes.io/arch", "kubernetes.io/arch"),
    ("beta.kubernetes.io/os", "kubernetes.io/os"),
    ("failure-domain.beta.kubernetes.io/region", "topology.kubernetes.io/region"),
    ("failure-domain.beta.kubernetes.io/zone", "topology.kubernetes.io/zone"),
    ("beta.kubernetes.io/instance-type", "node.kubernetes.io/instance-type"),
    ("failure-domain.kubernetes.io/zone", "topology.kubernetes.io/zone"),
];
/// Since when each of them is old.
const OLD_SINCE: [&str; 6] = ["v1.14", "v1.14", "v1.17", "v1.17", "v1.17", "v1.17"];

/// Warnings about a resource as such.
pub fn warn_of_resource(resource: &Resource) -> Vec<String> {
    match (resource.group, resource.plural) {
        ("", "endpoints") => vec!["v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice".into()],
        _ => Vec::new(),
    }
}

/// Warnings about an object that was written.
pub fn warn_of_object(resource: &Resource, object: &Value) -> Vec<String> {
    let mut warnings = Vec::new();
    if resource.plural == "services" && !object::items(object, "/spec/externalIPs").is_empty() {
        warnings.push("spec.externalIPs is deprecated and may no longer be implemented in some clusters".into());
    }
    if resource.plural != "pods" {
        return warnings;
    }
    let spec = object.get("spec").unwrap_or(&Value::Null);
    for (key, _) in spec.get("nodeSelector").and_then(Value::as_object).into_iter().flatten() {
        if let Some(index) = OLD_NODE_LABELS.iter().position(|(old, _)| old == key) {
            let (new, since) = (OLD_NODE_LABELS[index].1, OLD_SINCE[index]);
            warnings.push(format!("spec.nodeSelector[{key}]: deprecated since {since}; use {new:?} instead"));
        }
    }
    if object::number(spec, "/terminationGracePeriodSeconds").is_some_and(|seconds| seconds < 0) {
        warnings.push(
            "spec.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1"
                .into(),
        );
    }
    for (index, reference) in object::items(spec, "/imagePullSecrets").iter().enumerate() {
        if object::text(reference, "/name").is_empty() {
            let place = format!("spec.imagePullSecrets[{index}]");
            warnings.push(format!("{place}: invalid empty name {:?}", object::text(reference, "/name")));
        }
    }
    for list in ["initContainers", "containers"] {
        for (index, container) in object::items(spec, &format!("/{list}")).iter().enumerate() {
            warn_of_container(container, &format!("spec.{list}[{index}]"), &mut warnings);
        }
    }
    warnings
}

fn warn_of_container(container: &Value, path: &str, warnings: &mut Vec<String>) {
    let variables = object::items(container, "/env");
    for (index, variable) in variables.iter().enumerate() {
        let name = object::text(variable, "/name");
        if variables[..index].iter().any(|before| object::text(before, "/name") == name) {
            warnings.push(format!(
                "{path}.env[{index}]: hides previous definition of {name:?}, which may be dropped when using apply"
            ));
        }
    }
    let ports = object::items(container, "/ports");
    let same = |one: &Value, other: &Value| {
        ["containerPort", "protocol", "hostIP", "hostPort"].iter().all(|key| one.get(key) == other.get(key))
    };
    for (index, port) in ports.iter().enumerate() {
        if let Some(before) = ports[..index].iter().position(|before| same(before, port)) {
            warnings.push(format!("{path}.ports[{index}]: duplicate port definition with {path}.ports[{before}]"));
        }
    }
    for kind in ["limits", "requests"] {
        for (name, amount) in
            container.pointer(&format!("/resources/{kind}")).and_then(Value::as_object).into_iter().flatten()
        {
            let amount = amount.as_str().unwrap_or_default();
            // Bytes have no thousandths; what was meant is mostly a mega.
            if matches!(name.as_str(), "memory" | "ephemeral-storage") && amount.ends_with('m') {
                let place = format!("{path}.resources.{kind}[{name}]");
                warnings.push(format!("{place}: fractional byte value {amount:?} is invalid, must be an integer"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::registry;

    #[test]
    fn pods_are_warned_of() {
        let pod = json!({"spec": {"nodeSelector": {"beta.kubernetes.io/os": "linux"}, "containers": [{
            "env": [{"name": "A"}, {"name": "A"}], "ports": [{"containerPort": 80, "protocol": "TCP"}, {"containerPort": 80, "protocol": "TCP"}],
            "resources": {"limits": {"memory": "100m"}},
        }]}});
        let warnings = warn_of_object(registry::core("pods"), &pod);
        assert_eq!(warnings.len(), 4, "{warnings:?}");
        assert!(warn_of_object(registry::core("pods"), &json!({"spec": {}})).is_empty());
    }
}
