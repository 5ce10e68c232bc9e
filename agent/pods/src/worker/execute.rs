//! Beginning what a plan asks for.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use jiff::{SignedDuration, Timestamp};
use orlop_agent_core::backoff::Backoff;
use orlop_agent_core::containers::{display, find_container};
use orlop_agent_core::facts::{ObservedContainer, ObservedPod};
use orlop_agent_core::lifecycle::Lifecycle;
use orlop_agent_core::memory::{ImageState, StepState};
use orlop_agent_core::plan::{Action, StopReason, spec_grace_seconds};
use orlop_agent_core::ports::EventType;

use crate::image::{ImageFailure, ensure_image};
use crate::log_links::remove_link;
use crate::recorder::{named_event, pod_event};
use crate::sandbox::create_sandbox;
use crate::shared::Shared;
use crate::start::{StartError, StartRequest, start_container};
use crate::stop::{StopRequest, stop_container};
use crate::teardown::{remove_files, tear_down};
use crate::termination_message::read_message;
use crate::worker::operation::{Done, PANICKED};
use crate::worker::{Worker, earliest};

/// Longest wait for the mounts of a pod in one try (kubelet `podAttachAndMountTimeout`).
const MOUNT_DEADLINE: Duration = Duration::from_secs(123);
/// Longest wait for a termination message.
const MESSAGE_DEADLINE: Duration = Duration::from_secs(2);

impl Worker {
    pub(super) fn execute(&mut self, action: Action, observed: &Arc<ObservedPod>, now: Timestamp) {
        match action {
            Action::SetUpVolumes => {
                self.memory.volumes = StepState::Running;
                let operation = self.set_up_volumes();
                let handle =
                    self.spawn(Done::Volumes(Err(PANICKED.into())), async move { Done::Volumes(operation.await) });
                self.breakable.push(handle);
            }
            Action::CreateSandbox { attempt } => {
                self.memory.sandbox = StepState::Running;
                let (shared, pod) = (self.shared.clone(), self.pod.clone());
                let operation = async move { Done::Sandbox(create_sandbox(&shared, &pod, attempt).await) };
                self.sandbox_operation = Some(self.spawn(Done::Sandbox(Err(PANICKED.to_owned().into())), operation));
            }
            Action::StopSandbox { id, changed } => self.stop_sandbox(id, changed, observed),
            Action::RemoveSandbox { id } => {
                self.memory.removing.insert(id.clone());
                let shared = self.shared.clone();
                let fallback = Done::Remove { id: id.clone(), result: Err(PANICKED.into()) };
                self.spawn(fallback, async move {
                    let result = remove_sandbox(&shared, &id).await;
                    Done::Remove { id, result }
                });
            }
            Action::EnsureImage { container } => self.ensure_image(container),
            Action::StartContainer { container, attempt, sandbox_id, replaces, failed_at } => {
                self.start(container, attempt, sandbox_id, replaces, failed_at, observed, now);
            }
            Action::BackOff { container, id } => {
                if self.backoffs_told.insert(id) {
                    let message =
                        format!("Back-off restarting failed container {container} in pod {}", display(&self.pod));
                    named_event(
                        &*self.shared.ports.events,
                        &self.pod,
                        &container,
                        EventType::Warning,
                        "BackOff",
                        &message,
                    );
                }
            }
            Action::StopContainer { id, reason, grace_seconds, after, .. } => {
                self.stop(&id, reason, grace_seconds, after, observed)
            }
            Action::RemoveContainer { id } => self.remove_container(&id, observed),
            Action::Look => {
                self.memory.look = StepState::Running;
                let (shared, uid) = (self.shared.clone(), self.uid.clone());
                self.spawn(Done::Look(Err(PANICKED.into())), async move { Done::Look(look(&shared, &uid).await) });
            }
            Action::TearDown => {
                self.memory.teardown = StepState::Running;
                let (shared, pod) = (self.shared.clone(), self.pod.clone());
                self.spawn(Done::TearDown(Err(PANICKED.into())), async move {
                    Done::TearDown(tear_down(&shared, &pod).await)
                });
            }
        }
    }

