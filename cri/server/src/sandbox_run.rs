//! `RunPodSandbox`: name, network namespace, then CNI beside shim and pause, then the record.
//!
//! Until the record is written the sandbox's folder is what tells of it: a start of the server removes every folder
//! without a record, with its processes, its network and its addresses.

use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

use orlop_container::protocol::RuntimeProgram;
use orlop_cri_spec::sandbox;
use orlop_kernel::cgroup::Resources;
use orlop_kernel::cgroup::unit::Driver;
use orlop_kernel::namespace;
use orlop_network::AddResult;
use orlop_proto::cri;

use crate::error::{RpcError, argument, chain, file};
use crate::sandbox::Sandbox;
use crate::server::{Server, blocking, new_id, now};
use crate::traces::step;
use crate::{sandbox_stop, scope, shim, shim_watch};

/// Makes a sandbox, or leaves nothing of it.
pub(crate) async fn run(
    server: Arc<Server>,
    request: cri::RunPodSandboxRequest,
) -> Result<cri::RunPodSandboxResponse, RpcError> {
    let config = request.config.ok_or_else(|| argument("config", "is missing"))?;
    sandbox::check(&config)?;
    let runtime = server.live().handlers.find(&request.runtime_handler)?;
    let mut sandbox = Sandbox::new(new_id()?, now(), config, &server.config);
    sandbox.runtime_handler = request.runtime_handler;
    let sandbox = Arc::new(sandbox);
    let name = server.store.reserve(&sandbox.name(), &sandbox.id)?;
    match make(&server, &sandbox, runtime).await {
        Ok(()) => name.keep(),
        Err(error) => {
            tracing::warn!(pod = sandbox.pod(), sandbox = sandbox.id, error = chain(&error), "run sandbox");
            undo(&server, &sandbox).await;
            return Err(error);
        }
    }
    tracing::info!(pod = sandbox.pod(), sandbox = sandbox.id, ips = ?sandbox.state().ips, "sandbox is ready");
    for kind in [cri::ContainerEventType::ContainerCreatedEvent, cri::ContainerEventType::ContainerStartedEvent] {
        server.announce(kind, &sandbox.id, &sandbox);
    }
    Ok(cri::RunPodSandboxResponse { pod_sandbox_id: sandbox.id.clone() })
}

async fn make(server: &Arc<Server>, sandbox: &Arc<Sandbox>, runtime: Option<RuntimeProgram>) -> Result<(), RpcError> {
    let (id, driver, pause) = (&sandbox.id, sandbox.cgroup_driver, &server.config.pause_program);
    let mut spec = sandbox::spec(id, &sandbox.config, driver, sandbox.netns.clone(), pause)?;
    spec.runtime = runtime.map(|program| RuntimeProgram { systemd_cgroup: driver == Driver::Systemd, ..program });
    let spec = serde_json::to_vec(&spec).map_err(|error| file("encode", "sandbox.json")(error.into()))?;
    let planned = sandbox.clone();
    blocking(move || prepare(&planned, &spec)).await?;
    let (added, subscription) = if sandbox::has_user_namespace(&sandbox.config) {
        // The network namespace belongs to the pod's user namespace, which the shim makes: it comes first.
        let subscription = step("shim", start(server, sandbox)).await?;
        let (netns, pod) = (sandbox.netns.clone().unwrap_or_default(), sandbox.pod());
        blocking(move || namespace::raise_loopback(&netns).map_err(|source| RpcError::Namespace { pod, source }))
            .await?;
        (step("network", attach(server, sandbox)).await?, subscription)
    } else {
        // Neither needs the other. Both are waited for, so that the undo meets nothing that is still being made.
        let (network, shim) =
            tokio::join!(step("network", attach(server, sandbox)), step("shim", start(server, sandbox)));
        (network?, shim?)
    };
    {
        let mut state = sandbox.state();
        state.ready = true;
        state.ips = added.ips;
        state.cni_result = added.result;
    }
    let record = sandbox.to_record();
    server.records.write(&record).map_err(file("write the record of sandbox", &sandbox.id))?;
    server.store.insert_sandbox(sandbox.clone());
    shim_watch::watch(server.clone(), sandbox.clone(), subscription);
    Ok(())
}

