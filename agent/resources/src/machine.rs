//! What the machine has, from `/proc` and `/sys`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::allocatable::Amounts;

/// A fact about the machine can't be read.
#[derive(Debug, thiserror::Error)]
#[error("machine facts: {path}: {why}", path = path.display())]
pub struct MachineError {
    /// Where it was looked for.
    pub path: PathBuf,
    /// What is wrong.
    pub why: String,
}

impl MachineError {
    fn new(path: impl Into<PathBuf>, why: impl ToString) -> Self {
        Self { path: path.into(), why: why.to_string() }
    }
}

/// Reads the capacity of this machine. `root` is the kubelet's root directory: its file system is the node's disk.
/// Blocking: it asks the file system of `root`.
///
/// # Errors
/// When `/proc` is not mounted or `root` is not there.
pub fn read_machine(root: &Path, pods_max: i64) -> Result<Amounts, MachineError> {
    let read = |path: &str| std::fs::read_to_string(path).map_err(|error| MachineError::new(path, error));
    let online = read("/sys/devices/system/cpu/online")
        .ok()
        .and_then(|text| count_list(text.trim()))
        .or_else(|| std::thread::available_parallelism().ok().map(|count| count.get() as i64))
        .ok_or_else(|| MachineError::new("/sys/devices/system/cpu/online", "no number of CPUs"))?;
    let memory = parse_meminfo(&read("/proc/meminfo")?, "MemTotal")
        .ok_or_else(|| MachineError::new("/proc/meminfo", "no MemTotal"))?;
    let disk = rustix::fs::statvfs(root).map_err(|error| MachineError::new(root, error))?;
    Ok(Amounts {
        cpu_millis: online * 1000,
        memory_bytes: memory,
        ephemeral_storage_bytes: i64::try_from(disk.f_blocks.saturating_mul(disk.f_frsize)).unwrap_or(i64::MAX),
        hugepages_bytes: read_hugepages(Path::new("/sys/kernel/mm/hugepages")),
        pods: pods_max,
    })
}

/// A field of `/proc/meminfo` in bytes.
pub fn parse_meminfo(text: &str, field: &str) -> Option<i64> {
    let value = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    let kibibytes: i64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// How many numbers a kernel list has: `0-3,8` has five.
pub fn count_list(list: &str) -> Option<i64> {
    let mut count = 0;
    for part in list.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (i64, i64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        count += (last >= first).then_some(last - first + 1)?;
    }
    Some(count).filter(|count| *count > 0)
}

/// Bytes of huge pages by size; sizes without pages count as zero.
fn read_hugepages(folder: &Path) -> BTreeMap<String, i64> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(kibibytes) =
            name.to_str().and_then(|name| name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse::<i64>().ok())
        else {
            continue;
        };
        let pages: i64 = std::fs::read_to_string(entry.path().join("nr_hugepages"))
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(0);
        found.insert(crate::allocatable::binary_quantity(kibibytes * 1024).0, pages.saturating_mul(kibibytes * 1024));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_texts_are_read() {
        assert_eq!(parse_meminfo("MemTotal:       2048 kB\nMemFree: 1 kB\n", "MemTotal"), Some(2048 * 1024));
        assert_eq!(parse_meminfo("MemTotalX: 1 kB\n", "MemTotal"), None);
        for (list, count) in [
            ("0", Some(1)),
            ("0-3", Some(4)),
            ("0-3,8", Some(5)),
            ("0,2-3", Some(3)),
            ("", None),
            ("3-1", None),
            ("x", None),
        ] {
            assert_eq!(count_list(list), count, "{list}");
        }
    }

    #[test]
    fn this_machine_has_something() {
        let machine = read_machine(Path::new("/"), 110).unwrap();
        assert!(machine.cpu_millis >= 1000 && machine.memory_bytes > 64 << 20 && machine.ephemeral_storage_bytes > 0);
        assert!(read_machine(Path::new("/nonexistent"), 110).unwrap_err().to_string().contains("/nonexistent"));
    }
}
