//! Statuses of containers: waiting, running, terminated, and the instance before.

use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    ContainerUser, LinuxContainerUser, VolumeMount, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::backoff::{Backoff, format_delay};
use crate::container_spec::recursive_read_only;
use crate::containers::{ContainerKind, SpecContainer, all_containers, display, init_containers};
use crate::facts::{ContainerFact, ObservedContainer};
use crate::lifecycle::Lifecycle;
use crate::memory::{ContainerMemory, ImageState};
use crate::probe::ProbeKind;
use crate::restart::{RestartDecision, decide_restart, restart_all_source};
use crate::status::StatusInput;

/// Waiting reason of containers that a rule starts anew with all others, and reason of the end before.
pub(super) const CLEARED_AWAY: &str = "RestartingAllContainers";

/// Statuses by the lists of the API.
#[derive(Debug, Default)]
pub(super) struct Statuses {
    pub init: Vec<ContainerStatus>,
    pub apps: Vec<ContainerStatus>,
    pub ephemeral: Vec<ContainerStatus>,
}

pub(super) fn container_statuses(input: &StatusInput<'_>) -> Statuses {
    let mut statuses = Statuses::default();
    for container in all_containers(input.pod) {
        let (list, previous) = match container.kind {
            ContainerKind::Init | ContainerKind::Sidecar => {
                (&mut statuses.init, &input.previous.init_container_statuses)
            }
            ContainerKind::App => (&mut statuses.apps, &input.previous.container_statuses),
            ContainerKind::Ephemeral => (&mut statuses.ephemeral, &input.previous.ephemeral_container_statuses),
        };
        let previous = previous.iter().flatten().find(|status| status.name == container.name());
        list.push(container_status(input, &container, previous));
    }
    statuses
}

fn container_status(
    input: &StatusInput<'_>,
    container: &SpecContainer<'_>,
    previous: Option<&ContainerStatus>,
) -> ContainerStatus {
    let blank = ContainerMemory::default();
    let memory = input.memory.container(container.name()).unwrap_or(&blank);
    let mut instances = input.observed.instances(container.name());
    let newest = instances.next();
    let mut status = ContainerStatus {
        name: container.name().to_owned(),
        image: container.container.image.clone().unwrap_or_default(),
        allocated_resources: container.container.resources.as_ref().and_then(|resources| resources.requests.clone()),
        resources: container.container.resources.clone(),
        volume_mounts: volume_mounts(input, container),
        ..ContainerStatus::default()
    };
    match newest {
        None => without_instance(input, container, memory, previous, &mut status),
        Some(newest) => {
            let older = instances.find(|instance| instance.exited());
            with_instance(input, container, memory, newest, older, previous, &mut status);
        }
    }
    status
}

fn with_instance(
    input: &StatusInput<'_>,
    container: &SpecContainer<'_>,
    memory: &ContainerMemory,
    newest: &ObservedContainer,
    older: Option<&ObservedContainer>,
    previous: Option<&ContainerStatus>,
    status: &mut ContainerStatus,
) {
    // An instance that was made and removed before it ran has been counted already.
    status.restart_count = (newest.attempt as i32).max(previous.map_or(0, |previous| previous.restart_count));
    status.container_id = Some(container_id(input.runtime, &newest.id));
    status.image_id.clone_from(&newest.image_ref);
    if !newest.image.is_empty() && !newest.image.starts_with("sha256:") {
        status.image.clone_from(&newest.image);
    }
    status.user = newest.user.as_ref().map(|(uid, gid, groups)| ContainerUser {
        linux: Some(LinuxContainerUser {
            uid: *uid,
            gid: *gid,
            supplemental_groups: (!groups.is_empty()).then(|| groups.clone()),
        }),
    });
    // Only pods of a cluster that has the feature name one.
    status.stop_signal = container.container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.stop_signal.clone());
    let older_state = older.map(|older| terminated(input.runtime, older));
    status.last_state = older_state
        .or_else(|| previous.and_then(|previous| previous.last_state.clone()).filter(|_| newest.attempt > 0));
    match newest.fact {
        ContainerFact::Running if !memory.starting => {
            status.state = Some(ContainerState {
                running: Some(ContainerStateRunning { started_at: newest.started_at.map(Time) }),
                ..ContainerState::default()
            });
            let started = memory.started(&newest.id, container.container.startup_probe.is_some());
            status.started = Some(started);
            status.ready = match container.kind {
                ContainerKind::Init | ContainerKind::Ephemeral => false,
                _ if container.container.readiness_probe.is_none() => started,
                _ => started && memory.probe_passing(ProbeKind::Readiness, &newest.id) == Some(true),
            };
        }
        ContainerFact::Exited if restarts_with_all(input, container) => {
            status.started = Some(false);
            let source = restart_all_source(input.pod, input.observed, input.memory);
            let is_source = source.is_some_and(|source| source.id == newest.id);
            status.last_state = Some(if is_source { terminated(input.runtime, newest) } else { removed() });
            status.state = Some(waiting_state(cleared_away()));
        }
        ContainerFact::Exited => {
            status.started = Some(false);
            status.ready = container.kind == ContainerKind::Init && newest.exit_code == 0;
            match waiting(input, container, memory, Some(newest)) {
                Some(reason) => {
                    status.last_state = Some(terminated(input.runtime, newest));
                    status.state = Some(waiting_state(reason));
                }
                None => status.state = Some(terminated(input.runtime, newest)),
            }
        }
        ContainerFact::Running | ContainerFact::Created | ContainerFact::Unknown => {
            status.started = Some(false);
            status.state = Some(waiting_state(
                waiting(input, container, memory, None).unwrap_or_else(|| default_waiting(input, container)),
            ));
        }
    }
}

