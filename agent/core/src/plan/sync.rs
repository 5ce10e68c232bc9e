//! The plan of a pod that is to run.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus};

use crate::backoff::Backoff;
use crate::containers::{
    ContainerKind, SpecContainer, app_containers, ephemeral_containers, find_container, host_network, init_containers,
};
use crate::facts::{ContainerFact, ObservedContainer, ObservedSandbox};
use crate::hash::container_hash;
use crate::memory::{ImageState, StepState, Verdict};
use crate::plan::{Action, Plan, PlanInput, StopReason, may_remove, spec_grace_seconds, surplus_containers};
use crate::probe::ProbeKind;
use crate::restart::{RestartDecision, decide_restart, restart_all_source};

pub(super) fn plan_sync(input: &PlanInput<'_>) -> Plan {
    let mut plan = Plan::default();
    if deadline_exceeded(input, &mut plan) || all_done(input, &mut plan) {
        return plan;
    }
    if input.memory.volumes.due(input.now) {
        plan.actions.push(Action::SetUpVolumes);
    }
    if let Some(at) = input.memory.volumes.wake_at() {
        plan.wake(at);
    }
    let sandbox = usable_sandbox(input);
    match sandbox {
        None => plan_sandbox(input, &mut plan),
        Some(sandbox) => {
            plan_old_sandboxes(input, sandbox, &mut plan);
            if restart_all(input, sandbox, &mut plan) {
                return plan;
            }
            plan_kills(input, sandbox, &mut plan);
        }
    }
    let mut starts = Starts { input, sandbox, plan: &mut plan, blocked: false };
    for container in ephemeral_containers(input.pod) {
        starts.ephemeral(&container);
    }
    if starts.init() {
        for container in app_containers(input.pod) {
            starts.app(&container);
        }
    }
    surplus_containers(input, &mut plan);
    plan
}

fn deadline_exceeded(input: &PlanInput<'_>, plan: &mut Plan) -> bool {
    let Some(seconds) = input.pod.spec.as_ref().and_then(|spec| spec.active_deadline_seconds) else { return false };
    let Some(start) = &input.previous.start_time else { return false };
    let end = start.0.saturating_add(SignedDuration::from_secs(seconds)).unwrap_or(start.0);
    if end > input.now {
        plan.wake(end);
        return false;
    }
    plan.stop = Some(Some(Verdict {
        phase: Some("Failed"),
        reason: "DeadlineExceeded".into(),
        message: "Pod was active on the node longer than the specified deadline".into(),
        disruption: false,
    }));
    true
}

/// Exit code of a container that is not started again, by what the runtime has of it or else by its last status.
fn settled(input: &PlanInput<'_>, container: &SpecContainer<'_>) -> Option<i32> {
    let (code, id) = match input.observed.latest(container.name()) {
        Some(instance) if instance.exited() => (instance.exit_code, Some(&instance.id)),
        Some(_) => return None,
        None => {
            let lists = [&input.previous.container_statuses, &input.previous.init_container_statuses];
            let status = lists.into_iter().flatten().flatten().find(|status| status.name == container.name())?;
            (status.state.as_ref()?.terminated.as_ref()?.exit_code, None)
        }
    };
    if id.is_some_and(|id| input.memory.restart_regardless.contains(id))
        || input.memory.container(container.name()).is_some_and(|memory| memory.starting)
    {
        return None;
    }
    let by_probe = id.is_some_and(|id| input.memory.killed_by_probe.contains(id));
    (decide_restart(input.pod, container.kind, &container.container, code, by_probe) == RestartDecision::Stay)
        .then_some(code)
}

fn all_done(input: &PlanInput<'_>, plan: &mut Plan) -> bool {
    // What is ended for a restart of all would be an end for good under the policy `Never`.
    if restart_all_source(input.pod, input.observed, input.memory).is_some() {
        return false;
    }
    let init_failed = init_containers(input.pod).any(|container| {
        container.kind == ContainerKind::Init && settled(input, &container).is_some_and(|code| code != 0)
    });
    let apps_done = app_containers(input.pod).all(|container| settled(input, &container).is_some());
    if init_failed || apps_done {
        plan.stop = Some(None);
    }
    plan.stop.is_some()
}

