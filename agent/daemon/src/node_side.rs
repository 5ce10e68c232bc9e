//! The node's own loops: registration, status, lease and CSINode.

use std::path::Path;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use orlop_agent_api::csi_node::{CsiNodeDriver, keep_csi_node};
use orlop_agent_api::lease::renew_lease;
use orlop_agent_api::node_source::NodeRecord;
use orlop_agent_node::{NodeAgent, NodeConfig, NodeInputs, NodeTaint, read_system};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::kubelet_config::TaintConfig;
use crate::serve::Parts;
use crate::supervise::supervise;

/// Why a node without its CSINode object is not ready, in the kubelet's words.
pub(crate) const CSI_NODE_MISSING: &str = "CSINode is not yet initialized";

impl Parts {
    /// What the node is told at start.
    pub(crate) fn node_config(&self) -> NodeConfig {
        let kubelet = &self.config.kubelet;
        let taint = |taint: &TaintConfig| NodeTaint {
            key: taint.key.clone(),
            value: taint.value.clone(),
            effect: taint.effect.clone(),
        };
        NodeConfig {
            node_name: self.identity.name.clone(),
            hostname: self.identity.hostname.clone(),
            node_ips: self.config.node_ips.clone(),
            host_ips: self.identity.host_ips.clone(),
            labels: self.config.node_labels.clone(),
            taints: kubelet.register_with_taints.iter().map(taint).collect(),
            unschedulable: false,
            provider_id: kubelet.provider_id.clone(),
            register: kubelet.register_node,
            kubelet_port: kubelet.port,
            kubelet_version: self.config.kubelet_version.clone(),
            images_max: kubelet.node_status_max_images,
            update_interval: kubelet.node_status_update_frequency.0,
            report_interval: kubelet.node_status_report_frequency.0,
            system: read_system(Path::new("/")),
        }
    }

    /// Registration, status, lease and CSINode.
    pub(crate) fn start_node(
        &self,
        tasks: &mut JoinSet<()>,
        node: &Arc<NodeAgent>,
        drivers: watch::Receiver<Vec<CsiNodeDriver>>,
        inputs: watch::Sender<NodeInputs>,
        cancel: &CancellationToken,
    ) {
        let client = self.api.as_ref().map(|api| api.clients.heartbeat.clone());
        let (agent, token) = (node.clone(), cancel.clone());
        tasks.spawn(supervise("node", cancel.clone(), move || {
            let serving = agent.clone().serve(client.clone(), token.clone());
            async move {
                serving.await;
                Ok(())
            }
        }));
        let Some(api) = &self.api else {
            // Kept, because the node reads it for as long as it lives.
            let token = cancel.clone();
            tasks.spawn(async move {
                token.cancelled().await;
                drop(inputs);
            });
            return;
        };
        tasks.spawn(follow_record(node.clone(), api.node.clone(), cancel.clone()));
        let (initialized, ready) = watch::channel(false);
        tasks.spawn(follow_csi_node(ready, inputs, cancel.clone()));
        let (clients, name, record) = (api.clients.clone(), self.identity.name.clone(), api.node.clone());
        let (seconds, token) = (self.config.kubelet.node_lease_duration_seconds, cancel.clone());
        tasks.spawn(supervise("node lease", cancel.clone(), move || {
            let renewing = renew_lease(clients.clone(), name.clone(), seconds, record.clone(), token.clone());
            async move {
                renewing.await;
                Ok(())
            }
        }));
        let (clients, name, record) = (api.clients.clone(), self.identity.name.clone(), api.node.clone());
        let token = cancel.clone();
        tasks.spawn(supervise("CSINode", cancel.clone(), move || {
            let (clients, name, record) = (clients.clone(), name.clone(), record.clone());
            let keeping = keep_csi_node(clients, name, drivers.clone(), record, initialized.clone(), token.clone());
            async move {
                keeping.await;
                Ok(())
            }
        }));
    }
}

/// Passes the Node object on to the node.
async fn follow_record(node: Arc<NodeAgent>, mut record: watch::Receiver<NodeRecord>, cancel: CancellationToken) {
    loop {
        let now: Option<Arc<Node>> = record.borrow_and_update().node.clone();
        node.observe(now);
        tokio::select! {
            () = cancel.cancelled() => return,
            changed = record.changed() => if changed.is_err() { return },
        }
    }
}

/// Takes the missing CSINode off the list of problems once it is there.
async fn follow_csi_node(
    mut ready: watch::Receiver<bool>,
    inputs: watch::Sender<NodeInputs>,
    cancel: CancellationToken,
) {
    let waiting = ready.wait_for(|ready| *ready);
    let found = tokio::select! {
        () = cancel.cancelled() => return,
        found = waiting => found.is_ok(),
    };
    if found {
        inputs.send_modify(|inputs| inputs.problems.retain(|problem| problem != CSI_NODE_MISSING));
    }
    cancel.cancelled().await;
}
