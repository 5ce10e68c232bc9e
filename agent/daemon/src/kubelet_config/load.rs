//! Reading `KubeletConfiguration` files.

use std::path::{Path, PathBuf};

use orlop_agent_core::admission::check_sysctl_pattern;
use orlop_agent_core::user_namespaces::IdSpace;
use serde_json::{Map, Value};

use super::KubeletConfiguration;
use super::fields::{HARMLESS, UNHEEDED};
use crate::duration::GoDuration;

/// Longest configuration file in bytes.
const FILE_MAX: u64 = 1 << 20;
const API_VERSION: &str = "kubelet.config.k8s.io/v1beta1";

/// Why a configuration file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It can't be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is not what it should be.
    #[error("{path}: {why}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong, naming the field.
        why: String,
    },
}

/// A configuration, and what in its file has no effect.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadedConfig {
    /// The settings.
    pub config: KubeletConfiguration,
    /// For the user: unknown fields, and known ones that are not heeded yet.
    pub warnings: Vec<String>,
}

/// Reads a file in YAML or JSON. Like a kubelet's, fields that are not known are warned about and do not stop the
/// node; values that make no sense do.
///
/// # Errors
/// [`ConfigError`] naming the file and the field.
pub fn load_config(path: &Path) -> Result<LoadedConfig, ConfigError> {
    let read = |source| ConfigError::Read { path: path.to_owned(), source };
    let content = |why| ConfigError::Content { path: path.to_owned(), why };
    let size = std::fs::metadata(path).map_err(read)?.len();
    if size > FILE_MAX {
        return Err(content(format!("is {size} bytes long, {FILE_MAX} at most")));
    }
    let text = std::fs::read_to_string(path).map_err(read)?;
    parse_config(&text).map_err(content)
}

/// Reads the text of a file.
///
/// # Errors
/// A text for the user that names the field.
pub fn parse_config(text: &str) -> Result<LoadedConfig, String> {
    let document: Value = serde_saphyr::from_str(text).map_err(|error| format!("is no YAML: {error}"))?;
    let Value::Object(mut fields) = document else { return Err("is no YAML map".to_owned()) };
    for (field, want) in [("apiVersion", API_VERSION), ("kind", "KubeletConfiguration")] {
        match fields.remove(field) {
            Some(Value::String(found)) if found == want => {}
            found => {
                let found = found.map_or_else(|| "nothing".to_owned(), |found| found.to_string());
                return Err(format!("{field}: {want} is needed, not {found}"));
            }
        }
    }
    forget_defaults(&mut fields);
    let warnings = warnings(&mut fields);
    let config: KubeletConfiguration = serde_path(Value::Object(fields))?;
    check(&config)?;
    Ok(LoadedConfig { config, warnings })
}

/// Takes out what stands for a default: null, and the zero durations that kubeadm writes.
fn forget_defaults(fields: &mut Map<String, Value>) {
    fields.retain(|_, value| !value.is_null() && !matches!(value.as_str(), Some("0s" | "0")));
    for value in fields.values_mut() {
        if let Value::Object(inner) = value {
            forget_defaults(inner);
        }
    }
}

/// Takes fields without effect out and says so.
fn warnings(fields: &mut Map<String, Value>) -> Vec<String> {
    let known = serde_json::to_value(KubeletConfiguration::default()).unwrap_or_default();
    let mut warnings = Vec::new();
    let names: Vec<String> = fields.keys().filter(|name| known.get(name.as_str()).is_none()).cloned().collect();
    for name in names {
        fields.remove(&name);
        if UNHEEDED.contains(&name.as_str()) {
            warnings.push(format!("{name} has no effect yet"));
        } else if !HARMLESS.contains(&name.as_str()) {
            warnings.push(format!("{name} is not a field of KubeletConfiguration"));
        }
    }
    warnings
}

/// Reads field by field, so that an error names its field.
fn serde_path(value: Value) -> Result<KubeletConfiguration, String> {
    let Value::Object(fields) = value else { return Ok(KubeletConfiguration::default()) };
    for (name, value) in &fields {
        let alone = Map::from_iter([(name.clone(), value.clone())]);
        if let Err(error) = serde_json::from_value::<KubeletConfiguration>(Value::Object(alone)) {
            return Err(format!("{name}: {error}"));
        }
    }
    serde_json::from_value(Value::Object(fields)).map_err(|error| error.to_string())
}