/// The sandbox that containers may be started in: the newest, the only ready one, with an address.
fn usable_sandbox<'a>(input: &PlanInput<'a>) -> Option<&'a ObservedSandbox> {
    let newest = input.observed.sandbox()?;
    let ready = input.observed.sandboxes.iter().filter(|sandbox| sandbox.ready).count();
    let host = host_network(input.pod);
    let addressed = host || !newest.ips.is_empty();
    (newest.ready
        && ready == 1
        && addressed
        && newest.host_network == host
        && !input.memory.stopping.contains(&newest.id))
    .then_some(newest)
}

fn plan_sandbox(input: &PlanInput<'_>, plan: &mut Plan) {
    if matches!(input.memory.sandbox, StepState::Running) {
        return;
    }
    let mut left = false;
    for sandbox in &input.observed.sandboxes {
        let running =
            input.observed.containers.iter().any(|container| container.sandbox_id == sandbox.id && container.running());
        if sandbox.ready || running {
            left = true;
            if input.memory.may_stop(&sandbox.id, input.now) {
                plan.actions.push(Action::StopSandbox { id: sandbox.id.clone(), changed: true });
            } else if let Some(at) = input.memory.stop_again_at(&sandbox.id) {
                plan.wake(at);
            }
        }
    }
    if left {
        return;
    }
    if let StepState::Failed { retry_at, .. } = &input.memory.sandbox
        && *retry_at > input.now
    {
        plan.wake(*retry_at);
        return;
    }
    let attempt = input.observed.sandbox().map_or(0, |sandbox| sandbox.attempt + 1);
    plan.actions.push(Action::CreateSandbox { attempt });
}

fn plan_old_sandboxes(input: &PlanInput<'_>, current: &ObservedSandbox, plan: &mut Plan) {
    for sandbox in input.observed.sandboxes.iter().filter(|sandbox| sandbox.id != current.id) {
        let mut inside = input.observed.containers.iter().filter(|container| container.sandbox_id == sandbox.id);
        let in_use = inside.clone().next().is_some();
        if inside.any(ObservedContainer::running) {
            // Started late, after its sandbox was given up: it must not stay beside its successor.
            if input.memory.may_stop(&sandbox.id, input.now) {
                plan.actions.push(Action::StopSandbox { id: sandbox.id.clone(), changed: true });
            } else if let Some(at) = input.memory.stop_again_at(&sandbox.id) {
                plan.wake(at);
            }
            continue;
        }
        if !in_use && may_remove(input, &sandbox.id, plan) {
            plan.actions.push(Action::RemoveSandbox { id: sandbox.id.clone() });
        }
    }
}

/// A rule may ask to start all anew: everything is stopped at once, then removed, the container that asked last.
fn restart_all(input: &PlanInput<'_>, sandbox: &ObservedSandbox, plan: &mut Plan) -> bool {
    let Some(source) = restart_all_source(input.pod, input.observed, input.memory) else { return false };
    let others: Vec<&ObservedContainer> =
        input.observed.containers.iter().filter(|c| c.sandbox_id == sandbox.id && c.id != source.id).collect();
    let running: Vec<_> = others.iter().filter(|container| container.running()).collect();
    if !running.is_empty() {
        for container in running.into_iter().filter(|container| input.memory.may_stop(&container.id, input.now)) {
            plan.actions.push(stop(container, StopReason::RestartAll, 0));
        }
        return true;
    }
    // One that is being started may run before it is seen to.
    if input.memory.containers.values().any(|container| container.starting) {
        return true;
    }
    let victims: Vec<&ObservedContainer> = if others.is_empty() { vec![source] } else { others };
    for container in victims {
        if may_remove(input, &container.id, plan) {
            plan.actions.push(Action::RemoveContainer { id: container.id.clone() });
        }
    }
    true
}

fn stop(container: &ObservedContainer, reason: StopReason, grace_seconds: i64) -> Action {
    Action::StopContainer {
        id: container.id.clone(),
        container: container.name.clone(),
        reason,
        grace_seconds,
        after: Vec::new(),
    }
}

