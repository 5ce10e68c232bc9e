//! Requests and limits as the kernel and the runtime want them: QoS class, CPU shares and quota, memory, OOM score.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::containers::{ContainerKind, app_containers, init_containers, is_sidecar, spec};
use crate::ports::PodCgroupLimits;
use crate::quantity::{milli, units};

/// Fewest CPU shares that the kernel takes.
pub const MIN_SHARES: i64 = 2;
/// Most CPU shares that the kernel takes.
pub const MAX_SHARES: i64 = 262_144;
/// Shortest CFS quota, in microseconds.
pub const MIN_QUOTA_US: i64 = 1000;
/// Priority from which a pod is critical to the node (`system-node-critical`).
pub const NODE_CRITICAL_PRIORITY: i32 = 2_000_001_000;
/// Priority from which a pod is critical (`system-cluster-critical`).
pub const CRITICAL_PRIORITY: i32 = 2_000_000_000;

/// Quality of service class of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum QosClass {
    /// Every container has limits of CPU and memory that equal its requests.
    Guaranteed,
    /// Some request or limit is set.
    Burstable,
    /// Nothing is set.
    BestEffort,
}

impl QosClass {
    /// Its name in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            QosClass::Guaranteed => "Guaranteed",
            QosClass::Burstable => "Burstable",
            QosClass::BestEffort => "BestEffort",
        }
    }
}

type List = BTreeMap<String, Quantity>;

fn amount(list: Option<&List>, name: &str) -> Option<i64> {
    let quantity = list?.get(name)?;
    let value = if name == "cpu" { milli(quantity) } else { units(quantity) };
    value.ok()
}

fn request(resources: Option<&ResourceRequirements>, name: &str) -> i64 {
    resources.and_then(|r| amount(r.requests.as_ref(), name).or_else(|| amount(r.limits.as_ref(), name))).unwrap_or(0)
}

fn limit(resources: Option<&ResourceRequirements>, name: &str) -> Option<i64> {
    resources.and_then(|r| amount(r.limits.as_ref(), name)).filter(|value| *value > 0)
}

/// QoS class of a pod, as `PodQOSClass` of the API server computes it.
pub fn qos_class(pod: &Pod) -> QosClass {
    let pod_level = spec(pod).and_then(|spec| spec.resources.as_ref());
    let parts: Vec<Option<&ResourceRequirements>> = match pod_level {
        Some(resources) if resources.requests.is_some() || resources.limits.is_some() => vec![Some(resources)],
        _ => spec(pod)
            .into_iter()
            .flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()))
            .map(|container| container.resources.as_ref())
            .collect(),
    };
    let mut anything = false;
    let mut guaranteed = !parts.is_empty();
    for resources in &parts {
        for name in ["cpu", "memory"] {
            let limit = limit(*resources, name);
            let request = request(*resources, name);
            anything |= limit.is_some() || request > 0;
            guaranteed &= limit.is_some() && limit == Some(request);
        }
    }
    match (anything, guaranteed) {
        (false, _) => QosClass::BestEffort,
        (true, true) => QosClass::Guaranteed,
        (true, false) => QosClass::Burstable,
    }
}

/// CPU shares for a request in thousandths of a CPU.
pub fn cpu_shares(milli_cpu: i64) -> i64 {
    if milli_cpu <= 0 { MIN_SHARES } else { (milli_cpu * 1024 / 1000).clamp(MIN_SHARES, MAX_SHARES) }
}

/// CFS quota in microseconds for a limit in thousandths of a CPU; 0 without limit.
pub fn cpu_quota_us(milli_cpu: i64, period_us: i64) -> i64 {
    if milli_cpu <= 0 { 0 } else { (milli_cpu * period_us / 1000).max(MIN_QUOTA_US) }
}

/// What all containers of a pod ask for of one resource, by requests or by limits: the sum of app containers and
/// sidecars, or what the hungriest step of initialisation needs, whichever is more; and the overhead.
pub fn pod_request(pod: &Pod, name: &str) -> i64 {
    let Some(spec) = spec(pod) else { return 0 };
    let overhead = amount(spec.overhead.as_ref(), name).unwrap_or(0);
    if let Some(value) = spec
        .resources
        .as_ref()
        .and_then(|r| amount(r.requests.as_ref(), name).or_else(|| amount(r.limits.as_ref(), name)))
    {
        return value + overhead;
    }
    let apps: i64 = spec.containers.iter().map(|c| request(c.resources.as_ref(), name)).sum();
    let mut sidecars = 0;
    let mut peak = 0;
    for container in spec.init_containers.iter().flatten() {
        let value = request(container.resources.as_ref(), name);
        if is_sidecar(container) {
            sidecars += value;
            peak = peak.max(sidecars);
        } else {
            peak = peak.max(sidecars + value);
        }
    }
    (apps + sidecars).max(peak) + overhead
}

