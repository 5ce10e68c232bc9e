//! A pod sandbox as the server holds it.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use orlop_container::protocol::SandboxState as ShimState;
use orlop_cri_spec::{SpecError, sandbox};
use orlop_kernel::cgroup::unit::Driver;
use orlop_kernel::procfs;
use orlop_network::Attachment;
use orlop_proto::cri;
use serde_json::{Map, Value, json};

use crate::config::CriConfig;
use crate::error::RpcError;
use crate::record::{Encoded, SandboxRecord, version};
use crate::scope;
use crate::usage::Rate;

/// The pod's interface, as all CNI callers name it.
pub(crate) const DEFAULT_INTERFACE: &str = "eth0";

/// A sandbox.
pub(crate) struct Sandbox {
    /// 64 hexadecimal digits.
    pub(crate) id: String,
    /// Nanoseconds since the epoch.
    pub(crate) created_at: i64,
    pub(crate) config: cri::PodSandboxConfig,
    /// The runtime that it asked for.
    pub(crate) runtime_handler: String,
    /// Who makes its cgroups, which stays as it was when the sandbox was made.
    pub(crate) cgroup_driver: Driver,
    /// Folder that it shares with its shim.
    pub(crate) folder: PathBuf,
    /// File of its network namespace; none on the machine's network.
    pub(crate) netns: Option<PathBuf>,
    /// One thing at a time is done to a sandbox as a whole.
    pub(crate) operation: tokio::sync::Mutex<()>,
    state: Mutex<SandboxState>,
    /// Processor use.
    pub(crate) rate: Rate,
}

/// What changes during its life.
#[derive(Clone, Debug, Default)]
pub(crate) struct SandboxState {
    /// Pause runs.
    pub(crate) ready: bool,
    /// No process and no network is left.
    pub(crate) stopped: bool,
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) cni_result: Value,
    /// What the pod needs beside its containers, when told.
    pub(crate) overhead: Option<cri::LinuxContainerResources>,
    /// What all its containers may use, when told.
    pub(crate) resources: Option<cri::LinuxContainerResources>,
}

impl Sandbox {
    /// A sandbox that is to be made.
    pub(crate) fn new(id: String, created_at: i64, config: cri::PodSandboxConfig, places: &CriConfig) -> Sandbox {
        let netns = (!sandbox::is_host_network(&config)).then(|| places.netns(&id));
        Sandbox {
            folder: places.sandbox_folder(&id),
            netns,
            id,
            created_at,
            config,
            runtime_handler: String::new(),
            cgroup_driver: places.cgroup_driver,
            operation: tokio::sync::Mutex::default(),
            state: Mutex::default(),
            rate: Rate::default(),
        }
    }

    /// The sandbox of a record. It counts as not ready until its shim has said otherwise.
    pub(crate) fn from_record(record: SandboxRecord, places: &CriConfig) -> std::io::Result<Sandbox> {
        let config: cri::PodSandboxConfig = record.config.decode()?;
        let mut sandbox = Sandbox::new(record.id, record.created_at, config, places);
        sandbox.runtime_handler = record.runtime_handler;
        sandbox.cgroup_driver = record.cgroup_driver;
        *sandbox.state() = SandboxState {
            ready: false,
            stopped: record.stopped,
            ips: record.ips,
            cni_result: record.cni_result,
            overhead: record.overhead.and_then(|encoded| encoded.decode().ok()),
            resources: record.resources.and_then(|encoded| encoded.decode().ok()),
        };
        Ok(sandbox)
    }

