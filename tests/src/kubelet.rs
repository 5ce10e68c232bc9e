//! A Go kubelet in a world: what it changes on the machine, its cgroup, its configuration and its start.

use std::path::{Path, PathBuf};

use orlop_kernel::cgroup::{Cgroups, Resources};
use serde_json::{Value, json};

use crate::place::foreign;
use crate::world::{Daemon, World};

/// What the kubelet writes for the whole machine; put back afterwards.
const SYSCTLS: [&str; 5] = [
    "/proc/sys/vm/overcommit_memory",
    "/proc/sys/vm/panic_on_oom",
    "/proc/sys/kernel/panic",
    "/proc/sys/kernel/panic_on_oops",
    "/proc/sys/kernel/keys/root_maxkeys",
];

/// The machine's settings, given back when the test ends, however it does.
pub struct Settings(Vec<(&'static str, String)>);

impl Settings {
    /// Notes them.
    #[must_use]
    pub fn keep() -> Settings {
        Settings(SYSCTLS.iter().filter_map(|file| Some((*file, std::fs::read_to_string(file).ok()?))).collect())
    }
}

impl Drop for Settings {
    fn drop(&mut self) {
        for (file, value) in &self.0 {
            let _ = std::fs::write(file, value);
        }
    }
}

/// A cgroup of the kubelet's own in every hierarchy, those of no controller among them; removed at the end.
pub struct OwnCgroup(String);

impl OwnCgroup {
    /// Makes it.
    ///
    /// # Panics
    /// When the kernel refuses.
    #[must_use]
    pub fn make() -> OwnCgroup {
        let own = OwnCgroup(format!("orlop-kubelet-{}", std::process::id()));
        Cgroups::detect().unwrap().create(&own.path(), &Resources::default()).unwrap();
        for folder in own.folders() {
            std::fs::create_dir_all(folder).unwrap();
        }
        own
    }

    /// Its path in each hierarchy.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/{}", self.0)
    }

    /// Its folder in each hierarchy; the one there is, on v2.
    fn folders(&self) -> Vec<PathBuf> {
        match Cgroups::detect().unwrap() {
            Cgroups::V2(mount) => vec![mount.join(&self.0)],
            Cgroups::V1(_) => {
                let entries = std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten();
                // Links are other names of the same.
                let hierarchies = entries.filter(|entry| entry.file_type().unwrap().is_dir());
                hierarchies.map(|entry| entry.path().join(&self.0)).collect()
            }
        }
    }
}

impl Drop for OwnCgroup {
    fn drop(&mut self) {
        for folder in self.folders() {
            remove(&folder);
        }
    }
}

/// Removes a cgroup with those below it.
fn remove(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    let _ = std::fs::remove_dir(folder);
}

/// Starts it on a runtime's socket, with fields of its configuration and flags beside those that every world needs.
///
/// # Panics
/// When it can't be started.
#[must_use]
pub fn start(world: &World, runtime: &Path, cgroup: &OwnCgroup, more: Value, flags: &[&str]) -> Daemon {
    let folder = world.folder().join("kubelet");
    std::fs::create_dir_all(&folder).expect("make the kubelet's folder");
    let mut config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": format!("unix://{}", runtime.display()),
        "podLogsDir": world.folder().join("pod-logs"),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": cgroup.path(),
        "failSwapOn": false,
        "failCgroupV1": false,
        "oomScoreAdj": 0,
        "healthzPort": 0,
        "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
        "authorization": {"mode": "AlwaysAllow"},
        "readOnlyPort": 0,
        "makeIPTablesUtilChains": false,
        "evictionHard": {"imagefs.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%"},
        "resolvConf": "",
    });
    if let (Value::Object(config), Value::Object(more)) = (&mut config, more) {
        config.extend(more);
    }
    let file = folder.join("config.json");
    std::fs::write(&file, config.to_string()).expect("write the kubelet's configuration");
    let mut command = world.command(foreign("kubelet"));
    command.current_dir(&folder).arg("--config").arg(&file).arg("--root-dir").arg(&folder);
    command.arg("--cert-dir").arg(folder.join("pki")).args(["--v", "2"]).args(flags);
    Daemon::start(command, world.folder().join("kubelet.log"))
}
