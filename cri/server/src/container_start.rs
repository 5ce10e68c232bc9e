//! `StartContainer`.

use std::sync::Arc;

use orlop_container::protocol::{Reply, Request};
use orlop_proto::cri;

use crate::container::Phase;
use crate::error::RpcError;
use crate::server::Server;
use crate::shim::{self, ShimError, unexpected};

/// Lets a created container run its program. When that fails the container has ended with code 128.
pub(crate) async fn start(
    server: Arc<Server>,
    request: cri::StartContainerRequest,
) -> Result<cri::StartContainerResponse, RpcError> {
    let container = server.store.container(&request.container_id)?;
    let _operation = container.operation.lock().await;
    if container.phase() != Phase::Created {
        return Err(RpcError::State {
            kind: "container",
            id: container.id.clone(),
            state: container.phase().name(),
            wanted: "only a created one can be started",
        });
    }
    let failed = |source: ShimError| RpcError::Shim { step: "start the container", object: container.title(), source };
    let request = Request::Start { id: container.id.clone() };
    let limit = container.record().hook_times.start();
    match shim::call(&container.sandbox.folder, &request, limit).await.map_err(failed)? {
        Reply::Started { started_at, .. } => server.container_started(&container, started_at),
        other => return Err(failed(unexpected(&other))),
    }
    Ok(cri::StartContainerResponse {})
}
