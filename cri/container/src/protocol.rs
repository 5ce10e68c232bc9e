//! The messages between the CRI server and a pod's shim, and the files both read.
//!
//! One connection carries one request and its replies. A message is a `u32` length (big endian) and that many
//! bytes of JSON; file descriptors travel by `SCM_RIGHTS` with the first byte of the message that names them.
//!
//! Files, all below the sandbox directory `<run>/sandboxes/<sandbox id>/` (mode 0700):
//!
//! | file | writer | content |
//! |---|---|---|
//! | `sandbox.json` | server | [`SandboxSpec`] |
//! | `shim.sock` | shim | the listening socket, mode 0600 |
//! | `state.json` | shim | [`SandboxState`] |
//! | `containers/<id>/container.json` | server | [`ContainerSpec`] |
//! | `containers/<id>/config.json` | server | the OCI runtime specification |
//! | `containers/<id>/state.json` | shim | [`ContainerState`] |
//! | `containers/<id>/bundle/` | shim | what a runtime program reads, where one makes the pod's containers |
//! | `containers/<id>/rootfs/` | shim | empty: where hooks see the root, in the container's mount namespace alone |
//! | `containers/<id>/poststop` | shim | empty: hooks are to be run at the container's end |
//! | `containers/<id>/exit.json` | shim | [`ExitRecord`], written before anybody is told of the exit |
//!
//! In `config.json` a bind mount whose source is `<sandbox directory>/shm` stands for the pod's shared memory; nothing
//! of that name is on disk. A mount of type `overlay` is a read-only view of image layers: its option `lowerdir` names
//! their folders from top to bottom, parted by colons, and `subpath` what of the image is shown. `root.path`, `hostname`
//! and `linux.namespaces` are not read. A shim that died (its socket refuses) leaves processes and cgroups, which
//! `sandbox::clean_up` removes by the files above.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use crate::user_namespace::UserMappings;

/// The largest message that either side accepts, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// Where a namespace of the sandbox comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum NamespaceSource {
    /// The namespace of the machine itself.
    Host,
    /// A new one, held by the pause process.
    New,
    /// One that is bound to a file already (the network namespace, made before CNI runs).
    Path(PathBuf),
    /// A new one that the shim binds to this file, which must not exist yet: the network namespace of a pod with a user
    /// namespace, which owns it and lives as long as that file is bound. CNI runs after the shim has started, and
    /// whoever removes the sandbox removes the file, as with [`NamespaceSource::Path`].
    Bound(PathBuf),
}

/// What a shim needs to make the pause process: `sandbox.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SandboxSpec {
    /// Version of this record; 1.
    pub version: u32,
    /// The sandbox's id: 64 hexadecimal digits.
    pub id: String,
    /// `namespace/name` of the pod, for messages only.
    pub pod: String,
    /// The UTS host name; none keeps the machine's.
    pub hostname: Option<String>,
    /// Users and groups of the pod's user namespace, which then owns all its other namespaces; none uses the machine's.
    /// The network namespace must be [`NamespaceSource::New`] or [`NamespaceSource::Bound`] with one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<UserMappings>,
    /// Network namespace of the pod.
    pub network: NamespaceSource,
    /// IPC namespace of the pod.
    pub ipc: NamespaceSource,
    /// UTS namespace of the pod.
    pub uts: NamespaceSource,
    /// PID namespace that the containers share; `New` when `shareProcessNamespace` is set, else `Host`. For readers:
    /// pause always has its own, and [`ContainerSpec::pid`] decides for each container.
    pub pid: NamespaceSource,
    /// Namespaced sysctls, name in dotted form.
    #[serde(default)]
    pub sysctls: BTreeMap<String, String>,
    /// Cgroup of the pause process, below each hierarchy's root: `/kubepods/besteffort/pod<uid>/<sandbox id>`.
    pub cgroup: String,
    /// The pause program on the host.
    pub pause_program: PathBuf,
    /// Size of the pod's `/dev/shm`, in bytes.
    pub shm_bytes: u64,
    /// SELinux label of the pod's shared memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount_label: Option<String>,
    /// `oom_score_adj` of pause, applied as far as the machine allows.
    pub oom_score_adj: i32,
    /// The program that makes the pod's containers; none is the built-in runtime.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<RuntimeProgram>,
}