/// The limit of a pod as a whole, if every container has one.
pub fn pod_limit(pod: &Pod, name: &str) -> Option<i64> {
    let spec = spec(pod)?;
    let overhead = amount(spec.overhead.as_ref(), name).unwrap_or(0);
    if let Some(value) = spec.resources.as_ref().and_then(|r| amount(r.limits.as_ref(), name)) {
        return Some(value + overhead);
    }
    let of = |container: &Container| limit(container.resources.as_ref(), name);
    let apps: i64 = spec.containers.iter().map(of).sum::<Option<i64>>()?;
    let mut sidecars = 0;
    let mut peak = 0;
    for container in spec.init_containers.iter().flatten() {
        let value = of(container)?;
        if is_sidecar(container) {
            sidecars += value;
            peak = peak.max(sidecars);
        } else {
            peak = peak.max(sidecars + value);
        }
    }
    Some((apps + sidecars).max(peak) + overhead)
}

/// Limits of the pod's cgroup. `quota` is whether CFS quotas are in use.
pub fn pod_cgroup_limits(pod: &Pod, period_us: i64, quota: bool) -> PodCgroupLimits {
    let class = qos_class(pod);
    let mut hugepages = BTreeMap::new();
    for container in spec(pod).into_iter().flat_map(|spec| &spec.containers) {
        for (name, value) in container.resources.iter().flat_map(|r| r.limits.iter().flatten()) {
            if let (Some(size), Ok(bytes)) = (name.strip_prefix("hugepages-"), units(value)) {
                *hugepages.entry(size.to_owned()).or_insert(0) += bytes;
            }
        }
    }
    PodCgroupLimits {
        cpu_shares: if class == QosClass::BestEffort { MIN_SHARES } else { cpu_shares(pod_request(pod, "cpu")) } as u64,
        cpu_quota_us: pod_limit(pod, "cpu").filter(|_| quota).map(|value| cpu_quota_us(value, period_us)),
        cpu_period_us: period_us as u64,
        memory_bytes: pod_limit(pod, "memory"),
        hugepages,
    }
}

/// Resources of one container, in the runtime's units. 0 is unset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinuxResources {
    /// CFS period in microseconds.
    pub cpu_period_us: i64,
    /// CFS quota in microseconds per period.
    pub cpu_quota_us: i64,
    /// CPU shares.
    pub cpu_shares: i64,
    /// Memory limit in bytes.
    pub memory_bytes: i64,
    /// Score that the kernel's OOM killer adds for the container's processes.
    pub oom_score_adj: i64,
    /// Huge-page limits: size (`2MB`, `1GB`) and bytes.
    pub hugepages: Vec<(String, u64)>,
    /// cgroup v2 files to write as they are.
    pub unified: BTreeMap<String, String>,
}

/// How a node turns requests into kernel values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResourcePolicy {
    /// CFS period in microseconds.
    pub cpu_period_us: i64,
    /// Whether CPU limits become quotas.
    pub cpu_quota: bool,
    /// Memory of the node in bytes, for OOM scores.
    pub node_memory_bytes: i64,
    /// The node has cgroup v2: containers then die as a whole on OOM.
    pub cgroup_v2: bool,
}

/// Resources of one container of a pod.
pub fn container_resources(
    pod: &Pod,
    container: &Container,
    kind: ContainerKind,
    policy: &ResourcePolicy,
) -> LinuxResources {
    let resources = container.resources.as_ref();
    let cpu_limit = limit(resources, "cpu").unwrap_or(0);
    let mut hugepages = Vec::new();
    for (name, value) in resources.iter().flat_map(|r| r.limits.iter().flatten()) {
        if let (Some(size), Ok(bytes)) = (name.strip_prefix("hugepages-").and_then(runtime_page_size), units(value)) {
            hugepages.push((size, bytes.max(0) as u64));
        }
    }
    let mut unified = BTreeMap::new();
    if policy.cgroup_v2 {
        unified.insert("memory.oom.group".to_owned(), "1".to_owned());
    }
    LinuxResources {
        cpu_period_us: if policy.cpu_quota && cpu_limit > 0 { policy.cpu_period_us } else { 0 },
        cpu_quota_us: if policy.cpu_quota { cpu_quota_us(cpu_limit, policy.cpu_period_us) } else { 0 },
        cpu_shares: cpu_shares(request(resources, "cpu")),
        memory_bytes: limit(resources, "memory").unwrap_or(0),
        oom_score_adj: oom_score_adj(pod, container, kind, policy.node_memory_bytes),
        hugepages,
        unified,
    }
}

fn runtime_page_size(size: &str) -> Option<String> {
    let bytes = units(&Quantity(size.to_owned())).ok().filter(|bytes| *bytes > 0)?;
    Some(match bytes {
        b if b % (1 << 30) == 0 => format!("{}GB", b >> 30),
        b if b % (1 << 20) == 0 => format!("{}MB", b >> 20),
        b => format!("{}KB", b >> 10),
    })
}

