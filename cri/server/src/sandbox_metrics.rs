//! `ListPodSandboxMetrics` and its stream: what cAdvisor would read, read from the cgroups themselves.

use std::sync::Arc;

use orlop_kernel::cgroup::PressureKind;
use orlop_proto::cri;

use crate::container::{Container, Phase};
use crate::metric_table;
use crate::sandbox::Sandbox;
use crate::sandbox_stats::{cgroups_of, interfaces};
use crate::server::{Server, now};
use crate::usage::Size;

/// Nanoseconds in a second.
const NANOS: u64 = 1_000_000_000;
/// Microseconds in a second.
const MICROS: u64 = 1_000_000;
/// Processes of a container whose descriptors are counted.
const PROCESSES_MAX: usize = 1024;

/// Metrics of all pods.
pub(crate) async fn list(server: &Arc<Server>) -> Vec<cri::PodSandboxMetrics> {
    let mut all = Vec::new();
    for sandbox in server.store.sandboxes().into_iter().filter(|sandbox| sandbox.state().ready) {
        let mut containers = Vec::new();
        for container in server.store.shown_containers_of(&sandbox.id) {
            let folder = server.config.container_folder(&container.id).join("upper");
            let size = container.layer_size.get(folder).await;
            containers.push((container, size));
        }
        let (server, pod) = (server.clone(), sandbox);
        // Files of the kernel, some of them per process: not on a thread that others need.
        let read = tokio::task::spawn_blocking(move || metrics_of(&server, &pod, &containers)).await;
        all.extend(read.ok());
    }
    all
}

fn metrics_of(
    server: &Server,
    sandbox: &Arc<Sandbox>,
    containers: &[(Arc<Container>, Option<Size>)],
) -> cri::PodSandboxMetrics {
    let mut pod = Readings::new(vec![
        String::new(),
        sandbox.id.clone(),
        String::new(),
        sandbox.id.clone(),
        sandbox.metadata().namespace,
        sandbox.metadata().name,
    ]);
    if let [path] = &cgroups_of(server, sandbox)[..] {
        pod.processor(server, path);
        pod.memory(server, path);
        pod.pressure(server, path);
    }
    pod.network(sandbox);
    let of = |(container, size): &(Arc<Container>, Option<Size>)| cri::ContainerMetrics {
        container_id: container.id.clone(),
        metrics: container_metrics(server, container, *size),
    };
    cri::PodSandboxMetrics {
        pod_sandbox_id: sandbox.id.clone(),
        metrics: pod.metrics,
        container_metrics: containers.iter().map(of).collect(),
    }
}

fn container_metrics(server: &Server, container: &Container, size: Option<Size>) -> Vec<cri::Metric> {
    let pod = container.sandbox.metadata();
    let mut readings = Readings::new(vec![
        container.metadata().name,
        container.id.clone(),
        container.record().image_name,
        container.id.clone(),
        pod.namespace,
        pod.name,
    ]);
    let Phase::Running { started_at } = container.phase() else { return readings.metrics };
    let Some(path) = container.cgroup() else { return readings.metrics };
    readings.put("container_last_seen", &[], (now() / NANOS as i64) as u64);
    readings.put("container_start_time_seconds", &[], (started_at / NANOS as i64) as u64);
    readings.processor(server, &path);
    readings.memory(server, &path);
    readings.pressure(server, &path);
    readings.disks(server, &path, size);
    readings.processes(server, &path);
    readings.limits(container);
    readings.metrics
}

/// Metrics of one object, as they are read.
struct Readings {
    labels: Vec<String>,
    metrics: Vec<cri::Metric>,
}

impl Readings {
    fn new(labels: Vec<String>) -> Readings {
        Readings { labels, metrics: Vec::new() }
    }

