//! Taking in what the pod's source says: changes, deletion, disappearance, the node's word on its end.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use orlop_agent_core::containers;
use orlop_agent_core::lifecycle::{Lifecycle, LifecycleEvent};
use orlop_agent_core::memory::{ImageState, StepState, Verdict};
use orlop_agent_core::plan::{deletion_grace_seconds, spec_grace_seconds};
use orlop_agent_core::probe::ProbeKind;
use orlop_agent_core::status::is_terminal;

use crate::worker::Worker;

impl Worker {
    pub(super) fn take_desired(&mut self) {
        if !self.desired.has_changed().unwrap_or(false) {
            return;
        }
        let desired = self.desired.borrow_and_update().clone();
        let now = self.shared.now();
        self.mirror_uid = desired.mirror_uid;
        if relabelled(&self.pod, &desired.pod) || desired.refresh != self.refresh_seen {
            self.refresh_seen = desired.refresh;
            self.renew(now);
        }
        self.forget_images(&desired.pod);
        self.pod = desired.pod;
        self.gone = desired.gone;
        self.count_start(now);
        if desired.gone || self.pod.metadata.deletion_timestamp.is_some() {
            let grace = match (desired.gone, containers::is_static(&self.pod)) {
                (true, true) => spec_grace_seconds(&self.pod),
                (true, false) => 1,
                (false, _) => deletion_grace_seconds(&self.pod),
            };
            self.memory.deleted = true;
            self.begin_stop(None, Some(grace), now);
        }
        if let Some(verdict) = desired.verdict {
            // Work that is done stays done, though it may not have been told yet.
            let observed = self.observed.borrow().clone();
            let done = self.current_status(&observed, now).phase.as_deref() == Some("Succeeded");
            self.begin_stop(Some(verdict).filter(|_| !done), desired.verdict_grace_seconds, now);
        }
        let ended = self.pod.status.as_ref().is_some_and(|status| is_terminal(status.phase.as_deref()));
        if ended && !containers::is_static(&self.pod) {
            self.begin_stop(None, None, now);
        }
    }

    /// Ends the pod with a grace in seconds (the spec's, if none is given). A second call can only shorten the grace.
    pub(super) fn begin_stop(&mut self, verdict: Option<Verdict>, grace_seconds: Option<i64>, now: Timestamp) {
        let grace = grace_seconds.unwrap_or_else(|| spec_grace_seconds(&self.pod)).clamp(0, 1 << 31);
        let end = now.saturating_add(SignedDuration::from_secs(grace)).unwrap_or(now);
        match self.memory.lifecycle {
            Lifecycle::Syncing => {
                self.memory.verdict = verdict.or(self.memory.verdict.take());
                self.memory.lifecycle = self.memory.lifecycle.after(LifecycleEvent::Stop);
                self.memory.stop_by = Some(end);
                self.break_off();
            }
            Lifecycle::Terminating if self.memory.stop_by.is_some_and(|known| end < known) => {
                // Stops that are under way have the longer grace; they are asked again with the shorter one.
                self.memory.stop_by = Some(end);
                self.memory.stopping.clear();
            }
            _ => {}
        }
    }

    /// Images of containers whose definition names another one by now are not what was looked for, and their new image
    /// has not failed yet.
    fn forget_images(&mut self, new: &Pod) {
        for container in containers::all_containers(new) {
            let changed = containers::find_container(&self.pod, container.name())
                .is_some_and(|old| old.container.image != container.container.image);
            if changed && let Some(memory) = self.memory.containers.get_mut(container.name()) {
                memory.image = ImageState::Unknown;
                // What kept failing was the other image.
                memory.crash_loop = None;
                memory.failure = None;
                self.start_errors.remove(container.name());
                self.images.remove(container.name());
                self.flips.remove(container.name());
            }
        }
    }

    /// Breaks off what only a pod that goes on would need. Containers that are being made are made to the end, so
    /// that they are known and can be stopped.
    fn break_off(&mut self) {
        self.ending.cancel();
        for operation in self.breakable.drain(..) {
            operation.abort();
        }
        if self.memory.volumes == StepState::Running {
            self.memory.volumes = StepState::Idle;
        }
        for container in self.memory.containers.values_mut() {
            if container.image == ImageState::Pulling {
                container.image = ImageState::Unknown;
            }
            container.kill = None;
            container.probes.retain(|kind, _| *kind == ProbeKind::Readiness);
        }
        self.flips.clear();
    }

    /// Something that the pod refers to has changed: volumes are renewed, and what failed is tried at once.
    fn renew(&mut self, now: Timestamp) {
        if self.memory.volumes == StepState::Done {
            self.next_refresh = Some(now);
        }
        if let StepState::Failed { retry_at, .. } = &mut self.memory.volumes {
            *retry_at = now;
        }
        for container in self.memory.containers.values_mut() {
            if let Some(failure) =
                container.failure.as_mut().filter(|failure| failure.reason == "CreateContainerConfigError")
            {
                failure.retry_at = now;
            }
        }
    }
}

fn relabelled(old: &Pod, new: &Pod) -> bool {
    old.metadata.labels != new.metadata.labels || old.metadata.annotations != new.metadata.annotations
}