/// Running containers that must not go on: changed ones, and those that failed a probe.
fn plan_kills(input: &PlanInput<'_>, sandbox: &ObservedSandbox, plan: &mut Plan) {
    let grace = spec_grace_seconds(input.pod);
    for instance in input.observed.containers.iter().filter(|c| c.running() && c.sandbox_id == sandbox.id) {
        let Some(container) = find_container(input.pod, &instance.name) else { continue };
        if !input.memory.may_stop(&instance.id, input.now) {
            if let Some(at) = input.memory.stop_again_at(&instance.id) {
                plan.wake(at);
            }
            continue;
        }
        let memory = input.memory.container(&instance.name);
        if let Some(kill) =
            memory.and_then(|memory| memory.kill.as_ref()).filter(|kill| kill.container_id == instance.id)
        {
            let reason = if kill.kind == ProbeKind::Startup { StopReason::Startup } else { StopReason::Liveness };
            plan.actions.push(stop(instance, reason, kill.grace_seconds.unwrap_or(grace)));
        } else if container.kind != ContainerKind::Ephemeral
            && instance.hash().is_some_and(|hash| hash != container_hash(&container.container))
        {
            plan.actions.push(stop(instance, StopReason::Changed, grace));
        }
    }
}

struct Starts<'a, 'p> {
    input: &'p PlanInput<'a>,
    sandbox: Option<&'a ObservedSandbox>,
    plan: &'p mut Plan,
    /// A container before in the order is not through its start yet.
    blocked: bool,
}

