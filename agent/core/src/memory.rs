//! What a pod worker remembers between passes: steps under way, errors with the time of their retry, back-offs, probes.
//! All of it may be lost: it is rebuilt from the runtime and the API after a restart of the agent.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::backoff::Backoff;
use crate::lifecycle::Lifecycle;
use crate::probe::{ProbeKind, ProbeState};

/// A step that is made once and may fail.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum StepState {
    /// Not begun.
    #[default]
    Idle,
    /// Under way.
    Running,
    /// Made.
    Done,
    /// Failed; tried again at the given time.
    Failed {
        /// Failures in a row.
        failures: u32,
        /// When to try again.
        retry_at: Timestamp,
        /// The last error.
        message: String,
    },
}

impl StepState {
    /// Whether the step is to be begun now.
    pub fn due(&self, now: Timestamp) -> bool {
        match self {
            StepState::Idle => true,
            StepState::Running | StepState::Done => false,
            StepState::Failed { retry_at, .. } => *retry_at <= now,
        }
    }

    /// When to wake for it.
    pub fn wake_at(&self) -> Option<Timestamp> {
        match self {
            StepState::Failed { retry_at, .. } => Some(*retry_at),
            _ => None,
        }
    }

    /// Failures in a row so far.
    pub fn failures(&self) -> u32 {
        match self {
            StepState::Failed { failures, .. } => *failures,
            _ => 0,
        }
    }
}

/// The image of a container that is about to be started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ImageState {
    /// Not looked at for this start.
    #[default]
    Unknown,
    /// Being looked for or pulled.
    Pulling,
    /// Present, by this reference.
    Ready(String),
    /// Not to be had just now.
    Failed {
        /// Waiting reason (`ErrImagePull`, `ImagePullBackOff`, `InvalidImageName`, ...).
        reason: String,
        /// The error.
        message: String,
        /// When to try again.
        retry_at: Timestamp,
    },
}

/// Why a container could not be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartFailure {
    /// Waiting reason (`CreateContainerConfigError`, `RunContainerError`, ...).
    pub reason: String,
    /// The error.
    pub message: String,
    /// When to try again.
    pub retry_at: Timestamp,
}

/// A probe asks to kill an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeKill {
    /// The instance.
    pub container_id: String,
    /// The probe that failed.
    pub kind: ProbeKind,
    /// Grace in seconds that the probe sets, if it does.
    pub grace_seconds: Option<i64>,
}

/// What is remembered of one container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerMemory {
    /// Image for the next start.
    pub image: ImageState,
    /// It is being made and started, postStart included.
    pub starting: bool,
    /// The last try to start it failed.
    pub failure: Option<StartFailure>,
    /// Back-off of restarts.
    pub crash_loop: Option<Backoff>,
    /// Probes of the running instance.
    pub probes: BTreeMap<ProbeKind, ProbeState>,
    /// A probe wants it killed.
    pub kill: Option<ProbeKill>,
}

impl ContainerMemory {
    /// Whether the startup probe (if any) lets the instance count as started.
    pub fn started(&self, container_id: &str, has_startup_probe: bool) -> bool {
        if self.starting {
            return false;
        }
        !has_startup_probe || self.probe_passing(ProbeKind::Startup, container_id) == Some(true)
    }

    /// The result of a probe for that instance; `None` while unknown.
    pub fn probe_passing(&self, kind: ProbeKind, container_id: &str) -> Option<bool> {
        self.probes.get(&kind).filter(|probe| probe.container_id == container_id).and_then(|probe| probe.passing)
    }
}

/// The agent's own word on a pod's end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// `Failed`, or none to let the containers decide.
    pub phase: Option<&'static str>,
    /// status.reason.
    pub reason: String,
    /// status.message.
    pub message: String,
    /// The node ended the pod for its own needs: condition DisruptionTarget is set.
    pub disruption: bool,
}

/// What is remembered of one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodMemory {
    /// Where the pod is in its life.
    pub lifecycle: Lifecycle,
    /// The agent's own word on its end.
    pub verdict: Option<Verdict>,
    /// Its API object is being deleted, or it is gone from its source.
    pub deleted: bool,
    /// When the grace of its termination is over.
    pub stop_by: Option<Timestamp>,
    /// Volumes are set up.
    pub volumes: StepState,
    /// The sandbox is created.
    pub sandbox: StepState,
    /// Volumes and cgroup are taken down.
    pub teardown: StepState,
    /// The runtime was asked what it has of the pod. Not done means that there is doubt: a call that makes something
    /// failed, and may have been carried out all the same.
    pub look: StepState,
    /// Containers by name.
    pub containers: BTreeMap<String, ContainerMemory>,
    /// Containers and sandboxes (by id) that are being stopped.
    pub stopping: BTreeSet<String>,
    /// Containers and sandboxes (by id) that are being removed.
    pub removing: BTreeSet<String>,
    /// Stops that failed: id and when to try again.
    pub stop_failures: BTreeMap<String, Timestamp>,
    /// Instances (by id) stopped because their definition changed: they are started again whatever the policy says.
    pub restart_regardless: BTreeSet<String>,
    /// Instances (by id) that a probe had killed.
    pub killed_by_probe: BTreeSet<String>,
}

impl Default for PodMemory {
    fn default() -> Self {
        PodMemory {
            lifecycle: Lifecycle::Syncing,
            verdict: None,
            deleted: false,
            stop_by: None,
            volumes: StepState::Idle,
            sandbox: StepState::Idle,
            teardown: StepState::Idle,
            look: StepState::Done,
            containers: BTreeMap::new(),
            stopping: BTreeSet::new(),
            removing: BTreeSet::new(),
            stop_failures: BTreeMap::new(),
            restart_regardless: BTreeSet::new(),
            killed_by_probe: BTreeSet::new(),
        }
    }
}

impl PodMemory {
    /// What is remembered of a container.
    pub fn container(&self, name: &str) -> Option<&ContainerMemory> {
        self.containers.get(name)
    }

    /// The same, to be changed.
    pub fn container_mut(&mut self, name: &str) -> &mut ContainerMemory {
        self.containers.entry(name.to_owned()).or_default()
    }

    /// A sandbox or container is being made.
    pub fn start_under_way(&self) -> bool {
        self.sandbox == StepState::Running || self.containers.values().any(|container| container.starting)
    }

    /// When a stop or removal that failed may be tried again; none while one is under way.
    pub fn stop_again_at(&self, id: &str) -> Option<Timestamp> {
        let under_way = self.stopping.contains(id) || self.removing.contains(id);
        self.stop_failures.get(id).copied().filter(|_| !under_way)
    }

    /// Whether an id may be stopped now: not under way and not waiting for a retry.
    pub fn may_stop(&self, id: &str, now: Timestamp) -> bool {
        !self.stopping.contains(id) && self.stop_failures.get(id).is_none_or(|retry| *retry <= now)
    }
}
