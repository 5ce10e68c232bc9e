//! A small world for tests of plans and statuses: one pod, a runtime that obeys at once, a clock that is set.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodStatus};

use crate::backoff::{Backoff, BackoffBounds};
use crate::containers::find_container;
use crate::facts::{ContainerFact, ObservedContainer, ObservedPod, ObservedSandbox};
use crate::hash::container_hash;
use crate::lifecycle::LifecycleEvent;
use crate::memory::{ImageState, PodMemory, StepState};
use crate::plan::{Action, Plan, PlanInput, StopReason, plan};
use crate::status::{StatusInput, status};

pub(crate) struct World {
    pub pod: Pod,
    pub observed: ObservedPod,
    pub memory: PodMemory,
    pub status: PodStatus,
    pub now: Timestamp,
    serial: u32,
}

impl World {
    pub(crate) fn new(spec: serde_json::Value) -> World {
        let pod = serde_json::from_value(serde_json::json!({"metadata": {"name": "web", "namespace": "ns", "uid": "u1", "generation": 1}, "spec": spec})).unwrap();
        let now = Timestamp::from_second(1_000_000).unwrap();
        World {
            pod,
            observed: ObservedPod::default(),
            memory: PodMemory::default(),
            status: PodStatus::default(),
            now,
            serial: 0,
        }
    }

    pub(crate) fn plan(&self) -> Plan {
        plan(&PlanInput {
            pod: &self.pod,
            previous: &self.status,
            observed: &self.observed,
            memory: &self.memory,
            now: self.now,
            bounds: BackoffBounds::default(),
        })
    }

    pub(crate) fn publish(&mut self) {
        self.status = status(&StatusInput {
            pod: &self.pod,
            previous: &self.status,
            observed: &self.observed,
            memory: &self.memory,
            host_ips: &["10.9.9.9".parse().unwrap()],
            runtime: "orlop",
            bounds: BackoffBounds::default(),
            recursive_read_only: true,
            now: self.now,
        });
    }

    pub(crate) fn wait(&mut self, seconds: i64) {
        self.now += SignedDuration::from_secs(seconds);
    }

    /// One pass: plans, obeys, publishes. Returns what was done, one line per action.
    pub(crate) fn pass(&mut self) -> Vec<String> {
        let plan = self.plan();
        let mut done: Vec<String> = plan.actions.iter().map(|action| self.obey(action)).collect();
        if let Some(verdict) = plan.stop {
            done.push("stop".into());
            self.memory.verdict = verdict;
            self.memory.lifecycle = self.memory.lifecycle.after(LifecycleEvent::Stop);
        }
        if plan.stopped {
            done.push("stopped".into());
            self.memory.lifecycle = self.memory.lifecycle.after(LifecycleEvent::Stopped);
        }
        self.publish();
        done
    }

    /// Passes until nothing is left to do.
    pub(crate) fn settle(&mut self) -> Vec<String> {
        let mut all = Vec::new();
        for _ in 0..30 {
            let done = self.pass();
            if done.is_empty() || done.iter().all(|line| line.starts_with("back-off")) {
                return all;
            }
            all.extend(done);
        }
        panic!("never at rest: {all:?}");
    }