impl<'a> Starts<'a, '_> {
    fn instance(&self, name: &str) -> Option<&'a ObservedContainer> {
        let sandbox = self.sandbox?;
        self.input.observed.latest_in(&sandbox.id, name)
    }

    fn ephemeral(&mut self, container: &SpecContainer<'a>) {
        let seen = self
            .input
            .observed
            .latest(container.name())
            .is_some_and(|instance| instance.fact != ContainerFact::Created);
        let ended = self.input.previous.ephemeral_container_statuses.iter().flatten().any(|status| {
            status.name == container.name() && status.state.as_ref().is_some_and(|state| state.terminated.is_some())
        });
        if !seen && !ended {
            let blocked = std::mem::replace(&mut self.blocked, false);
            self.start(container);
            self.blocked = blocked;
        }
    }

    /// Plans init containers and sidecars; true when the app containers may be started.
    fn init(&mut self) -> bool {
        let containers: Vec<SpecContainer<'a>> = init_containers(self.input.pod).collect();
        let apps_begun = app_containers(self.input.pod).any(|app| self.instance(app.name()).is_some());
        let reached = if apps_begun {
            containers.len()
        } else {
            containers.iter().rposition(|container| self.instance(container.name()).is_some()).unwrap_or(0)
        };
        for (index, container) in containers.iter().enumerate() {
            let passed = index < reached;
            let instance = self.instance(container.name());
            let through = match (container.kind, instance) {
                (ContainerKind::Sidecar, Some(instance)) if instance.running() => {
                    self.sidecar_started(container, instance)
                }
                (ContainerKind::Sidecar, _) => {
                    self.start_beside(container);
                    false
                }
                (_, Some(instance)) if instance.running() => false,
                (_, Some(instance)) if instance.exited() && instance.exit_code == 0 => true,
                (_, None) if passed => true,
                _ => {
                    if !passed {
                        self.start(container);
                    }
                    false
                }
            };
            if !through && !passed {
                return false;
            }
        }
        true
    }

    fn sidecar_started(&self, container: &SpecContainer<'_>, instance: &ObservedContainer) -> bool {
        let has_probe = container.container.startup_probe.is_some();
        self.input
            .memory
            .container(container.name())
            .map_or(!has_probe, |memory| memory.started(&instance.id, has_probe))
    }

    /// Starts a container that holds back none of the others.
    fn start_beside(&mut self, container: &SpecContainer<'a>) {
        let blocked = std::mem::replace(&mut self.blocked, false);
        self.start(container);
        self.blocked = blocked;
    }

    fn app(&mut self, container: &SpecContainer<'a>) {
        if self.instance(container.name()).is_some_and(ObservedContainer::running) {
            if self.input.memory.container(container.name()).is_some_and(|memory| memory.starting) {
                self.blocked = true;
            }
            return;
        }
        if settled(self.input, container).is_none() {
            self.start(container);
        }
    }

    /// Starts a container that does not run: after its back-off, with its image, in its turn.
    fn start(&mut self, container: &SpecContainer<'a>) {
        let name = container.name();
        let now = self.input.now;
        let blank = crate::memory::ContainerMemory::default();
        let memory = self.input.memory.container(name).unwrap_or(&blank);
        if memory.starting {
            self.blocked = true;
            return;
        }
        let latest = self.input.observed.latest(name);
        if latest.is_some_and(|instance| instance.running() || self.input.memory.stopping.contains(&instance.id)) {
            return;
        }
        // A failure of another definition holds nothing back.
        let same = |instance: &ObservedContainer| {
            instance.hash().is_none_or(|hash| hash == container_hash(&container.container))
        };
        let failed = latest.filter(|instance| instance.exited() && same(instance));
        let failed_at = failed.map(|instance| instance.finished_at.unwrap_or(now));
        if let (Some(failed_at), Some(instance)) = (failed_at, latest) {
            let next = Backoff::next_try(memory.crash_loop.as_ref(), failed_at, self.input.bounds);
            if next > now && !self.input.memory.restart_regardless.contains(&instance.id) {
                self.plan.wake(next);
                self.plan.actions.push(Action::BackOff { container: name.to_owned(), id: instance.id.clone() });
                return;
            }
        }
        if let Some(failure) = memory.failure.as_ref().filter(|failure| failure.retry_at > now) {
            self.plan.wake(failure.retry_at);
            return;
        }
        self.start_with_image(container, &memory.image, latest, failed_at);
    }

    fn start_with_image(
        &mut self,
        container: &SpecContainer<'a>,
        image: &ImageState,
        latest: Option<&ObservedContainer>,
        failed_at: Option<Timestamp>,
    ) {
        let name = container.name().to_owned();
        match image {
            ImageState::Unknown => {
                self.plan.actions.push(Action::EnsureImage { container: name });
                self.blocked = true;
            }
            ImageState::Pulling => self.blocked = true,
            ImageState::Failed { retry_at, .. } if *retry_at > self.input.now => self.plan.wake(*retry_at),
            ImageState::Failed { .. } => self.plan.actions.push(Action::EnsureImage { container: name }),
            ImageState::Ready(_) => {
                let Some(sandbox) =
                    self.sandbox.filter(|_| self.input.memory.volumes == StepState::Done && !self.blocked)
                else {
                    return;
                };
                let replaces = latest.filter(|instance| !instance.exited()).map(|instance| instance.id.clone());
                let attempt = next_attempt(self.input, container, latest);
                self.plan.actions.push(Action::StartContainer {
                    container: name,
                    attempt,
                    sandbox_id: sandbox.id.clone(),
                    replaces,
                    failed_at,
                });
                self.blocked = true;
            }
        }
    }
}

/// Restart count of the next instance: one more than the last one had, by the runtime or else by the last status.
/// An instance that never ran does not count.
fn next_attempt(input: &PlanInput<'_>, container: &SpecContainer<'_>, latest: Option<&ObservedContainer>) -> u32 {
    if let Some(instance) = latest {
        return if instance.fact == ContainerFact::Created { instance.attempt } else { instance.attempt + 1 };
    }
    let lists = [&input.previous.container_statuses, &input.previous.init_container_statuses];
    let status = lists.into_iter().flatten().flatten().find(|status| status.name == container.name());
    match status {
        Some(status) if has_run(status) => status.restart_count.max(0) as u32 + 1,
        Some(status) => status.restart_count.max(0) as u32,
        None => 0,
    }
}

/// Whether the last instance that a status tells of has run.
fn has_run(status: &ContainerStatus) -> bool {
    let ran = |state: &Option<ContainerState>| {
        state.as_ref().is_some_and(|state| state.running.is_some() || state.terminated.is_some())
    };
    status.container_id.is_some() && (ran(&status.state) || ran(&status.last_state))
}
