//! Starting, joining and stopping the parts.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use orlop_agent_api::{ApiClients, ClientError};
use orlop_agent_core::credential_providers::CredentialProvider;
use orlop_agent_core::metrics::Metrics;
use orlop_agent_core::ports::{Events, MirrorPods, NodeFacts, Objects, StatusSink};
use orlop_agent_core::runtime::Runtime;
use orlop_agent_core::user_namespaces::IdSpace;
use orlop_agent_node::{AddressError, NodeAgent, NodeInputs, NodeStartup};
use orlop_agent_pods::{CredentialFolders, PodManager, PodPorts, PodsConfig};
use orlop_agent_resources::{CgroupTree, CgroupTreeConfig};
use orlop_agent_runtime::{ConnectError, CriRuntime, RuntimeConfig};
use orlop_agent_server::KubeletServerError;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::api_side::ApiSide;
use crate::config::AgentConfig;
use crate::credentials::{CredentialsError, load_credential_providers};
use crate::identity::Identity;
use crate::images::CriProbe;
use crate::kubelet_config::KubeletConfiguration;
use crate::lock::{LockError, lock_root};
use crate::machine::{NodeAmounts, ResourcesError, read_amounts};
use crate::node_side::CSI_NODE_MISSING;
use crate::shutdown::record::ShutdownRecord;
use crate::shutdown::{Keeper, ShutdownOrder};
use crate::standalone::Standalone;
use crate::storage::{StorageParts, start_storage};
use crate::user_ids::{UserIdsError, find_id_space};

/// How long the parts may take to end.
const STOP_DEADLINE: Duration = Duration::from_secs(10);

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
        path: PathBuf,
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
    /// The programs that give credentials can't be used.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// Pods can't have ids of their own.
    #[error(transparent)]
    UserIds(#[from] UserIdsError),
    /// The kubelet port can't be served.
    #[error(transparent)]
    Server(#[from] KubeletServerError),
    /// The machine was to go down, and pods have not ended in their time.
    #[error(
        "the time that pods have to end is over, and these have not ended: {0}; see the log for what they wait for"
    )]
    Unended(String),
    /// The pod manager is gone; only a new start helps.
    #[error("the pod manager has ended by itself; start the agent again, containers run on meanwhile")]
    Manager,
}

