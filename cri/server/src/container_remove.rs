//! `RemoveContainer`: record, processes, writable layer, hold on the image.
//!
//! The record goes first: a server that is killed half-way finds things that no record knows at its next start, and
//! removes them. Nobody ever sees a container that was only made as one that has failed.

use std::sync::Arc;
use std::time::Duration;

use orlop_container::protocol::Request;
use orlop_proto::cri;

use crate::container::Container;
use crate::container_stop::stop_container;
use crate::error::{RpcError, file};
use crate::image_volumes;
use crate::record::ContainerRecord;
use crate::sandbox::Sandbox;
use crate::sandbox_remove::remove_folder;
use crate::server::{Server, blocking};
use crate::shim::{self, ShimError};

/// Removes a container, whatever it does; one that is not known is removed.
pub(crate) async fn remove(
    server: Arc<Server>,
    request: cri::RemoveContainerRequest,
) -> Result<cri::RemoveContainerResponse, RpcError> {
    if let Some(container) = server.store.find_container(&request.container_id)? {
        remove_container(&server, &container).await?;
    }
    Ok(cri::RemoveContainerResponse {})
}

/// Removes a container.
pub(crate) async fn remove_container(server: &Server, container: &Arc<Container>) -> Result<(), RpcError> {
    let _operation = container.operation.lock().await;
    if server.store.find_container(&container.id)?.is_none() {
        return Ok(());
    }
    stop_container(container, Duration::ZERO).await?;
    container.begin_removal(&server.records).map_err(file("remove the record of container", &container.id))?;
    let hooks = container.record().hook_times.end();
    if let Err(error) = remove_parts(server, &container.sandbox, &container.id, hooks).await {
        container.end_removal(&server.records).map_err(file("write the record of container", &container.id))?;
        return Err(error);
    }
    server.store.remove_container(container);
    server.announce(cri::ContainerEventType::ContainerDeletedEvent, &container.id, &container.sandbox);
    Ok(())
}

/// Removes what a container consists of; every step may be repeated. `hooks` is what those of its end may take.
pub(crate) async fn remove_parts(
    server: &Server,
    sandbox: &Sandbox,
    id: &str,
    hooks: Duration,
) -> Result<(), RpcError> {
    match shim::tell_within(&sandbox.folder, &Request::Delete { id: id.into() }, hooks).await {
        Ok(()) | Err(ShimError::Gone { .. }) => {}
        Err(source) => {
            return Err(RpcError::Shim {
                step: "remove the container",
                object: format!("{id} in {}", sandbox.pod()),
                source,
            });
        }
    }
    sandbox.end_scope(id).await?;
    remove_files(server, sandbox.folder.join("containers").join(id), id).await
}

/// Removes the files of a container whose processes are gone.
pub(crate) async fn remove_files(server: &Server, folder: std::path::PathBuf, id: &str) -> Result<(), RpcError> {
    let writable = server.config.container_folder(id);
    blocking(move || {
        remove_folder(&folder)?;
        remove_folder(&writable)
    })
    .await?;
    for holder in image_volumes::holders_of(server, id) {
        let released = server.images.release(&holder).await;
        released.map_err(|source| RpcError::Image { image: format!("held by container {id}"), source })?;
    }
    server.records.remove::<ContainerRecord>(id).map_err(file("remove the record of container", id))
}