/// A program with the command line of the OCI's runtimes (`create`, `start`, `exec`, `delete`), whose pid files name
/// processes of the machine's PID namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuntimeProgram {
    /// The program.
    pub program: PathBuf,
    /// Folder in which it keeps the state of its containers (`--root`).
    pub root: PathBuf,
    /// It asks systemd for their cgroups (`--systemd-cgroup`).
    #[serde(default)]
    pub systemd_cgroup: bool,
}

/// What a shim knows of its pause process: `state.json` of the sandbox.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SandboxState {
    /// Version of this record; 1.
    pub version: u32,
    /// The shim's own process id in the machine's PID namespace.
    pub shim_pid: i32,
    /// Start time of the shim in clock ticks since boot (`/proc/<pid>/stat` field 22): tells a reused pid.
    pub shim_start_ticks: u64,
    /// The pause process in the machine's PID namespace.
    pub pause_pid: i32,
    /// Start time of pause, as above.
    pub pause_start_ticks: u64,
}

/// What a shim needs beside the OCI specification: `container.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerSpec {
    /// Version of this record; 1.
    pub version: u32,
    /// The container's id: 64 hexadecimal digits.
    pub id: String,
    /// `namespace/pod/container`, for messages only.
    pub name: String,
    /// Layer directories of the image, lowest last (the order that overlayfs wants).
    pub lower_dirs: Vec<PathBuf>,
    /// The container's writable layer.
    pub upper_dir: PathBuf,
    /// Work directory of overlayfs, on the same file system.
    pub work_dir: PathBuf,
    /// The CRI log file; none when the pod asks for no log.
    pub log_path: Option<PathBuf>,
    /// The container reads stdin.
    pub stdin: bool,
    /// Stdin closes after the first attached session ends.
    pub stdin_once: bool,
    /// Whether the process gets a terminal.
    pub tty: bool,
    /// Whose PID namespace the container joins.
    pub pid: PidSource,
}

/// Whose PID namespace a container joins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PidSource {
    /// One of its own.
    Container,
    /// The pod's: that of pause.
    Pod,
    /// The machine's.
    Host,
    /// That of another container of the pod (ephemeral containers), by its id.
    Target(String),
}

/// State of a container, as its shim last wrote it: `state.json` of the container.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerState {
    /// Version of this record; 1.
    pub version: u32,
    /// The container's first process, in the machine's PID namespace.
    pub pid: i32,
    /// Its start time in clock ticks since boot.
    pub pid_start_ticks: u64,
    /// Nanoseconds since the epoch; 0 until it has been started.
    pub started_at: i64,
}

/// How a container ended: `exit.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExitRecord {
    /// Version of this record; 1.
    pub version: u32,
    /// The container's id.
    pub id: String,
    /// Exit status; 128 + signal when a signal ended it.
    pub exit_code: i32,
    /// Nanoseconds since the epoch.
    pub started_at: i64,
    /// Nanoseconds since the epoch.
    pub finished_at: i64,
    /// The kernel's out-of-memory killer struck in its cgroup.
    pub oom_killed: bool,
    /// Set when the container could not be started: the reason in words.
    pub message: Option<String>,
}

