//! What a cgroup has used, as the kernel counts it: processor, memory, processes, disks, huge pages and pressure.
//!
//! Each question reads only its own files, so that a caller pays for what it asks. What the kernel doesn't count is
//! absent, never zero.

use std::path::Path;

use super::{Cgroups, keyed};

/// Microseconds to nanoseconds.
const NANOS_PER_MICRO: u64 = 1000;
/// A v1 limit at or above this is none: the kernel writes the largest number of pages in bytes.
const UNLIMITED: u64 = 1 << 62;

/// Processor time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuUsage {
    /// All of it, in nanoseconds.
    pub total_nanoseconds: u64,
    /// In programs, in nanoseconds.
    pub user_nanoseconds: Option<u64>,
    /// In the kernel, in nanoseconds.
    pub system_nanoseconds: Option<u64>,
    /// Periods of the quota that have passed.
    pub periods: Option<u64>,
    /// Those in which the quota was used up.
    pub throttled_periods: Option<u64>,
    /// Time spent waiting for the next period, in nanoseconds.
    pub throttled_nanoseconds: Option<u64>,
}

/// Memory, in bytes where nothing else is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUsage {
    /// All of it, page cache included.
    pub usage: u64,
    /// Without the page cache that can be dropped at once: what the kubelet's evictions go by.
    pub working_set: u64,
    /// Limit; none when there is none.
    pub limit: Option<u64>,
    /// Anonymous memory.
    pub rss: u64,
    /// Page cache.
    pub cache: u64,
    /// Files that are mapped.
    pub mapped_file: u64,
    /// Memory of the kernel on behalf of the cgroup.
    pub kernel: Option<u64>,
    /// Highest usage so far.
    pub peak: Option<u64>,
    /// Swap in use.
    pub swap: Option<u64>,
    /// Limit of swap; none when there is none.
    pub swap_limit: Option<u64>,
    /// How often the limit was hit.
    pub limit_hits: Option<u64>,
    /// Page faults (a count).
    pub page_faults: u64,
    /// Page faults that read from a disk (a count).
    pub major_page_faults: u64,
}

/// Traffic with one disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskUsage {
    /// Major and minor number.
    pub device: (u32, u32),
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
}

/// Huge pages of one size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HugepageUsage {
    /// Size as the kernel writes it: `2MB`.
    pub page_size: String,
    /// Bytes in use.
    pub usage: u64,
    /// Most bytes that were ever in use.
    pub peak: Option<u64>,
}

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PressureKind {
    /// Processor.
    Cpu,
    /// Memory.
    Memory,
    /// Disks.
    Io,
}

/// Share of time in which some, or all, processes waited (PSI, `Documentation/accounting/psi.rst`).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pressure {
    /// At least one process waited.
    pub some: PressureLine,
    /// All processes waited.
    pub full: PressureLine,
}

/// One line of a pressure file.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PressureLine {
    /// Percent of the last 10 seconds.
    pub avg10: f64,
    /// Percent of the last minute.
    pub avg60: f64,
    /// Percent of the last five minutes.
    pub avg300: f64,
    /// Microseconds since the cgroup was made.
    pub total_microseconds: u64,
}

impl Cgroups {
    /// Processor time of the cgroup and those below it.
    #[must_use]
    pub fn cpu_usage(&self, path: &str) -> Option<CpuUsage> {
        let number = |controller: &str, file: &str| self.read(path, controller, file)?.trim().parse::<u64>().ok();
        if let Cgroups::V2(_) = self {
            let stat = self.read(path, "", "cpu.stat")?;
            let nanos = |key: &str| keyed(&stat, key).map(|micros| micros * NANOS_PER_MICRO);
            return Some(CpuUsage {
                total_nanoseconds: nanos("usage_usec")?,
                user_nanoseconds: nanos("user_usec"),
                system_nanoseconds: nanos("system_usec"),
                periods: keyed(&stat, "nr_periods"),
                throttled_periods: keyed(&stat, "nr_throttled"),
                throttled_nanoseconds: nanos("throttled_usec"),
            });
        }
        let stat = self.read(path, "cpu", "cpu.stat").unwrap_or_default();
        Some(CpuUsage {
            total_nanoseconds: number("cpuacct", "cpuacct.usage")?,
            user_nanoseconds: number("cpuacct", "cpuacct.usage_user"),
            system_nanoseconds: number("cpuacct", "cpuacct.usage_sys"),
            periods: keyed(&stat, "nr_periods"),
            throttled_periods: keyed(&stat, "nr_throttled"),
            throttled_nanoseconds: keyed(&stat, "throttled_time"),
        })
    }

