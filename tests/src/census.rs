//! What a test may not leave behind, counted before and after.

use std::collections::BTreeSet;
use std::path::Path;

/// Everything of ours that the kernel holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Mount points.
    pub mounts: BTreeSet<String>,
    /// Cgroups whose path names a pod.
    pub cgroups: BTreeSet<String>,
    /// Shims and pauses.
    pub processes: BTreeSet<String>,
}

impl Census {
    /// Counts what mentions `mark` (a folder or a name that only this test uses).
    ///
    /// # Panics
    /// When the mount table can't be read.
    #[must_use]
    pub fn take(mark: &str) -> Census {
        let table = std::fs::read_to_string("/proc/self/mountinfo").expect("read the mount table");
        let mounts = table.lines().filter(|line| line.contains(mark)).map(str::to_string).collect();
        let mut cgroups = BTreeSet::new();
        collect(Path::new("/sys/fs/cgroup"), mark, &mut cgroups, 0);
        let processes = std::fs::read_dir("/proc")
            .expect("read /proc")
            .flatten()
            .filter_map(|entry| {
                let line = std::fs::read(entry.path().join("cmdline")).ok()?;
                let line = String::from_utf8_lossy(&line).replace('\0', " ");
                let ours =
                    line.starts_with("orlop-shim") || line.contains("/orlop-shim ") || line.contains("/proc/self/fd");
                (ours && line.contains(mark)).then_some(line)
            })
            .collect();
        Census { mounts, cgroups, processes }
    }
}

fn collect(folder: &Path, mark: &str, found: &mut BTreeSet<String>, depth: usize) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        let path = entry.path();
        if path.to_string_lossy().contains(mark) {
            found.insert(path.display().to_string());
        }
        if depth < 6 {
            collect(&path, mark, found, depth + 1);
        }
    }
}

/// Removes the cgroups of this name from every hierarchy, with those below them; one that has processes stays.
pub fn remove_empty_cgroups(name: &str) {
    let mount = Path::new("/sys/fs/cgroup");
    let hierarchies = std::fs::read_dir(mount).into_iter().flatten().flatten().map(|entry| entry.path());
    for hierarchy in hierarchies.chain([mount.to_path_buf()]) {
        remove_empty(&hierarchy.join(name));
    }
}

fn remove_empty(folder: &Path) {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove_empty(&entry.path());
    }
    let _ = std::fs::remove_dir(folder);
}
