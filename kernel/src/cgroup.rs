//! Control groups, v1 hybrid and v2.
//!
//! A cgroup is named by its path below each hierarchy's root, as the kubelet names it:
//! `/kubepods/burstable/pod<uid>/<container id>`. On v1 the same path is made in every hierarchy.

mod apply;
mod block_io;
mod device_filter;
mod freezer;
mod resources;
pub mod unit;
mod usage;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use resources::{
    BlockIo, Cpu, DeviceRule, HugepageLimit, Memory, Network, NetworkPriority, Pids, Resources, ThrottleDevice,
    WeightDevice, shares_to_weight,
};
pub use usage::{CpuUsage, DiskUsage, HugepageUsage, MemoryUsage, Pressure, PressureKind, PressureLine};

/// How long processes of a cgroup may take to vanish after SIGKILL.
const KILL_WAIT: Duration = Duration::from_secs(5);
/// How deep cgroups of a container may nest when they are removed.
const DEPTH_MAX: usize = 32;

/// Why something about a cgroup failed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// No hierarchy is mounted.
    #[error(
        "no cgroup hierarchy is mounted below /sys/fs/cgroup; mount cgroup2: mount -t cgroup2 cgroup2 /sys/fs/cgroup"
    )]
    NotMounted,
    /// A path that would leave the hierarchy.
    #[error("cgroup path {0:?} must start with / and hold no . or .. parts")]
    Path(String),
    /// A scope that systemd has not made, or has taken away.
    #[error("systemd has no scope at {0}; it ends one as soon as no process is in it")]
    NoScope(String),
    /// The kernel refused.
    #[error("cgroup: {step} {path:?}")]
    Step {
        /// What was being done.
        step: &'static str,
        /// Which file or folder.
        path: PathBuf,
        /// Why it was refused.
        #[source]
        source: std::io::Error,
    },
    /// Processes that don't end.
    #[error("cgroup {path} still holds processes {pids:?} {seconds} s after SIGKILL; they hang in the kernel")]
    Alive {
        /// The cgroup.
        path: String,
        /// The processes.
        pids: Vec<i32>,
        /// How long was waited.
        seconds: u64,
    },
}

pub(crate) fn failed(step: &'static str, path: &Path, source: std::io::Error) -> CgroupError {
    CgroupError::Step { step, path: path.to_path_buf(), source }
}

/// A mounted v1 hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Its controllers.
    pub controllers: Vec<String>,
    /// Where it is mounted.
    pub mount: PathBuf,
}

/// The machine's hierarchies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cgroups {
    /// Several hierarchies, perhaps with a unified one that has no controllers of interest.
    V1(Vec<Hierarchy>),
    /// The unified hierarchy alone.
    V2(PathBuf),
}

/// v1 controllers in which pods get a cgroup.
const CONTROLLERS: [&str; 12] = [
    "cpu",
    "cpuacct",
    "cpuset",
    "memory",
    "devices",
    "freezer",
    "blkio",
    "pids",
    "hugetlb",
    "perf_event",
    "net_cls",
    "net_prio",
];

impl Cgroups {
    /// Finds what is mounted.
    ///
    /// # Errors
    /// When nothing is.
    pub fn detect() -> Result<Cgroups, CgroupError> {
        let table = std::fs::read_to_string("/proc/self/mountinfo")
            .map_err(|error| failed("read", Path::new("/proc/self/mountinfo"), error))?;
        Cgroups::from_mountinfo(&table).ok_or(CgroupError::NotMounted)
    }

    fn from_mountinfo(table: &str) -> Option<Cgroups> {
        let (mut hierarchies, mut unified) = (Vec::new(), None);
        for line in table.lines() {
            let (left, right) = line.split_once(" - ")?;
            let Some(mount) = left.split(' ').nth(4).map(PathBuf::from) else { continue };
            let mut right = right.split(' ');
            match (right.next(), right.nth(1)) {
                (Some("cgroup"), Some(options)) => {
                    let controllers: Vec<String> =
                        options.split(',').filter(|option| CONTROLLERS.contains(option)).map(str::to_string).collect();
                    let known = hierarchies.iter().any(|other: &Hierarchy| other.controllers == controllers);
                    if !controllers.is_empty() && !known {
                        hierarchies.push(Hierarchy { controllers, mount });
                    }
                }
                (Some("cgroup2"), _) => unified = unified.or(Some(mount)),
                _ => {}
            }
        }
        match (hierarchies.is_empty(), unified) {
            (false, _) => Some(Cgroups::V1(hierarchies)),
            (true, Some(mount)) => Some(Cgroups::V2(mount)),
            (true, None) => None,
        }
    }