    pub(crate) fn to_record(&self) -> SandboxRecord {
        let state = self.state().clone();
        SandboxRecord {
            version: version(),
            id: self.id.clone(),
            created_at: self.created_at,
            config: Encoded::new(&self.config),
            runtime_handler: self.runtime_handler.clone(),
            cgroup_driver: self.cgroup_driver,
            ips: state.ips,
            cni_result: state.cni_result,
            stopped: state.stopped,
            overhead: state.overhead.as_ref().map(Encoded::new),
            resources: state.resources.as_ref().map(Encoded::new),
        }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, SandboxState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn metadata(&self) -> cri::PodSandboxMetadata {
        self.config.metadata.clone().unwrap_or_default()
    }

    /// `namespace/name`, for people.
    pub(crate) fn pod(&self) -> String {
        let metadata = self.metadata();
        format!("{}/{}", metadata.namespace, metadata.name)
    }

    /// The name that no two sandboxes share.
    pub(crate) fn name(&self) -> String {
        let cri::PodSandboxMetadata { name, namespace, uid, attempt } = self.metadata();
        format!("{name}_{namespace}_{uid}_{attempt}")
    }

    /// The cgroup of pause (by the sandbox's id) or of a container, below each hierarchy.
    pub(crate) fn cgroup(&self, id: &str) -> Result<String, SpecError> {
        sandbox::cgroup(&self.config, self.cgroup_driver, id)
    }

    /// Ends the scope of pause or of a container, where systemd has made one.
    pub(crate) async fn end_scope(&self, id: &str) -> Result<(), RpcError> {
        match self.cgroup(id) {
            Ok(path) => scope::end(&path, &self.pod()).await,
            // Nothing was ever made there.
            Err(_) => Ok(()),
        }
    }

    /// The pause process, while it is the one that the shim made.
    pub(crate) fn pause_pid(&self) -> Option<i32> {
        let state = std::fs::read(self.folder.join("state.json")).ok()?;
        let state: ShimState = serde_json::from_slice(&state).ok()?;
        procfs::is_alive(state.pause_pid, state.pause_start_ticks).then_some(state.pause_pid)
    }

    pub(crate) fn cri_state(&self) -> cri::PodSandboxState {
        if self.state().ready { cri::PodSandboxState::SandboxReady } else { cri::PodSandboxState::SandboxNotready }
    }

    /// How CNI plugins see the pod.
    pub(crate) fn attachment(&self) -> Attachment {
        let metadata = self.metadata();
        let args = [
            ("IgnoreUnknown", "1".to_string()),
            ("K8S_POD_NAMESPACE", metadata.namespace),
            ("K8S_POD_NAME", metadata.name),
            ("K8S_POD_INFRA_CONTAINER_ID", self.id.clone()),
            ("K8S_POD_UID", metadata.uid),
        ];
        Attachment {
            container_id: self.id.clone(),
            netns: self.netns.clone().unwrap_or_default(),
            ifname: DEFAULT_INTERFACE.into(),
            args: args.map(|(name, value)| (name.to_string(), value)).into(),
            capabilities: capabilities(&self.config),
        }
    }
}

/// Values of the capabilities that plugins may ask for.
fn capabilities(config: &cri::PodSandboxConfig) -> Map<String, Value> {
    let mut all = Map::new();
    let ports: Vec<Value> = config
        .port_mappings
        .iter()
        .filter(|mapping| mapping.host_port > 0)
        .map(|mapping| {
            let protocol = match cri::Protocol::try_from(mapping.protocol) {
                Ok(cri::Protocol::Udp) => "udp",
                Ok(cri::Protocol::Sctp) => "sctp",
                _ => "tcp",
            };
            json!({
                "hostPort": mapping.host_port,
                "containerPort": mapping.container_port,
                "protocol": protocol,
                "hostIP": mapping.host_ip,
            })
        })
        .collect();
    if !ports.is_empty() {
        all.insert("portMappings".into(), ports.into());
    }
    if let Some(dns) = &config.dns_config {
        all.insert("dns".into(), json!({"servers": dns.servers, "searches": dns.searches, "options": dns.options}));
    }
    all
}

/// What the pod is called inside: its own name, or the machine's for a pod on the machine's network.
pub(crate) fn hostname(config: &cri::PodSandboxConfig) -> String {
    match config.hostname.as_str() {
        "" => nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
        name => name.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_without_a_host_port_are_no_mapping() {
        let mapping = |host_port| cri::PortMapping { container_port: 80, host_port, ..Default::default() };
        let config = cri::PodSandboxConfig { port_mappings: vec![mapping(0), mapping(8080)], ..Default::default() };
        let expected = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": ""}]);
        assert_eq!(capabilities(&config)["portMappings"], expected);
    }
}
