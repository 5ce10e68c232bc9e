//! The kubelet's metrics that the agent has, under the kubelet's names and with its labels.

use super::{Metric, MetricKind};

/// Bounds of the Prometheus client, in seconds.
const SHORT: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Bounds of calls of the runtime, in seconds (kubelet: 14 of them from 5 ms on, each 2.5 times the one before).
const OPERATIONS: &[f64] = &growing::<14>(0.005, 2.5);
/// Bounds of starts of pods, in seconds.
const STARTS: &[f64] = &[
    0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 20.0, 30.0, 45.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0, 480.0,
    600.0, 900.0, 1200.0, 1800.0, 2700.0, 3600.0,
];
/// Bounds of the number of a pod's containers.
const CONTAINERS: &[f64] = &growing::<5>(1.0, 2.0);
/// Bounds of image pulls, in seconds.
const PULLS: &[f64] = &[
    1.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0, 480.0, 600.0, 900.0, 1200.0, 1800.0, 2700.0,
    3600.0,
];

/// Bounds that begin with `first`, each so many times the one before.
const fn growing<const COUNT: usize>(first: f64, factor: f64) -> [f64; COUNT] {
    let mut bounds = [first; COUNT];
    let mut index = 1;
    while index < COUNT {
        bounds[index] = bounds[index - 1] * factor;
        index += 1;
    }
    bounds
}

const fn counter(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, help, kind: MetricKind::Counter, labels }
}

const fn gauge(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, help, kind: MetricKind::Gauge, labels }
}

const fn histogram(
    name: &'static str,
    bounds: &'static [f64],
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric { name, help, kind: MetricKind::Histogram(bounds), labels }
}

