//! What an agent is told at start.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::kubelet_config::KubeletConfiguration;

/// Where links to the logs of containers are looked for by log collectors (the kubelet's `ContainerLogsDir`).
pub const CONTAINER_LOGS: &str = "/var/log/containers";

/// The version of Kubernetes whose kubelet this agent stands for.
const KUBERNETES_VERSION: &str = "v1.36.3";

/// Where programs that give credentials for registries are told of, and where they are.
#[derive(Clone, Debug)]
pub struct CredentialProviderPaths {
    /// A file (`CredentialProviderConfig`), or a folder of `.yaml`, `.yml` and `.json` files.
    pub config: PathBuf,
    /// The folder with the programs.
    pub bin_dir: PathBuf,
}

/// Settings of one agent. Paths are explicit: several agents can live in one machine, even in one process.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// Name of the node; empty for the host name.
    pub node_name: String,
    /// Kubeconfig of the node; none runs static pods only.
    pub kubeconfig: Option<PathBuf>,
    /// The kubelet's root (`/var/lib/kubelet`).
    pub kubelet_root: PathBuf,
    /// Where a certificate that is made here is kept (`<root>/pki`).
    pub cert_dir: PathBuf,
    /// Links to container logs (`/var/log/containers`); none makes no links.
    pub container_logs: Option<PathBuf>,
    /// Where plugins register (`<root>/plugins_registry`).
    pub plugin_registry: PathBuf,
    /// Addresses of the node; empty finds them out.
    pub node_ips: Vec<IpAddr>,
    /// Labels to register with.
    pub node_labels: BTreeMap<String, String>,
    /// The node's hosts file, for pods on its network.
    pub hosts_file: PathBuf,
    /// Programs that give credentials for registries; none asks none.
    pub credential_providers: Option<CredentialProviderPaths>,
    /// Version as nodes report it.
    pub kubelet_version: String,
    /// Where logind is told how long it has to wait for pods; none leaves its configuration alone.
    pub logind_drop_ins: Option<PathBuf>,
    /// How long the runtime may take to be there at the start.
    pub runtime_patience: Duration,
    /// The kubelet's settings.
    pub kubelet: KubeletConfiguration,
}

impl AgentConfig {
    /// The kubelet's paths and defaults, with the runtime at `runtime_endpoint` (`unix:///…`).
    pub fn new(runtime_endpoint: &str) -> Self {
        let kubelet =
            KubeletConfiguration { container_runtime_endpoint: runtime_endpoint.to_owned(), ..Default::default() };
        Self {
            node_name: String::new(),
            kubeconfig: None,
            kubelet_root: "/var/lib/kubelet".into(),
            cert_dir: "/var/lib/kubelet/pki".into(),
            container_logs: Some(CONTAINER_LOGS.into()),
            plugin_registry: "/var/lib/kubelet/plugins_registry".into(),
            node_ips: Vec::new(),
            node_labels: BTreeMap::new(),
            hosts_file: "/etc/hosts".into(),
            credential_providers: None,
            kubelet_version: KUBERNETES_VERSION.to_owned(),
            logind_drop_ins: Some("/etc/systemd/logind.conf.d".into()),
            runtime_patience: Duration::from_secs(60),
            kubelet,
        }
    }

    /// The same with everything that the kubelet keeps below `root`.
    #[must_use]
    pub fn with_root(mut self, root: impl Into<PathBuf>) -> Self {
        self.kubelet_root = root.into();
        self.cert_dir = self.kubelet_root.join("pki");
        self.plugin_registry = self.kubelet_root.join("plugins_registry");
        self
    }
}
