//! The cgroups of pods, as the kubelet makes them: `/kubepods[/burstable|/besteffort]/pod<uid>`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use orlop_agent_core::ports::{PodCgroupLimits, PodCgroups, PortError, PortFuture};
use orlop_kernel::cgroup::{CgroupError, Cgroups, Cpu, HugepageLimit, Memory, Pids, Resources};

use crate::qos::{Class, SHARES_MIN, burstable_shares, is_uid};

/// How the tree is made.
#[derive(Clone, Debug, Default)]
pub struct CgroupTreeConfig {
    /// Path above `kubepods`, without a slash at the end: empty, or `/orlop-a` for an instance beside others.
    pub root: String,
    /// Most processes of a pod (`podPidsLimit`); none is unlimited.
    pub pod_pids_max: Option<i64>,
    /// Limits of all pods together (`enforceNodeAllocatable: pods`).
    pub node: NodeLimits,
}

/// Limits of all pods together; what is absent is not set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeLimits {
    /// CPU shares.
    pub cpu_shares: Option<u64>,
    /// Memory in bytes.
    pub memory_bytes: Option<i64>,
    /// Processes.
    pub pids: Option<i64>,
}

/// The cgroup tree. Cheap to clone; all clones are one tree.
#[derive(Clone)]
pub struct CgroupTree(Arc<Inner>);

struct Inner {
    cgroups: Cgroups,
    config: CgroupTreeConfig,
    /// Class and shares of the pods that there are. The disk is the truth after a restart: it is read when opened.
    pods: Mutex<BTreeMap<String, (Class, u64)>>,
}

impl CgroupTree {
    /// Makes the upper levels of the tree, sets the node's limits and finds the pods that are there. Blocking.
    ///
    /// # Errors
    /// When no hierarchy is mounted, or the kernel refuses.
    pub fn open(config: CgroupTreeConfig) -> Result<Self, CgroupError> {
        let cgroups = Cgroups::detect()?;
        let node = config.node;
        let limits = Resources {
            cpu: node.cpu_shares.map(|shares| Cpu { shares: Some(shares), ..Cpu::default() }),
            memory: node.memory_bytes.map(|bytes| Memory { limit: Some(bytes), ..Memory::default() }),
            pids: node.pids.map(|limit| Pids { limit }),
            ..Resources::default()
        };
        cgroups.create(&Class::Guaranteed.path(&config.root), &limits)?;
        for class in [Class::Burstable, Class::BestEffort] {
            cgroups.create(&class.path(&config.root), &shares(SHARES_MIN))?;
        }
        let inner = Inner { pods: Mutex::new(find_pods(&cgroups, &config.root)), cgroups, config };
        inner.weigh_burstable(&inner.pods())?;
        Ok(Self(Arc::new(inner)))
    }

    /// Removes the whole tree with every process in it; for taking an instance down. Blocking.
    ///
    /// # Errors
    /// When processes don't end.
    pub fn destroy(&self) -> Result<(), CgroupError> {
        let root = &self.0.config.root;
        self.0.cgroups.remove(&Class::Guaranteed.path(root), || {})?;
        if root.is_empty() {
            return Ok(());
        }
        self.0.cgroups.remove(root, || {})
    }
}

impl Inner {
    fn pods(&self) -> MutexGuard<'_, BTreeMap<String, (Class, u64)>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn weigh_burstable(&self, pods: &BTreeMap<String, (Class, u64)>) -> Result<(), CgroupError> {
        self.cgroups.set(&Class::Burstable.path(&self.config.root), &shares(burstable_shares(pods)))
    }

    fn ensure(&self, uid: &str, class: Class, limits: &PodCgroupLimits) -> Result<String, CgroupError> {
        let path = class.pod_path(&self.config.root, uid);
        self.cgroups.create(&path, &resources(limits, self.config.pod_pids_max))?;
        let mut pods = self.pods();
        let now = (class, limits.cpu_shares);
        if pods.insert(uid.to_owned(), now) != Some(now) {
            self.weigh_burstable(&pods)?;
        }
        Ok(path)
    }

    fn remove(&self, uid: &str) -> Result<(), CgroupError> {
        for class in Class::ALL {
            let path = class.pod_path(&self.config.root, uid);
            if self.cgroups.exists(&path) {
                self.cgroups.remove(&path, || {})?;
            }
        }
        let mut pods = self.pods();
        if pods.remove(uid).is_some() {
            self.weigh_burstable(&pods)?;
        }
        Ok(())
    }
}

impl PodCgroups for CgroupTree {
    fn ensure<'a>(
        &'a self,
        pod_uid: &'a str,
        qos_class: &'a str,
        limits: &'a PodCgroupLimits,
    ) -> PortFuture<'a, Result<String, PortError>> {
        Box::pin(async move {
            check_uid(pod_uid)?;
            let class = Class::parse(qos_class)
                .ok_or_else(|| invalid(pod_uid, format!("QoS class {qos_class:?} is unknown")))?;
            let (inner, uid, limits) = (Arc::clone(&self.0), pod_uid.to_owned(), limits.clone());
            on_thread(pod_uid, move || inner.ensure(&uid, class, &limits)).await
        })
    }

    fn remove<'a>(&'a self, pod_uid: &'a str) -> PortFuture<'a, Result<(), PortError>> {
        Box::pin(async move {
            check_uid(pod_uid)?;
            let (inner, uid) = (Arc::clone(&self.0), pod_uid.to_owned());
            on_thread(pod_uid, move || inner.remove(&uid)).await
        })
    }

    fn pods_on_disk(&self) -> Vec<String> {
        find_pods(&self.0.cgroups, &self.0.config.root).into_keys().collect()
    }
}

