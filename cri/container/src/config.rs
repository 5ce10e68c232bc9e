//! The parts of an OCI runtime specification (`config.json`) that a container is made of.
//!
//! What the specification has and the built-in runtime has not is read too, so that [`Config::check`] can refuse it by
//! its name instead of leaving it out in silence.

mod alone;
mod check;

use std::collections::BTreeMap;
use std::path::PathBuf;

use orlop_kernel::cgroup::Resources;
use orlop_kernel::seccomp::Profile;
use serde::{Deserialize, Serialize};

/// The whole document.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Config {
    /// Version of the specification.
    pub oci_version: String,
    /// The container's process.
    pub process: Process,
    /// The root file system.
    pub root: Root,
    /// Host name; the pod's namespace carries it already, so it is for readers only.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub hostname: String,
    /// NIS domain name; refused for a container of a pod.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub domainname: String,
    /// Mounts, in order.
    pub mounts: Vec<Mount>,
    /// What only Linux has.
    pub linux: Linux,
    /// Programs to be run at points of the container's life.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hooks: Option<Hooks>,
    /// Free text.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// What only other systems have: refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vm: Option<serde_json::Value>,
}

/// Programs to be run at points of a container's life.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Hooks {
    /// On the machine, before the container's root is entered.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub prestart: Vec<Hook>,
    /// After those, likewise.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub create_runtime: Vec<Hook>,
    /// In the container's namespaces, before its root is entered.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub create_container: Vec<Hook>,
    /// In the container, just before its program.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub start_container: Vec<Hook>,
    /// On the machine, when the program runs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub poststart: Vec<Hook>,
    /// On the machine, when the container is gone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub poststop: Vec<Hook>,
}

impl Hooks {
    /// All of them, by the names of their points.
    #[must_use]
    pub fn lists(&self) -> [(&'static str, &Vec<Hook>); 6] {
        [
            ("prestart", &self.prestart),
            ("createRuntime", &self.create_runtime),
            ("createContainer", &self.create_container),
            ("startContainer", &self.start_container),
            ("poststart", &self.poststart),
            ("poststop", &self.poststop),
        ]
    }

    /// The same, to be changed.
    pub fn lists_mut(&mut self) -> [&mut Vec<Hook>; 6] {
        [
            &mut self.prestart,
            &mut self.create_runtime,
            &mut self.create_container,
            &mut self.start_container,
            &mut self.poststart,
            &mut self.poststop,
        ]
    }

    /// Whether some are run while the container is made: its root then lies where they look for it.
    #[must_use]
    pub fn at_creation(&self) -> bool {
        [&self.prestart, &self.create_runtime, &self.create_container].iter().any(|list| !list.is_empty())
    }

    /// Refuses what can't be run.
    ///
    /// # Errors
    /// The point and the program.
    pub fn check(&self) -> Result<(), String> {
        let all = self.lists();
        let mut each = all.iter().flat_map(|(name, list)| list.iter().map(move |hook| (name, hook)));
        each.try_for_each(|(name, hook)| hook.check().map_err(|error| format!("hooks.{name}: {error}")))
    }
}

impl Hook {
    fn check(&self) -> Result<(), String> {
        if !self.path.is_absolute() {
            return Err(format!("path {:?} is not absolute", self.path));
        }
        match self.timeout {
            Some(seconds) if seconds <= 0 => {
                Err(format!("timeout of {} must be more than 0 s, not {seconds}", self.path.display()))
            }
            _ => Ok(()),
        }
    }
}

/// A program that is run with the container's state on its stdin.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hook {
    /// The program.
    pub path: PathBuf,
    /// Its arguments, its name first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Its whole environment.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Seconds that it may take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<i64>,
}

/// A process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Process {
    /// It gets a terminal.
    pub terminal: bool,
    /// Its identity.
    pub user: User,
    /// Program and arguments.
    pub args: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Working folder inside the container.
    pub cwd: String,
    /// Its capabilities.
    pub capabilities: Capabilities,
    /// Its limits.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rlimits: Vec<Rlimit>,
    /// It and its children never gain privileges.
    pub no_new_privileges: bool,
    /// How readily the kernel kills it when memory runs out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_score_adj: Option<i32>,
    /// Name of its AppArmor profile; it must be loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub apparmor_profile: Option<String>,
    /// Its SELinux label.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selinux_label: Option<String>,
    /// Scheduling policy: refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduler: Option<serde_json::Value>,
    /// Priority of input and output: refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io_priority: Option<serde_json::Value>,
    /// Processors on which an exec starts: refused.
    #[serde(rename = "execCPUAffinity", skip_serializing_if = "Option::is_none")]
    pub exec_cpu_affinity: Option<serde_json::Value>,
    /// Size of its terminal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub console_size: Option<ConsoleSize>,
}