async fn attach(server: &Server, sandbox: &Sandbox) -> Result<AddResult, RpcError> {
    if sandbox.netns.is_none() {
        return Ok(AddResult::default());
    }
    let added = server.network.attach(&sandbox.attachment()).await;
    added.map_err(|source| RpcError::Network { step: "set up the network", pod: sandbox.pod(), source })
}

async fn start(server: &Server, sandbox: &Sandbox) -> Result<shim::ShimCall, RpcError> {
    let cgroup = sandbox.cgroup(&sandbox.id)?;
    let _holder = scope::hold(server, &cgroup, &sandbox.pod(), &Resources::default()).await?;
    let started = async {
        shim::start(&server.config.shim_program, &sandbox.folder).await?;
        shim_watch::subscribe(&sandbox.folder).await
    };
    let (call, _) =
        started.await.map_err(|source| RpcError::Shim { step: "start the sandbox", object: sandbox.pod(), source })?;
    Ok(call)
}

/// Folder, files and network namespace of a sandbox.
fn prepare(sandbox: &Sandbox, spec: &[u8]) -> Result<(), RpcError> {
    let folder = &sandbox.folder;
    let mut private = std::fs::DirBuilder::new();
    private.mode(0o700);
    private.create(folder).map_err(file("make the folder", folder))?;
    for name in ["containers", "files"] {
        let inner = folder.join(name);
        private.create(&inner).map_err(file("make the folder", &inner))?;
    }
    write_files(sandbox, &folder.join("files"))?;
    let spec_file = folder.join("sandbox.json");
    std::fs::write(&spec_file, spec).map_err(file("write", &spec_file))?;
    if let Some(netns) = sandbox.netns.as_ref().filter(|_| !sandbox::has_user_namespace(&sandbox.config)) {
        let made = namespace::create_network(netns).and_then(|()| namespace::raise_loopback(netns));
        made.map_err(|source| RpcError::Namespace { pod: sandbox.pod(), source })?;
    }
    Ok(())
}

/// The pod's own `hostname`, `hosts` and `resolv.conf`, for containers that bring none.
fn write_files(sandbox: &Sandbox, files: &Path) -> Result<(), RpcError> {
    let config = &sandbox.config;
    let hostname = crate::sandbox::hostname(config);
    let machine = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let resolv_conf = config.dns_config.as_ref().and_then(sandbox::resolv_conf);
    for (name, text) in [
        ("hostname", format!("{hostname}\n")),
        ("hosts", machine("/etc/hosts")),
        ("resolv.conf", resolv_conf.unwrap_or_else(|| machine("/etc/resolv.conf"))),
    ] {
        let path = files.join(name);
        std::fs::write(&path, text).map_err(file("write", &path))?;
        let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        std::fs::set_permissions(&path, readable).map_err(file("set the mode of", &path))?;
    }
    Ok(())
}

/// Removes what a failed run has made. What can't be removed stays as a sandbox that is not ready, so that whoever
/// lists sandboxes sees it and stops it again.
async fn undo(server: &Arc<Server>, sandbox: &Arc<Sandbox>) {
    let undone = match sandbox_stop::tear_down(server, sandbox).await {
        Ok(()) => crate::sandbox_remove::forget(server, sandbox).await,
        Err(error) => Err(error),
    };
    if let Err(error) = undone {
        tracing::warn!(
            pod = sandbox.pod(),
            sandbox = sandbox.id,
            error = chain(&error),
            "undo a failed sandbox; it stays as not ready until it is stopped and removed"
        );
        if let Err(error) = server.records.write(&sandbox.to_record()) {
            tracing::warn!(sandbox = sandbox.id, %error, "write the record");
        }
        server.store.insert_sandbox(sandbox.clone());
    }
}
