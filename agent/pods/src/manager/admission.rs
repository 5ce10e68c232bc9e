//! Admission of new pods.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use orlop_agent_core::admission::{NodeOffer, Refusal, admit};
use orlop_agent_core::containers;
use orlop_agent_core::memory::Verdict;
use orlop_agent_core::ports::EventType;
use orlop_agent_core::status::is_terminal;

use crate::manager::Roster;
use crate::recorder::pod_event;
use crate::shared::lock;

impl Roster {
    /// Checks a new pod and notes that it takes room. A pod that runs already (the agent was restarted) has been
    /// admitted before; one that is ending takes no room.
    pub(super) fn admission(&self, pod: &Arc<Pod>) -> Option<Verdict> {
        let ended = pod.status.as_ref().is_some_and(|status| is_terminal(status.phase.as_deref()))
            && !containers::is_static(pod);
        if ended || pod.metadata.deletion_timestamp.is_some() {
            return None;
        }
        let uid = containers::uid(pod);
        let runs = self
            .shared
            .observed
            .get(uid)
            .is_some_and(|observed| observed.containers.iter().any(|container| container.running()));
        if !runs && let Err(refusal) = self.check(pod) {
            pod_event(&*self.shared.ports.events, pod, EventType::Warning, &refusal.reason, &refusal.message);
            return Some(Verdict {
                phase: Some("Failed"),
                message: format!("Pod was rejected: {}", refusal.message),
                reason: refusal.reason,
                disruption: false,
            });
        }
        lock(&self.shared.admitted).insert(uid.to_owned(), pod.clone());
        None
    }

    fn check(&self, pod: &Pod) -> Result<(), Refusal> {
        let node = &self.shared.ports.node;
        if let Some((reason, message)) = node.refusal(pod) {
            return Err(Refusal { reason, message });
        }
        let offer = NodeOffer {
            name: self.shared.config.node_name.clone(),
            allocatable: node.allocatable(),
            labels: node.labels(),
        };
        let taken: Vec<Arc<Pod>> = lock(&self.shared.admitted).values().cloned().collect();
        let taken: Vec<&Pod> = taken.iter().map(Arc::as_ref).collect();
        admit(pod, &offer, &taken)
    }
}
