//! What must hold after an attack: the machine's files and settings as before, the daemon alive and no fatter.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::world::DEADLINE;

/// Files and settings of the machine that attacks are after.
const WATCHED: [&str; 10] = [
    "/etc/passwd",
    "/etc/group",
    "/etc/shadow",
    "/etc/hosts",
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/kernel/hotplug",
    "/proc/sys/kernel/shm_rmid_forced",
    "/proc/sys/net/ipv4/ip_forward",
    "/proc/sys/fs/mqueue/msg_max",
];
/// Folders of the machine that get no new entry.
const FOLDERS: [&str; 6] = ["/", "/etc", "/root", "/dev", "/var/lib", "/usr/bin"];
/// Descriptors that a daemon may have more than before.
const DESCRIPTORS_MORE: usize = 5;
/// Memory that a daemon may have more than before, in KiB.
const MEMORY_MORE: u64 = 64 << 10;

/// The machine before an attack.
pub struct Invariant {
    canary: tempfile::TempDir,
    files: BTreeMap<PathBuf, (String, u32, u64)>,
    entries: BTreeMap<&'static str, Vec<std::ffi::OsString>>,
    daemon: Option<(u32, usize, u64)>,
}

impl Invariant {
    /// Takes down how things are; `daemon` is the process that has to live on.
    ///
    /// # Panics
    /// When they can't be looked at.
    #[must_use]
    pub fn take(daemon: Option<u32>) -> Invariant {
        let canary = tempfile::tempdir().unwrap();
        std::fs::write(canary.path().join("canary"), "CANARY").unwrap();
        let files = WATCHED.iter().map(PathBuf::from).chain([canary.path().join("canary")]);
        let files = files.filter_map(|path| Some((path.clone(), state(&path)?))).collect();
        let entries = FOLDERS.into_iter().map(|folder| (folder, names(folder))).collect();
        let daemon = daemon.map(|pid| (pid, descriptors(pid), memory(pid)));
        Invariant { canary, files, entries, daemon }
    }

    /// A folder of the machine with the file `canary`, whose content is `CANARY`.
    #[must_use]
    pub fn canary(&self) -> &Path {
        self.canary.path()
    }

    /// Sees to it that everything is as before, as soon as what the daemon still cleans up is done.
    ///
    /// # Panics
    /// When something isn't.
    pub fn check(&self) {
        for (path, before) in &self.files {
            assert_eq!(state(path).as_ref(), Some(before), "{} was changed", path.display());
        }
        for (folder, before) in &self.entries {
            // Others may take their files away meanwhile; what matters is what has come.
            let new: Vec<_> = names(folder).into_iter().filter(|name| !before.contains(name)).collect();
            assert!(new.is_empty(), "new in {folder}: {new:?}");
        }
        let Some((pid, open, used)) = self.daemon else { return };
        assert!(Path::new(&format!("/proc/{pid}/exe")).exists(), "the daemon is gone");
        let end = Instant::now() + DEADLINE;
        while descriptors(pid) > open + DESCRIPTORS_MORE {
            assert!(Instant::now() < end, "the daemon has {} descriptors, {open} before", descriptors(pid));
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(memory(pid) < used + MEMORY_MORE, "the daemon has {} KiB, {used} before", memory(pid));
    }
}

fn state(path: &Path) -> Option<(String, u32, u64)> {
    let metadata = std::fs::symlink_metadata(path).ok()?;
    let hash = hex::encode(Sha256::digest(std::fs::read(path).ok()?));
    Some((hash, metadata.mode(), metadata.nlink()))
}

fn names(folder: &str) -> Vec<std::ffi::OsString> {
    std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name()).collect()
}

/// How many descriptors a process has.
#[must_use]
pub fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// Resident memory of a process in KiB.
#[must_use]
pub fn memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).unwrap_or(0)
}