    fn put(&mut self, name: &str, own_labels: &[&str], value: u64) {
        let Some(descriptor) = metric_table::find(name).filter(|found| found.labels.len() == own_labels.len()) else {
            tracing::error!(name, "no such metric, or not with these labels");
            return;
        };
        let kind = if descriptor.counts { cri::MetricType::Counter } else { cri::MetricType::Gauge };
        self.metrics.push(cri::Metric {
            name: name.into(),
            timestamp: now(),
            metric_type: kind.into(),
            label_values: self.labels.iter().cloned().chain(own_labels.iter().map(ToString::to_string)).collect(),
            value: Some(cri::UInt64Value { value }),
        });
    }

    fn put_some(&mut self, name: &str, value: Option<u64>) {
        if let Some(value) = value {
            self.put(name, &[], value);
        }
    }

    fn processor(&mut self, server: &Server, path: &str) {
        let Some(cpu) = server.cgroups.cpu_usage(path) else { return };
        self.put("container_cpu_usage_seconds_total", &["total"], cpu.total_nanoseconds / NANOS);
        let seconds = |nanoseconds: Option<u64>| nanoseconds.map(|value| value / NANOS);
        self.put_some("container_cpu_user_seconds_total", seconds(cpu.user_nanoseconds));
        self.put_some("container_cpu_system_seconds_total", seconds(cpu.system_nanoseconds));
        self.put_some("container_cpu_cfs_periods_total", cpu.periods);
        self.put_some("container_cpu_cfs_throttled_periods_total", cpu.throttled_periods);
        self.put_some("container_cpu_cfs_throttled_seconds_total", seconds(cpu.throttled_nanoseconds));
    }

    fn memory(&mut self, server: &Server, path: &str) {
        let Some(memory) = server.cgroups.memory_usage(path) else { return };
        self.put("container_memory_usage_bytes", &[], memory.usage);
        self.put("container_memory_working_set_bytes", &[], memory.working_set);
        self.put("container_memory_rss", &[], memory.rss);
        self.put("container_memory_cache", &[], memory.cache);
        self.put("container_memory_mapped_file", &[], memory.mapped_file);
        self.put("container_memory_swap", &[], memory.swap.unwrap_or(0));
        self.put("container_memory_failcnt", &[], memory.limit_hits.unwrap_or(0));
        self.put_some("container_memory_kernel_usage", memory.kernel);
        self.put_some("container_memory_max_usage_bytes", memory.peak);
        for scope in ["container", "hierarchy"] {
            self.put("container_memory_failures_total", &["pgfault", scope], memory.page_faults);
            self.put("container_memory_failures_total", &["pgmajfault", scope], memory.major_page_faults);
        }
        self.put("container_oom_events_total", &[], server.cgroups.oom_kills(path).unwrap_or(0));
        for pages in server.cgroups.hugepage_usage(path) {
            self.put("container_hugetlb_usage_bytes", &[&pages.page_size], pages.usage);
            if let Some(peak) = pages.peak {
                self.put("container_hugetlb_max_usage_bytes", &[&pages.page_size], peak);
            }
        }
    }

    fn pressure(&mut self, server: &Server, path: &str) {
        for (kind, waiting, stalled) in [
            (
                PressureKind::Cpu,
                "container_pressure_cpu_waiting_seconds_total",
                "container_pressure_cpu_stalled_seconds_total",
            ),
            (
                PressureKind::Memory,
                "container_pressure_memory_waiting_seconds_total",
                "container_pressure_memory_stalled_seconds_total",
            ),
            (
                PressureKind::Io,
                "container_pressure_io_waiting_seconds_total",
                "container_pressure_io_stalled_seconds_total",
            ),
        ] {
            if let Some(pressure) = server.cgroups.pressure(path, kind) {
                self.put(waiting, &[], pressure.some.total_microseconds / MICROS);
                self.put(stalled, &[], pressure.full.total_microseconds / MICROS);
            }
        }
    }