/// A container that the runtime has no instance of: not made yet, or lost.
fn without_instance(
    input: &StatusInput<'_>,
    container: &SpecContainer<'_>,
    memory: &ContainerMemory,
    previous: Option<&ContainerStatus>,
    status: &mut ContainerStatus,
) {
    status.started = Some(false);
    let state = previous.and_then(|previous| previous.state.as_ref());
    if let Some(previous) = previous {
        status.restart_count = previous.restart_count;
        status.last_state = previous.last_state.clone();
        status.image_id.clone_from(&previous.image_id);
        status.container_id.clone_from(&previous.container_id);
    }
    if restarts_with_all(input, container) && state.is_some_and(|state| state.waiting.is_none()) {
        status.last_state = Some(removed());
        status.state = Some(waiting_state(cleared_away()));
        return;
    }
    if let Some(state) = state.filter(|state| state.terminated.is_some()) {
        status.ready =
            container.kind == ContainerKind::Init && state.terminated.as_ref().is_some_and(|end| end.exit_code == 0);
        match waiting(input, container, memory, None) {
            Some(reason) => {
                status.last_state = Some(state.clone());
                status.state = Some(waiting_state(reason));
            }
            None => status.state = Some(state.clone()),
        }
        return;
    }
    if let Some(running) = state.and_then(|state| state.running.as_ref()) {
        status.last_state = Some(lost(
            "ContainerStatusUnknown",
            "The container could not be located when the pod was deleted.  The container used to be Running",
            running.started_at.clone(),
        ));
    }
    let reason = waiting(input, container, memory, None).unwrap_or_else(|| default_waiting(input, container));
    status.state = Some(waiting_state(reason));
}

/// What a container waits for, if it waits: an image, the back-off, or the repair of its configuration.
fn waiting(
    input: &StatusInput<'_>,
    container: &SpecContainer<'_>,
    memory: &ContainerMemory,
    ended: Option<&ObservedContainer>,
) -> Option<(String, Option<String>)> {
    if input.memory.lifecycle > Lifecycle::Syncing {
        return None;
    }
    if let Some(ended) = ended {
        let by_probe = input.memory.killed_by_probe.contains(&ended.id);
        let decision = decide_restart(input.pod, container.kind, &container.container, ended.exit_code, by_probe);
        match decision {
            RestartDecision::Stay if !input.memory.restart_regardless.contains(&ended.id) => return None,
            RestartDecision::RestartAll => return Some(cleared_away()),
            _ => {}
        }
        if container.kind == ContainerKind::Init && ended.exit_code == 0 {
            return None;
        }
    }
    if let ImageState::Failed { reason, message, .. } = &memory.image {
        return Some((reason.clone(), Some(message.clone())));
    }
    if let Some(failure) = &memory.failure {
        return Some((failure.reason.clone(), Some(failure.message.clone())));
    }
    let ended = ended?;
    let failed_at = ended.finished_at.unwrap_or(input.now);
    let next = Backoff::next_try(memory.crash_loop.as_ref(), failed_at, input.bounds);
    if next <= input.now && !memory.starting {
        return None;
    }
    let delay = memory.crash_loop.as_ref().map_or(input.bounds.initial, |backoff| backoff.delay);
    if memory.starting {
        return memory.crash_loop.is_some().then(|| default_waiting(input, container));
    }
    let message = format!(
        "back-off {} restarting failed container={} pod={}",
        format_delay(delay),
        container.name(),
        display(input.pod)
    );
    Some(("CrashLoopBackOff".into(), Some(message)))
}

