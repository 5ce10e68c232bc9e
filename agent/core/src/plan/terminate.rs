//! The plan of a pod that ends: stopping in order, taking down, forgetting.

use crate::containers::{app_containers, init_containers};
use crate::facts::ObservedContainer;
use crate::memory::StepState;
use crate::plan::{Action, Plan, PlanInput, StopReason, deletion_grace_seconds, may_remove, surplus_containers};

/// Stops every container within the grace that is left; sidecars after the app containers, in reverse order. Then
/// stops the sandboxes.
pub(super) fn plan_terminating(input: &PlanInput<'_>) -> Plan {
    let mut plan = Plan::default();
    let running: Vec<&ObservedContainer> =
        input.observed.containers.iter().filter(|container| container.running()).collect();
    if running.is_empty() {
        // A container that is being started gets the grace as well, once it is known.
        let starting = input.memory.containers.values().any(|container| container.starting);
        if let Some(end) = input.memory.stop_by.filter(|end| starting && *end > input.now) {
            plan.wake(end);
            return plan;
        }
        let stopping = stop_sandboxes(input, &mut plan);
        plan.stopped = !stopping && no_doubt(input, &mut plan);
        return plan;
    }
    let left = input.memory.stop_by.map_or_else(
        || deletion_grace_seconds(input.pod),
        |end| (end.duration_since(input.now).as_millis().max(0) as u64).div_ceil(1000) as i64,
    );
    for container in &running {
        if !input.memory.may_stop(&container.id, input.now) {
            if let Some(at) = input.memory.stop_again_at(&container.id) {
                plan.wake(at);
            }
            continue;
        }
        let after = running
            .iter()
            .filter(|other| goes_before(input, &other.name, &container.name))
            .map(|other| other.id.clone())
            .collect();
        plan.actions.push(Action::StopContainer {
            id: container.id.clone(),
            container: container.name.clone(),
            reason: StopReason::PodEnds,
            grace_seconds: left,
            after,
        });
    }
    plan
}

/// Whether what is known of the pod is all there is of it. Where a call that makes something has failed, the runtime is
/// asked once more, as soon as nothing is being made any more.
fn no_doubt(input: &PlanInput<'_>, plan: &mut Plan) -> bool {
    if input.memory.start_under_way() {
        return false;
    }
    if input.memory.look.due(input.now) {
        plan.actions.push(Action::Look);
    }
    if let Some(at) = input.memory.look.wake_at() {
        plan.wake(at);
    }
    input.memory.look == StepState::Done
}

/// Whether `first` must have ended before `second` is signalled.
fn goes_before(input: &PlanInput<'_>, first: &str, second: &str) -> bool {
    let rank = |name: &str| {
        init_containers(input.pod)
            .filter(|container| container.kind == crate::containers::ContainerKind::Sidecar)
            .position(|container| container.name() == name)
    };
    match (rank(first), rank(second)) {
        (_, None) => false,
        (Some(first), Some(second)) => first > second,
        (None, Some(_)) => app_containers(input.pod).any(|container| container.name() == first),
    }
}

/// Plans the stop of all ready sandboxes; true while any is left.
fn stop_sandboxes(input: &PlanInput<'_>, plan: &mut Plan) -> bool {
    let mut left = false;
    for sandbox in input.observed.sandboxes.iter().filter(|sandbox| sandbox.ready) {
        left = true;
        if input.memory.may_stop(&sandbox.id, input.now) {
            plan.actions.push(Action::StopSandbox { id: sandbox.id.clone(), changed: false });
        } else if let Some(at) = input.memory.stop_again_at(&sandbox.id) {
            plan.wake(at);
        }
    }
    left || input.observed.sandboxes.iter().any(|sandbox| input.memory.stopping.contains(&sandbox.id))
}

/// Takes down volumes and cgroup, again and again until it is done.
pub(super) fn plan_terminated(input: &PlanInput<'_>) -> Plan {
    let mut plan = Plan::default();
    stop_sandboxes(input, &mut plan);
    if input.memory.teardown.due(input.now) {
        plan.actions.push(Action::TearDown);
    }
    if let Some(at) = input.memory.teardown.wake_at() {
        plan.wake(at);
    }
    plan
}

/// Removes what is left in the runtime: everything once the pod is deleted, surplus instances before that.
pub(super) fn plan_finished(input: &PlanInput<'_>) -> Plan {
    let mut plan = Plan::default();
    if !input.memory.deleted {
        // A sandbox that was being made when the pod ended may show up late.
        stop_sandboxes(input, &mut plan);
        surplus_containers(input, &mut plan);
        return plan;
    }
    for sandbox in &input.observed.sandboxes {
        if may_remove(input, &sandbox.id, &mut plan) {
            plan.actions.push(Action::RemoveSandbox { id: sandbox.id.clone() });
        }
    }
    for container in &input.observed.containers {
        let orphan = !input.observed.sandboxes.iter().any(|sandbox| sandbox.id == container.sandbox_id);
        if orphan && may_remove(input, &container.id, &mut plan) {
            plan.actions.push(Action::RemoveContainer { id: container.id.clone() });
        }
    }
    plan
}