/// OOM score of a container: -997 guaranteed or critical, 1000 best effort, between by its share of the node's memory.
/// A sidecar is never killed before the app container with the lowest score.
pub fn oom_score_adj(pod: &Pod, container: &Container, kind: ContainerKind, node_memory_bytes: i64) -> i64 {
    if spec(pod).and_then(|spec| spec.priority).is_some_and(|priority| priority >= NODE_CRITICAL_PRIORITY) {
        return -997;
    }
    match qos_class(pod) {
        QosClass::Guaranteed => -997,
        QosClass::BestEffort => 1000,
        QosClass::Burstable => {
            let own = burstable_score(container, node_memory_bytes);
            match kind {
                ContainerKind::Sidecar => {
                    let least = app_containers(pod).map(|app| burstable_score(&app.container, node_memory_bytes)).min();
                    least.map_or(own, |least| own.min(least))
                }
                _ => own,
            }
        }
    }
}

fn burstable_score(container: &Container, node_memory_bytes: i64) -> i64 {
    let wanted = request(container.resources.as_ref(), "memory");
    let score = 1000 - (1000 * wanted as i128 / node_memory_bytes.max(1) as i128) as i64;
    score.clamp(3, 999)
}

/// Every resource name that a pod asks for, with the amount (CPU in thousandths).
pub fn pod_requests(pod: &Pod) -> BTreeMap<String, i64> {
    let names = app_containers(pod).chain(init_containers(pod)).flat_map(|container| {
        let resources = container.container.resources.clone().unwrap_or_default();
        resources
            .requests
            .unwrap_or_default()
            .into_keys()
            .chain(resources.limits.unwrap_or_default().into_keys())
            .collect::<Vec<_>>()
    });
    let mut all: BTreeMap<String, i64> = names.map(|name| (name, 0)).collect();
    if let Some(resources) = spec(pod).and_then(|spec| spec.resources.as_ref()) {
        all.extend(resources.requests.iter().flatten().map(|(name, _)| (name.clone(), 0)));
    }
    for (name, value) in &mut all {
        *value = pod_request(pod, name);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(text: serde_json::Value) -> Pod {
        serde_json::from_value(serde_json::json!({ "spec": text })).unwrap()
    }

    #[test]
    fn classes_follow_requests_and_limits() {
        let full = serde_json::json!({"limits": {"cpu": "1", "memory": "1Gi"}});
        for (resources, class) in [
            (serde_json::json!({}), QosClass::BestEffort),
            (full.clone(), QosClass::Guaranteed),
            (serde_json::json!({"requests": {"cpu": "100m"}}), QosClass::Burstable),
            (
                serde_json::json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}),
                QosClass::Burstable,
            ),
            (serde_json::json!({"limits": {"cpu": "1"}}), QosClass::Burstable),
        ] {
            let pod = pod(serde_json::json!({"containers": [{"name": "a", "resources": resources}]}));
            assert_eq!(qos_class(&pod), class, "{resources}");
        }
        let mixed = pod(
            serde_json::json!({"containers": [{"name": "a", "resources": full}], "initContainers": [{"name": "b"}]}),
        );
        assert_eq!(qos_class(&mixed), QosClass::Burstable);
    }

    #[test]
    fn kernel_values_match_the_kubelets() {
        for (milli, shares) in [(0, 2), (1, 2), (100, 102), (1000, 1024), (500_000, 262_144)] {
            assert_eq!(cpu_shares(milli), shares);
        }
        for (milli, quota) in [(0, 0), (5, 1000), (100, 10_000), (1500, 150_000)] {
            assert_eq!(cpu_quota_us(milli, 100_000), quota);
        }
    }

    #[test]
    fn scores_and_pod_sums() {
        let pod = pod(serde_json::json!({
            "initContainers": [
                {"name": "side", "restartPolicy": "Always", "resources": {"requests": {"memory": "1Gi", "cpu": "100m"}}},
                {"name": "init", "resources": {"requests": {"memory": "6Gi"}}}
            ],
            "containers": [{"name": "app", "resources": {"requests": {"memory": "2Gi", "cpu": "500m"}, "limits": {"memory": "2Gi"}}}]
        }));
        let node = 8 << 30;
        let app = app_containers(&pod).next().unwrap();
        assert_eq!(oom_score_adj(&pod, &app.container, ContainerKind::App, node), 750);
        let side = init_containers(&pod).next().unwrap();
        assert_eq!(oom_score_adj(&pod, &side.container, ContainerKind::Sidecar, node), 750);
        assert_eq!(pod_request(&pod, "memory"), 7 << 30);
        assert_eq!(pod_request(&pod, "cpu"), 600);
        assert_eq!(pod_limit(&pod, "memory"), None);
        let limits = pod_cgroup_limits(&pod, 100_000, true);
        assert_eq!((limits.cpu_shares, limits.cpu_quota_us), (614, None));
    }
}
