//! `UpdatePodSandboxResources`: what the pod as a whole may use. The pod's cgroup is the kubelet's, which sets it; the
//! runtime keeps what it is told, for whoever inspects the sandbox.

use std::sync::Arc;

use orlop_proto::cri;

use crate::error::{RpcError, file};
use crate::server::Server;

/// Keeps the limits that are given.
pub(crate) async fn update(
    server: Arc<Server>,
    request: cri::UpdatePodSandboxResourcesRequest,
) -> Result<cri::UpdatePodSandboxResourcesResponse, RpcError> {
    let sandbox = server.store.sandbox(&request.pod_sandbox_id)?;
    let _operation = sandbox.operation.lock().await;
    {
        let mut state = sandbox.state();
        state.overhead = request.overhead.or_else(|| state.overhead.take());
        state.resources = request.resources.or_else(|| state.resources.take());
    }
    server.records.write(&sandbox.to_record()).map_err(file("write the record of sandbox", &sandbox.id))?;
    Ok(cri::UpdatePodSandboxResourcesResponse {})
}
