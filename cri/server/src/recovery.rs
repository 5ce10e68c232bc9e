//! The start after an end of any kind: records, folders, shims and the kernel are compared, and what belongs to no
//! record is removed.
//!
//! Order: records are read; each sandbox is asked for by its shim; containers are joined to what the shim says; then
//! leftovers go (containers, folders, namespaces, attachments, holds on images that no record knows).

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use orlop_container::protocol::{ContainerPhase, Request};

use crate::container::Container;
use crate::error::{RpcError, chain, file};
use crate::record::{ContainerRecord, SandboxRecord};
use crate::sandbox::Sandbox;
use crate::server::{Server, blocking};
use crate::shim::{self, ShimCall, ShimError};
use crate::shim_watch::{self, Listing};
use crate::{checkpoint, container_remove, image_volumes, sandbox_remove, sandbox_stop, scope};

/// Sandboxes that are looked at at the same time.
const AT_ONCE: usize = 16;
/// How long the start waits for plugins that look for leftovers. Nothing may be attached meanwhile, or it would count as
/// one.
const COLLECT_TIME: Duration = Duration::from_secs(10);

/// Brings the store into agreement with what is there.
pub(crate) async fn recover(server: &Arc<Server>) -> Result<(), RpcError> {
    let records = server.records.load::<SandboxRecord>();
    for record in records.map_err(file("read the records of", "sandboxes"))? {
        let id = record.id.clone();
        match Sandbox::from_record(record, &server.config) {
            Ok(sandbox) => server.store.insert_sandbox(Arc::new(sandbox)),
            Err(error) => {
                tracing::warn!(sandbox = id, %error, "the record holds no configuration; the sandbox is removed")
            }
        }
    }
    let records = server.records.load::<ContainerRecord>();
    for record in records.map_err(file("read the records of", "containers"))? {
        let id = record.id.clone();
        let sandbox = server.store.find_sandbox(&record.sandbox_id).ok().flatten();
        match (sandbox, record.config.decode()) {
            (Some(sandbox), Ok(config)) => {
                server.store.insert_container(Arc::new(Container::new(record, config, sandbox)));
            }
            _ => tracing::warn!(container = id, "the container's sandbox is gone; the container is removed"),
        }
    }
    futures::stream::iter(server.store.sandboxes())
        .for_each_concurrent(AT_ONCE, |sandbox| async move { recover_sandbox(server, &sandbox).await })
        .await;
    remove_leftovers(server).await?;
    collect_network(server).await;
    Ok(())
}

/// Joins a sandbox to its shim, or counts it as ended.
async fn recover_sandbox(server: &Arc<Server>, sandbox: &Arc<Sandbox>) {
    if sandbox.state().stopped {
        for container in server.store.containers_of(&sandbox.id) {
            shim_watch::lost(server, &container);
        }
        return;
    }
    match shim_watch::subscribe(&sandbox.folder).await {
        Ok((call, listing)) => join(server, sandbox, call, &listing).await,
        Err(error) => {
            if !matches!(error, ShimError::Gone { .. }) {
                tracing::warn!(
                    pod = sandbox.pod(),
                    sandbox = sandbox.id,
                    error = chain(&error),
                    "the shim gives no answer; the sandbox counts as ended"
                );
            }
            shim_watch::clean_up(sandbox).await;
            for container in server.store.containers_of(&sandbox.id) {
                shim_watch::lost(server, &container);
            }
        }
    }
}

async fn join(server: &Arc<Server>, sandbox: &Arc<Sandbox>, call: ShimCall, listing: &Listing) {
    sandbox.state().ready = listing.pause_alive;
    for container in server.store.containers_of(&sandbox.id) {
        match listing.containers.get(&container.id) {
            Some(ContainerPhase::Created { .. }) => {}
            Some(ContainerPhase::Running { started_at, .. }) => server.container_started(&container, *started_at),
            Some(ContainerPhase::Exited) | None => shim_watch::lost(server, &container),
        }
    }
    for id in listing.containers.keys() {
        if !matches!(server.store.find_container(id), Ok(Some(_))) {
            tracing::info!(pod = sandbox.pod(), container = id, "a container that was not finished is removed");
            if let Err(error) = shim::tell(&sandbox.folder, &Request::Delete { id: id.clone() }).await {
                tracing::warn!(container = id, error = chain(&error), "remove an unfinished container");
            }
        }
    }
    shim_watch::watch(server.clone(), sandbox.clone(), call);
}

