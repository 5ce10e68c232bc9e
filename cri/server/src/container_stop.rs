//! `StopContainer`: its stop signal, the grace time, then SIGKILL.
//!
//! Nothing is locked while waiting: a second request with a shorter grace time ends the container earlier.

use std::sync::Arc;
use std::time::Duration;

use orlop_container::protocol::{FailureKind, Request};
use orlop_proto::cri;

use crate::container::{Container, Phase};
use crate::error::RpcError;
use crate::server::Server;
use crate::shim::{self, ShimError};

/// Number of SIGKILL.
const SIGKILL: i32 = 9;
/// How long a killed container may take to end.
const KILL_TIME: Duration = Duration::from_secs(30);

/// Stops a container; one that is not known or has ended is stopped.
pub(crate) async fn stop(
    server: Arc<Server>,
    request: cri::StopContainerRequest,
) -> Result<cri::StopContainerResponse, RpcError> {
    if let Some(container) = server.store.find_container(&request.container_id)? {
        let grace = Duration::from_secs(request.timeout.max(0) as u64);
        stop_container(&container, grace).await?;
    }
    Ok(cri::StopContainerResponse {})
}

/// Ends a container that runs.
pub(crate) async fn stop_container(container: &Container, grace: Duration) -> Result<(), RpcError> {
    if !matches!(container.phase(), Phase::Running { .. }) {
        return Ok(());
    }
    if !grace.is_zero() {
        kill(container, container.record().stop_signal, false).await?;
        if has_ended(container, grace).await {
            return Ok(());
        }
        tracing::info!(
            container = container.title(),
            ?grace,
            "the container did not end in its grace time and is killed"
        );
    }
    kill(container, SIGKILL, true).await?;
    if has_ended(container, KILL_TIME).await {
        return Ok(());
    }
    Err(RpcError::Hangs { id: container.id.clone(), seconds: KILL_TIME.as_secs() })
}

async fn kill(container: &Container, signal: i32, all: bool) -> Result<(), RpcError> {
    let request = Request::Kill { id: container.id.clone(), signal, all };
    match shim::tell(&container.sandbox.folder, &request).await {
        // Its end is on the way, or the shim's, which is the container's.
        Ok(())
        | Err(
            ShimError::Gone { .. } | ShimError::Failed { kind: FailureKind::NotFound | FailureKind::WrongState, .. },
        ) => Ok(()),
        Err(source) => Err(RpcError::Shim { step: "stop the container", object: container.title(), source }),
    }
}

async fn has_ended(container: &Container, limit: Duration) -> bool {
    let mut phase = container.follow();
    let ended = phase.wait_for(|phase| matches!(phase, Phase::Exited(_)));
    tokio::time::timeout(limit, ended).await.is_ok()
}
