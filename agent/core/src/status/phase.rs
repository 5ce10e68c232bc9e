//! The phase of a pod, from the statuses of its containers.

use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus};

use crate::containers::{ContainerKind, SpecContainer, app_containers, init_containers};
use crate::lifecycle::Lifecycle;
use crate::restart::{RestartDecision, decide_restart, restart_all_source};
use crate::status::StatusInput;
use crate::status::instances::{CLEARED_AWAY, Statuses};

fn exit_code(state: Option<&ContainerState>) -> Option<i32> {
    state?.terminated.as_ref().map(|end| end.exit_code)
}

fn running(status: &ContainerStatus) -> bool {
    status.state.as_ref().is_some_and(|state| state.running.is_some())
}

/// Exit code of a container that has ended, now or (waiting for its next start) before.
fn ended(status: &ContainerStatus) -> Option<i32> {
    exit_code(status.state.as_ref())
        .or_else(|| if running(status) { None } else { exit_code(status.last_state.as_ref()) })
}

/// Whether it was removed for a restart of all and has not begun again, whatever its policy says of the end it was given.
fn cleared_away(status: &ContainerStatus) -> bool {
    let last = status.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    exit_code(status.state.as_ref()).is_none() && last.is_some_and(|end| end.reason.as_deref() == Some(CLEARED_AWAY))
}

/// Whether a container that has ended is started again, or is just being started.
fn comes_again(input: &StatusInput<'_>, container: &SpecContainer<'_>, code: i32) -> bool {
    let id = input.observed.latest(container.name()).map(|instance| instance.id.as_str()).unwrap_or_default();
    let by_probe = input.memory.killed_by_probe.contains(id);
    input.memory.container(container.name()).is_some_and(|memory| memory.starting)
        || input.memory.restart_regardless.contains(id)
        || decide_restart(input.pod, container.kind, &container.container, code, by_probe) != RestartDecision::Stay
}

/// Pending until the containers have begun, Running while they run or will again, Succeeded or Failed at the end.
pub(super) fn phase(input: &StatusInput<'_>, statuses: &Statuses) -> String {
    let over = input.memory.lifecycle >= Lifecycle::Terminated;
    let apps_begun = statuses.apps.iter().any(|status| status.container_id.is_some());
    let mut init_pending = false;
    for container in init_containers(input.pod) {
        let status = statuses.init.iter().find(|status| status.name == container.name());
        let done = match (container.kind, status) {
            (_, None) => false,
            (ContainerKind::Sidecar, Some(status)) => apps_begun || status.started == Some(true),
            (_, Some(status)) => match exit_code(status.state.as_ref()) {
                Some(0) => true,
                Some(code) => {
                    if over
                        || decide_restart(input.pod, container.kind, &container.container, code, false)
                            == RestartDecision::Stay
                    {
                        return "Failed".into();
                    }
                    false
                }
                None => false,
            },
        };
        init_pending |= !done;
    }
    let mut again = restart_all_source(input.pod, input.observed, input.memory).is_some();
    let (mut run, mut waiting, mut stopped, mut succeeded) = (0, 0, 0, 0);
    for container in app_containers(input.pod) {
        let Some(status) = statuses.apps.iter().find(|status| status.name == container.name()) else { continue };
        match ended(status) {
            _ if running(status) => run += 1,
            Some(code) => {
                stopped += 1;
                succeeded += usize::from(code == 0);
                again |= cleared_away(status) || comes_again(input, &container, code);
            }
            None => waiting += 1,
        }
    }
    let phase = if over {
        if stopped > 0 && waiting == 0 && stopped == succeeded && !init_pending { "Succeeded" } else { "Failed" }
    } else if init_pending || waiting > 0 {
        "Pending"
    } else if run > 0 || again {
        "Running"
    } else if stopped == succeeded {
        "Succeeded"
    } else {
        "Failed"
    };
    phase.to_owned()
}
