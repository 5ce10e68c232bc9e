//! `KubeletConfiguration` (kubelet.config.k8s.io/v1beta1): the fields that this agent heeds, by the kubelet's names and
//! with its defaults.

mod fields;
mod load;
mod shutdown;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use orlop_agent_core::allowance::Rate;
use orlop_agent_core::log_rotation::LogRotation;
use orlop_agent_core::pull_records::VerificationPolicy;
use orlop_agent_core::quantity::units;
use orlop_agent_pods::StaticUrl;
use serde::{Deserialize, Serialize};

use crate::duration::GoDuration;

pub use load::{ConfigError, LoadedConfig, load_config, parse_config};
pub use shutdown::PriorityGracePeriod;

/// Shortest time between two looks at the sizes of logs (the kubelet's check of its configuration).
const LOG_INTERVAL_MIN: GoDuration = GoDuration::from_secs(3);

/// The settings of a kubelet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct KubeletConfiguration {
    /// Serve the kubelet port at all.
    pub enable_server: bool,
    /// Address of the kubelet port.
    pub address: IpAddr,
    /// Port of the kubelet port.
    pub port: u16,
    /// Certificate of the kubelet port in PEM; empty makes one.
    pub tls_cert_file: PathBuf,
    /// Its key.
    pub tls_private_key_file: PathBuf,
    /// Who makes requests to the kubelet port.
    pub authentication: Authentication,
    /// What they may do.
    pub authorization: AuthorizationConfig,
    /// Serve logs, exec, attach, port-forward and run.
    pub enable_debugging_handlers: bool,
    /// Port for health checks; 0 for none.
    pub healthz_port: u16,
    /// Its address.
    pub healthz_bind_address: IpAddr,
    /// A stream without traffic for so long is closed.
    pub streaming_connection_idle_timeout: GoDuration,
    /// Folder of static pods; empty for none.
    pub static_pod_path: PathBuf,
    /// Between two full scans of it.
    pub file_check_frequency: GoDuration,
    /// Address of static pods; empty for none.
    #[serde(rename = "staticPodURL")]
    pub static_pod_url: String,
    /// Headers to ask it with, each with its values.
    #[serde(rename = "staticPodURLHeader", serialize_with = "masked")]
    pub static_pod_url_header: BTreeMap<String, Vec<String>>,
    /// Between two askings.
    pub http_check_frequency: GoDuration,
    /// Make the Node object.
    pub register_node: bool,
    /// Taints to register with.
    pub register_with_taints: Vec<TaintConfig>,
    /// How often the node's status is computed.
    pub node_status_update_frequency: GoDuration,
    /// How often it is reported though nothing changed.
    pub node_status_report_frequency: GoDuration,
    /// Life of the node's lease.
    pub node_lease_duration_seconds: i32,
    /// Images in the node's status; -1 for all.
    pub node_status_max_images: i32,
    /// Most pods.
    pub max_pods: i64,
    /// Most pods per core; 0 for no such limit.
    pub pods_per_core: i64,
    /// `spec.providerID` of the node.
    #[serde(rename = "providerID")]
    pub provider_id: String,
    /// Image pulls one after the other.
    pub serialize_image_pulls: bool,
    /// Image pulls at once.
    pub max_parallel_image_pulls: Option<usize>,
    /// Image pulls per second; 0 for no limit.
    #[serde(rename = "registryPullQPS")]
    pub registry_pull_qps: i32,
    /// Image pulls that may be begun at once after a rest.
    pub registry_burst: i32,
    /// Events written per second; 0 for no limit.
    #[serde(rename = "eventRecordQPS")]
    pub event_record_qps: i32,
    /// Events that may be written at once after a rest.
    pub event_burst: i32,
    /// Socket of the container runtime.
    pub container_runtime_endpoint: String,
    /// Socket of the image service; empty for the same.
    pub image_service_endpoint: String,
    /// Deadline of ordinary calls to the runtime.
    pub runtime_request_timeout: GoDuration,
    /// `cgroupfs`; `systemd` is not supported yet.
    pub cgroup_driver: String,
    /// Prefix of the pods' cgroups.
    pub cgroup_root: String,
    /// Most processes of a pod; -1 for no limit.
    pub pod_pids_limit: i64,
    /// CPU limits become CFS quotas.
    #[serde(rename = "cpuCFSQuota")]
    pub cpu_cfs_quota: bool,
    /// CFS period.
    #[serde(rename = "cpuCFSQuotaPeriod")]
    pub cpu_cfs_quota_period: GoDuration,
    /// Folder of the pods' logs.
    pub pod_logs_dir: PathBuf,
    /// A container's log is rotated when it is so long (`10Mi`); a negative one rotates none.
    pub container_log_max_size: String,
    /// Files of one log.
    pub container_log_max_files: usize,
    /// Logs that are rotated at the same time.
    pub container_log_max_workers: usize,
    /// Between two looks at the sizes of logs.
    pub container_log_monitor_interval: GoDuration,
    /// Kept for the system, by resource.
    pub system_reserved: BTreeMap<String, String>,
    /// Kept for Kubernetes' own programs, by resource.
    pub kube_reserved: BTreeMap<String, String>,
    /// Hard eviction thresholds, by signal.
    pub eviction_hard: BTreeMap<String, String>,
    /// Domain of the cluster.
    pub cluster_domain: String,
    /// Nameservers of the cluster.
    #[serde(rename = "clusterDNS")]
    pub cluster_dns: Vec<IpAddr>,
    /// The node's resolv.conf.
    pub resolv_conf: PathBuf,
    /// Containers without a seccomp profile get the runtime's.
    pub seccomp_default: bool,
    /// Sysctls that pods may set besides the safe ones: names, or beginnings of names followed by `*`.
    pub allowed_unsafe_sysctls: Vec<String>,
    /// Ids of pods with a user namespace.
    pub user_namespaces: UserNamespaces,
    /// Whose access to images that are there is checked; empty for `NeverVerifyPreloadedImages`.
    pub image_pull_credentials_verification_policy: String,
    /// Images that need no check with `NeverVerifyAllowlistedImages`.
    pub preloaded_images_verification_allowlist: Vec<String>,
    /// Back-off of restarts.
    pub crash_loop_back_off: CrashLoopBackOff,
    /// How long all pods have to end when the machine goes down; 0 ends none.
    pub shutdown_grace_period: GoDuration,
    /// The last part of it, which is kept for critical pods.
    pub shutdown_grace_period_critical_pods: GoDuration,
    /// How long pods have by their priority, instead of the two above.
    pub shutdown_grace_period_by_pod_priority: Vec<PriorityGracePeriod>,
}