/// What the server asks of a shim.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "op")]
pub enum Request {
    /// Make the container of `containers/<id>/` up to the point where only the exec is missing. Reply: [`Reply::Created`].
    Create {
        /// The container's id.
        id: String,
    },
    /// Let a created container exec its program. Reply: [`Reply::Started`], after the exec has succeeded.
    Start {
        /// The container's id.
        id: String,
    },
    /// Send a signal to the container's first process, or to all of its processes. Reply: [`Reply::Done`].
    Kill {
        /// The container's id.
        id: String,
        /// The signal's number.
        signal: i32,
        /// Every process of the container's cgroup instead of the first alone.
        all: bool,
    },
    /// Forget a container: kill what is left, wait for its end (10 s at most), remove its cgroup. Fine for one that is
    /// not known. Reply: [`Reply::Done`].
    Delete {
        /// The container's id.
        id: String,
    },
    /// Run one more process in a running container. With `tty` unset three descriptors come with the request
    /// (stdin, stdout, stderr) and become the process's own; with `tty` set none does, and [`Reply::ExecStarted`]
    /// carries the terminal's master. Replies: [`Reply::ExecStarted`], then [`Reply::ExecExited`]. A program that can't
    /// be run is [`Reply::Failed`] instead; with a terminal that may come after [`Reply::ExecStarted`].
    /// When the server closes the connection before the exit, the process is killed.
    Exec {
        /// The container's id.
        id: String,
        /// Program and arguments.
        args: Vec<String>,
        /// Additional environment as `NAME=value`.
        env: Vec<String>,
        /// Whether to make a terminal.
        tty: bool,
    },
    /// Connect to the output, and perhaps the input, of a running container. Three descriptors come with it: the
    /// reading end for stdin, the writing ends for stdout and stderr. Each side ends by closing; a reader who falls
    /// more than the shim's buffer behind is dropped. For a tty only stdin and stdout are used.
    /// Replies: [`Reply::Done`] once connected, then [`Reply::Exited`] when the container ends.
    Attach {
        /// The container's id.
        id: String,
        /// Whether stdin is wanted.
        stdin: bool,
        /// Whether stdout is wanted.
        stdout: bool,
        /// Whether stderr is wanted.
        stderr: bool,
    },
    /// Set the size of the container's terminal. Reply: [`Reply::Done`].
    Resize {
        /// The container's id.
        id: String,
        /// Columns.
        width: u16,
        /// Rows.
        height: u16,
    },
    /// Close and open the container's log file again, after its rotation. Reply: [`Reply::Done`].
    ReopenLog {
        /// The container's id.
        id: String,
    },
    /// What runs: [`Reply::Listing`].
    List,
    /// Keep the connection and be told of every start and exit from now on: [`Reply::Listing`] first, then
    /// [`Reply::Started`] and [`Reply::Exited`] for each container and [`Reply::PauseExited`] for pause.
    Subscribe,
    /// Kill everything, pause last, remove the cgroups of the sandbox and end the shim. Reply: [`Reply::Done`]
    /// just before the shim exits; the end of the connection is the end of the shim. After [`Reply::Failed`] (a process
    /// that hangs in the kernel) the shim stays and can be told again.
    Shutdown,
}

/// What a shim answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "reply")]
pub enum Reply {
    /// The request is carried out.
    Done,
    /// The container is made and waits.
    Created {
        /// Its first process.
        pid: i32,
    },
    /// The container's program runs.
    Started {
        /// The container's id.
        id: String,
        /// Nanoseconds since the epoch.
        started_at: i64,
    },
    /// The additional process runs; the terminal's master comes along where a terminal was asked for.
    ExecStarted {
        /// The process in the machine's PID namespace.
        pid: i32,
    },
    /// The additional process ended.
    ExecExited {
        /// Exit status; 128 + signal.
        exit_code: i32,
    },
    /// A container ended.
    Exited {
        /// How.
        record: ExitRecord,
    },
    /// The pause process ended; the sandbox is not ready any more.
    PauseExited {
        /// Exit status; 128 + signal.
        exit_code: i32,
    },
    /// Everything the shim knows.
    Listing {
        /// Whether pause is alive.
        pause_alive: bool,
        /// Containers that exist, by id.
        containers: BTreeMap<String, ContainerPhase>,
    },
    /// The request failed; nothing half-made is left.
    Failed {
        /// What kind of failure, for the right gRPC code.
        kind: FailureKind,
        /// The message, with the step and the object.
        message: String,
    },
}

/// Where a container stands in its shim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ContainerPhase {
    /// Made, not started.
    Created {
        /// Its first process.
        pid: i32,
    },
    /// Running.
    Running {
        /// Its first process.
        pid: i32,
        /// Nanoseconds since the epoch.
        started_at: i64,
    },
    /// Ended; its exit record is on disk.
    Exited,
}

/// What kind of failure a shim reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FailureKind {
    /// No such container.
    NotFound,
    /// The container is in a state that does not allow it.
    WrongState,
    /// The program is not in the image, is not executable, or the specification can't be carried out.
    Start,
    /// The kernel refused or something is broken.
    Internal,
}
