//! Probes of the pod's running containers: when they are due, and what their results do.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Probe;
use orlop_agent_core::containers::{self, ContainerKind, SpecContainer, all_containers, find_container};
use orlop_agent_core::facts::{ObservedContainer, ObservedPod};
use orlop_agent_core::lifecycle::Lifecycle;
use orlop_agent_core::memory::ProbeKill;
use orlop_agent_core::metrics::names;
use orlop_agent_core::ports::EventType;
use orlop_agent_core::probe::{ProbeChange, ProbeKind, ProbeOutcome, ProbeState, probe_timing};
use tokio::time::Instant;

use crate::probing::{ProbeTarget, run_probe};
use crate::recorder::named_event;
use crate::worker::operation::{Done, PANICKED};
use crate::worker::{Worker, earliest};

impl Worker {
    /// Begins the tries that are due and returns when the next one is.
    pub(super) fn tick_probes(&mut self, observed: &Arc<ObservedPod>, now: Timestamp) -> Option<Timestamp> {
        if self.memory.lifecycle > Lifecycle::Terminating {
            return None;
        }
        let pod = self.pod.clone();
        let mut wake = None;
        for container in all_containers(&pod)
            .filter(|container| matches!(container.kind, ContainerKind::App | ContainerKind::Sidecar))
        {
            let starting = self.memory.container(container.name()).is_some_and(|memory| memory.starting);
            match observed.latest(container.name()).filter(|instance| instance.running() && !starting) {
                Some(instance) => wake = earliest(wake, self.tick_container(&container, instance, observed, now)),
                None => {
                    if let Some(memory) = self.memory.containers.get_mut(container.name()) {
                        memory.probes.clear();
                    }
                }
            }
        }
        wake
    }

    fn tick_container(
        &mut self,
        container: &SpecContainer<'_>,
        instance: &ObservedContainer,
        observed: &Arc<ObservedPod>,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let has_startup = container.container.startup_probe.is_some();
        let mut wake = None;
        for kind in ProbeKind::ALL {
            let Some(probe) = kind.of(&container.container) else { continue };
            if self.memory.lifecycle == Lifecycle::Terminating && kind != ProbeKind::Readiness {
                continue;
            }
            let timing = probe_timing(probe);
            let known = self.known_result(kind, container.name(), &instance.id);
            let memory = self.memory.container_mut(container.name());
            let fresh = memory.probes.get(&kind).is_none_or(|state| state.container_id != instance.id);
            if fresh {
                let started_at = instance.started_at.unwrap_or(now);
                memory.probes.insert(kind, ProbeState::new(kind, &instance.id, started_at, &timing, known, now));
            }
            let started = memory.started(&instance.id, has_startup);
            let Some(state) = memory.probes.get_mut(&kind) else { continue };
            match state.due_at(started) {
                Some(at) if at <= now => {
                    state.begin(&timing, now);
                    let next = state.next_at;
                    self.try_probe(container, kind, probe.clone(), instance, observed);
                    wake = earliest(wake, Some(next));
                }
                due => wake = earliest(wake, due),
            }
        }
        wake
    }

    /// What the API knows of an instance that ran before the agent started: it stays ready and started.
    fn known_result(&self, kind: ProbeKind, name: &str, id: &str) -> Option<bool> {
        if !self.recovered.contains(id) {
            return None;
        }
        let lists = [&self.status.container_statuses, &self.status.init_container_statuses];
        let status = lists.into_iter().flatten().flatten().find(|status| status.name == name)?;
        if !status.container_id.as_deref().is_some_and(|known| known.ends_with(id)) {
            return None;
        }
        match kind {
            ProbeKind::Startup => status.started.filter(|started| *started),
            ProbeKind::Readiness => Some(status.ready),
            ProbeKind::Liveness => None,
        }
    }