/// What the types don't say.
fn check(config: &KubeletConfiguration) -> Result<(), String> {
    let one_of = |field: &str, value: &str, allowed: &[&str]| {
        if allowed.contains(&value) {
            return Ok(());
        }
        Err(format!("{field}: {value:?} is none of {}", allowed.join(", ")))
    };
    one_of("authorization.mode", &config.authorization.mode, &["Webhook", "AlwaysAllow"])?;
    one_of("cgroupDriver", &config.cgroup_driver, &["cgroupfs"])?;
    if config.port == 0 && config.enable_server {
        return Err("port: must not be 0".to_owned());
    }
    if config.max_pods < 1 {
        return Err(format!("maxPods: {} is less than 1", config.max_pods));
    }
    if config.node_lease_duration_seconds < 1 {
        return Err("nodeLeaseDurationSeconds: must be at least 1".to_owned());
    }
    if config.tls_cert_file.as_os_str().is_empty() != config.tls_private_key_file.as_os_str().is_empty() {
        return Err("tlsCertFile and tlsPrivateKeyFile: give both or neither".to_owned());
    }
    if !config.cgroup_root.is_empty() && !config.cgroup_root.starts_with('/') {
        return Err(format!("cgroupRoot: {:?} does not start with a slash", config.cgroup_root));
    }
    let (shortest, longest) = (GoDuration(std::time::Duration::from_millis(1)), GoDuration::from_secs(1));
    if !(shortest..=longest).contains(&config.cpu_cfs_quota_period) {
        return Err(format!("cpuCFSQuotaPeriod: {} is not between 1ms and 1s", config.cpu_cfs_quota_period));
    }
    if let Some(period) = config.crash_loop_back_off.max_container_restart_period
        && !(GoDuration::from_secs(1)..=GoDuration::from_secs(300)).contains(&period)
    {
        return Err(format!("crashLoopBackOff.maxContainerRestartPeriod: {period} is not between 1s and 300s"));
    }
    IdSpace::of_machine(config.user_namespaces.ids_per_pod, config.max_pods)
        .map_err(|why| format!("userNamespaces.idsPerPod: {why}"))?;
    config.image_verification()?;
    config.static_url()?;
    config.log_rotation()?;
    config.shutdown_periods()?;
    for pattern in &config.allowed_unsafe_sysctls {
        check_sysctl_pattern(pattern).map_err(|why| format!("allowedUnsafeSysctls: {why}"))?;
    }
    for (field, number) in [
        ("registryPullQPS", config.registry_pull_qps),
        ("registryBurst", config.registry_burst),
        ("eventRecordQPS", config.event_record_qps),
        ("eventBurst", config.event_burst),
    ] {
        if number < 0 {
            return Err(format!("{field}: must not be negative"));
        }
    }
    if config.node_status_update_frequency.0.is_zero() {
        return Err("nodeStatusUpdateFrequency: must be more than 0".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";

    #[test]
    fn a_kubeadm_file_is_taken() {
        let text = format!(
            "{HEAD}{}",
            r#"
authentication:
  anonymous: {enabled: false}
  webhook: {cacheTTL: 0s, enabled: true}
  x509: {clientCAFile: /etc/kubernetes/pki/ca.crt}
authorization: {mode: Webhook, webhook: {cacheAuthorizedTTL: 0s, cacheUnauthorizedTTL: 0s}}
cgroupDriver: cgroupfs
clusterDNS: [10.96.0.10]
clusterDomain: cluster.local
containerLogMaxSize: 20Mi
containerRuntimeEndpoint: unix:///run/orlop/cri.sock
cpuManagerReconcilePeriod: 0s
crashLoopBackOff: {maxContainerRestartPeriod: 1m}
evictionHard: {memory.available: 200Mi}
fileCheckFrequency: 5s
healthzBindAddress: 127.0.0.1
healthzPort: 10248
maxPods: 20
registerWithTaints: [{key: a, effect: NoSchedule}]
rotateCertificates: true
staticPodPath: /etc/kubernetes/manifests
systemReserved: {cpu: 100m}
volumeStatsAggPeriod: 0s
staticPodURL: https://pods.example/of/this
staticPodURLHeader: {X-Word: [sesame]}
nonsense: 1
evictionSoft: null
"#
        );
        let loaded = parse_config(&text).unwrap();
        let config = &loaded.config;
        assert_eq!((config.max_pods, config.cluster_domain.as_str()), (20, "cluster.local"));
        assert_eq!(config.file_check_frequency, GoDuration::from_secs(5));
        assert_eq!(config.cluster_dns, ["10.96.0.10".parse::<std::net::IpAddr>().unwrap()]);
        assert_eq!(config.authentication.x509.client_ca_file.as_os_str(), "/etc/kubernetes/pki/ca.crt");
        assert_eq!(config.eviction_hard["memory.available"], "200Mi");
        assert_eq!(config.port, 10250, "a default");
        assert!(config.static_url().unwrap().is_some());
        let rotation = config.log_rotation().unwrap().unwrap();
        assert_eq!((rotation.bytes_max, rotation.files_max), (20 << 20, 5));
        let unbounded = parse_config(&format!("{HEAD}containerLogMaxSize: \"-1\"\n")).unwrap().config;
        assert_eq!(unbounded.log_rotation().unwrap(), None);
        let shown = serde_json::to_value(config).unwrap()["staticPodURLHeader"].to_string();
        assert_eq!(shown, r#"{"X-Word":["<masked>"]}"#);
        assert_eq!(config.authentication.webhook.cache_ttl, GoDuration::from_secs(120), "0s is a default");
        assert_eq!(
            loaded.warnings,
            ["nonsense is not a field of KubeletConfiguration", "rotateCertificates has no effect yet",]
        );
    }

    #[test]
    fn errors_name_the_field() {
        for (text, word) in [
            ("kind: KubeletConfiguration\n", "apiVersion"),
            ("apiVersion: kubelet.config.k8s.io/v1beta1\nkind: Pod\n", "kind"),
            ("- a\n", "map"),
            (&format!("{HEAD}maxPods: many\n"), "maxPods"),
            (&format!("{HEAD}maxPods: 0\n"), "maxPods"),
            (&format!("{HEAD}fileCheckFrequency: often\n"), "fileCheckFrequency"),
            (&format!("{HEAD}cgroupDriver: systemd\n"), "cgroupDriver"),
            (&format!("{HEAD}authorization: {{mode: Sometimes}}\n"), "authorization.mode"),
            (&format!("{HEAD}clusterDNS: [nowhere]\n"), "clusterDNS"),
            (&format!("{HEAD}tlsCertFile: /a\n"), "tlsPrivateKeyFile"),
            (&format!("{HEAD}cgroupRoot: a\n"), "cgroupRoot"),
            (&format!("{HEAD}registryPullQPS: -1\n"), "registryPullQPS"),
            (&format!("{HEAD}staticPodURL: file:///a\n"), "staticPodURL"),
            (&format!("{HEAD}registryBurst: -1\n"), "registryBurst"),
            (&format!("{HEAD}eventRecordQPS: -1\n"), "eventRecordQPS"),
            (&format!("{HEAD}eventBurst: -1\n"), "eventBurst"),
            (&format!("{HEAD}containerLogMaxSize: much\n"), "containerLogMaxSize"),
            (&format!("{HEAD}containerLogMaxFiles: 1\n"), "containerLogMaxFiles"),
            (&format!("{HEAD}containerLogMaxFiles: -1\n"), "containerLogMaxFiles"),
            (&format!("{HEAD}containerLogMaxWorkers: 0\n"), "containerLogMaxWorkers"),
            (&format!("{HEAD}containerLogMonitorInterval: 2s\n"), "containerLogMonitorInterval"),
            (&format!("{HEAD}userNamespaces: {{idsPerPod: 1000}}\n"), "userNamespaces.idsPerPod"),
            (
                &format!("{HEAD}imagePullCredentialsVerificationPolicy: Sometimes\n"),
                "imagePullCredentialsVerificationPolicy",
            ),
            (&format!("{HEAD}allowedUnsafeSysctls: [net.*, vm.swappiness]\n"), "allowedUnsafeSysctls"),
            (&format!("{HEAD}crashLoopBackOff: {{maxContainerRestartPeriod: 10m}}\n"), "maxContainerRestartPeriod"),
        ] {
            let error = parse_config(text).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn all_fields_have_one_place() {
        let known = serde_json::to_value(KubeletConfiguration::default()).unwrap();
        for name in UNHEEDED {
            assert!(known.get(name).is_none(), "{name} is heeded");
        }
        assert!(UNHEEDED.is_sorted());
    }
}
