//! The Node object of this node, as the API server has it.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use kube::Api;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::client::ApiClients;
use crate::list_watch::{Change, Next, follow};

/// What is known of the Node object.
#[derive(Clone, Debug, Default)]
pub struct NodeRecord {
    /// The API server was asked at least once, so that an absent node is really absent.
    pub synced: bool,
    /// The object.
    pub node: Option<Arc<Node>>,
}

impl NodeRecord {
    /// Uid of the object, where it is known.
    pub fn uid(&self) -> Option<String> {
        self.node.as_ref()?.metadata.uid.clone()
    }
}

/// Follows `nodes?fieldSelector=metadata.name=<node>` until cancelled.
pub fn follow_node(clients: &ApiClients, node_name: &str, cancel: CancellationToken) -> watch::Receiver<NodeRecord> {
    let (sender, receiver) = watch::channel(NodeRecord::default());
    let api: Api<Node> = Api::all(clients.watches.clone());
    let selector = format!("metadata.name={node_name}");
    let chance = clients.pace.chance.clone();
    tokio::spawn(async move {
        let following = follow("nodes", api, Some(&selector), &chance, |change| {
            let node = match change {
                Change::Listed(nodes) => nodes.into_iter().next(),
                Change::Applied(node) => Some(node),
                Change::Deleted(_) => None,
                Change::Failed(error) => {
                    tracing::debug!(%error, "the Node object can't be read just now");
                    return Next::Continue;
                }
            };
            let node = node.map(|mut node| {
                node.metadata.managed_fields = None;
                Arc::new(node)
            });
            sender.send_replace(NodeRecord { synced: true, node });
            Next::Continue
        });
        tokio::select! {
            () = following => {}
            () = cancel.cancelled() => {}
        }
    });
    receiver
}
