//! Following a shim: what ends is heard of at once, and a shim that dies is cleaned up after.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use orlop_container::protocol::{ContainerPhase, ExitRecord, Reply, Request};

use crate::container::{Container, Phase};
use crate::error::chain;
use crate::sandbox::Sandbox;
use crate::server::{Server, now};
use crate::shim::{ANSWER_TIME, ShimCall, ShimError, unexpected};

/// Exit code of a container whose end nobody saw.
const UNKNOWN_EXIT: i32 = 255;

/// What a shim says of itself when somebody begins to follow it.
pub(crate) struct Listing {
    /// Pause runs.
    pub(crate) pause_alive: bool,
    /// Containers that it knows.
    pub(crate) containers: BTreeMap<String, ContainerPhase>,
}

/// Begins to follow a shim.
pub(crate) async fn subscribe(folder: &Path) -> Result<(ShimCall, Listing), ShimError> {
    let mut call = ShimCall::open(folder, &Request::Subscribe, &[]).await?;
    match call.answer(ANSWER_TIME).await? {
        Reply::Listing { pause_alive, containers } => Ok((call, Listing { pause_alive, containers })),
        other => Err(unexpected(&other)),
    }
}

/// Follows a shim until its end.
pub(crate) fn watch(server: Arc<Server>, sandbox: Arc<Sandbox>, mut call: ShimCall) {
    tokio::spawn(async move {
        loop {
            match call.next().await {
                Ok(Some(Reply::Started { id, started_at })) => note_start(&server, &sandbox, &id, started_at),
                Ok(Some(Reply::Exited { record })) => note_exit(&server, &sandbox, record),
                Ok(Some(Reply::PauseExited { exit_code })) => {
                    tracing::warn!(pod = sandbox.pod(), sandbox = sandbox.id, exit_code, "pause ended");
                    server.sandbox_ended(&sandbox);
                }
                Ok(Some(other)) => tracing::warn!(sandbox = sandbox.id, ?other, "the shim said what nobody asked"),
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(sandbox = sandbox.id, error = chain(&error), "follow the shim");
                    break;
                }
            }
        }
        ended(&server, &sandbox).await;
    });
}

fn note_start(server: &Server, sandbox: &Sandbox, id: &str, started_at: i64) {
    if let Ok(Some(container)) = server.store.find_container(id)
        && container.sandbox.id == sandbox.id
    {
        server.container_started(&container, started_at);
    }
}

fn note_exit(server: &Server, sandbox: &Sandbox, record: ExitRecord) {
    // An exit of a container that is being made is the maker's to report.
    match server.store.find_container(&record.id) {
        Ok(Some(container)) if container.sandbox.id == sandbox.id => server.container_exited(&container, record),
        _ => tracing::debug!(id = record.id, "the end of a container that is not there any more"),
    }
}

/// The shim is gone. When nobody told it to end, what it left is removed and what it ran counts as ended.
async fn ended(server: &Arc<Server>, sandbox: &Arc<Sandbox>) {
    let stopping = sandbox.operation.try_lock().is_err() || sandbox.state().stopped;
    if !stopping {
        tracing::error!(pod = sandbox.pod(), sandbox = sandbox.id, "the shim died; its processes are ended");
        clean_up(sandbox).await;
    }
    for container in server.store.containers_of(&sandbox.id) {
        lost(server, &container);
    }
    server.sandbox_ended(sandbox);
}

/// Ends what a dead shim left running.
pub(crate) async fn clean_up(sandbox: &Sandbox) {
    let folder = sandbox.folder.clone();
    let cleaned = tokio::task::spawn_blocking(move || orlop_container::sandbox::clean_up(&folder)).await;
    if let Ok(Err(error)) = cleaned {
        tracing::warn!(
            pod = sandbox.pod(),
            sandbox = sandbox.id,
            error = chain(&error),
            "clean up after a dead shim; stopping the sandbox tries again"
        );
    }
}

/// A container whose shim is gone has ended: as its exit record says, or unknown how.
pub(crate) fn lost(server: &Server, container: &Arc<Container>) {
    let started_at = match container.phase() {
        Phase::Exited(_) => return,
        Phase::Created => 0,
        Phase::Running { started_at } => started_at,
    };
    let exit = read_exit(container).unwrap_or_else(|| ExitRecord {
        version: 1,
        id: container.id.clone(),
        exit_code: UNKNOWN_EXIT,
        started_at,
        finished_at: now(),
        oom_killed: false,
        message: Some("the container's shim or its machine ended before it; how it ended is not known".into()),
    });
    server.container_exited(container, exit);
}

/// The record that a shim wrote before it told anybody.
pub(crate) fn read_exit(container: &Container) -> Option<ExitRecord> {
    serde_json::from_slice(&std::fs::read(container.folder.join("exit.json")).ok()?).ok()
}