/// Removes what no record knows.
async fn remove_leftovers(server: &Arc<Server>) -> Result<(), RpcError> {
    let sandboxes: BTreeSet<String> = server.store.sandboxes().iter().map(|sandbox| sandbox.id.clone()).collect();
    let containers: BTreeSet<String> = server.store.containers().iter().map(|container| container.id.clone()).collect();
    for id in names(&server.config.run_dir.join("sandboxes"))?.difference(&sandboxes) {
        tracing::info!(sandbox = id, "a sandbox that was not finished, or whose record is gone, is removed");
        remove_sandbox(server, id).await;
    }
    for id in names(&server.config.run_dir.join("netns"))?.difference(&sandboxes) {
        remove_sandbox(server, id).await;
    }
    server.network.remove_unfinished();
    for id in server.network.attached().into_iter().filter(|id| !sandboxes.contains(id)) {
        remove_sandbox(server, &id).await;
    }
    for sandbox in server.store.sandboxes() {
        for id in names(&sandbox.folder.join("containers"))?.difference(&containers) {
            remove_container(server, sandbox.folder.join("containers").join(id), id).await;
        }
    }
    let state = server.config.state_dir.clone();
    blocking(move || checkpoint::remove_leftovers(&state)).await?;
    let mut writable = names(&server.config.state_dir.join("containers"))?;
    writable.extend(server.images.holders().iter().map(|holder| image_volumes::container_of(holder).to_string()));
    for id in writable.difference(&containers) {
        remove_container(server, server.config.run_dir.join("sandboxes/-"), id).await;
    }
    Ok(())
}

/// Lets the plugins look for addresses and rules of attachments that nobody knows any more. What they can't remove stays
/// for the next start.
async fn collect_network(server: &Arc<Server>) {
    let sandboxes = server.store.sandboxes();
    let attached = sandboxes.iter().filter(|sandbox| sandbox.netns.is_some());
    let valid: Vec<(String, String)> = attached
        .map(|sandbox| sandbox.attachment())
        .map(|attachment| (attachment.container_id, attachment.ifname))
        .collect();
    if server.network.list().is_err() {
        // No network is configured yet; the node says so in its condition.
        return;
    }
    match tokio::time::timeout(COLLECT_TIME, server.network.collect(&valid)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::warn!(
                error = chain(&error),
                "let the network plugins remove leftovers; the next start tries again"
            );
        }
        Err(_) => {
            tracing::warn!(limit = ?COLLECT_TIME, "the network plugins take too long to remove leftovers; the next start tries again")
        }
    }
}

async fn remove_sandbox(server: &Arc<Server>, id: &str) {
    // What is known of it is its id: enough for its folder, its namespace and its attachment.
    let sandbox = Sandbox::new(id.to_string(), 0, orlop_proto::cri::PodSandboxConfig::default(), &server.config);
    let removed = async {
        sandbox_stop::tear_down(server, &sandbox).await?;
        scope::end_sandbox(&sandbox.folder).await?;
        sandbox_remove::forget(server, &sandbox).await
    };
    if let Err(error) = removed.await {
        tracing::warn!(sandbox = id, error = chain(&error), "remove a leftover sandbox; the next start tries again");
    }
}

async fn remove_container(server: &Arc<Server>, folder: std::path::PathBuf, id: &str) {
    let removed = async {
        scope::end_container(&folder).await?;
        container_remove::remove_files(server, folder.clone(), id).await
    };
    if let Err(error) = removed.await {
        tracing::warn!(
            container = id,
            error = chain(&error),
            "remove a leftover container; the next start tries again"
        );
    }
}

/// Names in a folder; none when there is no folder.
fn names(folder: &Path) -> Result<BTreeSet<String>, RpcError> {
    match std::fs::read_dir(folder) {
        Ok(entries) => Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(error) => Err(file("list", folder)(error)),
    }
}
