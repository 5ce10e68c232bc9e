//! The containers of a pod's spec as one ordered list: init and sidecar containers, app containers, ephemeral ones.

use std::borrow::Cow;

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod, PodSpec};

/// What part a container plays in its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ContainerKind {
    /// An init container: runs to its end before the next one.
    Init,
    /// A restartable init container: started in the order of init containers and then kept running.
    Sidecar,
    /// A regular container.
    App,
    /// A container added for debugging; never restarted.
    Ephemeral,
}

impl ContainerKind {
    /// Its name, as the kubelet's metrics have it.
    pub fn metric_label(self) -> &'static str {
        match self {
            ContainerKind::Init | ContainerKind::Sidecar => "init_container",
            ContainerKind::App => "container",
            ContainerKind::Ephemeral => "ephemeral_container",
        }
    }
}

/// One container of the spec.
#[derive(Clone, Debug)]
pub struct SpecContainer<'a> {
    /// Its part.
    pub kind: ContainerKind,
    /// Its definition; an ephemeral one is rewritten to the type of the others.
    pub container: Cow<'a, Container>,
    /// For an ephemeral container: the container whose process namespace it joins.
    pub target: Option<&'a str>,
}

impl SpecContainer<'_> {
    /// Name of the container.
    pub fn name(&self) -> &str {
        &self.container.name
    }

    /// `spec.containers{name}` and the like, as events name it.
    pub fn field_path(&self) -> String {
        let list = match self.kind {
            ContainerKind::Init | ContainerKind::Sidecar => "initContainers",
            ContainerKind::App => "containers",
            ContainerKind::Ephemeral => "ephemeralContainers",
        };
        format!("spec.{list}{{{}}}", self.name())
    }
}

/// Whether an init container is restartable, which makes it a sidecar.
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// Init and sidecar containers in the order of the spec.
pub fn init_containers(pod: &Pod) -> impl DoubleEndedIterator<Item = SpecContainer<'_>> {
    spec(pod).into_iter().flat_map(|spec| spec.init_containers.iter().flatten()).map(|container| SpecContainer {
        kind: if is_sidecar(container) { ContainerKind::Sidecar } else { ContainerKind::Init },
        container: Cow::Borrowed(container),
        target: None,
    })
}

/// Regular containers in the order of the spec.
pub fn app_containers(pod: &Pod) -> impl DoubleEndedIterator<Item = SpecContainer<'_>> {
    spec(pod).into_iter().flat_map(|spec| spec.containers.iter()).map(|container| SpecContainer {
        kind: ContainerKind::App,
        container: Cow::Borrowed(container),
        target: None,
    })
}

/// Ephemeral containers in the order of the spec.
pub fn ephemeral_containers(pod: &Pod) -> impl DoubleEndedIterator<Item = SpecContainer<'_>> {
    spec(pod).into_iter().flat_map(|spec| spec.ephemeral_containers.iter().flatten()).map(|container| SpecContainer {
        kind: ContainerKind::Ephemeral,
        container: Cow::Owned(from_ephemeral(container)),
        target: container.target_container_name.as_deref().filter(|name| !name.is_empty()),
    })
}

/// All containers: init and sidecar, app, ephemeral.
pub fn all_containers(pod: &Pod) -> impl Iterator<Item = SpecContainer<'_>> {
    init_containers(pod).chain(app_containers(pod)).chain(ephemeral_containers(pod))
}

/// The container of that name.
pub fn find_container<'a>(pod: &'a Pod, name: &str) -> Option<SpecContainer<'a>> {
    all_containers(pod).find(|container| container.name() == name)
}

/// The spec, where there is one.
pub fn spec(pod: &Pod) -> Option<&PodSpec> {
    pod.spec.as_ref()
}

/// Uid of the pod, or an empty string.
pub fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

/// Name of the pod, or an empty string.
pub fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

/// Namespace of the pod, or an empty string.
pub fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or_default()
}

/// `name_namespace(uid)`, as the kubelet's messages name a pod.
pub fn display(pod: &Pod) -> String {
    format!("{}_{}({})", name(pod), namespace(pod), uid(pod))
}

/// Restart policy of the pod: `Always` unless set.
pub fn restart_policy(pod: &Pod) -> &str {
    spec(pod).and_then(|spec| spec.restart_policy.as_deref()).unwrap_or("Always")
}

/// Whether the pod uses the network of the node.
pub fn host_network(pod: &Pod) -> bool {
    spec(pod).and_then(|spec| spec.host_network).unwrap_or(false)
}

/// An annotation of the pod.
pub fn annotation<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

/// Whether the pod is defined by a file (or URL) of the node.
pub fn is_static(pod: &Pod) -> bool {
    annotation(pod, crate::labels::CONFIG_SOURCE).is_some_and(|source| source != "api")
}

/// Whether the pod is the API's picture of a static pod.
pub fn is_mirror(pod: &Pod) -> bool {
    annotation(pod, crate::labels::CONFIG_MIRROR).is_some()
}

fn from_ephemeral(from: &EphemeralContainer) -> Container {
    let from = from.clone();
    Container {
        args: from.args,
        command: from.command,
        env: from.env,
        env_from: from.env_from,
        image: from.image,
        image_pull_policy: from.image_pull_policy,
        lifecycle: from.lifecycle,
        liveness_probe: from.liveness_probe,
        name: from.name,
        ports: from.ports,
        readiness_probe: from.readiness_probe,
        resize_policy: from.resize_policy,
        resources: from.resources,
        restart_policy: from.restart_policy,
        restart_policy_rules: from.restart_policy_rules,
        security_context: from.security_context,
        startup_probe: from.startup_probe,
        stdin: from.stdin,
        stdin_once: from.stdin_once,
        termination_message_path: from.termination_message_path,
        termination_message_policy: from.termination_message_policy,
        tty: from.tty,
        volume_devices: from.volume_devices,
        volume_mounts: from.volume_mounts,
        working_dir: from.working_dir,
    }
}