    fn set_up_volumes(
        &self,
    ) -> impl Future<Output = Result<std::collections::BTreeMap<String, orlop_agent_core::ports::MountedVolume>, String>>
    + Send
    + use<> {
        let (shared, pod) = (self.shared.clone(), self.pod.clone());
        async move {
            match tokio::time::timeout(MOUNT_DEADLINE, shared.ports.volumes.set_up(&pod)).await {
                Ok(Ok(volumes)) => Ok(volumes),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err("Unable to attach or mount volumes: timed out waiting for the condition".to_owned()),
            }
        }
    }

    fn stop_sandbox(&mut self, id: String, changed: bool, observed: &Arc<ObservedPod>) {
        if changed {
            let message = "Pod sandbox changed, it will be killed and re-created.";
            pod_event(&*self.shared.ports.events, &self.pod, EventType::Normal, "SandboxChanged", message);
        }
        self.memory.stopping.insert(id.clone());
        let inside: Vec<ObservedContainer> =
            observed.containers.iter().filter(|c| c.sandbox_id == id && c.running()).cloned().collect();
        let pod_ip = self.pod_ips(observed).first().cloned().unwrap_or_default();
        let grace_seconds = if changed { spec_grace_seconds(&self.pod) } else { 0 };
        let requests: Vec<StopRequest> = inside
            .into_iter()
            .map(|container| StopRequest {
                pod: self.pod.clone(),
                container,
                reason: StopReason::PodEnds,
                grace_seconds,
                after: Vec::new(),
                pod_ip: pod_ip.clone(),
                hook_done: false,
            })
            .collect();
        let (shared, uid) = (self.shared.clone(), self.uid.clone());
        let fallback = Done::Stop { id: id.clone(), result: Err(PANICKED.into()) };
        self.spawn(fallback, async move {
            // The sandbox's own stop kills what these could not stop.
            let _ = join_all(requests.iter().map(|request| stop_container(&shared, request))).await;
            let result = stop_and_see(&shared, &uid, &id).await;
            Done::Stop { id, result }
        });
    }

    fn ensure_image(&mut self, container: String) {
        self.memory.container_mut(&container).image = ImageState::Pulling;
        self.flips.remove(&container);
        let (shared, pod) = (self.shared.clone(), self.pod.clone());
        let image =
            find_container(&self.pod, &container).and_then(|found| found.container.image.clone()).unwrap_or_default();
        let failure = ImageFailure { reason: "ErrImagePull", message: PANICKED.into() };
        let fallback = Done::Image { container: container.clone(), image: image.clone(), result: Err(failure) };
        let handle = self.spawn(fallback, async move {
            let result = match find_container(&pod, &container) {
                Some(found) => ensure_image(&shared, &pod, &found).await,
                None => Err(ImageFailure {
                    reason: "InvalidImageName",
                    message: format!("the pod has no container {container:?}"),
                }),
            };
            Done::Image { container, image, result }
        });
        self.breakable.retain(|handle| !handle.is_finished());
        self.breakable.push(handle);
    }

