//! `orlop agent`: the kubelet's job on any CRI socket.

use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use orlop_agent_daemon::{AgentConfig, CredentialProviderPaths, ShutdownOrder, load_config, serve};
use orlop_apiserver::pki::Pki;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::layout::{Instance, Layout};

/// Flags of `orlop agent`, named as the kubelet's.
#[derive(clap::Args, Default)]
#[group(id = "agent")]
pub struct Arguments {
    /// Kubeconfig of the node; without one only static pods run.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Endpoint of the container runtime [default: the socket of this instance's `orlop cri`].
    #[arg(long, value_name = "unix:///SOCKET")]
    pub container_runtime_endpoint: Option<String>,
    /// Name of the node instead of the host name.
    #[arg(long, value_name = "NAME")]
    pub hostname_override: Option<String>,
    /// Address of the node instead of the one that leads outside.
    #[arg(long, value_name = "IP")]
    pub node_ip: Option<IpAddr>,
    /// The kubelet's settings (`KubeletConfiguration`); other flags go before it.
    #[arg(long, value_name = "FILE")]
    pub kubelet_config: Option<PathBuf>,
    /// Which programs give credentials for registries (`CredentialProviderConfig`): a file, or a folder of them.
    #[arg(long, value_name = "PATH", requires = "image_credential_provider_bin_dir")]
    pub image_credential_provider_config: Option<PathBuf>,
    /// The folder with these programs.
    #[arg(long, value_name = "DIR", requires = "image_credential_provider_config")]
    pub image_credential_provider_bin_dir: Option<PathBuf>,
    /// Folder of static pods' manifests.
    #[arg(long, value_name = "DIR")]
    pub pod_manifest_path: Option<PathBuf>,
    /// Certificate of the kubelet API; without one it signs its own.
    #[arg(long, value_name = "FILE", requires = "tls_private_key_file")]
    pub tls_cert_file: Option<PathBuf>,
    /// Key of that certificate.
    #[arg(long, value_name = "FILE", requires = "tls_cert_file")]
    pub tls_private_key_file: Option<PathBuf>,
    /// Authority of the client certificates that the kubelet API takes.
    #[arg(long, value_name = "FILE")]
    pub client_ca_file: Option<PathBuf>,
}

/// Runs the agent until cancelled; containers run on after it.
pub async fn run(layout: &Layout, instance: &Instance, arguments: Arguments, cancel: CancellationToken) -> Result<()> {
    Ok(serve(config(layout, instance, arguments)?, shutdown_orders()?, cancel).await?)
}

/// The signal that tells the agent to end all pods and then itself: what an init is sent when the power fails.
fn power_fails() -> SignalKind {
    SignalKind::from_raw(rustix::process::Signal::POWER.as_raw())
}

/// Orders about the machine's end, by signals.
///
/// # Errors
/// When the signals can't be had.
pub fn shutdown_orders() -> Result<mpsc::Receiver<ShutdownOrder>> {
    let mut begin = signal(power_fails()).context("listen for SIGPWR")?;
    let mut call_off = signal(SignalKind::user_defined1()).context("listen for SIGUSR1")?;
    let (sender, orders) = mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            let order = tokio::select! {
                Some(()) = begin.recv() => ShutdownOrder::BeginAndLeave,
                Some(()) = call_off.recv() => ShutdownOrder::CallOff,
                else => return,
            };
            if sender.send(order).await.is_err() {
                return;
            }
        }
    });
    Ok(orders)
}

