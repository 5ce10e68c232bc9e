//! Taking in what operations bring home.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use orlop_agent_core::backoff::{Backoff, BackoffBounds};
use orlop_agent_core::lifecycle::{Lifecycle, LifecycleEvent};
use orlop_agent_core::memory::{ImageState, StartFailure, StepState};
use orlop_agent_core::ports::EventType;
use orlop_agent_core::runtime::SandboxSpec;

use crate::image::{ImageFailure, ReadyImage};
use crate::recorder::pod_event;
use crate::sandbox::SandboxError;
use crate::start::{StartError, Started};
use crate::worker::operation::Done;
use crate::worker::{Worker, doubling};

/// A failed pull is shown as such for so long, then as waiting for its back-off.
const FLIP_AFTER: SignedDuration = SignedDuration::from_secs(2);
/// Before a pod without a network looks for one again (kubelet's wait after "network is not ready").
const NETWORK_RETRY: Duration = Duration::from_secs(1);
/// Before a stop or removal that failed is tried again.
const STOP_RETRY: SignedDuration = SignedDuration::from_secs(2);

impl Worker {
    /// False when it gives nothing to plan.
    pub(super) fn take_outcome(&mut self, done: Done) -> bool {
        let now = self.shared.now();
        match done {
            Done::Volumes(result) => self.volumes_set_up(result, now),
            Done::Refreshed(Ok(volumes)) => self.volumes = Arc::new(volumes),
            Done::Refreshed(Err(message)) => {
                pod_event(&*self.shared.ports.events, &self.pod, EventType::Warning, "FailedMount", &message)
            }
            Done::Sandbox(result) => self.sandbox_created(result, now),
            Done::Image { container, image, result } => self.image_ensured(container, image, result, now),
            Done::Start { container, result } => self.container_started(&container, result, now),
            Done::Stop { id, result } => {
                self.memory.stopping.remove(&id);
                self.retry_later(&id, result, now);
            }
            Done::Remove { id, result } => {
                self.memory.removing.remove(&id);
                self.reading.remove(&id);
                self.backoffs_told.remove(&id);
                self.hooks_done.remove(&id);
                self.memory.restart_regardless.remove(&id);
                self.memory.killed_by_probe.remove(&id);
                self.retry_later(&id, result, now);
            }
            Done::Look(result) => {
                self.memory.look = match result {
                    Ok(()) => StepState::Done,
                    Err(message) => {
                        let before = self.memory.look.clone();
                        self.failed(&before, message, Duration::from_secs(1), Duration::from_secs(10), now)
                    }
                };
            }
            Done::TearDown(result) => self.torn_down(result, now),
            Done::Message { id } => drop(self.reading.remove(&id)),
            Done::Probe { container, kind, id, took, outcome } => {
                self.count_probe(&container, kind, took, &outcome);
                return self.probe_ended(&container, kind, &id, outcome, now);
            }
            Done::Files(result) => {
                self.files = match result {
                    Ok(()) => StepState::Done,
                    Err(message) => {
                        self.failed(&self.files.clone(), message, Duration::from_secs(1), Duration::from_secs(60), now)
                    }
                };
            }
        }
        true
    }

    fn failed(
        &self,
        before: &StepState,
        message: String,
        first: Duration,
        longest: Duration,
        now: Timestamp,
    ) -> StepState {
        let pod = orlop_agent_core::containers::display(&self.pod);
        tracing::warn!(pod, message, "a step failed and is tried again");
        let failures = before.failures() + 1;
        StepState::Failed { failures, retry_at: now + doubling(first, longest, failures - 1), message }
    }

    fn volumes_set_up(
        &mut self,
        result: Result<std::collections::BTreeMap<String, orlop_agent_core::ports::MountedVolume>, String>,
        now: Timestamp,
    ) {
        match result {
            Ok(volumes) => {
                self.volumes = Arc::new(volumes);
                self.memory.volumes = StepState::Done;
                self.volume_failures = 0;
                let period = SignedDuration::try_from(self.shared.config.volume_refresh)
                    .unwrap_or(SignedDuration::from_secs(60));
                self.next_refresh = Some(now + period);
            }
            Err(message) => {
                pod_event(&*self.shared.ports.events, &self.pod, EventType::Warning, "FailedMount", &message);
                self.volume_failures += 1;
                let delay = doubling(Duration::from_millis(500), Duration::from_secs(30), self.volume_failures - 1);
                self.memory.volumes =
                    StepState::Failed { failures: self.volume_failures, retry_at: now + delay, message };
            }
        }
    }

