//! One worker per pod: it looks, plans, lets operations run beside it and publishes. Nothing that may hang is awaited
//! here, so a deletion is always heard.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use orlop_agent_core::backoff::Backoff;
use orlop_agent_core::containers;
use orlop_agent_core::facts::ObservedPod;
use orlop_agent_core::lifecycle::{Lifecycle, LifecycleEvent};
use orlop_agent_core::memory::{PodMemory, StepState, Verdict};
use orlop_agent_core::plan::{PlanInput, plan};
use orlop_agent_core::ports::{EventType, MountedVolume};
use orlop_agent_core::rounds::Work;
use orlop_agent_core::runtime::SandboxSpec;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::image::ReadyImage;
use crate::recorder::pod_event;
use crate::shared::{Shared, lock};
use accounts::Accounts;
use operation::Done;

mod accounts;
mod desired;
mod execute;
mod operation;
mod outcome;
mod probes;
mod publish;

/// Longest sleep: a clock that is set anew is noticed by then.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// What a worker is to make true.
#[derive(Clone, Debug)]
pub(crate) struct Desired {
    /// The pod as its source has it.
    pub pod: Arc<Pod>,
    /// Uid of the mirror pod, for a static pod that has one.
    pub mirror_uid: Option<String>,
    /// The source does not have it any more.
    pub gone: bool,
    /// No source has ever told of it: it was found in the runtime or on disk.
    pub orphan: bool,
    /// The node's word on its end.
    pub verdict: Option<Verdict>,
    /// Grace in seconds that goes with the verdict.
    pub verdict_grace_seconds: Option<i64>,
    /// Counts changes of objects that the pod refers to.
    pub refresh: u64,
}

/// The worker of one pod.
pub(crate) struct Worker {
    shared: Arc<Shared>,
    uid: String,
    desired: watch::Receiver<Desired>,
    observed: watch::Receiver<Arc<ObservedPod>>,
    pod: Arc<Pod>,
    mirror_uid: Option<String>,
    orphan: bool,
    gone: bool,
    memory: PodMemory,
    status: PodStatus,
    published: Option<PodStatus>,
    published_to: Option<String>,
    finish_published: bool,
    operations: JoinSet<Done>,
    /// Operations that are broken off when the pod ends.
    breakable: Vec<AbortHandle>,
    sandbox_operation: Option<AbortHandle>,
    ending: CancellationToken,
    images: HashMap<String, ReadyImage>,
    image_backoff: HashMap<String, Backoff>,
    /// Containers whose failed pull is soon shown as waiting for its back-off.
    flips: BTreeMap<String, Timestamp>,
    start_errors: HashMap<String, u32>,
    volume_failures: u32,
    sandbox_failures: u32,
    teardown_failures: u32,
    volumes: Arc<BTreeMap<String, MountedVolume>>,
    sandbox: Option<Arc<SandboxSpec>>,
    hooks_done: HashSet<String>,
    backoffs_told: HashSet<String>,
    /// Instances that ran when the agent started: their probes go on where they were.
    recovered: HashSet<String>,
    reading: HashSet<String>,
    refresh_seen: u64,
    next_refresh: Option<Timestamp>,
    /// When the next try of a probe is due.
    next_probe: Option<Timestamp>,
    files: StepState,
    accounts: Accounts,
}

impl Worker {
    /// A worker of a pod that was first seen then.
    pub(crate) fn new(shared: Arc<Shared>, desired: watch::Receiver<Desired>, seen: Instant) -> Worker {
        let first = desired.borrow().clone();
        let uid = containers::uid(&first.pod).to_owned();
        let observed = shared.observed.subscribe(&uid);
        let recovered = observed
            .borrow()
            .containers
            .iter()
            .filter(|container| container.running())
            .map(|container| container.id.clone())
            .collect();
        let status = first.pod.status.clone().unwrap_or_default();
        let accounts = Accounts::new(&shared, &first, observed.borrow().is_empty().then_some(seen));
        Worker {
            shared,
            uid,
            desired,
            observed,
            mirror_uid: first.mirror_uid,
            orphan: first.orphan,
            gone: first.gone,
            pod: first.pod,
            memory: PodMemory::default(),
            status,
            published: None,
            published_to: None,
            finish_published: false,
            operations: JoinSet::new(),
            breakable: Vec::new(),
            sandbox_operation: None,
            ending: CancellationToken::new(),
            images: HashMap::new(),
            image_backoff: HashMap::new(),
            flips: BTreeMap::new(),
            start_errors: HashMap::new(),
            volume_failures: 0,
            sandbox_failures: 0,
            teardown_failures: 0,
            volumes: Arc::default(),
            sandbox: None,
            hooks_done: HashSet::new(),
            backoffs_told: HashSet::new(),
            recovered,
            reading: HashSet::new(),
            refresh_seen: first.refresh,
            next_refresh: None,
            next_probe: None,
            files: StepState::Idle,
            accounts,
        }
    }

