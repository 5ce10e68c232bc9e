//! Starting, joining and stopping the parts.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use orlop_agent_api::access::{AccessLives, ApiAccess};
use orlop_agent_api::csi_node::{CsiNodeDriver, keep_csi_node};
use orlop_agent_api::events::EventRecorder;
use orlop_agent_api::lease::renew_lease;
use orlop_agent_api::mirror::ApiMirrorPods;
use orlop_agent_api::node_source::{NodeRecord, follow_node};
use orlop_agent_api::objects::ApiObjects;
use orlop_agent_api::pod_source::follow_pods;
use orlop_agent_api::status::StatusWriter;
use orlop_agent_api::{ApiClients, ClientError};
use orlop_agent_core::ports::{Access, Events, MirrorPods, NodeFacts, NodeView, Objects, PodSet, StatusSink};
use orlop_agent_core::runtime::Runtime;
use orlop_agent_node::{AddressError, NodeAgent, NodeConfig, NodeInputs, NodeTaint};
use orlop_agent_node::{detect_addresses, node_name_from_hostname, read_system};
use orlop_agent_pods::{PodManager, PodPorts, PodsConfig};
use orlop_agent_resources::{CgroupTree, CgroupTreeConfig};
use orlop_agent_runtime::{ConnectError, CriRuntime, RuntimeConfig};
use orlop_agent_server::{
    Authorization, KubeletServer, KubeletServerConfig, KubeletServerError, KubeletServerPorts, ServerIdentity,
};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::config::AgentConfig;
use crate::images::CriProbe;
use crate::kubelet_config::KubeletConfiguration;
use crate::lock::{LockError, lock_root};
use crate::machine::{NodeAmounts, ResourcesError, read_amounts};
use crate::standalone::Standalone;
use crate::storage::{StorageParts, start_storage};
use crate::supervise::supervise;

/// How long the parts may take to end.
const STOP_DEADLINE: Duration = Duration::from_secs(10);
/// Why a node without its CSINode object is not ready, in the kubelet's words.
const CSI_NODE_MISSING: &str = "CSINode is not yet initialized";