/// Headers without their values, which may be secrets: `/configz` shows the settings.
fn masked<S: serde::Serializer>(headers: &BTreeMap<String, Vec<String>>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(headers.keys().map(|name| (name, ["<masked>"])))
}

/// `authentication`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Authentication {
    /// Client certificates.
    pub x509: X509Authentication,
    /// Bearer tokens.
    pub webhook: WebhookAuthentication,
    /// Requests without credentials.
    pub anonymous: AnonymousAuthentication,
}

/// `authentication.x509`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct X509Authentication {
    /// CA of client certificates in PEM; empty takes none.
    #[serde(rename = "clientCAFile")]
    pub client_ca_file: PathBuf,
}

/// `authentication.webhook`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WebhookAuthentication {
    /// Ask the API server whose a token is.
    pub enabled: bool,
    /// How long its answer is believed.
    #[serde(rename = "cacheTTL")]
    pub cache_ttl: GoDuration,
}

impl Default for WebhookAuthentication {
    fn default() -> Self {
        Self { enabled: true, cache_ttl: GoDuration::from_secs(120) }
    }
}

/// `authentication.anonymous`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AnonymousAuthentication {
    /// Requests without credentials are `system:anonymous`'s.
    pub enabled: bool,
}

/// `authorization`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AuthorizationConfig {
    /// `Webhook` or `AlwaysAllow`.
    pub mode: String,
    /// How the API server is asked.
    pub webhook: WebhookAuthorization,
}

impl Default for AuthorizationConfig {
    fn default() -> Self {
        Self { mode: "Webhook".to_owned(), webhook: WebhookAuthorization::default() }
    }
}

/// `authorization.webhook`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WebhookAuthorization {
    /// How long a permission is believed.
    #[serde(rename = "cacheAuthorizedTTL")]
    pub cache_authorized_ttl: GoDuration,
    /// How long a refusal is believed.
    #[serde(rename = "cacheUnauthorizedTTL")]
    pub cache_unauthorized_ttl: GoDuration,
}

impl Default for WebhookAuthorization {
    fn default() -> Self {
        Self { cache_authorized_ttl: GoDuration::from_secs(300), cache_unauthorized_ttl: GoDuration::from_secs(30) }
    }
}

/// An entry of `registerWithTaints`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TaintConfig {
    /// Key.
    pub key: String,
    /// Value.
    pub value: String,
    /// Effect.
    pub effect: String,
}

/// `crashLoopBackOff`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CrashLoopBackOff {
    /// Longest wait between restarts, from 1 s to 300 s.
    pub max_container_restart_period: Option<GoDuration>,
}

/// `userNamespaces`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct UserNamespaces {
    /// Ids of each pod, a multiple of 65536.
    pub ids_per_pod: u32,
}

impl Default for UserNamespaces {
    fn default() -> Self {
        Self { ids_per_pod: 65_536 }
    }
}

