//! Decides what to do next for a pod: desired and observed state, memory and time in, actions and a time to wake out.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};

use crate::backoff::BackoffBounds;
use crate::facts::ObservedPod;
use crate::lifecycle::Lifecycle;
use crate::memory::{PodMemory, Verdict};

mod sync;
mod terminate;

/// All that a decision is made from.
#[derive(Clone, Copy, Debug)]
pub struct PlanInput<'a> {
    /// The pod as wanted.
    pub pod: &'a Pod,
    /// The status last published, or the API's after a restart.
    pub previous: &'a PodStatus,
    /// What the runtime has of it.
    pub observed: &'a ObservedPod,
    /// What the worker remembers.
    pub memory: &'a PodMemory,
    /// The time.
    pub now: Timestamp,
    /// Bounds of the restart back-off.
    pub bounds: BackoffBounds,
}

/// Why a container is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The pod ends.
    PodEnds,
    /// Its definition changed.
    Changed,
    /// Its liveness probe failed.
    Liveness,
    /// Its startup probe failed.
    Startup,
    /// A rule restarts all containers.
    RestartAll,
}

/// One thing to do. Actions of a plan don't depend on one another and may be done at the same time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Set up the volumes.
    SetUpVolumes,
    /// Make the cgroup, the directories and a sandbox.
    CreateSandbox {
        /// How many sandboxes came before.
        attempt: u32,
    },
    /// Stop a sandbox with all in it.
    StopSandbox {
        /// CRI id.
        id: String,
        /// It is replaced, because it no longer is what the pod needs.
        changed: bool,
    },
    /// Remove a stopped sandbox with all in it.
    RemoveSandbox {
        /// CRI id.
        id: String,
    },
    /// See that the image of a container is there.
    EnsureImage {
        /// Name of the container.
        container: String,
    },
    /// Make and start a container; its image is there.
    StartContainer {
        /// Name of the container.
        container: String,
        /// Restart count of the new instance.
        attempt: u32,
        /// Sandbox to make it in.
        sandbox_id: String,
        /// A left-over instance to remove first.
        replaces: Option<String>,
        /// End of the instance before, which the restart back-off counts from.
        failed_at: Option<Timestamp>,
    },
    /// A container waits for its restart back-off; for the event.
    BackOff {
        /// Name of the container.
        container: String,
        /// The instance that ended.
        id: String,
    },
    /// Run preStop and stop a container.
    StopContainer {
        /// CRI id.
        id: String,
        /// Name of the container.
        container: String,
        /// Why.
        reason: StopReason,
        /// Grace in seconds; 0 kills.
        grace_seconds: i64,
        /// Containers (ids) that must have ended before it is signalled.
        after: Vec<String>,
    },
    /// Remove an ended container and its log.
    RemoveContainer {
        /// CRI id.
        id: String,
    },
    /// Ask the runtime what it has of the pod.
    Look,
    /// Take down volumes and cgroup.
    TearDown,
}

/// What to do next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Things to do now.
    pub actions: Vec<Action>,
    /// When to look again, if nothing else happens before.
    pub wake_at: Option<Timestamp>,
    /// The pod is to stop by itself: all work is done (`None`), or with the agent's word on it.
    pub stop: Option<Option<Verdict>>,
    /// No process is left: the life goes from Terminating to Terminated.
    pub stopped: bool,
}

impl Plan {
    pub(crate) fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |known| known.min(at)));
    }
}

/// The plan for a pod.
pub fn plan(input: &PlanInput<'_>) -> Plan {
    match input.memory.lifecycle {
        Lifecycle::Syncing => sync::plan_sync(input),
        Lifecycle::Terminating => terminate::plan_terminating(input),
        Lifecycle::Terminated => terminate::plan_terminated(input),
        Lifecycle::Finished => terminate::plan_finished(input),
    }
}

/// Grace in seconds that the pod's spec gives.
pub fn spec_grace_seconds(pod: &Pod) -> i64 {
    pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds).unwrap_or(30).max(1)
}

/// Grace in seconds of the pod's deletion: what the deletion says, else the spec, at least 1.
pub fn deletion_grace_seconds(pod: &Pod) -> i64 {
    pod.metadata.deletion_grace_period_seconds.map_or_else(|| spec_grace_seconds(pod), |seconds| seconds.max(1))
}

/// Whether something may be removed now. Where that failed a moment ago, the plan wakes for the next try.
pub(crate) fn may_remove(input: &PlanInput<'_>, id: &str, plan: &mut Plan) -> bool {
    if input.memory.removing.contains(id) {
        return false;
    }
    let may = input.memory.may_stop(id, input.now);
    if let Some(at) = input.memory.stop_again_at(id).filter(|_| !may) {
        plan.wake(at);
    }
    may
}

/// Dead containers that are one too many: of each container the newest dead instance is kept.
pub(crate) fn surplus_containers(input: &PlanInput<'_>, plan: &mut Plan) {
    let mut kept: Vec<&str> = Vec::new();
    for container in &input.observed.containers {
        if !container.exited() {
            continue;
        }
        if !kept.contains(&container.name.as_str()) {
            kept.push(&container.name);
        } else if may_remove(input, &container.id, plan) {
            plan.actions.push(Action::RemoveContainer { id: container.id.clone() });
        }
    }
}

#[cfg(test)]
mod tests;