    /// Processor time alone, in nanoseconds: one file.
    #[must_use]
    pub fn cpu_time(&self, path: &str) -> Option<u64> {
        match self {
            Cgroups::V1(_) => self.read(path, "cpuacct", "cpuacct.usage")?.trim().parse().ok(),
            Cgroups::V2(_) => {
                keyed(&self.read(path, "", "cpu.stat")?, "usage_usec").map(|micros| micros * NANOS_PER_MICRO)
            }
        }
    }

    /// Memory of the cgroup and those below it.
    #[must_use]
    pub fn memory_usage(&self, path: &str) -> Option<MemoryUsage> {
        let number = |file: &str| self.read(path, "memory", file)?.trim().parse::<u64>().ok();
        let stat = self.read(path, "memory", "memory.stat")?;
        let limit = |file: &str| number(file).filter(|bytes| *bytes < UNLIMITED);
        if let Cgroups::V2(_) = self {
            let usage = number("memory.current")?;
            let of = |key: &str| keyed(&stat, key).unwrap_or(0);
            let events = self.read(path, "memory", "memory.events").unwrap_or_default();
            return Some(MemoryUsage {
                usage,
                working_set: usage.saturating_sub(of("inactive_file")),
                limit: limit("memory.max"),
                rss: of("anon"),
                cache: of("file"),
                mapped_file: of("file_mapped"),
                kernel: keyed(&stat, "kernel"),
                peak: number("memory.peak"),
                swap: number("memory.swap.current"),
                swap_limit: limit("memory.swap.max"),
                limit_hits: keyed(&events, "max"),
                page_faults: of("pgfault"),
                major_page_faults: of("pgmajfault"),
            });
        }
        let usage = number("memory.usage_in_bytes")?;
        let of = |key: &str| keyed(&stat, key).unwrap_or(0);
        let bound = limit("memory.limit_in_bytes");
        Some(MemoryUsage {
            usage,
            working_set: usage.saturating_sub(of("total_inactive_file")),
            limit: bound,
            rss: of("total_rss"),
            cache: of("total_cache"),
            mapped_file: of("total_mapped_file"),
            kernel: number("memory.kmem.usage_in_bytes"),
            peak: number("memory.max_usage_in_bytes"),
            swap: keyed(&stat, "total_swap"),
            // v1 limits memory and swap together.
            swap_limit: limit("memory.memsw.limit_in_bytes").map(|both| both.saturating_sub(bound.unwrap_or(0))),
            limit_hits: number("memory.failcnt"),
            page_faults: of("total_pgfault"),
            major_page_faults: of("total_pgmajfault"),
        })
    }

    /// Threads of the cgroup and those below it, and their limit.
    #[must_use]
    pub fn thread_count(&self, path: &str) -> Option<(u64, Option<u64>)> {
        let current = self.read(path, "pids", "pids.current")?.trim().parse().ok()?;
        Some((current, self.read(path, "pids", "pids.max").and_then(|max| max.trim().parse().ok())))
    }

    /// Traffic of the cgroup and those below it with each disk.
    #[must_use]
    pub fn disk_usage(&self, path: &str) -> Vec<DiskUsage> {
        match self {
            Cgroups::V2(_) => parse_io_stat(&self.read(path, "io", "io.stat").unwrap_or_default()),
            Cgroups::V1(_) => parse_blkio(
                &self.read(path, "blkio", "blkio.throttle.io_service_bytes_recursive").unwrap_or_default(),
                &self.read(path, "blkio", "blkio.throttle.io_serviced_recursive").unwrap_or_default(),
            ),
        }
    }