macro_rules! metrics {
    ($($(#[$doc:meta])* $name:ident = $metric:expr;)*) => {
        $($(#[$doc])* pub static $name: Metric = $metric;)*
        /// All of them.
        pub static ALL: &[&Metric] = &[$(&$name),*];
    };
}

metrics! {
    /// When the last graceful shutdown began.
    SHUTDOWN_START = gauge(
        "kubelet_graceful_shutdown_start_time_seconds", &[],
        "Beginning of the last graceful shutdown, in seconds since the epoch; 0 for none.",
    );
    /// When it ended.
    SHUTDOWN_END = gauge(
        "kubelet_graceful_shutdown_end_time_seconds", &[],
        "End of the last graceful shutdown, in seconds since the epoch; 0 while it goes on.",
    );
    /// From the boot to the agent.
    NODE_PRE_AGENT = gauge("kubelet_node_startup_pre_kubelet_duration_seconds", &[],
        "Time from the machine's boot until the agent began; this and the others 0 for a node that was known.");
    /// From there to the registration.
    NODE_PRE_REGISTRATION = gauge("kubelet_node_startup_pre_registration_duration_seconds", &[],
        "Time from the agent's beginning until it first tried to register the node.");
    /// The registration.
    NODE_REGISTRATION = gauge("kubelet_node_startup_registration_duration_seconds", &[],
        "Time from the first try to register the node until it was registered.");
    /// From there until the node is ready.
    NODE_POST_REGISTRATION = gauge("kubelet_node_startup_post_registration_duration_seconds", &[],
        "Time from the node's registration until it first was ready.");
    /// All of it.
    NODE_STARTUP = gauge("kubelet_node_startup_duration_seconds", &[],
        "Time from the machine's boot until the node first was ready.");
    /// Pods with a running sandbox.
    RUNNING_PODS = gauge("kubelet_running_pods", &[], "Pods that have a running pod sandbox.");
    /// Containers in the runtime.
    RUNNING_CONTAINERS =
        gauge("kubelet_running_containers", &["container_state"], "Containers that the runtime has, by their state.");
    /// Pods of all sources.
    DESIRED_PODS =
        gauge("kubelet_desired_pods", &["static"], "Pods that the node is to have; static ones are not the API's.");
    /// Pods that take room.
    ACTIVE_PODS = gauge("kubelet_active_pods", &["static"], "Pods that take room when others are admitted.");
    /// Pods that have a worker.
    WORKING_PODS = gauge("kubelet_working_pods", &["lifecycle", "config", "static"],
        "Pods that the node works on, by where they are in their life and whether their source still has them.");
    /// Containers of new pods.
    CONTAINERS_PER_POD =
        histogram("kubelet_containers_per_pod_count", CONTAINERS, &[], "Containers of each pod that was begun.");
    /// Time until a pod's worker begins.
    WORKER_START_SECONDS = histogram("kubelet_pod_worker_start_duration_seconds", SHORT, &[],
        "Time from the first sight of a pod until work on it began.");
    /// Time of rounds of work.
    WORKER_SECONDS = histogram("kubelet_pod_worker_duration_seconds", SHORT, &["operation_type"],
        "Time of a round of work on a pod, from its cause until all that was begun has ended, by the cause.");
    /// Time until a pod runs, from the node's sight.
    START_SECONDS = histogram("kubelet_pod_start_duration_seconds", STARTS, &[],
        "Time from the first sight of a pod until its phase was Running.");
    /// Time until a pod runs, from its making.
    START_TOTAL_SECONDS = histogram("kubelet_pod_start_total_duration_seconds", STARTS, &[],
        "Time from the making of a pod until the API showed that all its containers run.");
    /// The same without what is not the node's doing.
    START_SLI_SECONDS = histogram("kubelet_pod_start_sli_duration_seconds", STARTS, &[],
        "The same without pulls and init containers, for pods without volumes that last.");
    /// Time of lists of all that the runtime has.
    RELIST_SECONDS =
        histogram("kubelet_pleg_relist_duration_seconds", SHORT, &[], "Time that listing all pods of the runtime took.");
    /// Time between them.
    RELIST_INTERVAL_SECONDS = histogram("kubelet_pleg_relist_interval_seconds", SHORT, &[],
        "Time between the beginnings of two such lists; long where the runtime tells of changes.");
    /// When the last of them was begun.
    RELIST_LAST = gauge("kubelet_pleg_last_seen_seconds", &[],
        "When the last such list that succeeded was begun, in seconds since the epoch; 0 for never.");
    /// Static pods that the API shows.
    MIRROR_PODS = gauge("kubelet_mirror_pods", &[], "Static pods that have a mirror pod.");
    /// Ephemeral containers of the pods.
    EPHEMERAL_CONTAINERS = gauge("kubelet_managed_ephemeral_containers", &[], "Ephemeral containers of the node's pods.");
    /// Pods that came back.
    RESTARTED_PODS = counter(
        "kubelet_restarted_pods_total", &["static"],
        "Pods that were taken away and given again with the same uid before they had ended.");
    /// Pods nobody wants.
    ORPHANED_PODS = counter("kubelet_orphaned_runtime_pods_total", &[],
        "Pods found in the runtime or on disk that no source knew.");
    /// Sandboxes that were begun.
    STARTED_PODS = counter("kubelet_started_pods_total", &[], "Pods that were started.");
    /// Sandboxes that failed.
    STARTED_PODS_ERRORS = counter("kubelet_started_pods_errors_total", &[], "Pods that could not be started.");
    /// Sandboxes with a user namespace that were begun.
    STARTED_USER_NAMESPACED_PODS = counter("kubelet_started_user_namespaced_pods_total", &[],
        "Pods with a user namespace that were started.");
    /// Those that failed, at whatever step.
    STARTED_USER_NAMESPACED_PODS_ERRORS = counter("kubelet_started_user_namespaced_pods_errors_total", &[],
        "Pods with a user namespace that could not be started.");
    /// Containers that were begun.
    STARTED_CONTAINERS =
        counter("kubelet_started_containers_total", &["container_type"], "Containers that were started.");
    /// Containers that failed to start.
    STARTED_CONTAINERS_ERRORS = counter("kubelet_started_containers_errors_total", &["container_type", "code"],
        "Containers that could not be started, by the reason that they wait with.");
    /// Containers that ended.
    TERMINATED_CONTAINERS = counter("kubelet_terminated_containers_total", &["container_type", "exit_code", "reason"],
        "Containers that have ended.");
    /// Calls of the runtime.
    RUNTIME_OPERATIONS =
        counter("kubelet_runtime_operations_total", &["operation_type"], "Calls of the runtime, by their kind.");
    /// Calls that failed.
    RUNTIME_OPERATIONS_ERRORS = counter("kubelet_runtime_operations_errors_total", &["operation_type"],
        "Calls of the runtime that failed, by their kind.");
    /// Time of calls.
    RUNTIME_OPERATIONS_SECONDS = histogram("kubelet_runtime_operations_duration_seconds", OPERATIONS,
        &["operation_type"], "Time that calls of the runtime took, by their kind.");
    /// Time of making sandboxes.
    SANDBOX_SECONDS = histogram("kubelet_run_podsandbox_duration_seconds", SHORT, &["runtime_handler"],
        "Time that the runtime took to make a pod sandbox.");
    /// Sandboxes that the runtime could not make.
    SANDBOX_ERRORS = counter("kubelet_run_podsandbox_errors_total", &["runtime_handler"],
        "Pod sandboxes that the runtime could not make.");
    /// Time of pulls.
    IMAGE_PULL_SECONDS = histogram("kubelet_image_pull_duration_seconds", PULLS, &["image_size_in_bytes"],
        "Time that pulling an image took, by its size.");
    /// Image volumes that were asked for.
    IMAGE_VOLUMES_REQUESTED = counter("kubelet_image_volume_requested_total", &[], "Image volumes asked for.");
    /// Image volumes that were mounted.
    IMAGE_VOLUMES_MOUNTED = counter("kubelet_image_volume_mounted_succeed_total", &[], "Image volumes mounted.");
    /// Pods that were refused.
    ADMISSION_REJECTIONS =
        counter("kubelet_admission_rejections_total", &["reason"], "Pods that the node refused, by the reason.");
    /// Pods that made room.
    PREEMPTIONS = counter("kubelet_preemptions", &["preemption_signal"],
        "Pods that were ended for critical ones, by the resource that was missing.");
    /// Time of credential programs.
    CREDENTIAL_PLUGIN_SECONDS = histogram("kubelet_credential_provider_plugin_duration", SHORT, &["plugin_name"],
        "Time that a credential program took, in seconds.");
    /// Credential programs that failed.
    CREDENTIAL_PLUGIN_ERRORS = counter("kubelet_credential_provider_plugin_errors_total", &["plugin_name"],
        "Calls of a credential program that failed.");
    /// Tries of probes.
    PROBES = counter("prober_probe_total", &["probe_type", "result", "container", "pod", "namespace", "pod_uid"],
        "Tries of probes, by their result.");
    /// Time of tries.
    PROBE_SECONDS = histogram("prober_probe_duration_seconds", SHORT, &["probe_type", "container", "pod", "namespace"],
        "Time that tries of probes took.");
}

/// Whether a metric is one of `/metrics/probes`, which `/metrics` does not have.
pub fn is_of_probes(metric: &Metric) -> bool {
    metric.name == PROBES.name || metric.name == PROBE_SECONDS.name
}

/// Label of an image's size in bytes.
pub fn image_size(bytes: u64) -> &'static str {
    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;
    let bounds = [
        (100 * GIB, "GT100GB"),
        (60 * GIB, "60GB-100GB"),
        (40 * GIB, "40GB-60GB"),
        (30 * GIB, "30GB-40GB"),
        (20 * GIB, "20GB-30GB"),
        (10 * GIB, "10GB-20GB"),
        (5 * GIB, "5GB-10GB"),
        (GIB, "1GB-5GB"),
        (500 * MIB, "500MB-1GB"),
        (100 * MIB, "100MB-500MB"),
        (10 * MIB, "10MB-100MB"),
        (0, "0-10MB"),
    ];
    bounds.into_iter().find(|(bound, _)| bytes > *bound).map_or("N/A", |(_, label)| label)
}

/// Reasons of refusals that are told by name (kubelet `admissionRejectionReasons`).
const REJECTIONS: &[&str] = &[
    "AppArmor",
    "PodOSSelectorNodeLabelDoesNotMatch",
    "PodOSNotSupported",
    "InvalidNodeInfo",
    "InitContainerRestartPolicyForbidden",
    "SupplementalGroupsPolicyNotSupported",
    "UnexpectedAdmissionError",
    "UnknownReason",
    "UnexpectedPredicateFailureType",
    "OutOfcpu",
    "OutOfmemory",
    "OutOfephemeral-storage",
    "OutOfpods",
    "PodLevelResourcesNotSupported",
    "PodFeatureUnsupported",
    "Evicted",
    "SysctlForbidden",
    "TopologyAffinityError",
    "NodeShutdown",
    "VolumeAttachmentLimitExceeded",
];

/// Label of a refusal: names of resources are anybody's and are told as one.
pub fn rejection(reason: &str) -> &str {
    match reason {
        known if REJECTIONS.contains(&known) => known,
        extended if extended.starts_with("OutOf") => "OutOfExtendedResources",
        _ => "Other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_the_kubelets() {
        let want = [
            0.005,
            0.0125,
            0.03125,
            0.078125,
            0.1953125,
            0.48828125,
            1.220703125,
            3.0517578125,
            7.62939453125,
            19.073486328125,
            47.6837158203125,
            119.20928955078125,
            298.0232238769531,
            745.0580596923828,
        ];
        assert_eq!(OPERATIONS, want);
        assert!(ALL.iter().all(|metric| match metric.kind {
            MetricKind::Histogram(bounds) => bounds.is_sorted(),
            MetricKind::Counter | MetricKind::Gauge => true,
        }));
    }

    #[test]
    fn labels_come_from_short_lists() {
        for (bytes, want) in [
            (0, "N/A"),
            (1, "0-10MB"),
            (10 << 20, "0-10MB"),
            ((10 << 20) + 1, "10MB-100MB"),
            (3 << 30, "1GB-5GB"),
            (200 << 30, "GT100GB"),
        ] {
            assert_eq!(image_size(bytes), want, "{bytes}");
        }
        for (reason, want) in [
            ("OutOfcpu", "OutOfcpu"),
            ("OutOfexample.com/gpu", "OutOfExtendedResources"),
            ("NodePorts", "Other"),
            ("SysctlForbidden", "SysctlForbidden"),
        ] {
            assert_eq!(rejection(reason), want, "{reason}");
        }
    }
}