    /// Folders of a cgroup, one per hierarchy.
    ///
    /// # Errors
    /// When the path would leave the hierarchy.
    pub fn folders(&self, path: &str) -> Result<Vec<PathBuf>, CgroupError> {
        let relative = path.strip_prefix('/').ok_or_else(|| CgroupError::Path(path.to_string()))?;
        if relative.is_empty() || relative.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
            return Err(CgroupError::Path(path.to_string()));
        }
        Ok(match self {
            Cgroups::V1(hierarchies) => hierarchies.iter().map(|hierarchy| hierarchy.mount.join(relative)).collect(),
            Cgroups::V2(mount) => vec![mount.join(relative)],
        })
    }

    /// Folders of a cgroup in the v1 hierarchies, by the names of their controllers; none on v2.
    ///
    /// # Errors
    /// When the path would leave the hierarchy.
    pub fn folders_by_name(&self, path: &str) -> Result<Vec<(String, PathBuf)>, CgroupError> {
        let folders = self.folders(path)?;
        Ok(match self {
            Cgroups::V1(hierarchies) => {
                hierarchies.iter().map(|hierarchy| hierarchy.controllers.join(",")).zip(folders).collect()
            }
            Cgroups::V2(_) => Vec::new(),
        })
    }

    /// Folder of a cgroup in the hierarchy of a v1 controller, or the only one.
    fn folder(&self, path: &str, controller: &str) -> Result<Option<PathBuf>, CgroupError> {
        let folders = self.folders(path)?;
        Ok(match self {
            Cgroups::V1(hierarchies) => hierarchies
                .iter()
                .position(|hierarchy| hierarchy.controllers.iter().any(|known| known == controller))
                .map(|index| folders[index].clone()),
            Cgroups::V2(_) => folders.into_iter().next(),
        })
    }

    /// Makes a cgroup with the folders above it, and sets its limits.
    ///
    /// # Errors
    /// When the kernel refuses; what was made stays for [`Cgroups::remove`].
    pub fn create(&self, path: &str, resources: &Resources) -> Result<(), CgroupError> {
        match self {
            Cgroups::V1(hierarchies) => {
                for (folder, hierarchy) in self.folders(path)?.iter().zip(hierarchies) {
                    apply::make_v1(folder, hierarchy)?;
                }
            }
            Cgroups::V2(mount) => apply::make_v2(mount, path)?,
        }
        self.set(path, resources)
    }

    /// Makes a cgroup as [`Cgroups::create`] does. One whose path is that of a scope is systemd's to make: it is taken as it
    /// is, with the controllers that systemd doesn't know, and has to be there.
    ///
    /// # Errors
    /// When the kernel refuses, or there is no scope.
    pub fn provide(&self, path: &str, resources: &Resources) -> Result<(), CgroupError> {
        if unit::Scope::at(path).is_none() {
            return self.create(path, resources);
        }
        if !self.exists(path) {
            return Err(CgroupError::NoScope(path.to_string()));
        }
        if let Cgroups::V2(mount) = self {
            apply::hand_down(mount, path);
        }
        self.set(path, resources)
    }

    /// Sets the limits of a cgroup that exists. Limits that are not given stay as they are.
    ///
    /// # Errors
    /// When the kernel refuses a value; the message names the file.
    pub fn set(&self, path: &str, resources: &Resources) -> Result<(), CgroupError> {
        apply::set(self, path, resources)
    }

    /// Whether the cgroup exists.
    #[must_use]
    pub fn exists(&self, path: &str) -> bool {
        self.folders(path).is_ok_and(|folders| folders.iter().any(|folder| folder.is_dir()))
    }

    /// Moves a process into the cgroup; 0 is the caller.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn join(&self, path: &str, pid: i32) -> Result<(), CgroupError> {
        for folder in self.folders(path)? {
            let file = folder.join("cgroup.procs");
            let joined =
                std::fs::OpenOptions::new().write(true).open(&file).and_then(|mut procs| write!(procs, "{pid}"));
            joined.map_err(|error| failed("join", &file, error))?;
        }
        Ok(())
    }

    /// Processes of the cgroup and of those below it.
    #[must_use]
    pub fn processes(&self, path: &str) -> Vec<i32> {
        let mut pids = Vec::new();
        let Ok(folders) = self.folders(path) else { return pids };
        for folder in folders {
            collect_processes(&folder, &mut pids, 0);
        }
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// Sends SIGKILL to every process of the cgroup, those that are forked meanwhile too, and doesn't wait.
    pub fn kill(&self, path: &str) {
        if let Cgroups::V2(_) = self
            && let Ok(Some(folder)) = self.folder(path, "")
            && std::fs::write(folder.join("cgroup.kill"), "1").is_ok()
        {
            return;
        }
        // A round that finds nobody ends it; a fork bomb is bounded by the pids limit and by the rounds.
        for _ in 0..16 {
            let pids = self.processes(path);
            if pids.is_empty() {
                return;
            }
            for pid in pids {
                let _ = crate::process::kill(pid, libc::SIGKILL);
            }
        }
    }

    /// Sends a signal to every process of the cgroup.
    pub fn signal(&self, path: &str, signal: i32) {
        for pid in self.processes(path) {
            let _ = crate::process::kill(pid, signal);
        }
    }

    /// Removes the cgroup and those below it; fine when it is gone. `reap` is called while processes are waited for,
    /// so that the caller's own children don't stay zombies.
    ///
    /// # Errors
    /// When processes don't end or the kernel refuses.
    pub fn remove(&self, path: &str, mut reap: impl FnMut()) -> Result<(), CgroupError> {
        let began = Instant::now();
        let folders = self.folders(path)?;
        loop {
            let busy = folders.iter().filter_map(|folder| remove_folder(folder, 0).err()).next();
            let Some((folder, error)) = busy else { return Ok(()) };
            if error.raw_os_error() != Some(libc::EBUSY) {
                return Err(failed("remove", &folder, error));
            }
            self.kill(path);
            reap();
            if began.elapsed() > KILL_WAIT {
                return Err(CgroupError::Alive {
                    path: path.to_string(),
                    pids: self.processes(path),
                    seconds: KILL_WAIT.as_secs(),
                });
            }
            // The kernel tells nobody when a v1 cgroup becomes empty, so this is asked again, a few times at most.
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// How often the out-of-memory killer struck in the cgroup and (on v2) in those below it; none when it is not there.
    #[must_use]
    pub fn oom_kills(&self, path: &str) -> Option<u64> {
        let file = match self {
            Cgroups::V1(_) => "memory.oom_control",
            Cgroups::V2(_) => "memory.events",
        };
        self.read(path, "memory", file).as_deref().and_then(|text| keyed(text, "oom_kill"))
    }

    fn read(&self, path: &str, controller: &str, file: &str) -> Option<String> {
        std::fs::read_to_string(self.folder(path, controller).ok()??.join(file)).ok()
    }
}

/// The number behind a word at the start of a line.
fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.split_once(' ').filter(|(name, _)| *name == key))
        .and_then(|(_, value)| value.parse().ok())
}

