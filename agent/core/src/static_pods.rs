//! Static pods: what the agent adds to a pod that a file of the node defines, and its mirror for the API.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodStatus, Toleration};

use crate::hash::fnv128a;
use crate::images::{PullPolicy, pull_policy};
use crate::labels::{CONFIG_HASH, CONFIG_MIRROR, CONFIG_SEEN, CONFIG_SOURCE};

/// Why a definition is not a pod that can be run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StaticPodError {
    /// It is of another kind.
    #[error("kind is {0:?}, want Pod")]
    Kind(String),
    /// It does not fit the type.
    #[error("{0}")]
    Shape(String),
    /// A needed field is missing.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// It refers to objects of the API.
    #[error("static pods may not reference API objects: {0}")]
    References(String),
}

/// Makes a pod of a definition: name, namespace, uid, annotations, tolerations and the API's defaults.
///
/// `origin` is `file:<path>` or `url:<address>` and is part of the uid, as is the node: the same file gives the same uid, a
/// changed file another.
pub fn static_pod(
    definition: &serde_json::Value,
    origin: &str,
    node_name: &str,
    now: Timestamp,
) -> Result<Pod, StaticPodError> {
    let kind = definition.get("kind").and_then(|kind| kind.as_str()).unwrap_or_default();
    if kind != "Pod" {
        return Err(StaticPodError::Kind(kind.to_owned()));
    }
    let mut pod: Pod =
        serde_json::from_value(definition.clone()).map_err(|error| StaticPodError::Shape(error.to_string()))?;
    let name =
        pod.metadata.name.clone().filter(|name| !name.is_empty()).ok_or(StaticPodError::Missing("metadata.name"))?;
    let spec = pod.spec.as_mut().ok_or(StaticPodError::Missing("spec"))?;
    if spec.containers.is_empty() {
        return Err(StaticPodError::Missing("spec.containers"));
    }
    spec.node_name = Some(node_name.to_owned());
    spec.restart_policy.get_or_insert_with(|| "Always".into());
    spec.dns_policy.get_or_insert_with(|| "ClusterFirst".into());
    spec.termination_grace_period_seconds.get_or_insert(30);
    spec.enable_service_links.get_or_insert(true);
    spec.scheduler_name.get_or_insert_with(|| "default-scheduler".into());
    spec.security_context.get_or_insert_with(Default::default);
    spec.tolerations.get_or_insert_with(Vec::new).push(Toleration {
        operator: Some("Exists".into()),
        effect: Some("NoExecute".into()),
        ..Toleration::default()
    });
    for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        default_container(container)?;
    }
    let source = if origin.starts_with("url:") { "http" } else { "file" }.to_owned();
    let hash =
        pod.metadata.uid.clone().filter(|uid| !uid.is_empty()).unwrap_or_else(|| uid(definition, origin, node_name));
    pod.metadata.name = Some(format!("{name}-{}", node_name.to_lowercase()));
    pod.metadata.namespace = Some(
        pod.metadata.namespace.take().filter(|namespace| !namespace.is_empty()).unwrap_or_else(|| "default".into()),
    );
    pod.metadata.uid = Some(hash.clone());
    let annotations = pod.metadata.annotations.get_or_insert_with(BTreeMap::new);
    annotations.insert(CONFIG_HASH.into(), hash);
    annotations.insert(CONFIG_SOURCE.into(), source);
    annotations.insert(CONFIG_SEEN.into(), now.to_string());
    pod.status = Some(PodStatus { phase: Some("Pending".into()), ..PodStatus::default() });
    let references = crate::admission::static_pod_references(&pod);
    if !references.is_empty() {
        return Err(StaticPodError::References(references.join(", ")));
    }
    Ok(pod)
}

fn uid(definition: &serde_json::Value, origin: &str, node_name: &str) -> String {
    let text = format!("{definition}\0host:{node_name}\0{origin}");
    format!("{:032x}", fnv128a(text.as_bytes()))
}

fn default_container(container: &mut Container) -> Result<(), StaticPodError> {
    if container.name.is_empty() {
        return Err(StaticPodError::Missing("spec.containers[].name"));
    }
    if container.image.as_deref().is_none_or(str::is_empty) {
        return Err(StaticPodError::Missing("spec.containers[].image"));
    }
    let policy = match pull_policy(container) {
        PullPolicy::Always => "Always",
        PullPolicy::IfNotPresent => "IfNotPresent",
        PullPolicy::Never => "Never",
    };
    container.image_pull_policy = Some(policy.into());
    container.termination_message_path.get_or_insert_with(|| "/dev/termination-log".into());
    container.termination_message_policy.get_or_insert_with(|| "File".into());
    for port in container.ports.iter_mut().flatten() {
        port.protocol.get_or_insert_with(|| "TCP".into());
    }
    Ok(())
}

/// The mirror of a static pod, as the API is to have it.
pub fn mirror_pod(pod: &Pod) -> Pod {
    let mut mirror = Pod { metadata: pod.metadata.clone(), spec: pod.spec.clone(), status: None };
    let hash = pod.metadata.uid.clone().unwrap_or_default();
    mirror.metadata.uid = None;
    mirror.metadata.resource_version = None;
    mirror.metadata.creation_timestamp = None;
    mirror.metadata.annotations.get_or_insert_with(BTreeMap::new).insert(CONFIG_MIRROR.into(), hash);
    mirror
}

/// Whether a mirror pod shows this static pod as it is.
pub fn mirror_matches(mirror: &Pod, pod: &Pod) -> bool {
    crate::containers::annotation(mirror, CONFIG_MIRROR) == pod.metadata.uid.as_deref()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make(definition: serde_json::Value) -> Result<Pod, StaticPodError> {
        static_pod(&definition, "file:/x/a.yaml", "Node1", Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn definitions_become_pods() {
        let definition = serde_json::json!({"kind": "Pod", "metadata": {"name": "web"}, "spec": {"containers": [{"name": "a", "image": "x:1"}]}});
        let pod = make(definition.clone()).unwrap();
        assert_eq!((crate::containers::name(&pod), crate::containers::namespace(&pod)), ("web-node1", "default"));
        assert_eq!(make(definition.clone()).unwrap().metadata.uid, pod.metadata.uid);
        let mut changed = definition;
        changed["spec"]["containers"][0]["image"] = "x:2".into();
        assert_ne!(make(changed).unwrap().metadata.uid, pod.metadata.uid);
        let mirror = mirror_pod(&pod);
        assert!(mirror_matches(&mirror, &pod) && mirror.metadata.uid.is_none());
    }

    #[test]
    fn what_is_no_static_pod_is_refused() {
        for definition in [
            serde_json::json!({"kind": "Service"}),
            serde_json::json!({"kind": "Pod", "metadata": {}, "spec": {"containers": [{"name": "a", "image": "x"}]}}),
            serde_json::json!({"kind": "Pod", "metadata": {"name": "a"}}),
            serde_json::json!({"kind": "Pod", "metadata": {"name": "a"}, "spec": {"containers": [{"name": "a"}]}}),
            serde_json::json!({"kind": "Pod", "metadata": {"name": "a"}, "spec": {"containers": [{"name": "a", "image": "x"}],
                "volumes": [{"name": "v", "secret": {"secretName": "s"}}]}}),
        ] {
            assert!(make(definition.clone()).is_err(), "{definition}");
        }
    }
}