    fn try_probe(
        &mut self,
        container: &SpecContainer<'_>,
        kind: ProbeKind,
        probe: Probe,
        instance: &ObservedContainer,
        observed: &Arc<ObservedPod>,
    ) {
        let target = ProbeTarget {
            container_id: instance.id.clone(),
            container: container.container.clone().into_owned(),
            pod_ip: self.pod_ips(observed).first().cloned().unwrap_or_default(),
        };
        let (shared, name, id) = (self.shared.clone(), container.name().to_owned(), instance.id.clone());
        let fallback = Done::Probe {
            container: name.clone(),
            kind,
            id: id.clone(),
            took: Duration::ZERO,
            outcome: ProbeOutcome::Error(PANICKED.into()),
        };
        self.spawn(fallback, async move {
            let begun = Instant::now();
            let outcome = run_probe(&*shared.ports.runtime, &target, &probe).await;
            Done::Probe { container: name, kind, id, took: begun.elapsed(), outcome }
        });
    }

    /// Counts a try that could be made, as the kubelet does.
    pub(super) fn count_probe(&self, name: &str, kind: ProbeKind, took: Duration, outcome: &ProbeOutcome) {
        let (metrics, pod) = (&*self.shared.ports.metrics, &self.pod);
        let (kind, namespace, pod) = (kind.as_str(), containers::namespace(pod), containers::name(pod));
        let result = match outcome {
            ProbeOutcome::Success | ProbeOutcome::Warning(_) => "successful",
            ProbeOutcome::Failure(_) => "failed",
            ProbeOutcome::Error(_) => return,
        };
        metrics.count(&names::PROBES, &[kind, result, name, pod, namespace, &self.uid]);
        if result == "successful" {
            metrics.observe(&names::PROBE_SECONDS, &[kind, name, pod, namespace], took.as_secs_f64());
        }
    }

    /// Forgets what was counted of the pod's probes, when it is gone.
    pub(super) fn forget_probes(&self) {
        let metrics = &*self.shared.ports.metrics;
        metrics.forget(&names::PROBES, &[("pod_uid", &self.uid)]);
        let (namespace, name) = (containers::namespace(&self.pod), containers::name(&self.pod));
        metrics.forget(&names::PROBE_SECONDS, &[("namespace", namespace), ("pod", name)]);
    }

    /// Takes in the result of a try. False when everything is as before it.
    pub(super) fn probe_ended(
        &mut self,
        name: &str,
        kind: ProbeKind,
        id: &str,
        outcome: ProbeOutcome,
        now: Timestamp,
    ) -> bool {
        let pod = self.pod.clone();
        let Some(container) = find_container(&pod, name) else { return true };
        let Some(probe) = kind.of(&container.container) else { return true };
        let running =
            self.observed.borrow().latest(name).is_some_and(|instance| instance.id == id && instance.running());
        let memory = self.memory.container_mut(name);
        let Some(state) = memory.probes.get_mut(&kind).filter(|state| state.container_id == id) else { return true };
        if !running {
            // The container ended while it was asked; its answer means nothing.
            state.probing = false;
            return true;
        }
        let change = state.end(&probe_timing(probe), &outcome, now);
        if matches!(change, Some(ProbeChange::Failed(_)))
            && kind != ProbeKind::Readiness
            && self.memory.lifecycle == Lifecycle::Syncing
        {
            let grace_seconds = probe.termination_grace_period_seconds;
            self.memory.container_mut(name).kill = Some(ProbeKill { container_id: id.to_owned(), kind, grace_seconds });
        }
        let (reason, message) = match outcome {
            ProbeOutcome::Success => return change.is_some(),
            ProbeOutcome::Failure(message) => ("Unhealthy", format!("{} probe failed: {message}", kind.as_str())),
            ProbeOutcome::Error(message) => {
                ("Unhealthy", format!("{} probe errored and resulted in unknown state: {message}", kind.as_str()))
            }
            ProbeOutcome::Warning(message) => ("ProbeWarning", format!("{} probe warning: {message}", kind.as_str())),
        };
        named_event(&*self.shared.ports.events, &pod, name, EventType::Warning, reason, &message);
        change.is_some()
    }
}
