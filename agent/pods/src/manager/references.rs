//! Whether a pod refers to a ConfigMap or Secret.

use k8s_openapi::api::core::v1::Pod;
use orlop_agent_core::containers::{all_containers, spec};
use orlop_agent_core::env::env_references;

/// Whether the pod's volumes or environment refer to the object.
pub(super) fn refers(pod: &Pod, kind: &str, name: &str) -> bool {
    in_env(pod, kind, name) || in_volumes(pod, kind, name)
}

fn in_env(pod: &Pod, kind: &str, name: &str) -> bool {
    all_containers(pod).any(|container| {
        let (config_maps, secrets) = env_references(&container.container);
        let list = if kind == "Secret" { secrets } else { config_maps };
        list.iter().any(|known| known == name)
    })
}

fn in_volumes(pod: &Pod, kind: &str, name: &str) -> bool {
    spec(pod).into_iter().flat_map(|spec| spec.volumes.iter().flatten()).any(|volume| {
        let sources = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
        match kind {
            "Secret" => {
                volume.secret.as_ref().is_some_and(|secret| secret.secret_name.as_deref() == Some(name))
                    || sources.filter_map(|source| source.secret.as_ref()).any(|secret| secret.name == name)
            }
            _ => {
                volume.config_map.as_ref().is_some_and(|map| map.name == name)
                    || sources.filter_map(|source| source.config_map.as_ref()).any(|map| map.name == name)
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_found_in_all_places() {
        let pod: Pod = serde_json::from_value(serde_json::json!({"spec": {
            "containers": [{"name": "a", "envFrom": [{"configMapRef": {"name": "m1"}}]}],
            "volumes": [
                {"name": "v1", "secret": {"secretName": "s1"}},
                {"name": "v2", "projected": {"sources": [{"configMap": {"name": "m2"}}, {"secret": {"name": "s2"}}]}}
            ]
        }}))
        .unwrap();
        for (kind, name, want) in [
            ("ConfigMap", "m1", true),
            ("ConfigMap", "m2", true),
            ("ConfigMap", "s1", false),
            ("Secret", "s1", true),
            ("Secret", "s2", true),
            ("Secret", "m1", false),
        ] {
            assert_eq!(refers(&pod, kind, name), want, "{kind} {name}");
        }
    }
}
