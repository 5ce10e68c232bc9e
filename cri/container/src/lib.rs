//! Synchronous container life: stages, rootfs, identity, confinement, exec and kill. No tokio.
//!
//! The shim is the parent; it clones one child per container, which sets itself up and becomes the container's first
//! process. They speak over a socket that keeps messages apart, with the three words of [`stage::Message`]:
//!
//! ```text
//!  parent (shim)                                child
//!  makes the cgroup, compiles the filter
//!  clone3 (new PID namespace, or joined) ─────> closes the shim's files, can't be looked into
//!                                               ── stage 1, among the machine's mounts ──
//!                                               cgroup, oom_score_adj, keyring
//!                                               opens overlay, sources of binds, its cgroups: all by descriptor
//!                                               ── stage 2, in the pod ──
//!                                               setns (network, ipc, uts, mount of pause), unshare (mount)
//!                                               attaches overlay, mounts, devices, terminal, masks; pivot_root
//!                                               ── stage 3, in the container ──
//!                                               stdio, limits, bounding set, seccomp, identity, capabilities, cwd
//!        <──────────── Created (+ terminal) ─── waits
//!  Start ─────────────────────────────────────> finds the program (PATH of the container)
//!        <──────────── end of the socket ────── exec: the socket closes by itself
//!        <──────────── Failed(text) ─────────── or the reason why not; possible at every step
//! ```
//!
//! The mount namespace of pause holds nothing but the pod's shared memory, so the copy that a container starts from
//! is tiny, however many mounts the machine has, and shows nothing of the machine. The overlay and all binds are
//! attached in the container's own namespace alone: the machine's mount table never changes.
//!
//! A container with hooks that run while it is made starts from a copy of the machine's mount namespace instead, which
//! gives nothing back either: hooks are programs of the machine, and look for the container's root in its bundle. Between
//! devices and masks the child says `Ready` and waits until the shim has had prestart and createRuntime run
//! ([`pod_hooks`]), then runs createContainer; startContainer it runs after `Start`, just before the exec.
//!
//! In a pod with a user namespace stage 2 is done with the machine's rights too, in a mount namespace that belongs to the
//! machine; only what is made is made as the pod's root. Stage 3 begins with `setns` (user) and a copy of the mount
//! namespace, which then belongs to the pod and whose mounts are locked. The PID namespace of a single container, which is
//! made by the clone, belongs to the machine; the one that pause has, and all others of the pod, to the pod.
//!
//! An exec is the same with stages 1 and 2 replaced by `setns` into the container:
//!
//! ```text
//!  parent (shim)                                child
//!  setns (pid of the container), clone3, back ─> closes the shim's files
//!                                               cgroup; setns (network, ipc, uts, mount, cgroup)
//!                                               stdio or a terminal; stage 3 as above (the user namespace last)
//!        <──────────── Created (+ terminal) ───
//!        <──────────── end of the socket ────── exec, or Failed(text)
//! ```

pub mod alone;
pub mod client;
pub mod clock;
pub mod config;
mod confine;
mod create;
pub mod devices;
mod exec;
pub mod hook;
pub mod id_check;
pub mod pod_hooks;
pub mod program;
pub mod protocol;
mod rootfs;
pub mod sandbox;
pub mod stage;
mod sysctl;
pub mod user_namespace;

pub use confine::Confinement;
pub use create::{Created, PidNamespace, Pod, create};
pub use exec::{Alone, ExecProcess, Place, exec, exec_alone};
pub use rootfs::options::known_options;