    fn disks(&mut self, server: &Server, path: &str, size: Option<Size>) {
        for disk in server.cgroups.disk_usage(path) {
            let (major, minor) = (disk.device.0.to_string(), disk.device.1.to_string());
            let name = device_name(disk.device);
            self.put("container_blkio_device_usage_total", &[&name, &major, &minor, "Read"], disk.read_bytes);
            self.put("container_blkio_device_usage_total", &[&name, &major, &minor, "Write"], disk.written_bytes);
            self.put("container_fs_reads_bytes_total", &[&name], disk.read_bytes);
            self.put("container_fs_reads_total", &[&name], disk.reads);
            self.put("container_fs_writes_bytes_total", &[&name], disk.written_bytes);
            self.put("container_fs_writes_total", &[&name], disk.writes);
        }
        let Ok(stat) = rustix::fs::statvfs(server.images.root()) else { return };
        let device = server.images.root().display().to_string();
        self.put("container_fs_limit_bytes", &[&device], stat.f_blocks * stat.f_frsize);
        self.put("container_fs_inodes_total", &[&device], stat.f_files);
        self.put("container_fs_inodes_free", &[&device], stat.f_ffree);
        if let Some(size) = size {
            self.put("container_fs_usage_bytes", &[&device], size.bytes);
        }
    }

    fn processes(&mut self, server: &Server, path: &str) {
        let processes = server.cgroups.processes(path);
        self.put("container_processes", &[], processes.len() as u64);
        if let Some((threads, max)) = server.cgroups.thread_count(path) {
            self.put("container_threads", &[], threads);
            self.put("container_threads_max", &[], max.unwrap_or(0));
        }
        let (mut descriptors, mut sockets) = (0, 0);
        for pid in processes.iter().take(PROCESSES_MAX) {
            for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
                descriptors += 1;
                let target = std::fs::read_link(entry.path()).unwrap_or_default();
                sockets += u64::from(target.to_string_lossy().starts_with("socket:"));
            }
        }
        self.put("container_file_descriptors", &[], descriptors);
        self.put("container_sockets", &[], sockets);
    }

    fn limits(&mut self, container: &Container) {
        let resources = container.resources().unwrap_or_default();
        let positive = |value: i64| value.max(0) as u64;
        self.put("container_spec_cpu_period", &[], positive(resources.cpu_period));
        self.put("container_spec_cpu_shares", &[], positive(resources.cpu_shares));
        self.put("container_spec_memory_limit_bytes", &[], positive(resources.memory_limit_in_bytes));
        self.put("container_spec_memory_swap_limit_bytes", &[], positive(resources.memory_swap_limit_in_bytes));
        self.put("container_spec_memory_reservation_limit_bytes", &[], 0);
        if resources.cpu_quota > 0 {
            self.put("container_spec_cpu_quota", &[], positive(resources.cpu_quota));
        }
        if let Some(open_files) = open_files_limit(container.record().pid) {
            self.put("container_ulimits_soft", &["max_open_files"], open_files);
        }
    }

    fn network(&mut self, sandbox: &Sandbox) {
        for interface in interfaces(sandbox).unwrap_or_default() {
            let name = interface.name.as_str();
            for (direction, counters) in [("receive", interface.received), ("transmit", interface.sent)] {
                for (what, value) in [
                    ("bytes", counters.bytes),
                    ("packets", counters.packets),
                    ("errors", counters.errors),
                    ("packets_dropped", counters.dropped),
                ] {
                    self.put(&format!("container_network_{direction}_{what}_total"), &[name], value);
                }
            }
        }
    }
}

/// `/dev/sda` of a disk's number; the number where the machine has no name for it.
fn device_name((major, minor): (u32, u32)) -> String {
    let numbers = format!("{major}:{minor}");
    let link = std::fs::read_link(format!("/sys/dev/block/{numbers}")).ok();
    let name = link.as_ref().and_then(|link| link.file_name()).map(|name| name.to_string_lossy().into_owned());
    name.map_or(numbers, |name| format!("/dev/{name}"))
}

/// Soft limit of open files of a process.
fn open_files_limit(pid: i32) -> Option<u64> {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}
