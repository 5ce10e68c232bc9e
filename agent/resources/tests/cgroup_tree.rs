//! The cgroup tree of pods on the real kernel. Needs root and a writable cgroup hierarchy.

use std::process::{Command, Stdio};

use orlop_agent_core::ports::{PodCgroupLimits, PodCgroups};
use orlop_agent_resources::cgroup_tree::{CgroupTree, CgroupTreeConfig, NodeLimits};
use orlop_kernel::cgroup::Cgroups;

/// A tree of its own, removed at the end whatever happens.
struct Bench {
    tree: CgroupTree,
    config: CgroupTreeConfig,
}

impl Bench {
    fn new() -> Self {
        let config = CgroupTreeConfig {
            root: format!("/orlop-test-{}", uuid::Uuid::new_v4().simple()),
            pod_pids_max: Some(64),
            node: NodeLimits { memory_bytes: Some(1 << 30), ..NodeLimits::default() },
        };
        let tree = CgroupTree::open(config.clone()).expect("run as root with cgroups mounted below /sys/fs/cgroup");
        Self { tree, config }
    }

    /// A file of a cgroup, by its v1 or v2 name.
    fn read(&self, path: &str, v1: &str, v2: &str) -> String {
        let folders = Cgroups::detect().unwrap().folders(path).unwrap();
        let files = folders.iter().flat_map(|folder| [folder.join(v1), folder.join(v2)]);
        let text = files.filter_map(|file| std::fs::read_to_string(file).ok()).next();
        text.unwrap_or_else(|| panic!("{path}: neither {v1} nor {v2}")).trim().to_owned()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.tree.destroy().unwrap();
    }
}

fn limits(cpu_shares: u64, memory_bytes: Option<i64>) -> PodCgroupLimits {
    PodCgroupLimits {
        cpu_shares,
        cpu_quota_us: Some(50_000),
        cpu_period_us: 100_000,
        memory_bytes,
        ..PodCgroupLimits::default()
    }
}

#[tokio::test]
async fn pods_get_their_place_and_limits_and_leave_nothing() {
    let bench = Bench::new();
    let root = bench.config.root.clone();
    let path = bench.tree.ensure("u-1", "Burstable", &limits(512, Some(64 << 20))).await.unwrap();
    assert_eq!(path, format!("{root}/kubepods/burstable/podu-1"));
    assert_eq!(bench.read(&path, "memory.limit_in_bytes", "memory.max"), (64 << 20).to_string());
    assert_eq!(bench.read(&path, "pids.max", "pids.max"), "64");
    assert!(bench.read(&path, "cpu.cfs_quota_us", "cpu.max").starts_with("50000"));
    let shares_of_class = || bench.read(&format!("{root}/kubepods/burstable"), "cpu.shares", "cpu.weight");
    let one = shares_of_class();
    bench.tree.ensure("u-2", "Burstable", &limits(1024, None)).await.unwrap();
    assert_ne!(shares_of_class(), one, "the class weighs what its pods ask for");
    let guaranteed = bench.tree.ensure("u-3", "Guaranteed", &limits(1024, None)).await.unwrap();
    assert_eq!(guaranteed, format!("{root}/kubepods/podu-3"));

    // Again, with another limit.
    bench.tree.ensure("u-1", "Burstable", &limits(512, None)).await.unwrap();
    assert_ne!(bench.read(&path, "memory.limit_in_bytes", "memory.max"), (64 << 20).to_string());

    let mut found = bench.tree.pods_on_disk();
    found.sort();
    assert_eq!(found, ["u-1", "u-2", "u-3"]);
    let both = shares_of_class();
    let again = CgroupTree::open(bench.config.clone()).unwrap();
    assert_eq!(shares_of_class(), both, "a restart weighs the same");

    let mut sleeper = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap();
    Cgroups::detect().unwrap().join(&path, i32::try_from(sleeper.id()).unwrap()).unwrap();
    again.remove("u-1").await.unwrap();
    assert!(!sleeper.wait().unwrap().success(), "what was left in the pod is killed");
    again.remove("u-1").await.unwrap();
    assert!(!Cgroups::detect().unwrap().exists(&path));
    for uid in ["u-2", "u-3"] {
        again.remove(uid).await.unwrap();
    }
    assert!(again.pods_on_disk().is_empty());
}

#[tokio::test]
async fn bad_names_are_refused() {
    let bench = Bench::new();
    for (uid, class) in [("../x", "Burstable"), ("", "Burstable"), ("u", "Best"), ("u/v", "Guaranteed")] {
        assert!(bench.tree.ensure(uid, class, &limits(2, None)).await.is_err(), "{uid} {class}");
    }
    assert!(bench.tree.remove("../..").await.is_err());
    assert!(bench.tree.pods_on_disk().is_empty());
}