    /// Huge pages of each size that the machine has.
    #[must_use]
    pub fn hugepage_usage(&self, path: &str) -> Vec<HugepageUsage> {
        let (current, peak) = match self {
            Cgroups::V1(_) => (".usage_in_bytes", Some(".max_usage_in_bytes")),
            Cgroups::V2(_) => (".current", None),
        };
        let Ok(Some(folder)) = self.folder(path, "hugetlb") else { return Vec::new() };
        let number = |file: &Path| std::fs::read_to_string(file).ok()?.trim().parse::<u64>().ok();
        let of = |entry: std::fs::DirEntry| {
            let name = entry.file_name().into_string().ok()?;
            let page_size = name.strip_prefix("hugetlb.")?.strip_suffix(current)?;
            if page_size.contains('.') {
                return None;
            }
            let peak = peak.and_then(|suffix| number(&folder.join(format!("hugetlb.{page_size}{suffix}"))));
            Some(HugepageUsage { page_size: page_size.to_string(), usage: number(&entry.path())?, peak })
        };
        let mut all: Vec<HugepageUsage> =
            std::fs::read_dir(&folder).into_iter().flatten().flatten().filter_map(of).collect();
        all.sort_by(|one, other| one.page_size.cmp(&other.page_size));
        all
    }

    /// Pressure of a kind: counted on v2 only, and when the kernel has PSI switched on.
    #[must_use]
    pub fn pressure(&self, path: &str, kind: PressureKind) -> Option<Pressure> {
        let Cgroups::V2(_) = self else { return None };
        let file = match kind {
            PressureKind::Cpu => "cpu.pressure",
            PressureKind::Memory => "memory.pressure",
            PressureKind::Io => "io.pressure",
        };
        parse_pressure(&self.read(path, "", file)?)
    }
}

fn parse_io_stat(text: &str) -> Vec<DiskUsage> {
    let of = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let mut disk = DiskUsage { device: device(words.next()?)?, ..DiskUsage::default() };
        for word in words {
            let (key, value) = word.split_once('=')?;
            let value = value.parse().unwrap_or(0);
            match key {
                "rbytes" => disk.read_bytes = value,
                "wbytes" => disk.written_bytes = value,
                "rios" => disk.reads = value,
                "wios" => disk.writes = value,
                _ => {}
            }
        }
        Some(disk)
    };
    text.lines().filter_map(of).collect()
}

fn parse_blkio(bytes: &str, operations: &str) -> Vec<DiskUsage> {
    let mut disks: Vec<DiskUsage> = Vec::new();
    for (text, counts_bytes) in [(bytes, true), (operations, false)] {
        for line in text.lines() {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            let [name, what, value] = words[..] else { continue };
            let (Some(device), Ok(value)) = (device(name), value.parse::<u64>()) else { continue };
            let at = disks.iter().position(|disk| disk.device == device).unwrap_or_else(|| {
                disks.push(DiskUsage { device, ..DiskUsage::default() });
                disks.len() - 1
            });
            match (what, counts_bytes) {
                ("Read", true) => disks[at].read_bytes = value,
                ("Write", true) => disks[at].written_bytes = value,
                ("Read", false) => disks[at].reads = value,
                ("Write", false) => disks[at].writes = value,
                _ => {}
            }
        }
    }
    disks
}

fn device(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn parse_pressure(text: &str) -> Option<Pressure> {
    let line = |word: &str| {
        let rest = text.lines().find_map(|line| line.strip_prefix(word)).unwrap_or_default();
        let value =
            |key: &str| rest.split_ascii_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        let share = |key: &str| value(key).and_then(|text| text.parse().ok()).unwrap_or(0.0);
        PressureLine {
            avg10: share("avg10"),
            avg60: share("avg60"),
            avg300: share("avg300"),
            total_microseconds: value("total").and_then(|text| text.parse().ok()).unwrap_or(0),
        }
    };
    text.starts_with("some ").then(|| Pressure { some: line("some "), full: line("full ") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_of_both_versions_read_alike() {
        let expected = vec![DiskUsage { device: (8, 0), read_bytes: 4096, written_bytes: 8192, reads: 1, writes: 2 }];
        let v2 = "8:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\nnonsense\n";
        assert_eq!(parse_io_stat(v2), expected);
        let bytes = "8:0 Read 4096\n8:0 Write 8192\n8:0 Sync 0\nTotal 12288\n";
        let operations = "8:0 Read 1\n8:0 Write 2\nTotal 3\n";
        assert_eq!(parse_blkio(bytes, operations), expected);
    }

    #[test]
    fn pressure_files() {
        let text =
            "some avg10=1.50 avg60=0.25 avg300=0.00 total=1234\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";
        let found = parse_pressure(text).unwrap();
        assert_eq!((found.some.avg10, found.some.total_microseconds), (1.5, 1234));
        assert_eq!(found.full.total_microseconds, 7);
        assert_eq!(parse_pressure(""), None);
    }
}
