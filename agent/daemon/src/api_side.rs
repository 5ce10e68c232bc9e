//! Everything that speaks with the API server, started together.

use std::sync::Arc;

use orlop_agent_api::ApiClients;
use orlop_agent_api::access::{AccessLives, ApiAccess};
use orlop_agent_api::events::EventRecorder;
use orlop_agent_api::mirror::ApiMirrorPods;
use orlop_agent_api::node_source::{NodeRecord, follow_node};
use orlop_agent_api::objects::ApiObjects;
use orlop_agent_api::pod_source::follow_pods;
use orlop_agent_api::status::StatusWriter;
use orlop_agent_core::ports::PodSet;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::config::AgentConfig;
use crate::identity::Identity;

/// Everything that speaks with the API server.
pub(crate) struct ApiSide {
    pub(crate) clients: ApiClients,
    pub(crate) pods: watch::Receiver<Arc<PodSet>>,
    pub(crate) node: watch::Receiver<NodeRecord>,
    pub(crate) objects: Arc<ApiObjects>,
    pub(crate) statuses: Arc<StatusWriter>,
    pub(crate) events: Arc<EventRecorder>,
    pub(crate) access: Arc<ApiAccess>,
    pub(crate) mirrors: Arc<ApiMirrorPods>,
}

impl ApiSide {
    /// Starts everything; the task is that of the status writer, which ends when all is written.
    pub(crate) fn start(
        clients: ApiClients,
        config: &AgentConfig,
        identity: &Identity,
        cancel: &CancellationToken,
    ) -> (Self, JoinHandle<()>) {
        let name = &identity.name;
        info!(server = %clients.server, "the agent works for an API server");
        let pods = follow_pods(&clients, name, cancel.clone());
        let node = follow_node(&clients, name, cancel.clone());
        let objects = ApiObjects::start(clients.clone(), pods.clone(), cancel.clone());
        let (statuses, status_task) = StatusWriter::start(clients.clone(), pods.clone(), cancel.clone());
        let (authentication, authorization) = (&config.kubelet.authentication, &config.kubelet.authorization);
        let lives = AccessLives {
            token: authentication.webhook.cache_ttl.0,
            allowed: authorization.webhook.cache_authorized_ttl.0,
            denied: authorization.webhook.cache_unauthorized_ttl.0,
        };
        let api = Self {
            events: EventRecorder::start(clients.clone(), name, config.kubelet.event_rate(), cancel.clone()),
            access: ApiAccess::new(clients.clone(), name, lives),
            mirrors: ApiMirrorPods::new(clients.clone(), name, node.clone()),
            clients,
            pods,
            node,
            objects,
            statuses,
        };
        (api, status_task)
    }
}