/// Runs an agent until cancelled. Containers run on after it. By order of the program it ends all pods because the machine
/// goes down, and itself after them.
///
/// # Errors
/// [`AgentError`] when it can't start; once started it goes on whatever happens. [`AgentError::Unended`] when it was
/// to end all pods and could not.
pub async fn serve(
    config: AgentConfig,
    orders: mpsc::Receiver<ShutdownOrder>,
    cancel: CancellationToken,
) -> Result<(), AgentError> {
    let metrics = Arc::<Metrics>::default();
    let startup = Arc::new(NodeStartup::new(metrics.clone()));
    let _lock = lock_root(&config.kubelet_root).await?;
    let identity = Identity::find(&config)?;
    let root = config.kubelet_root.clone();
    for path in
        [root.join("pods"), root.join("plugins"), config.plugin_registry.clone(), config.kubelet.pod_logs_dir.clone()]
    {
        std::fs::create_dir_all(&path).map_err(|source| AgentError::Folder { path, source })?;
    }
    let endpoint = runtime_config(&config.kubelet);
    let runtime = tokio::select! {
        runtime = CriRuntime::connect(&endpoint, config.runtime_patience, metrics.clone()) => runtime?,
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
    let id_space = find_id_space(&config.kubelet).await?;
    let root = config.kubelet_root.clone();
    let shutdown = blocking(move || {
        Ok(ShutdownRecord::read(&root).unwrap_or_else(|error| {
            warn!(%error, "the record of the last shutdown can't be read");
            ShutdownRecord::default()
        }))
    })
    .await?;
    let credentials = match config.credential_providers.clone() {
        Some(paths) => {
            let folder = paths.bin_dir.clone();
            (folder, blocking(move || Ok(load_credential_providers(&paths)?)).await?)
        }
        None => (PathBuf::new(), Vec::new()),
    };
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
    let parts =
        Parts { config, identity, runtime, metrics, startup, amounts, cgroups, id_space, credentials, shutdown, api };
    let result = parts.run(orders, &working).await;
    working.cancel();
    writing.cancel();
    if let Some(writer) = writer {
        let _ = tokio::time::timeout(STOP_DEADLINE, writer).await;
    }
    info!("the agent has ended; containers that run do so on");
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

/// What `serve` has made before the parts run.
pub(crate) struct Parts {
    pub(crate) config: AgentConfig,
    pub(crate) identity: Identity,
    runtime: CriRuntime,
    metrics: Arc<Metrics>,
    startup: Arc<NodeStartup>,
    amounts: NodeAmounts,
    cgroups: CgroupTree,
    id_space: IdSpace,
    credentials: (PathBuf, Vec<CredentialProvider>),
    pub(crate) shutdown: ShutdownRecord,
    pub(crate) api: Option<ApiSide>,
}

impl Parts {
    async fn run(self, orders: mpsc::Receiver<ShutdownOrder>, cancel: &CancellationToken) -> Result<(), AgentError> {
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
        let node = NodeAgent::new(self.node_config(), inputs.subscribe(), probe, events.clone(), self.startup.clone());
        let storage = start_storage(self.storage_parts(objects.clone(), node.clone()), cancel)
            .map_err(|source| AgentError::Folder { path: self.config.plugin_registry.clone(), source })?;
        self.start_node(&mut tasks, &node, storage.drivers, inputs.clone(), cancel);
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
            node: node.clone() as Arc<dyn NodeFacts>,
            metrics: self.metrics.clone(),
        };
        let (statuses, metrics) = (ports.statuses.clone(), ports.metrics.clone());
        let manager = PodManager::new(self.pods_config(), ports, self.api.as_ref().map(|api| api.pods.clone()));
        self.start_server(&mut tasks, manager.node_view(), cancel).await?;
        let stage = watch::Sender::default();
        let orders = self.follow_orders(&mut tasks, orders, stage.subscribe(), cancel);
        let keeper = Keeper {
            periods: self.shutdown_periods(),
            root: self.config.kubelet_root.clone(),
            record: self.shutdown.clone(),
            pods: manager.handle(),
            statuses,
            node,
            inputs,
            metrics,
            stage,
        };
        let shutdown = keeper.run(orders);
        // The manager holds what the pods' workers know; it ends with the agent only.
        let mut manager = tokio::spawn(manager.run(cancel.child_token()));
        let mut result = Ok(());
        let by_itself = tokio::select! {
            () = cancel.cancelled() => false,
            left = shutdown => {
                if !left.is_empty() {
                    let names: Vec<String> = left.into_iter().map(|pod| pod.name).collect();
                    result = Err(AgentError::Unended(names.join(", ")));
                }
                false
            }
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
        if by_itself { Err(AgentError::Manager) } else { result }
    }

    fn storage_parts(&self, objects: Arc<dyn Objects>, node: Arc<dyn NodeFacts>) -> StorageParts {
        StorageParts {
            node_name: self.identity.name.clone(),
            kubelet_root: self.config.kubelet_root.clone(),
            plugin_registry: self.config.plugin_registry.clone(),
            allocatable: self.amounts.allocatable.quantities(),
            objects,
            node,
        }
    }

    fn pods_config(&self) -> PodsConfig {
        let kubelet = &self.config.kubelet;
        let restart = kubelet.crash_loop_back_off.max_container_restart_period;
        PodsConfig {
            kubelet_root: self.config.kubelet_root.clone(),
            pod_logs_root: kubelet.pod_logs_dir.clone(),
            container_logs: self.config.container_logs.clone(),
            // Checked when the settings were read.
            log_rotation: kubelet.log_rotation().unwrap_or_default(),
            static_pod_path: Some(kubelet.static_pod_path.clone()).filter(|path| !path.as_os_str().is_empty()),
            file_check: kubelet.file_check_frequency.0,
            // Checked when the settings were read.
            static_url: kubelet.static_url().unwrap_or_default(),
            cluster_dns: kubelet.cluster_dns.clone(),
            cluster_domain: kubelet.cluster_domain.clone(),
            resolv_conf: kubelet.resolv_conf.clone(),
            hosts_file: self.config.hosts_file.clone(),
            max_parallel_pulls: kubelet.image_pulls_at_once(),
            pull_rate: kubelet.pull_rate(),
            credential_folders: CredentialFolders::of_process(),
            cpu_quota: kubelet.cpu_cfs_quota,
            cpu_period_us: i64::try_from(kubelet.cpu_cfs_quota_period.0.as_micros()).unwrap_or(100_000),
            cgroup_v2: Path::new("/sys/fs/cgroup/cgroup.controllers").exists(),
            seccomp_default: kubelet.seccomp_default,
            unsafe_sysctls: kubelet.allowed_unsafe_sysctls.clone(),
            id_space: self.id_space,
            credential_providers: self.credentials.clone(),
            // Checked when the settings were read.
            image_verification: kubelet.image_verification().unwrap_or_default(),
            shut_down_pods: self.shutdown.pods.clone(),
            max_restart_period: restart.map_or(Duration::from_secs(300), |period| period.0),
            ..PodsConfig::new(&self.identity.name)
        }
    }
}