fn collect_processes(folder: &Path, pids: &mut Vec<i32>, depth: usize) {
    if let Ok(text) = std::fs::read_to_string(folder.join("cgroup.procs")) {
        pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    }
    if depth < DEPTH_MAX {
        for below in folders_below(folder) {
            collect_processes(&below, pids, depth + 1);
        }
    }
}

fn folders_below(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// Removes a folder with those below it; says which one could not be removed.
fn remove_folder(folder: &Path, depth: usize) -> Result<(), (PathBuf, std::io::Error)> {
    if depth < DEPTH_MAX {
        for below in folders_below(folder) {
            remove_folder(&below, depth + 1)?;
        }
    }
    match std::fs::remove_dir(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err((folder.to_path_buf(), error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
1 0 0:1 / /sys/fs/cgroup rw - tmpfs tmpfs rw
2 1 0:2 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
3 1 0:3 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
4 1 0:4 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd
5 1 0:5 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw";

    #[test]
    fn hybrid_counts_as_v1_and_unified_alone_as_v2() {
        let hybrid = Cgroups::from_mountinfo(HYBRID).unwrap();
        let folders = hybrid.folders("/kubepods/x").unwrap();
        assert_eq!(
            folders,
            [Path::new("/sys/fs/cgroup/cpu,cpuacct/kubepods/x"), Path::new("/sys/fs/cgroup/memory/kubepods/x")]
        );
        let unified = Cgroups::from_mountinfo("5 1 0:5 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw").unwrap();
        assert_eq!(unified, Cgroups::V2("/sys/fs/cgroup".into()));
    }

    #[test]
    fn paths_stay_inside() {
        let unified = Cgroups::V2("/sys/fs/cgroup".into());
        for path in ["kubepods", "/", "/a/../b", "/a//b", "/./a"] {
            assert!(unified.folders(path).is_err(), "{path}");
        }
    }
}
