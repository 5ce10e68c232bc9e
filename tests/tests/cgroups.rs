//! Cgroup v2 on the unified hierarchy, which hybrid machines have too (without controllers).

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use orlop_kernel::cgroup::{Cgroups, DeviceRule, Resources};
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
