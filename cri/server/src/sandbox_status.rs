//! `PodSandboxStatus`.

use std::collections::HashMap;
use std::sync::Arc;

use orlop_container::protocol::SandboxState;
use orlop_cri_spec::sandbox;
use orlop_proto::cri;
use serde_json::json;

use crate::error::RpcError;
use crate::sandbox::Sandbox;
use crate::server::{Server, now};

/// The state of a pod: its sandbox and its containers.
pub(crate) fn status(
    server: &Server,
    request: &cri::PodSandboxStatusRequest,
) -> Result<cri::PodSandboxStatusResponse, RpcError> {
    let sandbox = server.store.sandbox(&request.pod_sandbox_id)?;
    let containers = server.store.shown_containers_of(&sandbox.id);
    Ok(cri::PodSandboxStatusResponse {
        status: Some(status_of(&sandbox)),
        info: if request.verbose { info(&sandbox) } else { HashMap::new() },
        containers_statuses: containers.iter().map(|container| crate::container_status::status_of(container)).collect(),
        timestamp: now(),
    })
}

/// A sandbox as CRI shows it.
pub(crate) fn status_of(sandbox: &Arc<Sandbox>) -> cri::PodSandboxStatus {
    let mut ips = sandbox.state().ips.iter().map(ToString::to_string).collect::<Vec<_>>().into_iter();
    let options = sandbox::namespaces(&sandbox.config);
    cri::PodSandboxStatus {
        id: sandbox.id.clone(),
        metadata: sandbox.config.metadata.clone(),
        state: sandbox.cri_state().into(),
        created_at: sandbox.created_at,
        network: Some(cri::PodSandboxNetworkStatus {
            ip: ips.next().unwrap_or_default(),
            additional_ips: ips.map(|ip| cri::PodIp { ip }).collect(),
        }),
        linux: Some(cri::LinuxPodSandboxStatus { namespaces: Some(cri::Namespace { options: Some(options) }) }),
        labels: sandbox.config.labels.clone(),
        annotations: sandbox.config.annotations.clone(),
        runtime_handler: sandbox.runtime_handler.clone(),
    }
}

/// What `crictl inspectp` shows beside the status, under the names that users of other runtimes know.
fn info(sandbox: &Sandbox) -> HashMap<String, String> {
    let read = |name: &str| std::fs::read(sandbox.folder.join(name)).ok();
    let state: Option<SandboxState> = read("state.json").and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let namespaces: Vec<_> = match &sandbox.netns {
        Some(path) => vec![json!({"type": "network", "path": path})],
        None => vec![],
    };
    let info = json!({
        "pid": state.as_ref().map_or(0, |state| state.pause_pid),
        "shimPid": state.as_ref().map_or(0, |state| state.shim_pid),
        "processStatus": if sandbox.state().ready { "running" } else { "deleted" },
        "netNamespaceClosed": sandbox.state().stopped,
        "runtimeHandler": sandbox.runtime_handler,
        "runtimeType": "orlop",
        "config": orlop_proto::json::to_json("PodSandboxConfig", &sandbox.config),
        "runtimeSpec": {
            "linux": {
                "cgroupsPath": sandbox.cgroup(&sandbox.id).unwrap_or_default(),
                "namespaces": namespaces,
            },
        },
        "cniResult": sandbox.state().cni_result,
    });
    HashMap::from([("info".to_string(), info.to_string())])
}
