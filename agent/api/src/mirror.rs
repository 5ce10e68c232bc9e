//! Mirror pods: what the API server shows of static pods.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, PostParams};
use orlop_agent_core::ports::{MirrorPods, PortError, PortFuture};
use tokio::sync::watch;

use crate::client::{ApiClients, REQUEST_DEADLINE, within};
use crate::node_source::NodeRecord;
use crate::status::delete_now;

/// The `MirrorPods` port on the API server.
pub struct ApiMirrorPods {
    clients: ApiClients,
    node_name: String,
    node: watch::Receiver<NodeRecord>,
}

impl ApiMirrorPods {
    /// Mirror pods of the node; its Node object must be there before one can be made.
    pub fn new(clients: ApiClients, node_name: &str, node: watch::Receiver<NodeRecord>) -> Arc<Self> {
        Arc::new(Self { clients, node_name: node_name.to_owned(), node })
    }
}

impl MirrorPods for ApiMirrorPods {
    fn create<'a>(&'a self, pod: &'a Pod) -> PortFuture<'a, Result<(), PortError>> {
        Box::pin(async move {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
            let full_name = format!("{namespace}/{}", pod.metadata.name.as_deref().unwrap_or_default());
            let what = format!("create mirror pod {full_name}");
            let uid = self.node.borrow().uid().ok_or_else(|| PortError::Unavailable {
                what: what.clone(),
                message: format!("node {} is not registered yet", self.node_name),
            })?;
            let mut mirror = pod.clone();
            mirror.metadata.uid = None;
            mirror.metadata.resource_version = None;
            mirror.metadata.owner_references = Some(vec![OwnerReference {
                api_version: "v1".to_owned(),
                kind: "Node".to_owned(),
                name: self.node_name.clone(),
                uid,
                controller: Some(true),
                block_owner_deletion: None,
            }]);
            let api: Api<Pod> = Api::namespaced(self.clients.requests.clone(), namespace);
            let params = PostParams::default();
            match within(&what, REQUEST_DEADLINE, api.create(&params, &mirror)).await {
                Ok(_) => Ok(()),
                Err(error) if error.is_conflict() => Ok(()),
                Err(error) => Err(error.to_port("Namespace", namespace)),
            }
        })
    }

    fn delete<'a>(&'a self, namespace: &'a str, name: &'a str, uid: &'a str) -> PortFuture<'a, Result<(), PortError>> {
        Box::pin(async move {
            let full_name = format!("{namespace}/{name}");
            let api: Api<Pod> = Api::namespaced(self.clients.requests.clone(), namespace);
            delete_now(&api, name, uid, &full_name).await.map_err(|error| error.to_port("Pod", &full_name))
        })
    }
}
