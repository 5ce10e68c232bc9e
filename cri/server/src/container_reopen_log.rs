//! `ReopenContainerLog`.

use std::sync::Arc;

use orlop_container::protocol::Request;
use orlop_proto::cri;

use crate::error::RpcError;
use crate::server::Server;
use crate::shim;

/// Opens a log again under its name, after its rotation.
pub(crate) async fn reopen(
    server: Arc<Server>,
    request: cri::ReopenContainerLogRequest,
) -> Result<cri::ReopenContainerLogResponse, RpcError> {
    let container = server.store.container(&request.container_id)?;
    container.check_running()?;
    let told = shim::tell(&container.sandbox.folder, &Request::ReopenLog { id: container.id.clone() }).await;
    told.map_err(|source| RpcError::Shim { step: "open the log again", object: container.title(), source })?;
    Ok(cri::ReopenContainerLogResponse {})
}
