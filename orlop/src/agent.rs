//! `orlop agent`: the kubelet's job on any CRI socket.

use std::path::PathBuf;

use anyhow::Result;
use orlop_agent_daemon::{AgentConfig, serve};
use tokio_util::sync::CancellationToken;

use crate::layout::{Instance, Layout};

/// Flags of `orlop agent`, named as the kubelet's.
#[derive(clap::Args)]
pub struct Arguments {
    /// Kubeconfig of the node; without one only static pods run.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Endpoint of the container runtime.
    #[arg(long, value_name = "unix:///SOCKET")]
    container_runtime_endpoint: Option<String>,
    /// Name of the node instead of the host name.
    #[arg(long, value_name = "NAME")]
    hostname_override: Option<String>,
    /// Folder of static pods' manifests.
    #[arg(long, value_name = "DIR")]
    pod_manifest_path: Option<PathBuf>,
}

/// Runs the agent until cancelled; containers run on after it.
pub async fn run(layout: &Layout, instance: &Instance, arguments: Arguments, cancel: CancellationToken) -> Result<()> {
    let own = || format!("unix://{}", layout.cri_socket().display());
    let endpoint = arguments.container_runtime_endpoint.unwrap_or_else(own);
    let mut config = AgentConfig::new(&endpoint).with_root(&layout.kubelet);
    config.kubeconfig = arguments.kubeconfig;
    config.node_name = arguments.hostname_override.unwrap_or_default();
    if layout.root.is_some() {
        config.container_logs = None;
        config.kubelet.pod_logs_dir = layout.pod_logs.clone();
        config.kubelet.cgroup_root = instance.cgroup_root.clone();
        config.kubelet.port = instance.kubelet_port.into();
        config.kubelet.healthz_port = instance.healthz_port.into();
    }
    let manifests = arguments.pod_manifest_path.unwrap_or_else(|| layout.manifests.clone());
    if manifests.is_dir() {
        config.kubelet.static_pod_path = manifests;
    }
    Ok(serve(config, cancel).await?)
}
