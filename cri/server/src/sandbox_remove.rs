//! `RemovePodSandbox`: stops what runs, removes the containers, then folder and record.

use std::sync::Arc;

use orlop_proto::cri;

use crate::error::{RpcError, file};
use crate::record::SandboxRecord;
use crate::sandbox::Sandbox;
use crate::server::{Server, blocking};
use crate::{container_remove, sandbox_stop};

/// Removes a sandbox; one that is not known is removed.
pub(crate) async fn remove(
    server: Arc<Server>,
    request: cri::RemovePodSandboxRequest,
) -> Result<cri::RemovePodSandboxResponse, RpcError> {
    let Some(sandbox) = server.store.find_sandbox(&request.pod_sandbox_id)? else {
        return Ok(cri::RemovePodSandboxResponse {});
    };
    let _operation = sandbox.operation.lock().await;
    sandbox_stop::stop_locked(&server, &sandbox).await?;
    for container in server.store.containers_of(&sandbox.id) {
        container_remove::remove_container(&server, &container).await?;
    }
    forget(&server, &sandbox).await?;
    server.announce(cri::ContainerEventType::ContainerDeletedEvent, &sandbox.id, &sandbox);
    server.store.remove_sandbox(&sandbox);
    tracing::info!(pod = sandbox.pod(), sandbox = sandbox.id, "sandbox is removed");
    Ok(cri::RemovePodSandboxResponse {})
}

/// Removes the files of a sandbox that was torn down.
pub(crate) async fn forget(server: &Server, sandbox: &Sandbox) -> Result<(), RpcError> {
    let folder = sandbox.folder.clone();
    blocking(move || remove_folder(&folder)).await?;
    let removed = server.records.remove::<SandboxRecord>(&sandbox.id);
    removed.map_err(file("remove the record of sandbox", &sandbox.id))
}

/// Removes a folder with all that is in it; fine when it is gone.
pub(crate) fn remove_folder(folder: &std::path::Path) -> Result<(), RpcError> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(file("remove the folder", folder)(error)),
        _ => Ok(()),
    }
}