/// Whether the container is cleared away because a rule starts all containers anew.
fn restarts_with_all(input: &StatusInput<'_>, container: &SpecContainer<'_>) -> bool {
    input.memory.lifecycle == Lifecycle::Syncing
        && container.kind != ContainerKind::Ephemeral
        && restart_all_source(input.pod, input.observed, input.memory).is_some()
}

/// The end of a container that was cleared away, in the kubelet's words.
fn removed() -> ContainerState {
    lost(CLEARED_AWAY, "The container is removed because RestartAllContainers in place", None)
}

fn cleared_away() -> (String, Option<String>) {
    (CLEARED_AWAY.to_owned(), None)
}

/// Mounts of volumes, with what becomes of their wish to be read-only all the way down.
fn volume_mounts(input: &StatusInput<'_>, container: &SpecContainer<'_>) -> Option<Vec<VolumeMountStatus>> {
    let mounts = container.container.volume_mounts.as_ref().filter(|mounts| !mounts.is_empty())?;
    let status = |mount: &VolumeMount| {
        let recursive = matches!(recursive_read_only(mount, input.recursive_read_only), Ok(true));
        let read_only = mount.read_only == Some(true);
        VolumeMountStatus {
            name: mount.name.clone(),
            mount_path: mount.mount_path.clone(),
            read_only: Some(read_only).filter(|set| *set),
            recursive_read_only: read_only.then(|| if recursive { "Enabled" } else { "Disabled" }.to_owned()),
            ..VolumeMountStatus::default()
        }
    };
    Some(mounts.iter().map(status).collect())
}

fn default_waiting(input: &StatusInput<'_>, container: &SpecContainer<'_>) -> (String, Option<String>) {
    let has_init = container.kind != ContainerKind::Ephemeral && init_containers(input.pod).next().is_some();
    (if has_init { "PodInitializing" } else { "ContainerCreating" }.to_owned(), None)
}

fn waiting_state((reason, message): (String, Option<String>)) -> ContainerState {
    ContainerState {
        waiting: Some(ContainerStateWaiting { reason: Some(reason), message }),
        ..ContainerState::default()
    }
}

fn terminated(runtime: &str, instance: &ObservedContainer) -> ContainerState {
    let reason = match instance.reason.as_str() {
        "" if instance.exit_code == 0 => "Completed".to_owned(),
        "" => "Error".to_owned(),
        reason => reason.to_owned(),
    };
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            container_id: Some(container_id(runtime, &instance.id)),
            exit_code: instance.exit_code,
            finished_at: instance.finished_at.map(Time),
            message: (!instance.message.is_empty()).then(|| instance.message.clone()),
            reason: Some(reason),
            signal: None,
            started_at: instance.started_at.map(Time),
        }),
        ..ContainerState::default()
    }
}

fn lost(reason: &str, message: &str, started_at: Option<Time>) -> ContainerState {
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            exit_code: 137,
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            started_at,
            ..ContainerStateTerminated::default()
        }),
        ..ContainerState::default()
    }
}

fn container_id(runtime: &str, id: &str) -> String {
    format!("{runtime}://{id}")
}

/// Once no process is left, no container may still look as if it waited or ran.
pub(super) fn settle(input: &StatusInput<'_>, statuses: &mut Statuses) {
    let begun = |status: &ContainerStatus| status.container_id.is_some();
    let initialized = init_containers(input.pod).all(|container| {
        statuses
            .init
            .iter()
            .any(|status| status.name == container.name() && (container.kind == ContainerKind::Sidecar || status.ready))
    });
    let any_begun = statuses.apps.iter().any(begun);
    let settle_one = |status: &mut ContainerStatus| {
        let ended = status.state.as_ref().is_some_and(|state| state.terminated.is_some());
        status.ready &= ended;
        status.started = Some(false);
        if !ended {
            let started_at = status
                .state
                .as_ref()
                .and_then(|state| state.running.as_ref())
                .and_then(|running| running.started_at.clone());
            let message = "The container could not be located when the pod was terminated";
            status.state = Some(lost("ContainerStatusUnknown", message, started_at));
        }
    };
    if any_begun || (initialized && input.observed.sandbox().is_some()) {
        statuses.apps.iter_mut().for_each(settle_one);
    }
    statuses.init.iter_mut().filter(|status| begun(status)).for_each(settle_one);
    statuses.ephemeral.iter_mut().filter(|status| begun(status)).for_each(settle_one);
}
