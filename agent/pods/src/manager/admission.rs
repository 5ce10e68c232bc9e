//! Admission of new pods.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use orlop_agent_core::admission::{NodeOffer, PREEMPTED, PREEMPTED_MESSAGE, Refusal, admit};
use orlop_agent_core::containers;
use orlop_agent_core::memory::Verdict;
use orlop_agent_core::metrics::names;
use orlop_agent_core::ports::EventType;
use orlop_agent_core::shutdown::shutdown_verdict;
use orlop_agent_core::status::is_terminal;

use crate::manager::Roster;
use crate::recorder::pod_event;
use crate::shared::lock;

/// What becomes of a new pod.
pub(super) enum Admission {
    /// It gets a worker; with the node's word on its end if it is refused.
    Decided(Option<Verdict>),
    /// Pods that must end first have been told to; it is asked again when one of them has.
    Waiting,
}

impl Roster {
    /// Checks a new pod and notes that it takes room. A pod that runs already (the agent was restarted) has been
    /// admitted before; one that is ending takes no room.
    pub(super) fn admission(&mut self, pod: &Arc<Pod>) -> Admission {
        let ended = pod.status.as_ref().is_some_and(|status| is_terminal(status.phase.as_deref()))
            && !containers::is_static(pod);
        if ended || pod.metadata.deletion_timestamp.is_some() {
            return Admission::Decided(None);
        }
        let uid = containers::uid(pod);
        // The word on its end may not have reached the API before the machine, or the agent, went down.
        if self.shared.config.shut_down_pods.contains_key(uid) && !containers::is_static(pod) {
            return Admission::Decided(Some(shutdown_verdict()));
        }
        if self.waits(uid) {
            return Admission::Waiting;
        }
        let runs = self
            .shared
            .observed
            .get(uid)
            .is_some_and(|observed| observed.containers.iter().any(|container| container.running()));
        if !runs {
            match self.check(pod) {
                Err(refusal) => return Admission::Decided(Some(self.refused(pod, refusal))),
                Ok((victims, missing)) if !victims.is_empty() => {
                    self.preempt(pod, &victims, &missing);
                    return Admission::Waiting;
                }
                Ok(_) => {}
            }
        }
        lock(&self.shared.admitted).insert(uid.to_owned(), pod.clone());
        Admission::Decided(None)
    }

    fn refused(&self, pod: &Pod, refusal: Refusal) -> Verdict {
        pod_event(&*self.shared.ports.events, pod, EventType::Warning, &refusal.reason, &refusal.message);
        self.shared.ports.metrics.count(&names::ADMISSION_REJECTIONS, &[names::rejection(&refusal.reason)]);
        Verdict {
            phase: Some("Failed"),
            message: format!("Pod was rejected: {}", refusal.message),
            reason: refusal.reason,
            disruption: false,
        }
    }

    /// Whether the pod waits for others to end that make room for it.
    fn waits(&mut self, uid: &str) -> bool {
        let Some(victims) = self.preempting.get_mut(uid) else { return false };
        let admitted = lock(&self.shared.admitted);
        victims.retain(|victim| admitted.contains_key(victim));
        if victims.is_empty() {
            self.preempting.remove(uid);
            return false;
        }
        true
    }

    /// Ends pods so that a critical one has room; `missing` is what it lacks.
    fn preempt(&mut self, pod: &Pod, victims: &[Arc<Pod>], missing: &str) {
        let uids: Vec<String> = victims.iter().map(|victim| containers::uid(victim).to_owned()).collect();
        for victim in victims {
            tracing::info!(
                pod = containers::display(victim),
                of = containers::display(pod),
                "ending a pod for a critical one"
            );
            pod_event(&*self.shared.ports.events, victim, EventType::Warning, PREEMPTED, PREEMPTED_MESSAGE);
            self.shared.ports.metrics.count(&names::PREEMPTIONS, &[missing]);
        }
        for uid in &uids {
            let verdict = Verdict {
                phase: Some("Failed"),
                reason: PREEMPTED.to_owned(),
                message: PREEMPTED_MESSAGE.to_owned(),
                disruption: true,
            };
            self.end(uid, verdict, None);
        }
        self.preempting.insert(containers::uid(pod).to_owned(), uids);
    }

    /// The pods that must end before this one can start, and for want of what.
    fn check(&self, pod: &Pod) -> Result<(Vec<Arc<Pod>>, String), Refusal> {
        let node = &self.shared.ports.node;
        if let Some((reason, message)) = node.refusal(pod) {
            return Err(Refusal { reason, message });
        }
        let config = &self.shared.config;
        let offer = NodeOffer {
            name: config.node_name.clone(),
            allocatable: node.allocatable(),
            labels: node.labels(),
            taints: node.taints(),
            unsafe_sysctls: config.unsafe_sysctls.clone(),
            strict_groups: node.strict_groups(),
            apparmor: config.apparmor,
        };
        let taken: Vec<Arc<Pod>> = lock(&self.shared.admitted).values().cloned().collect();
        let all: Vec<&Pod> = taken.iter().map(Arc::as_ref).collect();
        let room = admit(pod, &offer, &all)?;
        let victims: Vec<&str> = room.victims.into_iter().map(containers::uid).collect();
        let victims = taken.iter().filter(|other| victims.contains(&containers::uid(other))).cloned().collect();
        Ok((victims, room.missing))
    }
}
