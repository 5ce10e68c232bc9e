//! A pod's sandbox as the runtime is asked for it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;

use crate::admission::sysctl_name;
use crate::containers::{all_containers, annotation, host_network, is_sidecar, name, namespace, spec, uid};
use crate::dns::DnsSpec;
use crate::labels;
use crate::naming::PodNames;
use crate::resources::{
    LinuxResources, QosClass, ResourcePolicy, cpu_quota_us, cpu_shares, pod_limit, pod_request, qos_class,
};
use crate::runtime::{PortMapping, SandboxSpec};
use crate::security::{NodeSecurity, sandbox_security};
use crate::user_namespaces::IdMapping;

/// What a sandbox is made with besides the pod.
#[derive(Clone, Debug)]
pub struct SandboxContext<'a> {
    /// How many sandboxes the pod had before.
    pub attempt: u32,
    /// Names of the pod.
    pub names: &'a PodNames,
    /// Its resolv.conf.
    pub dns: DnsSpec,
    /// Directory that holds the logs of all pods.
    pub logs_root: &'a str,
    /// The pod's cgroup.
    pub cgroup_parent: String,
    /// Handler of the RuntimeClass.
    pub runtime_handler: String,
    /// Ids of the pod's user namespace.
    pub user_namespace: Option<IdMapping>,
    /// The node's part in security.
    pub security: &'a NodeSecurity,
    /// The node's part in resources.
    pub resources: &'a ResourcePolicy,
}

/// Directory of a pod's logs: `<root>/<namespace>_<name>_<uid>`.
pub fn log_directory(root: &str, pod: &Pod) -> String {
    format!("{}/{}_{}_{}", root.trim_end_matches('/'), namespace(pod), name(pod), uid(pod))
}

/// Labels that both sandbox and containers have.
pub fn pod_labels(pod: &Pod) -> BTreeMap<String, String> {
    BTreeMap::from([
        (labels::POD_NAME.to_owned(), name(pod).to_owned()),
        (labels::POD_NAMESPACE.to_owned(), namespace(pod).to_owned()),
        (labels::POD_UID.to_owned(), uid(pod).to_owned()),
    ])
}

/// The sandbox of a pod.
pub fn sandbox_spec(pod: &Pod, context: SandboxContext<'_>) -> SandboxSpec {
    let mut all_labels = pod.metadata.labels.clone().unwrap_or_default();
    all_labels.extend(pod_labels(pod));
    let mut annotations = pod.metadata.annotations.clone().unwrap_or_default();
    annotations.entry(labels::CONFIG_SOURCE.to_owned()).or_insert_with(|| "api".to_owned());
    if let Some(seen) = annotation(pod, labels::CONFIG_SEEN) {
        annotations.insert(labels::CONFIG_SEEN.to_owned(), seen.to_owned());
    }
    let sysctls = spec(pod)
        .and_then(|spec| spec.security_context.as_ref()?.sysctls.as_ref())
        .into_iter()
        .flatten()
        .map(|sysctl| (sysctl_name(&sysctl.name), sysctl.value.clone()))
        .collect();
    SandboxSpec {
        name: name(pod).to_owned(),
        namespace: namespace(pod).to_owned(),
        uid: uid(pod).to_owned(),
        attempt: context.attempt,
        // On the node's network the node's name is there already; runtimes refuse to set it.
        hostname: if host_network(pod) { String::new() } else { context.names.sandbox_hostname.clone() },
        log_directory: log_directory(context.logs_root, pod),
        dns: Some(context.dns),
        ports: port_mappings(pod),
        labels: all_labels,
        annotations,
        cgroup_parent: context.cgroup_parent,
        sysctls,
        security: sandbox_security(pod, context.user_namespace, context.security),
        resources: sum_of_resources(pod, context.resources),
        overhead: overhead(pod, context.resources),
        runtime_handler: context.runtime_handler,
    }
}

fn port_mappings(pod: &Pod) -> Vec<PortMapping> {
    if host_network(pod) {
        return Vec::new();
    }
    let Some(spec) = spec(pod) else { return Vec::new() };
    let sidecars = spec.init_containers.iter().flatten().filter(|container| is_sidecar(container));
    spec.containers
        .iter()
        .chain(sidecars)
        .flat_map(|container| container.ports.iter().flatten())
        .map(|port| PortMapping {
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
            container_port: port.container_port,
            host_port: port.host_port.unwrap_or(0),
            host_ip: port.host_ip.clone().unwrap_or_default(),
        })
        .collect()
}

fn sum_of_resources(pod: &Pod, policy: &ResourcePolicy) -> LinuxResources {
    let quota =
        pod_limit(pod, "cpu").filter(|_| policy.cpu_quota).map_or(0, |value| cpu_quota_us(value, policy.cpu_period_us));
    LinuxResources {
        cpu_period_us: if quota > 0 { policy.cpu_period_us } else { 0 },
        cpu_quota_us: quota,
        cpu_shares: if qos_class(pod) == QosClass::BestEffort {
            crate::resources::MIN_SHARES
        } else {
            cpu_shares(pod_request(pod, "cpu"))
        },
        memory_bytes: pod_limit(pod, "memory").unwrap_or(0),
        ..LinuxResources::default()
    }
}

fn overhead(pod: &Pod, policy: &ResourcePolicy) -> LinuxResources {
    let Some(list) = spec(pod).and_then(|spec| spec.overhead.as_ref()) else { return LinuxResources::default() };
    let cpu = list.get("cpu").and_then(|quantity| crate::quantity::milli(quantity).ok()).unwrap_or(0);
    let memory = list.get("memory").and_then(|quantity| crate::quantity::units(quantity).ok()).unwrap_or(0);
    LinuxResources {
        cpu_period_us: if cpu > 0 { policy.cpu_period_us } else { 0 },
        cpu_quota_us: cpu_quota_us(cpu, policy.cpu_period_us),
        cpu_shares: if cpu > 0 { cpu_shares(cpu) } else { 0 },
        memory_bytes: memory,
        ..LinuxResources::default()
    }
}

/// Whether any container of the pod asks for a privileged sandbox.
pub fn wants_privileged(pod: &Pod) -> bool {
    all_containers(pod).any(|container| {
        container.container.security_context.as_ref().is_some_and(|context| context.privileged == Some(true))
    })
}
