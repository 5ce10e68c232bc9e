//! What the node counts of its pods and of its calls of the runtime, as its port tells Prometheus.

use std::collections::BTreeMap;

use orlop_tests::case::{Case, image};
use orlop_tests::cluster::Cluster;
use orlop_tests::world::until;
use serde_json::json;

/// Metrics that dashboards ask for, with their types.
const TYPES: &[(&str, &str)] = &[
    ("kubelet_runtime_operations_total", "counter"),
    ("kubelet_runtime_operations_errors_total", "counter"),
    ("kubelet_runtime_operations_duration_seconds", "histogram"),
    ("kubelet_run_podsandbox_duration_seconds", "histogram"),
    ("kubelet_run_podsandbox_errors_total", "counter"),
    ("kubelet_pod_start_duration_seconds", "histogram"),
    ("kubelet_pod_start_sli_duration_seconds", "histogram"),
    ("kubelet_pod_start_total_duration_seconds", "histogram"),
    ("kubelet_pod_worker_duration_seconds", "histogram"),
    ("kubelet_pod_worker_start_duration_seconds", "histogram"),
    ("kubelet_pleg_relist_duration_seconds", "histogram"),
    ("kubelet_pleg_relist_interval_seconds", "histogram"),
    ("kubelet_pleg_last_seen_seconds", "gauge"),
    ("kubelet_containers_per_pod_count", "histogram"),
    ("kubelet_started_pods_total", "counter"),
    ("kubelet_started_pods_errors_total", "counter"),
    ("kubelet_started_containers_total", "counter"),
    ("kubelet_started_containers_errors_total", "counter"),
    ("kubelet_running_pods", "gauge"),
    ("kubelet_running_containers", "gauge"),
    ("kubelet_desired_pods", "gauge"),
    ("kubelet_active_pods", "gauge"),
    ("kubelet_working_pods", "gauge"),
    ("kubelet_mirror_pods", "gauge"),
    ("kubelet_managed_ephemeral_containers", "gauge"),
    ("kubelet_node_startup_duration_seconds", "gauge"),
    ("kubelet_node_startup_pre_kubelet_duration_seconds", "gauge"),
    ("kubelet_node_startup_pre_registration_duration_seconds", "gauge"),
    ("kubelet_node_startup_registration_duration_seconds", "gauge"),
    ("kubelet_node_startup_post_registration_duration_seconds", "gauge"),
];

/// The node's metrics: the text and the value of each series in it.
struct Metrics {
    text: String,
    series: BTreeMap<String, f64>,
}

impl Metrics {
    fn read(cluster: &Cluster) -> Metrics {
        let path = format!("/api/v1/nodes/{}/proxy/metrics", cluster.node_name);
        let (code, text) = cluster.api.send("GET", &path, None).expect("the node's metrics");
        let text = text.as_str().expect("a text").to_owned();
        assert_eq!(code, 200, "{text}");
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let series = lines.map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no series: {line}"));
            (name.to_owned(), value.parse().unwrap_or_else(|_| panic!("no value: {line}")))
        });
        Metrics { series: series.collect(), text }
    }

    /// The metrics once a series has grown by that.
    fn until_grown(&self, cluster: &Cluster, series: &str, by: f64) -> Metrics {
        until(&format!("{series} grows by {by}"), || {
            Some(Metrics::read(cluster)).filter(|now| now.value(series) >= self.value(series) + by)
        })
    }

    /// A series' value, 0 where it is not there.
    fn value(&self, series: &str) -> f64 {
        self.series.get(series).copied().unwrap_or(0.0)
    }
}

fn operation(metric: &str, kind: &str) -> String {
    format!("kubelet_runtime_operations_{metric}{{operation_type=\"{kind}\"}}")
}

