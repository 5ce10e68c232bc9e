//! Ends all pods of the node, group after group. Whoever has it done is told of each group before it is told to end.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use orlop_agent_core::containers;
use orlop_agent_core::shutdown::{PodEnd, Shutdown, ShutdownPeriods, ShutdownStep, shutdown_verdict};
use tokio::time::Instant;

use crate::manager::PodHandle;
use crate::shared::lock;

/// What comes next in a shutdown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NextEnd {
    /// These pods are to be told to end, by [`PodShutdown::end`].
    Group(Vec<PodEnd>),
    /// All is done. The node still has something of these, though their time is over.
    Over(Vec<PodEnd>),
}

/// A shutdown under way. When it is dropped, pods that were told to end go on ending and the others live on.
pub struct PodShutdown {
    handle: PodHandle,
    pods: BTreeMap<String, Arc<Pod>>,
    plan: Shutdown,
    begun: Instant,
}

impl PodHandle {
    /// Whether the node has processes or volumes of a pod, or a status of it that nobody was told of.
    pub fn holds(&self, uid: &str) -> bool {
        lock(&self.shared().holding).contains(uid)
    }

    /// Begins to end all pods. The node must refuse new ones by now, so that none is overlooked.
    pub async fn begin_shutdown(&self, periods: &ShutdownPeriods) -> PodShutdown {
        let pods: BTreeMap<String, Arc<Pod>> =
            self.pods().await.into_iter().map(|pod| (containers::uid(&pod).to_owned(), pod)).collect();
        let plan = {
            let holding = lock(&self.shared().holding);
            let held = pods.iter().filter(|(uid, _)| holding.contains(*uid));
            Shutdown::new(periods, held.map(|(_, pod)| pod.as_ref()))
        };
        PodShutdown { handle: self.clone(), pods, plan, begun: Instant::now() }
    }
}

impl PodShutdown {
    /// A pod that the node had when the shutdown began, whether it has to be ended or not.
    pub fn pod(&self, uid: &str) -> Option<&Arc<Pod>> {
        self.pods.get(uid)
    }

    /// Waits for what comes next.
    pub async fn next(&mut self) -> NextEnd {
        let shared = self.handle.shared().clone();
        loop {
            let step = {
                let holding = lock(&shared.holding);
                self.plan.step(self.begun.elapsed(), |uid| holding.contains(uid))
            };
            match step {
                ShutdownStep::End(group) => return NextEnd::Group(group),
                ShutdownStep::Over(left) => return NextEnd::Over(left),
                ShutdownStep::Wait(until) => tokio::select! {
                    () = shared.let_go.notified() => {}
                    () = tokio::time::sleep_until(self.begun + until) => {}
                },
            }
        }
    }

    /// Tells the pods of a group to end.
    pub fn end(&self, group: &[PodEnd]) {
        for pod in group {
            tracing::info!(
                pod = pod.name,
                grace_seconds = pod.grace_seconds,
                "ending a pod: the node is shutting down"
            );
            self.handle.end_pod(&pod.uid, shutdown_verdict(), Some(pod.grace_seconds));
        }
    }
}
