//! `StopPodSandbox`: processes first, then the network. May be repeated until it succeeds.

use std::sync::Arc;
use std::time::Duration;

use orlop_container::protocol::{Reply, Request};
use orlop_kernel::namespace;
use orlop_proto::cri;

use crate::error::{RpcError, file};
use crate::sandbox::Sandbox;
use crate::server::{Server, blocking};
use crate::shim::{ANSWER_TIME, ShimCall, ShimError, unexpected};

/// Stops a sandbox; one that is not known is stopped.
pub(crate) async fn stop(
    server: Arc<Server>,
    request: cri::StopPodSandboxRequest,
) -> Result<cri::StopPodSandboxResponse, RpcError> {
    if let Some(sandbox) = server.store.find_sandbox(&request.pod_sandbox_id)? {
        let _operation = sandbox.operation.lock().await;
        stop_locked(&server, &sandbox).await?;
    }
    Ok(cri::StopPodSandboxResponse {})
}

/// Stops a sandbox whose operation lock is held.
pub(crate) async fn stop_locked(server: &Arc<Server>, sandbox: &Arc<Sandbox>) -> Result<(), RpcError> {
    if sandbox.state().stopped {
        return Ok(());
    }
    tear_down(server, sandbox).await?;
    for container in server.store.containers_of(&sandbox.id) {
        crate::shim_watch::lost(server, &container);
    }
    sandbox.state().stopped = true;
    server.records.write(&sandbox.to_record()).map_err(file("write the record of sandbox", &sandbox.id))?;
    server.sandbox_ended(sandbox);
    tracing::info!(pod = sandbox.pod(), sandbox = sandbox.id, "sandbox is stopped");
    Ok(())
}

/// Ends the processes and the network of a sandbox; every step may be repeated.
pub(crate) async fn tear_down(server: &Server, sandbox: &Sandbox) -> Result<(), RpcError> {
    let containers = server.store.containers_of(&sandbox.id);
    let hooks = containers.iter().map(|container| container.record().hook_times.end()).sum();
    end_shim(sandbox, hooks).await?;
    sandbox.end_scope(&sandbox.id).await?;
    let Some(netns) = sandbox.netns.clone() else { return Ok(()) };
    let mut attachment = sandbox.attachment();
    if !namespace::is_network(&netns) {
        attachment.netns = std::path::PathBuf::new();
    }
    server.network.detach(&attachment).await.map_err(|source| RpcError::Network {
        step: "take down the network",
        pod: sandbox.pod(),
        source,
    })?;
    let pod = sandbox.pod();
    blocking(move || namespace::remove_network(&netns).map_err(|source| RpcError::Namespace { pod, source })).await
}

async fn end_shim(sandbox: &Sandbox, hooks: Duration) -> Result<(), RpcError> {
    let failed = |source| RpcError::Shim { step: "stop the sandbox", object: sandbox.pod(), source };
    match shut_down(&sandbox.folder, hooks).await {
        Ok(()) => Ok(()),
        Err(ShimError::Gone { .. }) => {
            let folder = sandbox.folder.clone();
            let cleaned = move || {
                let cleaned = orlop_container::sandbox::clean_up(&folder);
                cleaned.map_err(|error| file("end the processes of", &folder)(std::io::Error::other(error)))
            };
            blocking(cleaned).await
        }
        Err(error) => Err(failed(error)),
    }
}

/// Tells a shim to end everything and itself, and waits for that; `hooks` is what those of its containers may take.
pub(crate) async fn shut_down(folder: &std::path::Path, hooks: Duration) -> Result<(), ShimError> {
    let mut call = ShimCall::open(folder, &Request::Shutdown, &[]).await?;
    match call.answer(ANSWER_TIME + hooks).await? {
        Reply::Done => {}
        other => return Err(unexpected(&other)),
    }
    // The end of the connection is the end of the shim.
    let _ = tokio::time::timeout(ANSWER_TIME, call.next()).await;
    Ok(())
}