fn check_uid(uid: &str) -> Result<(), PortError> {
    if is_uid(uid) { Ok(()) } else { Err(invalid(uid, "the uid is not made of letters, digits and dashes".into())) }
}

fn what(uid: &str) -> String {
    format!("cgroup of pod {uid}")
}

fn invalid(uid: &str, message: String) -> PortError {
    PortError::Invalid { what: what(uid), message }
}

/// Killing and removing may take seconds; no worker of the runtime waits for it.
async fn on_thread<T: Send + 'static>(
    uid: &str,
    work: impl FnOnce() -> Result<T, CgroupError> + Send + 'static,
) -> Result<T, PortError> {
    let unavailable = |message: String| PortError::Unavailable { what: what(uid), message };
    let done = tokio::task::spawn_blocking(work).await.map_err(|error| unavailable(error.to_string()))?;
    done.map_err(|error| {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        unavailable(format!("{error}{cause}"))
    })
}

fn shares(shares: u64) -> Resources {
    Resources { cpu: Some(Cpu { shares: Some(shares), ..Cpu::default() }), ..Resources::default() }
}

/// A pod's limits in the kernel's words. What is unlimited is said so, because the cgroup may have had a limit before.
fn resources(limits: &PodCgroupLimits, pids_max: Option<i64>) -> Resources {
    Resources {
        cpu: Some(Cpu {
            shares: Some(limits.cpu_shares.max(SHARES_MIN)),
            quota: Some(limits.cpu_quota_us.unwrap_or(-1)),
            period: Some(limits.cpu_period_us).filter(|period| *period > 0),
            ..Cpu::default()
        }),
        memory: Some(Memory { limit: Some(limits.memory_bytes.unwrap_or(-1)), ..Memory::default() }),
        pids: pids_max.map(|limit| Pids { limit }),
        hugepage_limits: limits.hugepages.iter().filter_map(|(size, bytes)| hugepage_limit(size, *bytes)).collect(),
        ..Resources::default()
    }
}

/// `2Mi` of the API is `2MB` of the kernel.
fn hugepage_limit(size: &str, bytes: i64) -> Option<HugepageLimit> {
    let page_size = format!("{}B", size.strip_suffix('i')?);
    Some(HugepageLimit { page_size, limit: u64::try_from(bytes).ok()? })
}

/// The pods of every class, in whatever hierarchy they have a folder, with the shares set there.
fn find_pods(cgroups: &Cgroups, root: &str) -> BTreeMap<String, (Class, u64)> {
    let mut found: BTreeMap<String, (Class, u64)> = BTreeMap::new();
    for class in Class::ALL {
        for folder in cgroups.folders(&class.path(root)).unwrap_or_default() {
            for uid in pods_below(&folder) {
                let shares = read_shares(&folder.join(format!("pod{uid}")));
                let known = found.entry(uid).or_insert((class, SHARES_MIN));
                known.1 = known.1.max(shares.unwrap_or(SHARES_MIN));
            }
        }
    }
    found
}

fn pods_below(folder: &Path) -> BTreeSet<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return BTreeSet::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter_map(|entry| entry.file_name().to_str().and_then(|name| name.strip_prefix("pod")).map(str::to_owned))
        .filter(|uid| is_uid(uid))
        .collect()
}

/// CPU shares of a folder: as they are on v1, the nearest from below for a v2 weight.
fn read_shares(folder: &Path) -> Option<u64> {
    if let Ok(text) = std::fs::read_to_string(folder.join("cpu.shares")) {
        return text.trim().parse().ok();
    }
    let weight: u64 = std::fs::read_to_string(folder.join("cpu.weight")).ok()?.trim().parse().ok()?;
    let (mut low, mut high) = (SHARES_MIN, crate::qos::SHARES_MAX);
    while low < high {
        let middle = (low + high).div_ceil(2);
        if orlop_kernel::cgroup::shares_to_weight(middle) <= weight { low = middle } else { high = middle - 1 }
    }
    Some(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_say_unlimited_where_there_is_none() {
        let limits = PodCgroupLimits {
            cpu_shares: 0,
            cpu_period_us: 100_000,
            hugepages: [("2Mi".into(), 4 << 20), ("odd".into(), 1)].into(),
            ..Default::default()
        };
        let made = resources(&limits, Some(100));
        let cpu = made.cpu.unwrap();
        assert_eq!((cpu.shares, cpu.quota, cpu.period), (Some(2), Some(-1), Some(100_000)));
        assert_eq!(made.memory.unwrap().limit, Some(-1));
        assert_eq!(made.pids.unwrap().limit, 100);
        assert_eq!(made.hugepage_limits, [HugepageLimit { page_size: "2MB".into(), limit: 4 << 20 }]);
    }
}
