//! CRI's answers in the agent's terms.

use jiff::Timestamp;
use orlop_agent_core::facts::{ContainerFact, ObservedContainer, ObservedPod, ObservedSandbox};
use orlop_agent_core::labels;
use orlop_agent_core::runtime::{ImageFact, RuntimeStatus};
use orlop_agent_core::security::ImageUser;
use orlop_proto::cri;

fn time(nanoseconds: i64) -> Option<Timestamp> {
    if nanoseconds <= 0 { None } else { Timestamp::from_nanosecond(i128::from(nanoseconds)).ok() }
}

/// A sandbox and the names of its pod. Sandboxes that the agent did not make (they lack its labels) are none.
pub(crate) fn sandbox(status: &cri::PodSandboxStatus) -> Option<ObservedPod> {
    let mut pod = pod_of(&status.labels.clone().into_iter().collect())?;
    let metadata = status.metadata.clone().unwrap_or_default();
    let network = status.network.as_ref();
    let mut ips: Vec<String> =
        network.map(|network| network.ip.clone()).filter(|ip| !ip.is_empty()).into_iter().collect();
    ips.extend(network.into_iter().flat_map(|network| &network.additional_ips).map(|ip| ip.ip.clone()));
    let options = status
        .linux
        .as_ref()
        .and_then(|linux| linux.namespaces.as_ref())
        .and_then(|namespaces| namespaces.options.as_ref());
    pod.sandboxes.push(ObservedSandbox {
        id: status.id.clone(),
        attempt: metadata.attempt,
        ready: status.state == cri::PodSandboxState::SandboxReady as i32,
        created_at: time(status.created_at).unwrap_or(Timestamp::UNIX_EPOCH),
        ips,
        host_network: options.is_some_and(|options| options.network == cri::NamespaceMode::Node as i32),
    });
    Some(pod)
}

/// The pod that labels name.
pub(crate) fn pod_of(all: &std::collections::BTreeMap<String, String>) -> Option<ObservedPod> {
    Some(ObservedPod {
        uid: all.get(labels::POD_UID)?.clone(),
        name: all.get(labels::POD_NAME).cloned().unwrap_or_default(),
        namespace: all.get(labels::POD_NAMESPACE).cloned().unwrap_or_default(),
        ..ObservedPod::default()
    })
}

/// A container of a sandbox.
pub(crate) fn container(sandbox_id: &str, status: &cri::ContainerStatus) -> ObservedContainer {
    let metadata = status.metadata.clone().unwrap_or_default();
    let restart_count = status.annotations.get(labels::RESTART_COUNT).and_then(|text| text.parse().ok());
    let fact = match cri::ContainerState::try_from(status.state) {
        Ok(cri::ContainerState::ContainerCreated) => ContainerFact::Created,
        Ok(cri::ContainerState::ContainerRunning) => ContainerFact::Running,
        Ok(cri::ContainerState::ContainerExited) => ContainerFact::Exited,
        Ok(cri::ContainerState::ContainerUnknown) | Err(_) => ContainerFact::Unknown,
    };
    let image = status.image.clone().unwrap_or_default();
    ObservedContainer {
        id: status.id.clone(),
        sandbox_id: sandbox_id.to_owned(),
        name: status.labels.get(labels::CONTAINER_NAME).cloned().unwrap_or(metadata.name),
        attempt: restart_count.unwrap_or(metadata.attempt),
        fact,
        created_at: time(status.created_at).unwrap_or(Timestamp::UNIX_EPOCH),
        started_at: time(status.started_at),
        finished_at: time(status.finished_at),
        exit_code: status.exit_code,
        reason: status.reason.clone(),
        message: status.message.clone(),
        message_read: false,
        image: if image.user_specified_image.is_empty() { image.image } else { image.user_specified_image },
        image_ref: status.image_ref.clone(),
        log_path: status.log_path.clone(),
        annotations: status.annotations.clone().into_iter().collect(),
        user: status
            .user
            .as_ref()
            .and_then(|user| user.linux.as_ref())
            .map(|user| (user.uid, user.gid, user.supplemental_groups.clone())),
    }
}

/// What a list tells of a sandbox, as a status.
pub(crate) fn listed_sandbox(from: cri::PodSandbox) -> cri::PodSandboxStatus {
    cri::PodSandboxStatus {
        id: from.id,
        metadata: from.metadata,
        state: from.state,
        created_at: from.created_at,
        labels: from.labels,
        annotations: from.annotations,
        runtime_handler: from.runtime_handler,
        ..Default::default()
    }
}

/// What a list tells of a container, as a status.
pub(crate) fn listed_container(from: cri::Container) -> cri::ContainerStatus {
    cri::ContainerStatus {
        id: from.id,
        metadata: from.metadata,
        state: from.state,
        created_at: from.created_at,
        image: from.image,
        image_ref: from.image_ref,
        image_id: from.image_id,
        labels: from.labels,
        annotations: from.annotations,
        ..Default::default()
    }
}

/// An image.
pub(crate) fn image(from: cri::Image) -> ImageFact {
    ImageFact {
        id: from.id,
        repo_digests: from.repo_digests,
        repo_tags: from.repo_tags,
        size: from.size,
        user: ImageUser { uid: from.uid.map(|uid| uid.value), name: from.username },
    }
}

/// The runtime's state.
pub(crate) fn status(response: &cri::StatusResponse) -> RuntimeStatus {
    let conditions = response.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let fault = |kind: &str| match conditions.iter().find(|condition| condition.r#type == kind) {
        Some(condition) if condition.status => None,
        Some(condition) => Some(format!("{kind}=false reason:{} message:{}", condition.reason, condition.message)),
        None => Some(format!("{kind}=false reason:Unknown message:the runtime does not report it")),
    };
    RuntimeStatus {
        runtime: fault("RuntimeReady"),
        network: fault("NetworkReady"),
        handlers: response
            .runtime_handlers
            .iter()
            .map(|handler| {
                let features = handler.features.unwrap_or_default();
                (handler.name.clone(), (features.recursive_read_only_mounts, features.user_namespaces))
            })
            .collect(),
        supplemental_groups_policy: response
            .features
            .as_ref()
            .is_some_and(|features| features.supplemental_groups_policy),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_recovered_from_its_labels_and_annotations() {
        let status = cri::ContainerStatus {
            id: "c1".into(),
            metadata: Some(cri::ContainerMetadata { name: "other".into(), attempt: 1 }),
            state: cri::ContainerState::ContainerExited as i32,
            created_at: 1_000_000_000,
            finished_at: 3_000_000_000,
            exit_code: 137,
            labels: [(labels::CONTAINER_NAME.to_owned(), "app".to_owned())].into(),
            annotations: [(labels::RESTART_COUNT.to_owned(), "4".to_owned())].into(),
            ..Default::default()
        };
        let container = container("s1", &status);
        assert_eq!((container.name.as_str(), container.attempt, container.fact), ("app", 4, ContainerFact::Exited));
        assert_eq!((container.started_at, container.finished_at.map(Timestamp::as_second)), (None, Some(3)));
    }

    #[test]
    fn foreign_sandboxes_are_left_alone() {
        assert!(sandbox(&cri::PodSandboxStatus { id: "x".into(), ..Default::default() }).is_none());
    }
}