    #[expect(clippy::too_many_arguments, reason = "they are the parts of one action")]
    fn start(
        &mut self,
        container: String,
        attempt: u32,
        sandbox_id: String,
        replaces: Option<String>,
        failed_at: Option<Timestamp>,
        observed: &Arc<ObservedPod>,
        now: Timestamp,
    ) {
        let Some(image) = self.images.get(&container).cloned() else {
            // The image was made ready for another definition of the container.
            self.memory.container_mut(&container).image = ImageState::Unknown;
            return;
        };
        let status = self.current_status(observed, now);
        let mut pod = (*self.pod).clone();
        pod.status = Some(status);
        let bounds = self.shared.bounds;
        let memory = self.memory.container_mut(&container);
        memory.starting = true;
        memory.kill = None;
        let ended = observed.latest(&container).is_some_and(ObservedContainer::exited);
        memory.crash_loop = match failed_at {
            Some(failed_at) => Some(Backoff::after_try(memory.crash_loop.as_ref(), failed_at, now, bounds)),
            // What ended was of another definition: its back-off is not this one's.
            None if ended => None,
            None => memory.crash_loop,
        };
        let request = StartRequest {
            pod: Arc::new(pod),
            container: container.clone(),
            attempt,
            failures: self.start_errors.get(&container).copied().unwrap_or(0),
            sandbox_id,
            sandbox_attempt: observed.sandbox().map_or(0, |sandbox| sandbox.attempt),
            sandbox: self.sandbox.clone(),
            pod_ips: self.pod_ips(observed),
            replaces,
            image,
            volumes: self.volumes.clone(),
            cancel: self.ending.clone(),
        };
        let shared = self.shared.clone();
        let failure = StartError { reason: "CreateContainerError", message: PANICKED.into(), sandbox: None };
        let fallback = Done::Start { container: container.clone(), result: Err(failure) };
        self.spawn(fallback, async move {
            let result = start_container(&shared, request).await;
            Done::Start { container, result }
        });
    }

    fn stop(
        &mut self,
        id: &str,
        reason: StopReason,
        grace_seconds: i64,
        after: Vec<String>,
        observed: &Arc<ObservedPod>,
    ) {
        let Some(container) = observed.containers.iter().find(|container| container.id == id).cloned() else { return };
        match reason {
            StopReason::Changed => drop(self.memory.restart_regardless.insert(id.to_owned())),
            StopReason::Liveness | StopReason::Startup => drop(self.memory.killed_by_probe.insert(id.to_owned())),
            StopReason::PodEnds | StopReason::RestartAll => {}
        }
        self.memory.stopping.insert(id.to_owned());
        let request = StopRequest {
            pod: self.pod.clone(),
            container,
            reason,
            grace_seconds,
            after,
            pod_ip: self.pod_ips(observed).first().cloned().unwrap_or_default(),
            hook_done: !self.hooks_done.insert(id.to_owned()),
        };
        let (shared, id) = (self.shared.clone(), id.to_owned());
        let fallback = Done::Stop { id: id.clone(), result: Err(PANICKED.into()) };
        self.spawn(fallback, async move {
            let result = stop_container(&shared, &request).await;
            Done::Stop { id, result }
        });
    }

    fn remove_container(&mut self, id: &str, observed: &Arc<ObservedPod>) {
        let Some(container) = observed.containers.iter().find(|container| container.id == id).cloned() else { return };
        self.memory.removing.insert(id.to_owned());
        let (shared, pod) = (self.shared.clone(), self.pod.clone());
        let fallback = Done::Remove { id: id.to_owned(), result: Err(PANICKED.into()) };
        self.spawn(fallback, async move {
            let result = shared.ports.runtime.remove_container(&container.id).await.map_err(|failure| failure.message);
            if result.is_ok() {
                shared.observed.gone(&container.id);
                if let Some(folder) = &shared.config.container_logs {
                    remove_link(folder, &pod, &container.name, &container.id);
                }
                let directories = shared.directories.clone();
                let (uid, name, attempt, log) = (
                    orlop_agent_core::containers::uid(&pod).to_owned(),
                    container.name.clone(),
                    container.attempt,
                    PathBuf::from(&container.log_path),
                );
                let files = move || directories.remove_container_files(&uid, &name, attempt, &log);
                let _ = shared.config.pace.blocking(files).await;
            }
            Done::Remove { id: container.id, result }
        });
    }

    pub(super) fn remove_files(&mut self) {
        self.files = StepState::Running;
        let (shared, pod) = (self.shared.clone(), self.pod.clone());
        self.spawn(Done::Files(Err(PANICKED.into())), async move { Done::Files(remove_files(&shared, &pod).await) });
    }