/// The agent's configuration.
///
/// # Errors
/// When the file of the kubelet's settings can't be read or is not one.
pub fn config(layout: &Layout, instance: &Instance, arguments: Arguments) -> Result<AgentConfig> {
    let own = format!("unix://{}", layout.cri_socket().display());
    let mut config = AgentConfig::new(&own).with_root(&layout.kubelet);
    if let Some(path) = &arguments.kubelet_config {
        let loaded = load_config(path).context("the kubelet's settings")?;
        for warning in loaded.warnings {
            tracing::warn!(file = %path.display(), "{warning}");
        }
        config.kubelet = loaded.config;
    }
    if let Some(endpoint) = arguments.container_runtime_endpoint {
        config.kubelet.container_runtime_endpoint = endpoint;
    } else if config.kubelet.container_runtime_endpoint.is_empty() {
        config.kubelet.container_runtime_endpoint = own;
    }
    config.credential_providers = arguments
        .image_credential_provider_config
        .zip(arguments.image_credential_provider_bin_dir)
        .map(|(config, bin_dir)| CredentialProviderPaths { config, bin_dir });
    config.kubeconfig = arguments.kubeconfig;
    config.node_name = arguments.hostname_override.unwrap_or_default();
    config.node_ips = arguments.node_ip.into_iter().collect();
    if layout.root.is_some() {
        config.container_logs = None;
        config.logind_drop_ins = None;
        config.kubelet.pod_logs_dir = layout.pod_logs.clone();
        config.kubelet.cgroup_root.clone_from(&instance.cgroup_root);
        config.kubelet.port = instance.kubelet_port;
        config.kubelet.healthz_port = instance.healthz_port;
    }
    if let (Some(certificate), Some(key)) = (arguments.tls_cert_file, arguments.tls_private_key_file) {
        (config.kubelet.tls_cert_file, config.kubelet.tls_private_key_file) = (certificate, key);
    }
    if let Some(authority) = arguments.client_ca_file {
        config.kubelet.authentication.x509.client_ca_file = authority;
    }
    let set = !config.kubelet.static_pod_path.as_os_str().is_empty();
    let manifests = arguments.pod_manifest_path.or_else(|| (!set).then(|| layout.manifests.clone()));
    if let Some(manifests) = manifests.filter(|manifests| manifests.is_dir()) {
        config.kubelet.static_pod_path = manifests;
    }
    Ok(config)
}

/// The flags of the node that belongs to this instance's own API server.
pub fn own_node(layout: &Layout, pki: &Pki, node_name: &str, address: IpAddr) -> Arguments {
    let (certificate, key) = pki.kubelet_serving();
    Arguments {
        kubeconfig: Some(layout.node_kubeconfig()),
        hostname_override: Some(node_name.into()),
        node_ip: Some(address),
        tls_cert_file: Some(certificate),
        tls_private_key_file: Some(key),
        client_ca_file: Some(pki.ca_certificate()),
        ..Arguments::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";

    /// The configuration of an instance with a file of this text.
    fn configured(text: &str, arguments: Arguments) -> Result<AgentConfig> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("kubelet.yaml");
        std::fs::write(&file, text).unwrap();
        let layout = Layout::new(Some(folder.path()))?;
        let instance = Instance::load_or_choose(&layout)?;
        config(&layout, &instance, Arguments { kubelet_config: Some(file), ..arguments })
    }

    #[test]
    fn a_file_is_heeded_and_flags_go_before_it() {
        let text = format!("{HEAD}maxPods: 7\nport: 99\ncontainerRuntimeEndpoint: unix:///file.sock\n");
        let of_file = configured(&text, Arguments::default()).unwrap();
        assert_eq!(of_file.kubelet.max_pods, 7);
        assert_eq!(of_file.kubelet.container_runtime_endpoint, "unix:///file.sock");
        assert_ne!(of_file.kubelet.port, 99, "the instance has ports of its own");
        let flag = Arguments { container_runtime_endpoint: Some("unix:///flag.sock".into()), ..Arguments::default() };
        assert_eq!(configured(&text, flag).unwrap().kubelet.container_runtime_endpoint, "unix:///flag.sock");
        let own = configured(HEAD, Arguments::default()).unwrap().kubelet.container_runtime_endpoint;
        assert!(own.ends_with("/run/cri/cri.sock"), "{own}");
    }

    #[test]
    fn a_wrong_file_is_named_with_its_field() {
        let error = format!("{:#}", configured(&format!("{HEAD}maxPods: 0\n"), Arguments::default()).unwrap_err());
        assert!(error.contains("kubelet.yaml") && error.contains("maxPods"), "{error}");
    }
}