/// A pod is started, probed and ended, and another one has no image: what dashboards ask for moves by that.
pub fn of_pods_and_the_runtime(case: &Case<'_>) {
    let before = Metrics::read(case.cluster);
    for (name, kind) in TYPES {
        assert!(before.text.contains(&format!("# TYPE {name} {kind}\n")), "{name} is no {kind} in\n{}", before.text);
    }
    let spec = json!({
        "initContainers": [{"name": "first", "command": ["true"]}],
        "containers": [{"command": ["sleep", "1000"], "imagePullPolicy": "Always",
            "livenessProbe": {"exec": {"command": ["false"]}, "periodSeconds": 1, "failureThreshold": 1000},
            "readinessProbe": {"exec": {"command": ["true"]}, "periodSeconds": 1}}],
    });
    case.make_pod("counted", spec);
    case.until_ready("counted");
    case.until_event("counted", "Unhealthy", "Liveness probe failed");
    assert_eq!(case.exec("counted", "echo well"), "well");
    case.make_pod("absent", json!({"containers": [{"image": image("no-such-image")}]}));
    case.until_event("absent", "Failed", "Error: ErrImagePull");
    let _ = case.say(&["delete", "pod", "counted", "absent"]);
    case.until_gone("counted");
    case.until_gone("absent");
    // Sandboxes go after the pods, which are gone by then.
    let after = before.until_grown(case.cluster, &operation("total", "remove_podsandbox"), 2.0);
    let grew = |series: &str, by: f64| {
        let (old, new) = (before.value(series), after.value(series));
        assert!(new >= old + by, "{series} was {old} and is {new} in\n{}", after.text);
    };
    for (kind, by) in [
        ("run_podsandbox", 2.0),
        ("stop_podsandbox", 2.0),
        ("create_container", 2.0),
        ("start_container", 2.0),
        ("stop_container", 1.0),
        ("pull_image", 2.0),
        ("image_status", 3.0),
        ("exec_sync", 2.0),
        ("exec", 1.0),
    ] {
        grew(&operation("total", kind), by);
        grew(&operation("duration_seconds_count", kind), by);
    }
    for kind in ["version", "status", "list_images", "list_containers", "list_podsandbox"] {
        assert!(after.value(&operation("total", kind)) >= 1.0, "{kind} in\n{}", after.text);
        assert_eq!(after.value(&operation("total", kind)), after.value(&operation("duration_seconds_count", kind)));
    }
    // A command that fails is an error, as for the kubelet.
    for kind in ["pull_image", "exec_sync"] {
        grew(&operation("errors_total", kind), 1.0);
    }
    let rounds = |work: &str| format!("kubelet_pod_worker_duration_seconds_count{{operation_type=\"{work}\"}}");
    for (series, by) in [
        ("kubelet_pod_worker_start_duration_seconds_count", 2.0),
        ("kubelet_containers_per_pod_count_count", 2.0),
        ("kubelet_pod_start_duration_seconds_count", 1.0),
        ("kubelet_pod_start_sli_duration_seconds_count", 1.0),
        ("kubelet_pod_start_total_duration_seconds_count", 1.0),
        ("kubelet_run_podsandbox_duration_seconds_count{runtime_handler=\"\"}", 2.0),
        ("kubelet_started_pods_total", 2.0),
        ("kubelet_started_containers_total{container_type=\"container\"}", 2.0),
        ("kubelet_started_containers_total{container_type=\"init_container\"}", 1.0),
        ("kubelet_started_containers_errors_total{container_type=\"container\",code=\"ErrImagePull\"}", 1.0),
        (&rounds("create"), 2.0),
        (&rounds("kill"), 2.0),
        (&rounds("terminated"), 2.0),
    ] {
        grew(series, by);
    }
    let bounds = ["0.005", "0.0125", "0.48828125", "745.0580596923828", "+Inf"];
    for bound in bounds {
        let series = format!(
            "kubelet_runtime_operations_duration_seconds_bucket{{operation_type=\"run_podsandbox\",le=\"{bound}\"}}"
        );
        assert!(after.series.contains_key(&series), "no {series} in\n{}", after.text);
    }
    let working = after.series.keys().filter(|series| series.starts_with("kubelet_working_pods{"));
    assert_eq!(working.count(), 15, "{}", after.text);
    assert!(after.value("kubelet_pleg_last_seen_seconds") > 0.0, "{}", after.text);
    // The cluster's node is new to its API server.
    let part = |name: &str| after.value(&format!("kubelet_node_startup{name}_duration_seconds"));
    let parts = ["_pre_kubelet", "_pre_registration", "_registration", "_post_registration"].map(part);
    assert!(parts.iter().all(|part| *part > 0.0), "{}", after.text);
    assert!((part("") - parts.iter().sum::<f64>()).abs() < 0.001, "{}", after.text);
}
