//! Publishing the pod's status when it changed.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodStatus;
use orlop_agent_core::containers;
use orlop_agent_core::facts::ObservedPod;
use orlop_agent_core::lifecycle::Lifecycle;
use orlop_agent_core::metrics::names;
use orlop_agent_core::ports::StatusUpdate;
use orlop_agent_core::status::{StatusInput, ended_since, status};

use crate::shared::{PodEntry, lock};
use crate::worker::Worker;

impl Worker {
    /// The status as it is now.
    pub(super) fn current_status(&self, observed: &ObservedPod, now: Timestamp) -> PodStatus {
        status(&StatusInput {
            pod: &self.pod,
            previous: &self.status,
            observed,
            memory: &self.memory,
            host_ips: &self.shared.ports.node.host_ips(),
            runtime: &self.shared.ports.runtime.name(),
            bounds: self.shared.bounds,
            recursive_read_only: self.shared.ports.node.handler(self.runtime_handler()).recursive_read_only,
            now,
        })
    }

    fn count_ends(&self, status: &PodStatus) {
        for end in ended_since(&self.status, status) {
            let code = end.exit_code.to_string();
            let labels = [end.kind.metric_label(), &code, &end.reason];
            self.shared.ports.metrics.count(&names::TERMINATED_CONTAINERS, &labels);
        }
    }

    /// Handler of the pod's sandbox; the default one while there is none.
    fn runtime_handler(&self) -> &str {
        self.sandbox.as_ref().map_or("", |sandbox| &sandbox.runtime_handler)
    }

    /// Publishes the status if it changed, and once that everything is gone. False while it has to wait.
    pub(super) fn publish(&mut self) -> bool {
        if self.orphan {
            return true;
        }
        let observed: Arc<ObservedPod> = self.observed.borrow().clone();
        if observed.containers.iter().any(|container| container.exited() && !container.message_read) {
            // The message is read within milliseconds; the end of a container is told with it.
            return false;
        }
        if self.finish_published {
            return true;
        }
        let status = self.current_status(&observed, self.shared.now());
        self.count_ends(&status);
        self.count_running(&status);
        self.status = status.clone();
        let entry = PodEntry { pod: self.pod.clone(), status: status.clone(), mirror_uid: self.mirror_uid.clone() };
        lock(&self.shared.entries).insert(self.uid.clone(), entry);
        let is_static = containers::is_static(&self.pod);
        let target = if is_static { self.mirror_uid.clone() } else { Some(self.uid.clone()) };
        let finished = !is_static && self.memory.lifecycle == Lifecycle::Finished && self.memory.deleted;
        let Some(target) = target.filter(|_| !self.gone) else {
            self.finish_published |= finished;
            return true;
        };
        if !finished && self.published.as_ref() == Some(&status) && self.published_to.as_ref() == Some(&target) {
            return true;
        }
        self.finish_published |= finished;
        self.shared.ports.statuses.publish(StatusUpdate {
            namespace: containers::namespace(&self.pod).to_owned(),
            name: containers::name(&self.pod).to_owned(),
            uid: target.clone(),
            status: status.clone(),
            finished,
        });
        self.published = Some(status);
        self.published_to = Some(target);
        true
    }
}
