//! Events about a pod and its containers.

use k8s_openapi::api::core::v1::Pod;
use orlop_agent_core::containers::{self, SpecContainer};
use orlop_agent_core::ports::{EventType, Events, ObjectRef};

/// An orphan of which only the uid is known has no object that an event could be about.
fn nameless(pod: &Pod) -> bool {
    containers::name(pod).is_empty()
}

fn reference(pod: &Pod, field_path: Option<String>) -> ObjectRef {
    ObjectRef {
        kind: "Pod".to_owned(),
        namespace: containers::namespace(pod).to_owned(),
        name: containers::name(pod).to_owned(),
        uid: containers::uid(pod).to_owned(),
        field_path,
    }
}

/// Records an event about a pod.
pub(crate) fn pod_event(events: &dyn Events, pod: &Pod, kind: EventType, reason: &str, message: &str) {
    if !nameless(pod) {
        events.record(reference(pod, None), kind, reason, message);
    }
}

/// Records an event about a container of a pod.
pub(crate) fn container_event(
    events: &dyn Events,
    pod: &Pod,
    container: &SpecContainer<'_>,
    kind: EventType,
    reason: &str,
    message: &str,
) {
    events.record(reference(pod, Some(container.field_path())), kind, reason, message);
}

/// Records an event about a container by name; one that the spec does not have counts as the pod.
pub(crate) fn named_event(events: &dyn Events, pod: &Pod, name: &str, kind: EventType, reason: &str, message: &str) {
    let path = containers::find_container(pod, name).map(|container| container.field_path());
    if !nameless(pod) {
        events.record(reference(pod, path), kind, reason, message);
    }
}
