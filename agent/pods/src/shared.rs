//! What all workers share: configuration, ports, the observed set, bounds.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use orlop_agent_core::allowance::Allowance;
use orlop_agent_core::backoff::BackoffBounds;
use orlop_agent_core::dns::{NodeDns, parse_resolv_conf};
use orlop_agent_core::quantity::units;
use orlop_agent_core::resources::ResourcePolicy;
use orlop_agent_core::security::NodeSecurity;
use orlop_agent_core::startup::Startup;
use tokio::sync::{Notify, Semaphore, mpsc};

use crate::census::Census;
use crate::config::{PodPorts, PodsConfig};
use crate::credential_plugins::CredentialPlugins;
use crate::directories::Directories;
use crate::observed::ObservedSet;
use crate::pull_records::PullRecords;
use crate::user_namespaces::UserNamespaces;

/// A pod as the kubelet port sees it.
#[derive(Clone)]
pub(crate) struct PodEntry {
    pub pod: Arc<Pod>,
    pub status: PodStatus,
    /// Uid of the mirror pod, by which the API names a static pod.
    pub mirror_uid: Option<String>,
}

/// Shared by all workers.
pub(crate) struct Shared {
    pub config: PodsConfig,
    pub ports: PodPorts,
    pub directories: Directories,
    pub observed: ObservedSet,
    pub pulls: Semaphore,
    /// Pulls that may be begun now.
    pub pull_allowance: Mutex<Allowance>,
    pub security: NodeSecurity,
    /// Pods that hold resources of the node, by uid.
    pub admitted: Mutex<BTreeMap<String, Arc<Pod>>>,
    /// Told when a pod has given its room back.
    pub room: Notify,
    /// Pods of which the node may have processes, volumes or a status that nobody was told of, by uid.
    pub holding: Mutex<BTreeSet<String>>,
    /// Told when the node has nothing of a pod any more.
    pub let_go: Notify,
    /// Pods that have a worker, by uid.
    pub entries: Mutex<BTreeMap<String, PodEntry>>,
    /// How many pods have a worker.
    pub census: Arc<Census>,
    /// Starts of pods that are under way, by uid.
    pub startups: Mutex<HashMap<String, Startup>>,
    /// Where a worker tells that it is done, by its uid.
    pub ended: mpsc::UnboundedSender<String>,
    /// Ids of pods with a user namespace.
    pub user_namespaces: Arc<UserNamespaces>,
    /// Programs that give credentials for registries.
    pub credential_plugins: CredentialPlugins,
    /// What images were pulled with.
    pub pull_records: Arc<PullRecords>,
    /// Bounds of the restart back-off.
    pub bounds: BackoffBounds,
}

/// Locks a mutex whose data stay whole even if a holder panicked.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(crate) fn new(config: PodsConfig, ports: PodPorts, ended: mpsc::UnboundedSender<String>) -> Shared {
        let directories = Directories::new(&config.kubelet_root, &config.pod_logs_root);
        let max = SignedDuration::try_from(config.max_restart_period).unwrap_or(SignedDuration::from_secs(300));
        Shared {
            security: NodeSecurity {
                seccomp_default: config.seccomp_default,
                seccomp_root: config.kubelet_root.join("seccomp").to_string_lossy().into_owned(),
            },
            pulls: Semaphore::new(config.max_parallel_pulls.max(1)),
            pull_allowance: Mutex::new(Allowance::new(config.pull_rate)),
            observed: ObservedSet::new(),
            admitted: Mutex::default(),
            room: Notify::new(),
            holding: Mutex::default(),
            let_go: Notify::new(),
            entries: Mutex::default(),
            census: Arc::default(),
            startups: Mutex::default(),
            bounds: BackoffBounds::with_max(max.max(SignedDuration::from_secs(1))),
            user_namespaces: Arc::new(UserNamespaces::new(directories.pods(), config.id_space)),
            credential_plugins: {
                let (folder, providers) = config.credential_providers.clone();
                CredentialPlugins::new(folder, providers, ports.metrics.clone())
            },
            pull_records: Arc::new(PullRecords::new(
                &config.kubelet_root,
                config.image_verification.clone(),
                config.pace.clone(),
            )),
            directories,
            config,
            ports,
            ended,
        }
    }

    /// A pod no longer holds resources of the node.
    pub(crate) fn give_room(&self, uid: &str) {
        if lock(&self.admitted).remove(uid).is_some() {
            self.room.notify_one();
        }
    }

    /// Takes note of something in the start of a pod, if that is still under way.
    pub(crate) fn note_start(&self, uid: &str, note: impl FnOnce(&mut Startup, Timestamp)) {
        let now = self.now();
        if let Some(startup) = lock(&self.startups).get_mut(uid) {
            note(startup, now);
        }
    }

    /// The node has nothing of a pod any more but what goes with its API object.
    pub(crate) fn let_go(&self, uid: &str) {
        if lock(&self.holding).remove(uid) {
            self.let_go.notify_one();
        }
    }

    /// The time of day.
    pub(crate) fn now(&self) -> Timestamp {
        self.config.pace.now()
    }

    /// How requests become kernel values on this node.
    pub(crate) fn resource_policy(&self) -> ResourcePolicy {
        ResourcePolicy {
            cpu_period_us: self.config.cpu_period_us,
            cpu_quota: self.config.cpu_quota,
            node_memory_bytes: self
                .ports
                .node
                .capacity()
                .get("memory")
                .and_then(|quantity| units(quantity).ok())
                .unwrap_or(0),
            cgroup_v2: self.config.cgroup_v2,
        }
    }

    /// The node's part of resolv.conf, read anew: it changes when the node changes networks.
    pub(crate) async fn node_dns(&self) -> NodeDns {
        let path = self.config.resolv_conf.clone();
        let read = self.config.pace.blocking(move || std::fs::read_to_string(path)).await;
        let text = read.ok().and_then(Result::ok).unwrap_or_default();
        NodeDns {
            cluster_dns: self.config.cluster_dns.clone(),
            cluster_domain: self.config.cluster_domain.clone(),
            host: parse_resolv_conf(&text),
        }
    }
}