/// Why an agent could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The root directory is in use or can't be used.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The node has no usable name.
    #[error("the host name {0:?} is no name for a node; set the node's name")]
    Name(String),
    /// The node has no address.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// A directory can't be made.
    #[error("{path}: {source}")]
    Folder {
        /// The directory.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The runtime does not answer.
    #[error("container runtime: {0}")]
    Runtime(#[from] ConnectError),
    /// The node's resources can't be told.
    #[error(transparent)]
    Resources(#[from] ResourcesError),
    /// The cgroups of pods can't be made.
    #[error("cgroups of pods: {0}")]
    Cgroups(String),
    /// The API server can't be spoken to.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The kubelet port can't be served.
    #[error(transparent)]
    Server(#[from] KubeletServerError),
    /// The pod manager is gone; only a new start helps.
    #[error("the pod manager has ended by itself; start the agent again, containers run on meanwhile")]
    Manager,
}

/// Runs an agent until cancelled. Containers run on after it.
///
/// # Errors
/// [`AgentError`] when it can't start; once started it goes on whatever happens.
pub async fn serve(config: AgentConfig, cancel: CancellationToken) -> Result<(), AgentError> {
    let _lock = lock_root(&config.kubelet_root)?;
    let identity = Identity::find(&config)?;
    let root = config.kubelet_root.clone();
    for path in
        [root.join("pods"), root.join("plugins"), config.plugin_registry.clone(), config.kubelet.pod_logs_dir.clone()]
    {
        std::fs::create_dir_all(&path).map_err(|source| AgentError::Folder { path, source })?;
    }
    let endpoint = runtime_config(&config.kubelet);
    let runtime = tokio::select! {
        runtime = CriRuntime::connect(&endpoint, config.runtime_patience) => runtime?,
        () = cancel.cancelled() => return Ok(()),
    };
    info!(node = %identity.name, runtime = %runtime.name_and_version(), "the agent starts");
    let kubelet = config.kubelet.clone();
    let (amounts, cgroups) = blocking(move || {
        let amounts = read_amounts(&kubelet, &root)?;
        let cgroups =
            CgroupTree::open(cgroup_config(&kubelet)).map_err(|error| AgentError::Cgroups(error.to_string()))?;
        Ok((amounts, cgroups))
    })
    .await?;
    // Parts that write to the API outlive those that have something to write.
    let (working, writing) = (cancel.child_token(), CancellationToken::new());
    let (api, writer) = match &config.kubeconfig {
        Some(path) => {
            let clients = ApiClients::from_kubeconfig(path).await?;
            let (api, writer) = ApiSide::start(clients, &config, &identity, &writing);
            (Some(api), Some(writer))
        }
        None => (None, None),
    };
    let parts = Parts { config, identity, runtime, amounts, cgroups, api };
    let result = parts.run(&working).await;
    working.cancel();
    writing.cancel();
    if let Some(writer) = writer {
        let _ = tokio::time::timeout(STOP_DEADLINE, writer).await;
    }
    info!("the agent has ended; containers run on");
    result
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, AgentError> + Send + 'static,
) -> Result<T, AgentError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

/// Who the node is.
struct Identity {
    name: String,
    hostname: String,
    host_ips: Vec<std::net::IpAddr>,
}

impl Identity {
    fn find(config: &AgentConfig) -> Result<Self, AgentError> {
        let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let wanted = if config.node_name.is_empty() { &hostname } else { &config.node_name };
        let name = node_name_from_hostname(wanted).ok_or_else(|| AgentError::Name(wanted.clone()))?;
        let host_ips = detect_addresses(&config.node_ips)?;
        // With a name of its own, the node is known by that name, as with --hostname-override.
        let hostname = if config.node_name.is_empty() { hostname } else { name.clone() };
        Ok(Self { name, hostname, host_ips })
    }
}

fn runtime_config(kubelet: &KubeletConfiguration) -> RuntimeConfig {
    RuntimeConfig {
        runtime_endpoint: kubelet.container_runtime_endpoint.clone(),
        image_endpoint: kubelet.image_service_endpoint.clone(),
        request_timeout: kubelet.runtime_request_timeout.0,
    }
}

fn cgroup_config(kubelet: &KubeletConfiguration) -> CgroupTreeConfig {
    CgroupTreeConfig {
        root: kubelet.cgroup_root.trim_end_matches('/').to_owned(),
        pod_pids_max: Some(kubelet.pod_pids_limit).filter(|limit| *limit > 0),
        ..CgroupTreeConfig::default()
    }
}

/// Everything that speaks with the API server.
struct ApiSide {
    clients: ApiClients,
    pods: watch::Receiver<Arc<PodSet>>,
    node: watch::Receiver<NodeRecord>,
    objects: Arc<ApiObjects>,
    statuses: Arc<StatusWriter>,
    events: Arc<EventRecorder>,
    access: Arc<ApiAccess>,
    mirrors: Arc<ApiMirrorPods>,
}

impl ApiSide {
    /// Starts everything; the task is that of the status writer, which ends when all is written.
    fn start(
        clients: ApiClients,
        config: &AgentConfig,
        identity: &Identity,
        cancel: &CancellationToken,
    ) -> (Self, JoinHandle<()>) {
        let name = &identity.name;
        info!(server = %clients.server, "the agent works for an API server");
        let pods = follow_pods(&clients, name, cancel.clone());
        let node = follow_node(&clients, name, cancel.clone());
        let objects = ApiObjects::start(clients.clone(), pods.clone(), cancel.clone());
        let (statuses, status_task) = StatusWriter::start(clients.clone(), pods.clone(), cancel.clone());
        let (authentication, authorization) = (&config.kubelet.authentication, &config.kubelet.authorization);
        let lives = AccessLives {
            token: authentication.webhook.cache_ttl.0,
            allowed: authorization.webhook.cache_authorized_ttl.0,
            denied: authorization.webhook.cache_unauthorized_ttl.0,
        };
        let api = Self {
            events: EventRecorder::start(clients.clone(), name, cancel.clone()),
            access: ApiAccess::new(clients.clone(), name, lives),
            mirrors: ApiMirrorPods::new(clients.clone(), name, node.clone()),
            clients,
            pods,
            node,
            objects,
            statuses,
        };
        (api, status_task)
    }
}

/// What `serve` has made before the parts run.
struct Parts {
    config: AgentConfig,
    identity: Identity,
    runtime: CriRuntime,
    amounts: NodeAmounts,
    cgroups: CgroupTree,
    api: Option<ApiSide>,
}

impl Parts {
    async fn run(self, cancel: &CancellationToken) -> Result<(), AgentError> {
        let mut tasks = JoinSet::new();
        let events: Arc<dyn Events> = match &self.api {
            Some(api) => api.events.clone(),
            None => Arc::new(Standalone),
        };
        let objects: Arc<dyn Objects> = match &self.api {
            Some(api) => api.objects.clone(),
            None => Arc::new(Standalone),
        };
        let inputs = watch::Sender::new(NodeInputs {
            capacity: self.amounts.capacity.quantities(),
            allocatable: self.amounts.allocatable.quantities(),
            problems: self.api.iter().map(|_| CSI_NODE_MISSING.to_owned()).collect(),
            ..NodeInputs::default()
        });
        let probe = Arc::new(CriProbe { runtime: self.runtime.clone() });
        let node = NodeAgent::new(self.node_config(), inputs.subscribe(), probe, events.clone());
        let storage = start_storage(
            StorageParts {
                node_name: self.identity.name.clone(),
                kubelet_root: self.config.kubelet_root.clone(),
                plugin_registry: self.config.plugin_registry.clone(),
                objects: objects.clone(),
                events: events.clone(),
                node: node.clone(),
            },
            &mut tasks,
            cancel,
        );
        self.start_node(&mut tasks, &node, storage.drivers, inputs, cancel);
        let ports = PodPorts {
            runtime: Arc::new(self.runtime.clone()) as Arc<dyn Runtime>,
            objects,
            volumes: storage.volumes,
            events,
            statuses: self.api.as_ref().map_or_else(
                || Arc::new(Standalone) as Arc<dyn StatusSink>,
                |api| api.statuses.clone() as Arc<dyn StatusSink>,
            ),
            mirrors: self.api.as_ref().map(|api| api.mirrors.clone() as Arc<dyn MirrorPods>),
            cgroups: Arc::new(self.cgroups.clone()),
            node: node as Arc<dyn NodeFacts>,
        };
        let manager = PodManager::new(self.pods_config(), ports, self.api.as_ref().map(|api| api.pods.clone()));
        self.start_server(&mut tasks, manager.node_view(), cancel).await?;
        // The manager holds what the pods' workers know; it ends with the agent only.
        let mut manager = tokio::spawn(manager.run(cancel.child_token()));
        let by_itself = tokio::select! {
            () = cancel.cancelled() => false,
            ended = &mut manager => {
                error!(?ended, "the pod manager has ended by itself");
                true
            }
        };
        cancel.cancel();
        let ending = async {
            if !by_itself {
                let _ = manager.await;
            }
            while tasks.join_next().await.is_some() {}
        };
        let _ = tokio::time::timeout(STOP_DEADLINE, ending).await;
        if by_itself { Err(AgentError::Manager) } else { Ok(()) }
    }

    fn node_config(&self) -> NodeConfig {
        let kubelet = &self.config.kubelet;
        let taint = |taint: &crate::kubelet_config::TaintConfig| NodeTaint {
            key: taint.key.clone(),
            value: taint.value.clone(),
            effect: taint.effect.clone(),
        };
        NodeConfig {
            node_name: self.identity.name.clone(),
            hostname: self.identity.hostname.clone(),
            node_ips: self.config.node_ips.clone(),
            host_ips: self.identity.host_ips.clone(),
            labels: self.config.node_labels.clone(),
            taints: kubelet.register_with_taints.iter().map(taint).collect(),
            unschedulable: false,
            provider_id: kubelet.provider_id.clone(),
            register: kubelet.register_node,
            kubelet_port: kubelet.port,
            kubelet_version: self.config.kubelet_version.clone(),
            images_max: kubelet.node_status_max_images,
            update_interval: kubelet.node_status_update_frequency.0,
            report_interval: kubelet.node_status_report_frequency.0,
            system: read_system(std::path::Path::new("/")),
        }
    }

    fn pods_config(&self) -> PodsConfig {
        let kubelet = &self.config.kubelet;
        let restart = kubelet.crash_loop_back_off.max_container_restart_period;
        PodsConfig {
            kubelet_root: self.config.kubelet_root.clone(),
            pod_logs_root: kubelet.pod_logs_dir.clone(),
            container_logs: self.config.container_logs.clone(),
            static_pod_path: Some(kubelet.static_pod_path.clone()).filter(|path| !path.as_os_str().is_empty()),
            file_check: kubelet.file_check_frequency.0,
            cluster_dns: kubelet.cluster_dns.clone(),
            cluster_domain: kubelet.cluster_domain.clone(),
            resolv_conf: kubelet.resolv_conf.clone(),
            hosts_file: self.config.hosts_file.clone(),
            max_parallel_pulls: kubelet.image_pulls_at_once(),
            cpu_quota: kubelet.cpu_cfs_quota,
            cpu_period_us: i64::try_from(kubelet.cpu_cfs_quota_period.0.as_micros()).unwrap_or(100_000),
            cgroup_v2: std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists(),
            seccomp_default: kubelet.seccomp_default,
            max_restart_period: restart.map_or(Duration::from_secs(300), |period| period.0),
            ..PodsConfig::new(&self.identity.name)
        }
    }

    /// Registration, status, lease and CSINode.
    fn start_node(
        &self,
        tasks: &mut JoinSet<()>,
        node: &Arc<NodeAgent>,
        drivers: watch::Receiver<Vec<CsiNodeDriver>>,
        inputs: watch::Sender<NodeInputs>,
        cancel: &CancellationToken,
    ) {
        let client = self.api.as_ref().map(|api| api.clients.heartbeat.clone());
        let (agent, token) = (node.clone(), cancel.clone());
        tasks.spawn(supervise("node", cancel.clone(), move || {
            let serving = agent.clone().serve(client.clone(), token.clone());
            async move {
                serving.await;
                Ok(())
            }
        }));
        let Some(api) = &self.api else {
            // Kept, because the node reads it for as long as it lives.
            let token = cancel.clone();
            tasks.spawn(async move {
                token.cancelled().await;
                drop(inputs);
            });
            return;
        };
        tasks.spawn(follow_record(node.clone(), api.node.clone(), cancel.clone()));
        let (initialized, ready) = watch::channel(false);
        tasks.spawn(follow_csi_node(ready, inputs, cancel.clone()));
        let (clients, name, record) = (api.clients.clone(), self.identity.name.clone(), api.node.clone());
        let (seconds, token) = (self.config.kubelet.node_lease_duration_seconds, cancel.clone());
        tasks.spawn(supervise("node lease", cancel.clone(), move || {
            let renewing = renew_lease(clients.clone(), name.clone(), seconds, record.clone(), token.clone());
            async move {
                renewing.await;
                Ok(())
            }
        }));
        let (clients, name, record) = (api.clients.clone(), self.identity.name.clone(), api.node.clone());
        let token = cancel.clone();
        tasks.spawn(supervise("CSINode", cancel.clone(), move || {
            let (clients, name, record) = (clients.clone(), name.clone(), record.clone());
            let keeping = keep_csi_node(clients, name, drivers.clone(), record, initialized.clone(), token.clone());
            async move {
                keeping.await;
                Ok(())
            }
        }));
    }

    /// The kubelet port. A port that can't be had at the start is an error; later it is tried again.
    async fn start_server(
        &self,
        tasks: &mut JoinSet<()>,
        view: Arc<dyn NodeView>,
        cancel: &CancellationToken,
    ) -> Result<(), AgentError> {
        if !self.config.kubelet.enable_server {
            return Ok(());
        }
        let config = self.server_config();
        let webhook = self.config.kubelet.authentication.webhook.enabled;
        let access = self.api.as_ref().filter(|_| webhook).map(|api| api.access.clone() as Arc<dyn Access>);
        let ports = KubeletServerPorts { view, access };
        let mut bound = Some(KubeletServer::bind(config.clone(), ports.clone()).await?);
        info!(address = %config.listen, "the kubelet port is open");
        let token = cancel.clone();
        tasks.spawn(supervise("kubelet port", cancel.clone(), move || {
            let (bound, config, ports, token) = (bound.take(), config.clone(), ports.clone(), token.clone());
            async move {
                let server = match bound {
                    Some(server) => server,
                    None => KubeletServer::bind(config, ports).await.map_err(|error| error.to_string())?,
                };
                server.serve(token).await;
                Ok(())
            }
        }));
        Ok(())
    }

    fn server_config(&self) -> KubeletServerConfig {
        let kubelet = &self.config.kubelet;
        let given = |path: &std::path::PathBuf| Some(path.clone()).filter(|path| !path.as_os_str().is_empty());
        let identity = match (given(&kubelet.tls_cert_file), given(&kubelet.tls_private_key_file)) {
            (Some(certificate), Some(key)) => ServerIdentity::Files { certificate, key },
            _ => ServerIdentity::SelfSigned {
                folder: self.config.cert_dir.clone(),
                names: vec![self.identity.name.clone(), self.identity.hostname.clone()],
                addresses: self.identity.host_ips.clone(),
            },
        };
        let healthz = SocketAddr::new(kubelet.healthz_bind_address, kubelet.healthz_port);
        KubeletServerConfig {
            listen: SocketAddr::new(kubelet.address, kubelet.port),
            healthz: (kubelet.healthz_port != 0).then_some(healthz),
            identity,
            client_ca: given(&kubelet.authentication.x509.client_ca_file),
            anonymous: kubelet.authentication.anonymous.enabled,
            authorization: match kubelet.authorization.mode.as_str() {
                "AlwaysAllow" => Authorization::AlwaysAllow,
                _ => Authorization::Webhook,
            },
            debugging_handlers: kubelet.enable_debugging_handlers,
            idle_timeout: kubelet.streaming_connection_idle_timeout.0,
            node_name: self.identity.name.clone(),
            config: serde_json::to_value(kubelet).unwrap_or_default(),
        }
    }
}

/// Passes the Node object on to the node.
async fn follow_record(node: Arc<NodeAgent>, mut record: watch::Receiver<NodeRecord>, cancel: CancellationToken) {
    loop {
        let now: Option<Arc<Node>> = record.borrow_and_update().node.clone();
        node.observe(now);
        tokio::select! {
            () = cancel.cancelled() => return,
            changed = record.changed() => if changed.is_err() { return },
        }
    }
}

/// Takes the missing CSINode off the list of problems once it is there.
async fn follow_csi_node(
    mut ready: watch::Receiver<bool>,
    inputs: watch::Sender<NodeInputs>,
    cancel: CancellationToken,
) {
    let waiting = ready.wait_for(|ready| *ready);
    let found = tokio::select! {
        () = cancel.cancelled() => return,
        found = waiting => found.is_ok(),
    };
    if found {
        inputs.send_modify(|inputs| inputs.problems.retain(|problem| problem != CSI_NODE_MISSING));
    }
    cancel.cancelled().await;
}
