//! Scopes of systemd: there before the process that a pod or container begins with, and gone after the last one.
//!
//! systemd makes no scope without a process, and ends one that has none. The shim speaks no D-Bus, so a holder, a process
//! that does nothing, is the first one in a scope; the shim puts the pod's own process in by the cgroup's path, as always,
//! and then the holder ends. It waits for the end of a pipe that the server holds: whenever the server is killed the holder
//! ends by itself, and a scope with nobody else in it with that.
//!
//! A removal ends the scope last and the folder that tells of it after that, so that the next start of a server that was
//! killed in between does it again. Containers that a runtime program makes get their scope from that program.

use std::path::Path;
use std::process::Stdio;

use orlop_container::config::Config;
use orlop_container::protocol::SandboxSpec;
use orlop_kernel::cgroup::Resources;
use orlop_kernel::cgroup::unit::Scope;
use orlop_systemd::{Manager, SystemdError};
use serde::de::DeserializeOwned;
use tokio::process::{Child, Command};

use crate::error::{RpcError, chain};
use crate::server::Server;
use crate::shim::ShimError;

/// The process that keeps a scope until another one is in it. It ends when this is dropped.
pub(crate) struct Holder {
    _process: Child,
}

/// Makes the scope of a cgroup, with its limits; nothing where the cgroup is no scope. What is there after a failure is
/// for [`end`].
pub(crate) async fn hold(
    server: &Server,
    path: &str,
    object: &str,
    resources: &Resources,
) -> Result<Option<Holder>, RpcError> {
    let Some(scope) = Scope::at(path) else { return Ok(None) };
    let program = &server.config.shim_program;
    let spawned = Command::new(program)
        .arg("--hold")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn();
    let process = spawned.map_err(|error| RpcError::Shim {
        step: "make the scope",
        object: object.into(),
        source: ShimError::Spawn { program: program.clone(), message: error.to_string() },
    })?;
    let failed = |source| RpcError::Systemd { step: "make the scope", object: object.into(), source };
    let pid = process.id().unwrap_or_default();
    Manager.start_scope(&scope, object, pid, resources).await.map_err(failed)?;
    if !server.cgroups.processes(path).contains(&(pid as i32)) {
        return Err(failed(SystemdError::Elsewhere { unit: scope.name, path: path.into() }));
    }
    Ok(Some(Holder { _process: process }))
}

/// Ends the scope of a cgroup and lets systemd forget it; fine when there is none, or the cgroup is no scope.
pub(crate) async fn end(path: &str, object: &str) -> Result<(), RpcError> {
    let Some(scope) = Scope::at(path) else { return Ok(()) };
    let ended = Manager.stop(&scope.name).await;
    ended.map_err(|source| RpcError::Systemd { step: "end the scope", object: object.into(), source })
}

/// Sets limits of a scope, so that systemd puts them back whenever it looks; nothing where the cgroup is no scope.
pub(crate) async fn set(path: &str, object: &str, resources: &Resources) -> Result<(), RpcError> {
    let Some(scope) = Scope::at(path) else { return Ok(()) };
    let set = Manager.set_limits(&scope.name, resources).await;
    set.map_err(|source| RpcError::Systemd { step: "set the limits", object: object.into(), source })
}

/// Ends the scopes of a sandbox that no record knows, by the files of its folder.
pub(crate) async fn end_sandbox(folder: &Path) -> Result<(), RpcError> {
    for entry in std::fs::read_dir(folder.join("containers")).into_iter().flatten().flatten() {
        end_container(&entry.path()).await?;
    }
    match read::<SandboxSpec>(&folder.join("sandbox.json")) {
        Some(spec) => end(&spec.cgroup, &spec.pod).await,
        None => Ok(()),
    }
}

/// The same for a container.
pub(crate) async fn end_container(folder: &Path) -> Result<(), RpcError> {
    match read::<Config>(&folder.join("config.json")) {
        Some(config) => end(&config.linux.cgroups_path, &folder.display().to_string()).await,
        None => Ok(()),
    }
}

fn read<T: DeserializeOwned>(file: &Path) -> Option<T> {
    let bytes = std::fs::read(file).ok()?;
    let read = serde_json::from_slice(&bytes);
    read.inspect_err(|error| tracing::warn!(?file, error = chain(error), "a scope can't be found by it")).ok()
}
