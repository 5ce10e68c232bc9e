//! Why the node takes no new pod just now (kubelet's eviction and shutdown admission handlers). Pure.

use k8s_openapi::api::core::v1::{Pod, Toleration};

use crate::facts::NodeInputs;

/// Pods of this priority and above are critical (system-critical priority of the scheduling API).
const CRITICAL_PRIORITY: i32 = 2_000_000_000;

/// Reason and message of a refusal.
pub(crate) fn refusal(inputs: &NodeInputs, pod: &Pod) -> Option<(String, String)> {
    if let Some(message) = pressure_refusal(inputs, pod) {
        return Some(("Evicted".to_owned(), message));
    }
    let shutdown = || ("NodeShutdown".to_owned(), "Pod was rejected as the node is shutting down.".to_owned());
    inputs.shutting_down.then(shutdown)
}

fn pressure_refusal(inputs: &NodeInputs, pod: &Pod) -> Option<String> {
    let pressures = inputs.pressures;
    let conditions: Vec<&str> =
        [(pressures.memory, "MemoryPressure"), (pressures.disk, "DiskPressure"), (pressures.pid, "PIDPressure")]
            .into_iter()
            .filter_map(|(short, name)| short.then_some(name))
            .collect();
    if conditions.is_empty() || is_critical(pod) {
        return None;
    }
    // A shortage of memory alone is no reason to refuse pods that have asked for what they need.
    if conditions == ["MemoryPressure"] && (!is_best_effort(pod) || tolerates_memory_pressure(pod)) {
        return None;
    }
    Some(format!("The node had condition: [{}]. ", conditions.join(" ")))
}

fn is_critical(pod: &Pod) -> bool {
    let annotation = |key: &str| pod.metadata.annotations.as_ref().and_then(|annotations| annotations.get(key));
    let is_static = annotation("kubernetes.io/config.source").is_some_and(|source| source != "api");
    let is_mirror = annotation("kubernetes.io/config.mirror").is_some();
    is_static || is_mirror || pod.spec.as_ref().and_then(|spec| spec.priority).is_some_and(|p| p >= CRITICAL_PRIORITY)
}

fn is_best_effort(pod: &Pod) -> bool {
    if let Some(class) = pod.status.as_ref().and_then(|status| status.qos_class.as_deref()) {
        return class == "BestEffort";
    }
    let containers =
        pod.spec.iter().flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
    containers.filter_map(|container| container.resources.as_ref()).all(|resources| {
        [&resources.requests, &resources.limits]
            .iter()
            .all(|list| list.iter().flat_map(|list| list.keys()).all(|name| name != "cpu" && name != "memory"))
    })
}

fn tolerates_memory_pressure(pod: &Pod) -> bool {
    let tolerates = |toleration: &Toleration| {
        let key = toleration.key.as_deref().unwrap_or_default();
        let effect = toleration.effect.as_deref().unwrap_or_default();
        let exists = toleration.operator.as_deref() == Some("Exists");
        (effect.is_empty() || effect == "NoSchedule")
            && (key == "node.kubernetes.io/memory-pressure" || (key.is_empty() && exists))
            && (exists || toleration.value.as_deref().unwrap_or_default().is_empty())
    };
    pod.spec.iter().filter_map(|spec| spec.tolerations.as_ref()).flatten().any(tolerates)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::Pressures;
    use serde_json::json;

    #[test]
    fn pods_are_refused_as_the_kubelet_refuses_them() {
        let best_effort = json!({"spec": {"containers": [{"name": "a"}]}});
        let tolerant = json!({"spec": {
            "containers": [{"name": "a"}],
            "tolerations": [{"key": "node.kubernetes.io/memory-pressure", "operator": "Exists", "effect": "NoSchedule"}],
        }});
        let burstable = json!({"spec": {"containers": [{"name": "a", "resources": {"requests": {"cpu": "1"}}}]}});
        let critical = json!({"spec": {"priority": 2_000_000_000, "containers": [{"name": "a"}]}});
        let fixed = json!({"metadata": {"annotations": {"kubernetes.io/config.source": "file"}}, "spec": {"containers": [{"name": "a"}]}});
        let memory = NodeInputs { pressures: Pressures { memory: true, ..Default::default() }, ..Default::default() };
        let disk = NodeInputs { pressures: Pressures { disk: true, ..Default::default() }, ..Default::default() };
        let down = NodeInputs { shutting_down: true, ..Default::default() };
        let cases = [
            ("nothing wrong", NodeInputs::default(), &best_effort, None),
            ("memory, best effort", memory.clone(), &best_effort, Some("Evicted")),
            ("memory, tolerant", memory.clone(), &tolerant, None),
            ("memory, burstable", memory.clone(), &burstable, None),
            ("memory, critical", memory.clone(), &critical, None),
            ("memory, static", memory, &fixed, None),
            ("disk, burstable", disk.clone(), &burstable, Some("Evicted")),
            ("disk, critical", disk, &critical, None),
            ("shutdown", down, &critical, Some("NodeShutdown")),
        ];
        for (what, inputs, pod, want) in cases {
            let pod: Pod = serde_json::from_value(pod.clone()).unwrap();
            assert_eq!(refusal(&inputs, &pod).map(|(reason, _)| reason).as_deref(), want, "{what}");
        }
    }
}
