//! Cgroup v2 on the unified hierarchy, which hybrid machines have too (without controllers), and what v1 has of its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use orlop_kernel::cgroup::{Cgroups, DeviceRule, HugepageLimit, Resources};
use orlop_tests::place::need_root;

/// A cgroup of the test's own that vanishes with it.
struct Group {
    cgroups: Cgroups,
    path: String,
    folder: PathBuf,
}

impl Group {
    fn new(name: &str) -> Group {
        need_root();
        let mount = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
            .into_iter()
            .find(|mount| {
                Path::new(mount).join("cgroup.procs").exists()
                    && Path::new(mount).join("cgroup.subtree_control").exists()
            })
            .expect("no cgroup2 hierarchy: mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified");
        let path = format!("/orlop-test-{name}-{}/container", std::process::id());
        Group { cgroups: Cgroups::V2(mount.into()), folder: Path::new(mount).join(&path[1..]), path }
    }

    /// Whether a shell command works inside the cgroup.
    fn works(&self, command: &str) -> bool {
        let script = format!("echo $$ > {}/cgroup.procs && {command}", self.folder.display());
        Command::new("sh").args(["-c", &script]).stderr(Stdio::null()).stdout(Stdio::null()).status().unwrap().success()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = self.cgroups.remove(&self.path, || {});
        let _ = std::fs::remove_dir(self.folder.parent().unwrap());
    }
}

#[test]
fn devices_are_denied_by_a_program_that_can_be_replaced() {
    let group = Group::new("devices");
    let rule = |allow, minor: Option<i64>, access: &str| DeviceRule {
        allow,
        kind: Some(if minor.is_some() { "c" } else { "a" }.into()),
        major: minor.map(|_| 1),
        minor,
        access: Some(access.into()),
    };
    let rules = |list: Vec<DeviceRule>| Resources { devices: list, ..Resources::default() };
    let (read_zero, read_full) = ("head -c 1 /dev/zero", "head -c 1 /dev/full");
    group.cgroups.create(&group.path, &rules(vec![rule(false, None, "rwm"), rule(true, Some(5), "r")])).unwrap();
    assert!(group.works(read_zero));
    assert!(!group.works(read_full));
    assert!(!group.works("echo > /dev/zero"), "writing was not allowed");
    group.cgroups.set(&group.path, &rules(vec![rule(false, None, "rwm"), rule(true, Some(7), "rw")])).unwrap();
    assert!(group.works(read_full));
    assert!(!group.works(read_zero), "the former rules are gone");
    group.cgroups.set(&group.path, &rules(vec![rule(true, None, "rwm")])).unwrap();
    assert!(group.works(read_zero) && group.works(read_full));
}

#[test]
fn hundreds_of_device_rules_are_one_program() {
    let group = Group::new("rules");
    let rule = |minor: i64| DeviceRule {
        allow: true,
        kind: Some("c".into()),
        major: Some(1),
        minor: Some(minor),
        access: Some("rw".into()),
    };
    let mut rules = vec![DeviceRule { allow: false, ..DeviceRule::default() }];
    rules.extend((100..1100).chain([5]).map(rule));
    group.cgroups.create(&group.path, &Resources { devices: rules.clone(), ..Resources::default() }).unwrap();
    assert!(group.works("head -c 1 /dev/zero") && !group.works("head -c 1 /dev/full"));
    rules.push(DeviceRule { kind: Some("x".into()), ..rule(7) });
    let said = group.cgroups.set(&group.path, &Resources { devices: rules, ..Resources::default() }).unwrap_err();
    assert!(std::error::Error::source(&said).unwrap().to_string().contains("\"x\""), "{said}");
    assert!(group.works("head -c 1 /dev/zero"), "the rules before still hold");
}

/// A limit of huge pages of one size, in bytes.
fn huge_pages(size: &str, limit: u64) -> Resources {
    Resources { hugepage_limits: vec![HugepageLimit { page_size: size.into(), limit }], ..Resources::default() }
}

#[test]
fn sizes_of_huge_pages_are_checked() {
    let group = Group::new("huge");
    group.cgroups.create(&group.path, &Resources::default()).unwrap();
    for size in ["2MB/../x", "huge"] {
        assert!(group.cgroups.set(&group.path, &huge_pages(size, 1)).is_err(), "{size}");
    }
    assert!(group.cgroups.set(&group.path, &huge_pages("3MB", 1)).is_err(), "no processor has pages of 3 MB");
    group.cgroups.set(&group.path, &huge_pages("3MB", 0)).unwrap();
}

#[test]
#[ignore = "needs the hugetlb controller of cgroup v2: cargo xtask guest test cgroups"]
fn huge_pages_are_limited_and_reserved() {
    let group = Group::new("pages");
    group.cgroups.create(&group.path, &Resources::default()).unwrap();
    let file = group.folder.join("hugetlb.2MB.max");
    assert!(file.exists(), "no pages of 2 MB in the hugetlb controller of cgroup v2: cargo xtask guest test cgroups");
    for (size, limit) in [("2MB", 4 << 20), ("hugepages-2Mi", 6 << 20), ("2Mi", 0)] {
        group.cgroups.set(&group.path, &huge_pages(size, limit)).unwrap();
        for name in ["hugetlb.2MB.max", "hugetlb.2MB.rsvd.max"] {
            let text = std::fs::read_to_string(file.with_file_name(name)).unwrap();
            assert_eq!(text.trim(), limit.to_string(), "{name} of {size}");
        }
    }
}

#[test]
fn everything_in_a_cgroup_is_killed_and_the_cgroup_removed() {
    let group = Group::new("kill");
    group.cgroups.create(&group.path, &Resources::default()).unwrap();
    let script = format!("echo $$ > {}/cgroup.procs; sleep 100 & sleep 100 & wait", group.folder.display());
    let mut shell = Command::new("sh").args(["-c", &script]).spawn().unwrap();
    while group.cgroups.processes(&group.path).len() < 3 {
        std::thread::yield_now();
    }
    group.cgroups.kill(&group.path);
    assert!(!shell.wait().unwrap().success());
    group.cgroups.remove(&group.path, || {}).unwrap();
    assert!(!group.cgroups.exists(&group.path));
    group.cgroups.remove(&group.path, || {}).unwrap();
}

/// Another process made the cpuset and did not get to fill it: it was killed, or is about to.
#[test]
fn an_empty_cpuset_is_filled() {
    need_root();
    let cgroups = Cgroups::detect().unwrap();
    let cpuset = Path::new("/sys/fs/cgroup/cpuset");
    if !matches!(cgroups, Cgroups::V1(_)) || !cpuset.join("cpuset.cpus").exists() {
        println!("skipped: this machine has no cpuset hierarchy of cgroup v1");
        return;
    }
    let pod = format!("orlop-test-cpuset-{}", std::process::id());
    std::fs::create_dir(cpuset.join(&pod)).unwrap();
    assert_eq!(std::fs::read_to_string(cpuset.join(&pod).join("cpuset.cpus")).unwrap().trim(), "");
    let path = format!("/{pod}/container");
    cgroups.create(&path, &Resources::default()).unwrap();
    let of = |folder: &Path, file: &str| std::fs::read_to_string(folder.join(file)).unwrap();
    for file in ["cpuset.cpus", "cpuset.mems"] {
        assert_eq!(of(&cpuset.join(&path[1..]), file), of(cpuset, file), "{file}");
    }
    cgroups.remove(&path, || {}).unwrap();
    cgroups.remove(&format!("/{pod}"), || {}).unwrap();
    assert!(!cpuset.join(&pod).exists());
}
