//! The metrics of pods and containers: name, meaning, kind and labels, under the names that dashboards know from
//! cAdvisor.

use orlop_proto::cri;

/// Labels of every metric, in front of its own.
pub(crate) const LABELS: [&str; 6] = ["container", "id", "image", "name", "namespace", "pod"];

/// A metric.
pub(crate) struct Descriptor {
    pub(crate) name: &'static str,
    pub(crate) help: &'static str,
    /// It only grows.
    pub(crate) counts: bool,
    /// Labels of its own.
    pub(crate) labels: &'static [&'static str],
}

const fn counter(name: &'static str, help: &'static str) -> Descriptor {
    Descriptor { name, help, counts: true, labels: &[] }
}

const fn gauge(name: &'static str, help: &'static str) -> Descriptor {
    Descriptor { name, help, counts: false, labels: &[] }
}

const fn with(labels: &'static [&'static str], descriptor: Descriptor) -> Descriptor {
    Descriptor { labels, ..descriptor }
}

/// All metrics.
pub(crate) static DESCRIPTORS: &[Descriptor] = &[
    with(
        &["device", "major", "minor", "operation"],
        counter("container_blkio_device_usage_total", "Bytes read from and written to each disk"),
    ),
    counter("container_cpu_cfs_periods_total", "Periods of the CPU quota that have passed"),
    counter("container_cpu_cfs_throttled_periods_total", "Periods in which the CPU quota was used up"),
    counter("container_cpu_cfs_throttled_seconds_total", "Seconds spent waiting for the next period of the CPU quota"),
    counter("container_cpu_system_seconds_total", "CPU seconds spent in the kernel"),
    with(&["cpu"], counter("container_cpu_usage_seconds_total", "CPU seconds used")),
    counter("container_cpu_user_seconds_total", "CPU seconds spent in programs"),
    gauge("container_file_descriptors", "Open file descriptors of all processes"),
    with(&["device"], gauge("container_fs_inodes_free", "Inodes that are free on the file system")),
    with(&["device"], gauge("container_fs_inodes_total", "Inodes of the file system")),
    with(
        &["device"],
        gauge("container_fs_limit_bytes", "Bytes that the writable layer may use: those of its file system"),
    ),
    with(&["device"], counter("container_fs_reads_bytes_total", "Bytes read from the disk")),
    with(&["device"], counter("container_fs_reads_total", "Reads from the disk")),
    with(&["device"], gauge("container_fs_usage_bytes", "Bytes of the writable layer")),
    with(&["device"], counter("container_fs_writes_bytes_total", "Bytes written to the disk")),
    with(&["device"], counter("container_fs_writes_total", "Writes to the disk")),
    with(&["pagesize"], gauge("container_hugetlb_max_usage_bytes", "Most bytes of huge pages that were ever in use")),
    with(&["pagesize"], gauge("container_hugetlb_usage_bytes", "Bytes of huge pages in use")),
    gauge("container_last_seen", "When the container was last looked at, in seconds since the epoch"),
    gauge("container_memory_cache", "Bytes of page cache"),
    counter("container_memory_failcnt", "How often the memory limit was hit"),
    with(&["failure_type", "scope"], counter("container_memory_failures_total", "Page faults")),
    gauge("container_memory_kernel_usage", "Bytes that the kernel uses for the container"),
    gauge("container_memory_mapped_file", "Bytes of mapped files"),
    gauge("container_memory_max_usage_bytes", "Most bytes of memory that were ever in use"),
    gauge("container_memory_rss", "Bytes of anonymous memory"),
    gauge("container_memory_swap", "Bytes of swap in use"),
    gauge("container_memory_usage_bytes", "Bytes of memory in use, page cache included"),
    gauge("container_memory_working_set_bytes", "Bytes of memory that can't be dropped at once"),
    with(&["interface"], counter("container_network_receive_bytes_total", "Bytes received")),
    with(&["interface"], counter("container_network_receive_errors_total", "Received packets that were wrong")),
    with(
        &["interface"],
        counter("container_network_receive_packets_dropped_total", "Received packets that were dropped"),
    ),
    with(&["interface"], counter("container_network_receive_packets_total", "Packets received")),
    with(&["interface"], counter("container_network_transmit_bytes_total", "Bytes sent")),
    with(&["interface"], counter("container_network_transmit_errors_total", "Packets that could not be sent")),
    with(
        &["interface"],
        counter("container_network_transmit_packets_dropped_total", "Packets that were dropped on their way out"),
    ),
    with(&["interface"], counter("container_network_transmit_packets_total", "Packets sent")),
    counter("container_oom_events_total", "How often the out-of-memory killer struck"),
    counter("container_pressure_cpu_stalled_seconds_total", "Seconds in which all processes waited for a CPU"),
    counter("container_pressure_cpu_waiting_seconds_total", "Seconds in which some process waited for a CPU"),
    counter("container_pressure_io_stalled_seconds_total", "Seconds in which all processes waited for a disk"),
    counter("container_pressure_io_waiting_seconds_total", "Seconds in which some process waited for a disk"),
    counter("container_pressure_memory_stalled_seconds_total", "Seconds in which all processes waited for memory"),
    counter("container_pressure_memory_waiting_seconds_total", "Seconds in which some process waited for memory"),
    gauge("container_processes", "Processes"),
    gauge("container_sockets", "Open sockets of all processes"),
    gauge("container_spec_cpu_period", "Microseconds of a period of the CPU quota"),
    gauge("container_spec_cpu_quota", "Microseconds of CPU time per period"),
    gauge("container_spec_cpu_shares", "Weight among those who want the CPU"),
    gauge("container_spec_memory_limit_bytes", "Memory limit; 0 is none"),
    gauge("container_spec_memory_reservation_limit_bytes", "Memory that is kept when memory is short; 0 is none"),
    gauge("container_spec_memory_swap_limit_bytes", "Limit of memory and swap; 0 is none"),
    gauge("container_start_time_seconds", "When the container was started, in seconds since the epoch"),
    gauge("container_threads", "Threads"),
    gauge("container_threads_max", "Most threads that are allowed; 0 is no limit"),
    with(
        &["ulimit"],
        gauge("container_ulimits_soft", "Soft limits of the first process; -1 can't be told and is left out"),
    ),
];

/// A metric by its name.
pub(crate) fn find(name: &str) -> Option<&'static Descriptor> {
    // The table is sorted; a test holds that.
    DESCRIPTORS.binary_search_by(|descriptor| descriptor.name.cmp(name)).ok().map(|at| &DESCRIPTORS[at])
}

/// `ListMetricDescriptors`.
pub(crate) fn list() -> cri::ListMetricDescriptorsResponse {
    let shown = |descriptor: &Descriptor| cri::MetricDescriptor {
        name: descriptor.name.into(),
        help: descriptor.help.into(),
        label_keys: LABELS.iter().chain(descriptor.labels).map(ToString::to_string).collect(),
    };
    cri::ListMetricDescriptorsResponse { descriptors: DESCRIPTORS.iter().map(shown).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_found() {
        for descriptor in DESCRIPTORS {
            assert!(find(descriptor.name).is_some(), "{} is out of order", descriptor.name);
        }
        assert!(find("container_nothing").is_none());
    }
}
