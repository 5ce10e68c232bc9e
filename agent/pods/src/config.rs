//! Settings of the pod manager and the ports that it works with.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use orlop_agent_core::allowance::Rate;
use orlop_agent_core::credential_providers::CredentialProvider;
use orlop_agent_core::log_rotation::LogRotation;
use orlop_agent_core::metrics::Metrics;
use orlop_agent_core::ports::{Events, MirrorPods, NodeFacts, Objects, PodCgroups, StatusSink, Volumes};
use orlop_agent_core::pull_records::VerificationPolicy;
use orlop_agent_core::runtime::Runtime;
use orlop_agent_core::user_namespaces::IdSpace;

use crate::node_credentials::CredentialFolders;
use crate::pace::Pace;
use crate::static_url::StaticUrl;

/// Settings of the pod manager.
#[derive(Clone, Debug)]
pub struct PodsConfig {
    /// Name of the node.
    pub node_name: String,
    /// The kubelet's root (`/var/lib/kubelet`).
    pub kubelet_root: PathBuf,
    /// Logs of pods (`/var/log/pods`).
    pub pod_logs_root: PathBuf,
    /// Links to container logs (`/var/log/containers`); none makes no links.
    pub container_logs: Option<PathBuf>,
    /// When logs of containers are rotated; none lets them grow.
    pub log_rotation: Option<LogRotation>,
    /// Directory of static pods; none has no static pods.
    pub static_pod_path: Option<PathBuf>,
    /// Between two full scans of that directory (kubelet `fileCheckFrequency`, 20 s).
    pub file_check: Duration,
    /// Address of static pods; none asks nobody.
    pub static_url: Option<StaticUrl>,
    /// Nameservers of the cluster.
    pub cluster_dns: Vec<IpAddr>,
    /// Domain of the cluster.
    pub cluster_domain: String,
    /// The node's resolv.conf.
    pub resolv_conf: PathBuf,
    /// The node's hosts file, for pods on its network.
    pub hosts_file: PathBuf,
    /// Image pulls at the same time.
    pub max_parallel_pulls: usize,
    /// Image pulls in a time (`registryPullQPS`, `registryBurst`).
    pub pull_rate: Rate,
    /// Folders with credentials of the node for registries.
    pub credential_folders: CredentialFolders,
    /// Whether CPU limits become CFS quotas.
    pub cpu_quota: bool,
    /// CFS period in microseconds.
    pub cpu_period_us: i64,
    /// The node has cgroup v2.
    pub cgroup_v2: bool,
    /// Containers without seccomp profile get the runtime's.
    pub seccomp_default: bool,
    /// Sysctls that pods may set besides the safe ones (`allowedUnsafeSysctls`).
    pub unsafe_sysctls: Vec<String>,
    /// The kernel enforces AppArmor profiles.
    pub apparmor: bool,
    /// Ids for pods with a user namespace of their own.
    pub id_space: IdSpace,
    /// Programs that give credentials for registries, and the folder that they are in.
    pub credential_providers: (PathBuf, Vec<CredentialProvider>),
    /// Whose access to images that are there is checked.
    pub image_verification: VerificationPolicy,
    /// Pods that a shutdown of the node before this start told to end, by uid, with their grace in seconds: they stay
    /// ended. Static pods begin anew with each start.
    pub shut_down_pods: BTreeMap<String, i64>,
    /// Longest back-off of restarts (`maxContainerRestartPeriod`, 300 s).
    pub max_restart_period: Duration,
    /// Between two lists of everything in the runtime, as a safety net.
    pub relist: Duration,
    /// Between two renewals of volume contents (tokens).
    pub volume_refresh: Duration,
    /// Time, threads and order of work.
    pub pace: Pace,
}

impl PodsConfig {
    /// The kubelet's defaults for a node of that name, on this kernel.
    pub fn new(node_name: impl Into<String>) -> PodsConfig {
        PodsConfig {
            node_name: node_name.into(),
            kubelet_root: "/var/lib/kubelet".into(),
            pod_logs_root: "/var/log/pods".into(),
            container_logs: None,
            log_rotation: Some(LogRotation::default()),
            static_pod_path: None,
            file_check: Duration::from_secs(20),
            static_url: None,
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".into(),
            resolv_conf: "/etc/resolv.conf".into(),
            hosts_file: "/etc/hosts".into(),
            max_parallel_pulls: 10,
            pull_rate: Rate::PULLS,
            credential_folders: CredentialFolders::default(),
            cpu_quota: true,
            cpu_period_us: 100_000,
            cgroup_v2: false,
            seccomp_default: false,
            unsafe_sysctls: Vec::new(),
            apparmor: orlop_kernel::lsm::has_apparmor(),
            id_space: IdSpace::default(),
            credential_providers: (PathBuf::new(), Vec::new()),
            image_verification: VerificationPolicy::default(),
            shut_down_pods: BTreeMap::new(),
            max_restart_period: Duration::from_secs(300),
            relist: Duration::from_secs(60),
            volume_refresh: Duration::from_secs(60),
            pace: Pace::default(),
        }
    }
}

/// The ports that the rim implements for the pod manager.
#[derive(Clone)]
pub struct PodPorts {
    /// The container runtime.
    pub runtime: Arc<dyn Runtime>,
    /// Objects of the API.
    pub objects: Arc<dyn Objects>,
    /// Volumes.
    pub volumes: Arc<dyn Volumes>,
    /// Events.
    pub events: Arc<dyn Events>,
    /// Statuses.
    pub statuses: Arc<dyn StatusSink>,
    /// Mirror pods; none in standalone mode.
    pub mirrors: Option<Arc<dyn MirrorPods>>,
    /// Cgroups of pods.
    pub cgroups: Arc<dyn PodCgroups>,
    /// The node.
    pub node: Arc<dyn NodeFacts>,
    /// Where the pod manager counts what it does.
    pub metrics: Arc<Metrics>,
}
