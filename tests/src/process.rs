//! What processes take: memory and CPU, as /proc tells.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// Memory of processes.
pub struct Memory {
    /// Their proportional set sizes, in KiB.
    pub total: f64,
}

impl Memory {
    /// The memory of processes as it is now.
    #[must_use]
    pub fn of(pids: &[u32]) -> Memory {
        Memory { total: pids.iter().filter_map(|pid| proportional(*pid)).sum() }
    }
}

/// `Pss` of a process in KiB; none when it is gone.
fn proportional(pid: u32) -> Option<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    field(&text, "Pss:")
}

/// What new programs can take without swapping, in KiB.
///
/// # Panics
/// When /proc/meminfo can't be read.
#[must_use]
pub fn available() -> f64 {
    let text = std::fs::read_to_string("/proc/meminfo").expect("read /proc/meminfo");
    field(&text, "MemAvailable:").expect("MemAvailable in /proc/meminfo")
}

fn field(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// CPU time of each thread of processes so far, to the nanosecond, and of the children that they have reaped, to the tick.
pub struct Cpu(BTreeMap<PathBuf, u64>);

/// Nanoseconds of a tick in /proc (USER_HZ).
const TICK: u64 = 10_000_000;

impl Cpu {
    /// As it is now.
    #[must_use]
    pub fn of(pids: &[u32]) -> Cpu {
        let of_thread = |entry: std::fs::DirEntry| {
            let text = std::fs::read_to_string(entry.path().join("schedstat")).ok()?;
            Some((entry.path(), text.split(' ').next()?.parse().ok()?))
        };
        let of = |pid: &u32| std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let threads = pids.iter().flat_map(of).filter_map(of_thread);
        Cpu(threads.chain(pids.iter().filter_map(|pid| reaped(*pid))).collect())
    }

    /// What threads that are alive, and children that were reaped, have taken since an earlier look.
    #[must_use]
    pub fn since(&self, earlier: &Cpu) -> Duration {
        let taken = |(thread, now): (&PathBuf, &u64)| now.saturating_sub(earlier.0.get(thread).copied().unwrap_or(0));
        Duration::from_nanos(self.0.iter().map(taken).sum())
    }
}

/// What the children that a process has reaped took (`cutime` and `cstime`).
fn reaped(pid: u32) -> Option<(PathBuf, u64)> {
    let file = PathBuf::from(format!("/proc/{pid}/stat"));
    Some((file, ticks(pid, 13)? * TICK))
}

/// CPU time of a process so far, with threads that have ended and without its children, to the tick.
#[must_use]
pub fn cpu_of(pid: u32) -> Duration {
    Duration::from_nanos(ticks(pid, 11).unwrap_or(0) * TICK)
}

/// Two fields of `/proc/PID/stat` added up. They are counted from the one after the name, which may hold anything.
fn ticks(pid: u32, first: usize) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = text.rsplit_once(") ")?.1.split(' ').collect();
    Some(fields.get(first)?.parse::<u64>().ok()? + fields.get(first + 1)?.parse::<u64>().ok()?)
}

/// The daemon `root`, and processes that have one of the names (of which the kernel keeps 15 bytes) and whose command
/// line or cgroup has one of the marks.
#[must_use]
pub fn find(root: u32, names: &[&str], marks: &[&str]) -> Vec<u32> {
    let of = |entry: std::fs::DirEntry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let name = std::fs::read_to_string(entry.path().join("comm")).ok()?;
        let texts = ["cmdline", "cgroup"].map(|file| std::fs::read(entry.path().join(file)).unwrap_or_default());
        let ours = texts.iter().any(|text| {
            let text = String::from_utf8_lossy(text);
            marks.iter().any(|mark| text.contains(mark))
        });
        (pid == root || (names.iter().any(|one| one[..one.len().min(15)] == *name.trim()) && ours)).then_some(pid)
    };
    std::fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(of).collect()
}