    /// Reads the termination messages of containers that have ended since.
    pub(super) fn read_messages(&mut self, observed: &Arc<ObservedPod>) {
        let unread: Vec<ObservedContainer> = observed
            .containers
            .iter()
            .filter(|c| c.exited() && !c.message_read && !self.reading.contains(&c.id))
            .cloned()
            .collect();
        let share = observed.containers.len();
        for container in unread {
            self.reading.insert(container.id.clone());
            let (shared, uid) = (self.shared.clone(), self.uid.clone());
            let file = self.shared.directories.termination_log(&self.uid, &container.name, container.attempt);
            self.spawn(Done::Message { id: container.id.clone() }, async move {
                let id = container.id.clone();
                let read = shared.config.pace.blocking(move || read_message(&container, &file, share));
                let message = tokio::time::timeout(MESSAGE_DEADLINE, read).await.ok().and_then(Result::ok).flatten();
                shared.observed.set_message(&uid, &id, message.filter(|text| !text.is_empty()));
                Done::Message { id }
            });
        }
    }

    /// Renews volume contents when it is time.
    pub(super) fn refresh_volumes(&mut self, now: Timestamp) -> Option<Timestamp> {
        if self.memory.lifecycle != Lifecycle::Syncing || self.memory.volumes != StepState::Done {
            return None;
        }
        match self.next_refresh {
            Some(at) if at > now => Some(at),
            Some(_) => {
                let period = SignedDuration::try_from(self.shared.config.volume_refresh)
                    .unwrap_or(SignedDuration::from_secs(60));
                self.next_refresh = Some(now + period);
                let operation = self.set_up_volumes();
                let handle =
                    self.spawn(Done::Refreshed(Err(PANICKED.into())), async move { Done::Refreshed(operation.await) });
                self.breakable.retain(|handle| !handle.is_finished());
                self.breakable.push(handle);
                self.next_refresh
            }
            None => None,
        }
    }

    /// Shows images whose pull failed a moment ago as waiting for their back-off.
    pub(super) fn flip_images(&mut self, now: Timestamp) -> Option<Timestamp> {
        let due: Vec<String> = self.flips.iter().filter(|(_, at)| **at <= now).map(|(name, _)| name.clone()).collect();
        for name in due {
            self.flips.remove(&name);
            let image =
                find_container(&self.pod, &name).and_then(|found| found.container.image.clone()).unwrap_or_default();
            if let ImageState::Failed { reason, message, .. } = &mut self.memory.container_mut(&name).image {
                let text = format!("Back-off pulling image {image:?}");
                *message = format!("{text}: {reason}: {message}");
                "ImagePullBackOff".clone_into(reason);
                named_event(&*self.shared.ports.events, &self.pod, &name, EventType::Normal, "BackOff", &text);
                named_event(
                    &*self.shared.ports.events,
                    &self.pod,
                    &name,
                    EventType::Warning,
                    "Failed",
                    "Error: ImagePullBackOff",
                );
            }
        }
        self.flips.values().copied().fold(None, |wake, at| earliest(wake, Some(at)))
    }
}

async fn stop_and_see(shared: &Shared, uid: &str, id: &str) -> Result<(), String> {
    shared.ports.runtime.stop_sandbox(id).await.map_err(|failure| failure.message)?;
    let settled = shared.observed.get(uid).is_some_and(|observed| {
        !observed.sandboxes.iter().any(|sandbox| sandbox.id == id && sandbox.ready)
            && !observed.containers.iter().any(|c| c.sandbox_id == id && c.running())
    });
    if settled { Ok(()) } else { look(shared, uid).await }
}

async fn look(shared: &Shared, uid: &str) -> Result<(), String> {
    let begun = shared.now();
    let observed = shared.ports.runtime.pod(uid).await.map_err(|failure| failure.message)?;
    shared.observed.refreshed(begun, observed);
    Ok(())
}

async fn remove_sandbox(shared: &Shared, id: &str) -> Result<(), String> {
    shared.ports.runtime.stop_sandbox(id).await.map_err(|failure| failure.message)?;
    shared.ports.runtime.remove_sandbox(id).await.map_err(|failure| failure.message)?;
    shared.observed.gone(id);
    Ok(())
}
