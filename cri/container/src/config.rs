//! The parts of an OCI runtime specification (`config.json`) that a container is made of.

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
    /// Mounts, in order.
    pub mounts: Vec<Mount>,
    /// What only Linux has.
    pub linux: Linux,
    /// Programs to be run at points of the container's life: refused, see [`Config::check`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hooks: Option<serde_json::Value>,
    /// Free text.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Config {
    /// Refuses what the built-in runtime does not do, instead of leaving it out in silence.
    ///
    /// # Errors
    /// The name of the field.
    pub fn check(&self) -> Result<(), String> {
        let set = |hooks: &serde_json::Value| {
            hooks
                .as_object()
                .is_some_and(|kinds| kinds.values().any(|list| list.as_array().is_some_and(|list| !list.is_empty())))
        };
        if self.hooks.as_ref().is_some_and(set) {
            return Err("hooks: the built-in runtime runs none".into());
        }
        if self.linux.namespaces.iter().any(|namespace| namespace.kind == "user") {
            return Err("linux.namespaces: user namespaces are not supported by the built-in runtime".into());
        }
        if self.process.args.is_empty() {
            return Err("process.args: no command specified".into());
        }
        Ok(())
    }
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
}

/// An identity, by numbers.
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
    /// Not used: the root is attached in the container's own mount namespace alone. For readers.
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
    /// File system, or `bind`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Path on the machine for `bind`, else a name.
    pub source: PathBuf,
    /// Options as in `mount(8)`.
    pub options: Vec<String>,
}

/// What only Linux has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Linux {
    /// Limits.
    pub resources: Resources,
    /// Path of the cgroup below each hierarchy.
    pub cgroups_path: String,
    /// Namespaces, for readers; the shim knows which it joins.
    pub namespaces: Vec<Namespace>,
    /// Device nodes.
    pub devices: Vec<Device>,
    /// System calls.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seccomp: Option<Profile>,
    /// Paths that can't be read.
    pub masked_paths: Vec<PathBuf>,
    /// Paths that can't be written.
    pub readonly_paths: Vec<PathBuf>,
}

/// A namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Namespace {
    /// `pid`, `network`, `ipc`, `uts`, `mount`, `cgroup`.
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
    /// Path in the container, below `/dev`.
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