/// Size of a terminal, in letters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConsoleSize {
    /// Lines.
    pub height: u16,
    /// Columns.
    pub width: u16,
}

/// An identity, by numbers of the container's user namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct User {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// File mode creation mask.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub umask: Option<u32>,
    /// Supplementary groups.
    pub additional_gids: Vec<u32>,
}

/// Capability sets by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Capabilities {
    /// What can ever be had.
    pub bounding: Vec<String>,
    /// What works now.
    pub effective: Vec<String>,
    /// What may be made to work.
    pub permitted: Vec<String>,
    /// What a program may be given by the marks of its file.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub inheritable: Vec<String>,
    /// What an unprivileged program keeps over exec.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ambient: Vec<String>,
}

/// A resource limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rlimit {
    /// `RLIMIT_*`.
    #[serde(rename = "type")]
    pub kind: String,
    /// What the process may raise it to.
    pub hard: u64,
    /// What holds.
    pub soft: u64,
}

/// The root file system.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Root {
    /// The folder of a container that stands alone. That of a pod's is attached in its own mount namespace alone, so there
    /// this is for readers.
    pub path: PathBuf,
    /// The container can't write to it.
    pub readonly: bool,
}

/// A mount.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Mount {
    /// Path in the container.
    pub destination: PathBuf,
    /// File system, `bind`, or `overlay` for a view of an image.
    #[serde(rename = "type")]
    pub kind: String,
    /// Path on the machine for `bind`, else a name.
    pub source: PathBuf,
    /// Options as in `mount(8)`.
    pub options: Vec<String>,
    /// Users of the files: ids on disk are the container's (`containerID`) and belong to those of the machine (`hostID`).
    /// None shows the machine's own ids. Of a pod with a user namespace, and the same as that has.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub uid_mappings: Vec<IdMapping>,
    /// Groups of the files, likewise.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gid_mappings: Vec<IdMapping>,
}

/// A range of user or group ids inside a user namespace and what they are on the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IdMapping {
    /// The first id inside.
    #[serde(rename = "containerID")]
    pub container_id: u32,
    /// The first id on the machine.
    #[serde(rename = "hostID")]
    pub host_id: u32,
    /// How many.
    pub size: u32,
}

/// What only Linux has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Linux {
    /// Limits.
    pub resources: Resources,
    /// Path of the cgroup below each hierarchy.
    pub cgroups_path: String,
    /// Namespaces of a container that stands alone; for one of a pod the shim knows which it joins, and readers read this.
    pub namespaces: Vec<Namespace>,
    /// Users of the pod's user namespace, the same as the sandbox has; none without one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub uid_mappings: Vec<IdMapping>,
    /// Groups of the pod's user namespace, likewise.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gid_mappings: Vec<IdMapping>,
    /// Device nodes.
    pub devices: Vec<Device>,
    /// System calls.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seccomp: Option<Profile>,
    /// Paths that can't be read.
    pub masked_paths: Vec<PathBuf>,
    /// Paths that can't be written.
    pub readonly_paths: Vec<PathBuf>,
    /// How the root shares what is mounted below it: `private` (as when absent), `slave`, `shared`, or those with an
    /// `r` in front.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rootfs_propagation: Option<String>,
    /// SELinux label of the files of the root and of the container's own file systems.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mount_label: Option<String>,
    /// Sysctls; refused for a container of a pod, since they are the pod's: [`crate::protocol::SandboxSpec::sysctls`]
    /// sets them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub sysctl: BTreeMap<String, String>,
    /// Execution domain; for a container of a pod that of Linux alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub personality: Option<Personality>,
    /// Cache and memory bandwidth: refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub intel_rdt: Option<serde_json::Value>,
    /// Clocks of a time namespace: refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_offsets: Option<serde_json::Value>,
    /// Policy of memory nodes: refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_policy: Option<serde_json::Value>,
    /// Network devices to be moved in: refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub net_devices: Option<serde_json::Value>,
}

/// An execution domain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Personality {
    /// `LINUX` or `LINUX32`.
    pub domain: String,
    /// More of it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub flags: Vec<String>,
}

/// A namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Namespace {
    /// `pid`, `network`, `ipc`, `uts`, `mount`, `cgroup`, `user`.
    #[serde(rename = "type")]
    pub kind: String,
    /// File of one that exists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
}

/// A device node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Device {
    /// Path in the container.
    pub path: PathBuf,
    /// `c`, `b` or `p`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permissions; 0666 when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_mode: Option<u32>,
    /// Owner.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
}