    /// Works until the pod is gone from API and node, or the agent ends. Containers are left as they are then.
    pub(crate) async fn run(mut self, cancel: CancellationToken) {
        self.desired.mark_changed();
        // A probe whose result is as it was gives nothing to plan, and probes are the most that happens to a pod.
        let (mut planning, mut wake) = (true, Timestamp::UNIX_EPOCH);
        let mut cause = Work::Create;
        loop {
            self.take_desired();
            if planning {
                self.begin_round(cause);
                let now = self.shared.now();
                wake = self.pass().map_or(now + LONGEST_SLEEP, |at| at.min(now + LONGEST_SLEEP));
                self.look_at_round();
            } else {
                let observed = self.observed.borrow().clone();
                self.next_probe = self.tick_probes(&observed, self.shared.now());
            }
            if self.all_gone() {
                break;
            }
            (planning, cause) = (true, Work::Sync);
            let sleep = until(self.next_probe.map_or(wake, |probe| probe.min(wake)), self.shared.now());
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                changed = self.desired.changed() => match changed {
                    // `changed` counts as seen; what it brought is still to be taken in.
                    Ok(()) => {
                        self.desired.mark_changed();
                        cause = Work::Update;
                    }
                    Err(_) => return,
                },
                changed = self.observed.changed() => if changed.is_err() { return },
                Some(done) = self.operations.join_next() => planning = self.finish(done),
                () = tokio::time::sleep(sleep) => {
                    // A clock that was set back makes neither due; then, as ever, the pod is looked at after a while.
                    let now = self.shared.now();
                    planning = wake <= now || self.next_probe.is_none_or(|probe| probe > now);
                }
            }
            // Whatever else has ended by now is taken in before the next plan.
            while let Some(done) = self.operations.try_join_next() {
                planning |= self.finish(done);
            }
        }
        self.forget_probes();
        lock(&self.shared.startups).remove(&self.uid);
        lock(&self.shared.entries).remove(&self.uid);
        self.shared.give_room(&self.uid);
        self.shared.let_go(&self.uid);
        drop(self.observed);
        self.shared.observed.forget(&self.uid);
        let _ = self.shared.ended.send(self.uid);
    }

    /// Takes in what an operation brought. False when that gives nothing to plan.
    fn finish(&mut self, done: Result<Done, tokio::task::JoinError>) -> bool {
        match done {
            Ok(done) => self.take_outcome(done),
            Err(error) => {
                // A broken-off operation has had its state reset by who broke it off.
                if !error.is_cancelled() {
                    tracing::error!(pod = containers::display(&self.pod), %error, "an operation ended badly");
                }
                true
            }
        }
    }

    /// Plans and begins what is to be done, again as long as that moves the pod on in its life. Returns when to wake.
    fn pass(&mut self) -> Option<Timestamp> {
        let mut wake = None;
        // The life has four states, so it moves three times at most.
        for _ in 0..4 {
            let now = self.shared.now();
            let observed = self.observed.borrow_and_update().clone();
            wake = self.look_at(&observed, now);
            let plan = plan(&PlanInput {
                pod: &self.pod,
                previous: &self.status,
                observed: &observed,
                memory: &self.memory,
                now,
                bounds: self.shared.bounds,
            });
            let before = self.memory.lifecycle;
            if let Some(verdict) = plan.stop {
                if let Some(verdict) = &verdict {
                    let events = &*self.shared.ports.events;
                    pod_event(events, &self.pod, EventType::Normal, &verdict.reason, &verdict.message);
                }
                self.begin_stop(verdict, None, now);
            }
            if plan.stopped && !self.memory.start_under_way() {
                self.memory.lifecycle = self.memory.lifecycle.after(LifecycleEvent::Stopped);
                self.shared.give_room(&self.uid);
            }
            wake = earliest(wake, plan.wake_at);
            for action in plan.actions {
                self.execute(action, &observed, now);
            }
            if self.memory.lifecycle == before {
                break;
            }
        }
        if self.publish() && self.memory.lifecycle == Lifecycle::Finished {
            self.shared.let_go(&self.uid);
        }
        wake
    }

    /// Takes note of what the runtime shows: messages to read, probes that are due, volumes to renew. Returns when to look
    /// again but for the probes.
    fn look_at(&mut self, observed: &Arc<ObservedPod>, now: Timestamp) -> Option<Timestamp> {
        self.read_messages(observed);
        self.next_probe = self.tick_probes(observed, now);
        let mut wake = self.flip_images(now);
        wake = earliest(wake, self.refresh_volumes(now));
        if self.memory.lifecycle == Lifecycle::Finished && self.memory.deleted && observed.is_empty() {
            if self.files.due(now) {
                self.remove_files();
            }
            wake = earliest(wake, self.files.wake_at());
        }
        if self.memory.lifecycle == Lifecycle::Terminating
            && let Some(end) = self.memory.stop_by
        {
            // A sandbox that is still being made does not hold up the end beyond its grace.
            if end <= now {
                self.break_sandbox();
            } else {
                wake = earliest(wake, Some(end));
            }
        }
        wake
    }

    fn break_sandbox(&mut self) {
        if let Some(operation) = self.sandbox_operation.take() {
            operation.abort();
            if self.memory.sandbox == StepState::Running {
                self.memory.sandbox = StepState::Idle;
                self.memory.look = StepState::Idle;
            }
        }
    }

    fn all_gone(&self) -> bool {
        self.memory.lifecycle == Lifecycle::Finished
            && self.memory.deleted
            && self.files == StepState::Done
            && self.observed.borrow().is_empty()
    }

    fn pod_ips(&self, observed: &ObservedPod) -> Vec<String> {
        if containers::host_network(&self.pod) {
            return self.shared.ports.node.host_ips().iter().map(ToString::to_string).collect();
        }
        observed.sandbox().map(|sandbox| sandbox.ips.clone()).unwrap_or_default()
    }
}

/// The earlier of two times.
fn earliest(a: Option<Timestamp>, b: Option<Timestamp>) -> Option<Timestamp> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

fn until(wake: Timestamp, now: Timestamp) -> Duration {
    // Negative when it is past already.
    Duration::try_from(wake.duration_since(now)).unwrap_or_default().min(LONGEST_SLEEP)
}

/// A delay that doubles with each failure, from `first` to `longest`.
fn doubling(first: Duration, longest: Duration, failures: u32) -> SignedDuration {
    let delay = first.saturating_mul(1 << failures.min(16)).min(longest);
    SignedDuration::try_from(delay).unwrap_or(SignedDuration::from_secs(60))
}