impl Default for KubeletConfiguration {
    fn default() -> Self {
        Self {
            enable_server: true,
            address: [0, 0, 0, 0].into(),
            port: 10250,
            tls_cert_file: PathBuf::new(),
            tls_private_key_file: PathBuf::new(),
            authentication: Authentication::default(),
            authorization: AuthorizationConfig::default(),
            enable_debugging_handlers: true,
            healthz_port: 10248,
            healthz_bind_address: [127, 0, 0, 1].into(),
            streaming_connection_idle_timeout: GoDuration::from_secs(4 * 3600),
            static_pod_path: PathBuf::new(),
            file_check_frequency: GoDuration::from_secs(20),
            static_pod_url: String::new(),
            static_pod_url_header: BTreeMap::new(),
            http_check_frequency: GoDuration::from_secs(20),
            register_node: true,
            register_with_taints: Vec::new(),
            node_status_update_frequency: GoDuration::from_secs(10),
            node_status_report_frequency: GoDuration::from_secs(300),
            node_lease_duration_seconds: 40,
            node_status_max_images: 50,
            max_pods: 110,
            pods_per_core: 0,
            provider_id: String::new(),
            serialize_image_pulls: false,
            max_parallel_image_pulls: None,
            registry_pull_qps: 5,
            registry_burst: 10,
            event_record_qps: 50,
            event_burst: 100,
            container_runtime_endpoint: String::new(),
            image_service_endpoint: String::new(),
            runtime_request_timeout: GoDuration::from_secs(120),
            cgroup_driver: "cgroupfs".to_owned(),
            cgroup_root: String::new(),
            pod_pids_limit: -1,
            cpu_cfs_quota: true,
            cpu_cfs_quota_period: GoDuration(std::time::Duration::from_millis(100)),
            pod_logs_dir: "/var/log/pods".into(),
            container_log_max_size: "10Mi".to_owned(),
            container_log_max_files: 5,
            container_log_max_workers: 1,
            container_log_monitor_interval: GoDuration::from_secs(10),
            system_reserved: BTreeMap::new(),
            kube_reserved: BTreeMap::new(),
            eviction_hard: BTreeMap::new(),
            cluster_domain: String::new(),
            cluster_dns: Vec::new(),
            resolv_conf: "/etc/resolv.conf".into(),
            seccomp_default: false,
            allowed_unsafe_sysctls: Vec::new(),
            user_namespaces: UserNamespaces::default(),
            image_pull_credentials_verification_policy: "NeverVerifyPreloadedImages".to_owned(),
            preloaded_images_verification_allowlist: Vec::new(),
            crash_loop_back_off: CrashLoopBackOff::default(),
            shutdown_grace_period: GoDuration::default(),
            shutdown_grace_period_critical_pods: GoDuration::default(),
            shutdown_grace_period_by_pod_priority: Vec::new(),
        }
    }
}

impl KubeletConfiguration {
    /// Whose access to images that are there is checked, from the two settings about it.
    ///
    /// # Errors
    /// In words, naming the field.
    pub fn image_verification(&self) -> Result<VerificationPolicy, String> {
        let allowed = &self.preloaded_images_verification_allowlist;
        VerificationPolicy::new(&self.image_pull_credentials_verification_policy, allowed)
    }

    /// Where static pods are asked for, from the three settings about it.
    ///
    /// # Errors
    /// In words, naming the field.
    pub fn static_url(&self) -> Result<Option<StaticUrl>, String> {
        if self.static_pod_url.is_empty() {
            return Ok(None);
        }
        StaticUrl::new(&self.static_pod_url, &self.static_pod_url_header, self.http_check_frequency.0).map(Some)
    }

    /// When logs of containers are rotated, from the four settings about it; none for never.
    ///
    /// # Errors
    /// In words, naming the field.
    pub fn log_rotation(&self) -> Result<Option<LogRotation>, String> {
        let size = Quantity(self.container_log_max_size.clone());
        let bytes = units(&size).map_err(|why| format!("containerLogMaxSize: {why}"))?;
        if self.container_log_max_files < 2 {
            return Err(format!("containerLogMaxFiles: {} is less than 2", self.container_log_max_files));
        }
        if self.container_log_max_workers < 1 {
            return Err("containerLogMaxWorkers: must be at least 1".to_owned());
        }
        let interval = self.container_log_monitor_interval;
        if interval < LOG_INTERVAL_MIN {
            return Err(format!("containerLogMonitorInterval: {interval} is less than {LOG_INTERVAL_MIN}"));
        }
        Ok(u64::try_from(bytes).ok().map(|bytes_max| LogRotation {
            bytes_max,
            files_max: self.container_log_max_files,
            at_once: self.container_log_max_workers,
            interval: interval.0,
        }))
    }

    /// Image pulls in a time.
    pub fn pull_rate(&self) -> Rate {
        rate(self.registry_pull_qps, self.registry_burst)
    }

    /// Events in a time.
    pub fn event_rate(&self) -> Rate {
        rate(self.event_record_qps, self.event_burst)
    }

    /// Image pulls at once, from the two settings about it.
    pub fn image_pulls_at_once(&self) -> usize {
        match self.max_parallel_image_pulls {
            Some(count) => count.max(1),
            None if self.serialize_image_pulls => 1,
            None => 5,
        }
    }
}

/// Negative numbers, which are refused when the settings are read, count as 0.
fn rate(per_second: i32, burst: i32) -> Rate {
    let count = |number: i32| u32::try_from(number).unwrap_or(0);
    Rate { per_second: count(per_second), burst: count(burst) }
}
