//! `/metrics`: what the process and its pods cost, in Prometheus text.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

use orlop_agent_core::metrics::names::is_of_probes;
use orlop_agent_core::metrics::{Metrics, escape};

/// Clock ticks of `/proc/self/stat`: USER_HZ, which is the same on every machine that this runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// Counters of the server.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) requests: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) in_flight: AtomicU64,
    pub(crate) streams: AtomicU64,
}

/// The text of `/metrics`: what the agent has counted, what the server has, and the process.
pub(crate) fn metrics_text(node_name: &str, counters: &Counters, counted: &Metrics) -> String {
    let mut text = counted.text(|metric| !is_of_probes(metric));
    let mut metric = |name: &str, kind: &str, help: &str, labels: &str, value: String| {
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name}{labels} {value}\n");
    };
    let node = format!("{{node=\"{}\"}}", escape(node_name));
    metric("kubelet_node_name", "gauge", "The node's name; the value is always 1.", &node, "1".into());
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed).to_string();
    metric("kubelet_http_requests_total", "counter", "Requests to the kubelet port.", "", count(&counters.requests));
    metric("orlop_http_refused_total", "counter", "Requests that were not let in.", "", count(&counters.refused));
    metric("kubelet_http_inflight_requests", "gauge", "Requests being answered.", "", count(&counters.in_flight));
    metric("orlop_http_streams", "gauge", "Open exec, attach and port-forward streams.", "", count(&counters.streams));
    for (name, kind, help, value) in process_metrics() {
        metric(name, kind, help, "", value);
    }
    text
}

/// The process metrics that Prometheus clients have in common. Those that can't be read are left out.
fn process_metrics() -> Vec<(&'static str, &'static str, &'static str, String)> {
    let mut found = Vec::new();
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat_fields(&stat);
    let number = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok());
    // Fields of proc(5) counted from the state, which is the third.
    if let (Some(user), Some(system)) = (number(11), number(12)) {
        let seconds = (user + system) / TICKS_PER_SECOND;
        found.push(("process_cpu_seconds_total", "counter", "CPU time spent, in seconds.", format!("{seconds:.2}")));
    }
    if let (Some(start), Some(boot)) = (number(19), boot_time()) {
        let start = boot + start / TICKS_PER_SECOND;
        found.push((
            "process_start_time_seconds",
            "gauge",
            "Start since the epoch, in seconds.",
            format!("{start:.2}"),
        ));
    }
    if let Some(size) = number(20) {
        found.push(("process_virtual_memory_bytes", "gauge", "Virtual memory.", format!("{size}")));
    }
    if let Some(bytes) = resident_bytes() {
        found.push(("process_resident_memory_bytes", "gauge", "Resident memory.", bytes.to_string()));
    }
    if let Some(threads) = number(17) {
        found.push(("process_threads", "gauge", "Threads.", format!("{threads}")));
    }
    if let Ok(descriptors) = std::fs::read_dir("/proc/self/fd") {
        found.push(("process_open_fds", "gauge", "Open file descriptors.", descriptors.count().to_string()));
    }
    found
}

/// Fields of `/proc/self/stat` after the name, which may hold spaces and brackets.
fn stat_fields(stat: &str) -> Vec<&str> {
    stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect()).unwrap_or_default()
}

fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

fn boot_time() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use orlop_agent_core::metrics::names;

    #[test]
    fn the_text_is_prometheus_text() {
        let counted = Metrics::default();
        counted.set(&names::RUNNING_PODS, &[], 1.0);
        counted.count(&names::PROBES, &["Liveness", "failed", "c", "p", "n", "u"]);
        let text = metrics_text("a\"b", &Counters::default(), &counted);
        assert!(text.contains("kubelet_node_name{node=\"a\\\"b\"} 1\n"));
        assert!(text.contains("\nkubelet_running_pods 1\n") && !text.contains("prober_probe_total"));
        for name in [
            "process_cpu_seconds_total",
            "process_resident_memory_bytes",
            "process_open_fds",
            "process_start_time_seconds",
        ] {
            assert!(text.contains(&format!("\n{name} ")), "{name} in {text}");
        }
        assert_eq!(stat_fields("1 (a b) c) S 2 3"), ["S", "2", "3"]);
    }
}