    fn obey(&mut self, action: &Action) -> String {
        match action {
            Action::SetUpVolumes => {
                self.memory.volumes = StepState::Done;
                "volumes".into()
            }
            Action::CreateSandbox { attempt } => {
                self.serial += 1;
                let sandbox = ObservedSandbox {
                    id: format!("s{attempt}"),
                    attempt: *attempt,
                    ready: true,
                    created_at: self.now,
                    ips: vec!["10.0.0.5".into()],
                    host_network: false,
                };
                self.observed.merge(ObservedPod { sandboxes: vec![sandbox], ..ObservedPod::default() });
                format!("sandbox {attempt}")
            }
            Action::StopSandbox { id, .. } => {
                let sandbox = self.observed.sandboxes.iter_mut().find(|sandbox| sandbox.id == *id).unwrap();
                sandbox.ready = false;
                let inside: Vec<String> = self
                    .observed
                    .containers
                    .iter()
                    .filter(|c| c.sandbox_id == *id && c.running())
                    .map(|c| c.name.clone())
                    .collect();
                for name in inside {
                    self.exit(&name, 137);
                }
                format!("stop sandbox {id}")
            }
            Action::RemoveSandbox { id } => {
                self.observed.remove_sandbox(id);
                format!("remove sandbox {id}")
            }
            Action::EnsureImage { container } => {
                self.memory.container_mut(container).image = ImageState::Ready("sha256:0".into());
                format!("image {container}")
            }
            Action::StartContainer { container, attempt, sandbox_id, failed_at, .. } => {
                let memory = self.memory.container_mut(container);
                memory.image = ImageState::Unknown;
                memory.crash_loop = failed_at
                    .map(|at| Backoff::after_try(memory.crash_loop.as_ref(), at, self.now, BackoffBounds::default()))
                    .or(memory.crash_loop.filter(|_| self.observed.latest(container).is_none()));
                self.run(container, *attempt, &sandbox_id.clone());
                format!("start {container} {attempt}")
            }
            Action::BackOff { container, .. } => format!("back-off {container}"),
            Action::StopContainer { id, container, reason, grace_seconds, after } => {
                let line = format!(
                    "stop {container} {reason:?} {grace_seconds}s{}",
                    if after.is_empty() { String::new() } else { format!(" after {}", after.join(",")) }
                );
                match reason {
                    StopReason::Changed => drop(self.memory.restart_regardless.insert(id.clone())),
                    StopReason::Liveness | StopReason::Startup => drop(self.memory.killed_by_probe.insert(id.clone())),
                    StopReason::PodEnds | StopReason::RestartAll => {}
                }
                self.exit(container, 143);
                line
            }
            Action::RemoveContainer { id } => {
                self.observed.remove_container(id);
                format!("remove {id}")
            }
            Action::Look => {
                self.memory.look = StepState::Done;
                "look".into()
            }
            Action::TearDown => {
                self.memory.teardown = StepState::Done;
                self.memory.lifecycle = self.memory.lifecycle.after(LifecycleEvent::TornDown);
                "tear down".into()
            }
        }
    }

    /// A sandbox that is ready, with the volumes up.
    pub(crate) fn make_sandbox(&mut self) {
        self.memory.volumes = StepState::Done;
        self.memory.sandbox = StepState::Done;
        self.obey(&Action::CreateSandbox { attempt: 0 });
    }

    pub(crate) fn run(&mut self, name: &str, attempt: u32, sandbox_id: &str) {
        let definition = find_container(&self.pod, name).unwrap();
        let container = ObservedContainer {
            id: format!("{name}{attempt}"),
            sandbox_id: sandbox_id.to_owned(),
            name: name.to_owned(),
            attempt,
            fact: ContainerFact::Running,
            created_at: self.now,
            started_at: Some(self.now),
            finished_at: None,
            exit_code: 0,
            reason: String::new(),
            message: String::new(),
            message_read: true,
            image: "x:1".into(),
            image_ref: "x@sha256:0".into(),
            log_path: String::new(),
            annotations: [(crate::labels::CONTAINER_HASH.to_owned(), container_hash(&definition.container))].into(),
            user: None,
        };
        self.observed.merge(ObservedPod { containers: vec![container], ..ObservedPod::default() });
    }

    pub(crate) fn exit(&mut self, name: &str, code: i32) {
        let now = self.now;
        let container = self
            .observed
            .containers
            .iter_mut()
            .find(|container| container.name == name && container.running())
            .unwrap();
        container.fact = ContainerFact::Exited;
        container.exit_code = code;
        container.finished_at = Some(now);
    }

    pub(crate) fn phase(&self) -> &str {
        self.status.phase.as_deref().unwrap_or_default()
    }

    /// `name:state` of all containers of the status.
    pub(crate) fn states(&self) -> String {
        let lists = [
            &self.status.init_container_statuses,
            &self.status.container_statuses,
            &self.status.ephemeral_container_statuses,
        ];
        let texts: Vec<String> = lists
            .into_iter()
            .flatten()
            .flatten()
            .map(|status| {
                let state = status.state.as_ref().unwrap();
                let text = match (&state.waiting, &state.running, &state.terminated) {
                    (Some(waiting), ..) => waiting.reason.clone().unwrap_or_default(),
                    (_, Some(_), _) => "Running".to_owned(),
                    (_, _, Some(end)) => format!("{}({})", end.reason.clone().unwrap_or_default(), end.exit_code),
                    _ => "none".to_owned(),
                };
                format!("{}:{text}", status.name)
            })
            .collect();
        texts.join(" ")
    }

    /// `Type=Status` of a condition.
    pub(crate) fn condition(&self, kind: &str) -> String {
        let condition = self.status.conditions.iter().flatten().find(|condition| condition.type_ == kind).unwrap();
        match &condition.reason {
            Some(reason) => format!("{} {reason}", condition.status),
            None => condition.status.clone(),
        }
    }
}