    fn sandbox_created(&mut self, result: Result<Arc<SandboxSpec>, SandboxError>, now: Timestamp) {
        self.sandbox_operation = None;
        let error = match result {
            Ok(spec) => {
                self.sandbox = Some(spec);
                self.sandbox_failures = 0;
                self.memory.sandbox = StepState::Done;
                return;
            }
            Err(error) => error,
        };
        let (reason, text) = (error.reason(), error.to_string());
        pod_event(&*self.shared.ports.events, &self.pod, EventType::Warning, reason, &text);
        let (first, longest) = match &error {
            SandboxError::Network(_) => (NETWORK_RETRY, NETWORK_RETRY),
            SandboxError::Failed(_) => (Duration::from_secs(1), Duration::from_secs(10)),
        };
        self.memory.look = StepState::Idle;
        self.sandbox_failures += 1;
        let delay = doubling(first, longest, self.sandbox_failures - 1);
        self.memory.sandbox =
            StepState::Failed { failures: self.sandbox_failures, retry_at: now + delay, message: text };
    }

    fn image_ensured(
        &mut self,
        container: String,
        image: String,
        result: Result<ReadyImage, ImageFailure>,
        now: Timestamp,
    ) {
        let wanted = orlop_agent_core::containers::find_container(&self.pod, &container)
            .and_then(|found| found.container.image.clone());
        let state = match result {
            // The definition was changed meanwhile; the new image is looked for in the next pass.
            _ if wanted.as_deref().unwrap_or_default() != image => ImageState::Unknown,
            Ok(ready) => {
                self.image_backoff.remove(&image);
                let state = ImageState::Ready(ready.reference.clone());
                self.images.insert(container.clone(), ready);
                state
            }
            Err(failure) => {
                let bounds = BackoffBounds::default();
                let backoff = Backoff::after_try(self.image_backoff.get(&image), now, now, bounds);
                self.image_backoff.insert(image, backoff);
                if failure.reason == "ErrImagePull" || failure.reason == "RegistryUnavailable" {
                    self.flips.insert(container.clone(), now + FLIP_AFTER);
                }
                ImageState::Failed {
                    reason: failure.reason.to_owned(),
                    message: failure.message,
                    retry_at: now + backoff.delay,
                }
            }
        };
        self.memory.container_mut(&container).image = state;
    }

    fn container_started(&mut self, container: &str, result: Result<Started, StartError>, now: Timestamp) {
        self.images.remove(container);
        let failures = self.start_errors.entry(container.to_owned()).or_insert(0);
        let memory = self.memory.containers.entry(container.to_owned()).or_default();
        memory.starting = false;
        memory.image = ImageState::Unknown;
        match result {
            Ok(started) => {
                *failures = 0;
                memory.failure = None;
                self.sandbox = started.sandbox.or(self.sandbox.take());
            }
            Err(error) => {
                self.memory.look = StepState::Idle;
                let delay = doubling(Duration::from_secs(5), Duration::from_secs(60), *failures);
                *failures += 1;
                // A hook that failed leaves an ended container, whose restart has a back-off of its own.
                let retry_at = if error.reason == "PostStartHookError" { now } else { now + delay };
                memory.failure =
                    Some(StartFailure { reason: error.reason.to_owned(), message: error.message, retry_at });
                if error.sandbox.is_some() {
                    self.sandbox = error.sandbox;
                }
            }
        }
    }

    fn retry_later(&mut self, id: &str, result: Result<(), String>, now: Timestamp) {
        match result {
            Ok(()) => drop(self.memory.stop_failures.remove(id)),
            Err(message) => {
                let text = format!("error killing pod: {message}");
                pod_event(&*self.shared.ports.events, &self.pod, EventType::Warning, "FailedKillPod", &text);
                self.memory.stop_failures.insert(id.to_owned(), now + STOP_RETRY);
            }
        }
    }

    fn torn_down(&mut self, result: Result<(), String>, now: Timestamp) {
        match result {
            Ok(()) => {
                self.memory.teardown = StepState::Done;
                if self.memory.lifecycle == Lifecycle::Terminated {
                    self.memory.lifecycle = self.memory.lifecycle.after(LifecycleEvent::TornDown);
                }
            }
            Err(message) => {
                self.teardown_failures += 1;
                let before =
                    StepState::Failed { failures: self.teardown_failures - 1, retry_at: now, message: String::new() };
                self.memory.teardown =
                    self.failed(&before, message, Duration::from_millis(500), Duration::from_secs(30), now);
            }
        }
    }
}
