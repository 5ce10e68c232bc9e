//! Synchronous container life: stages, rootfs, identity, confinement, exec and kill. No tokio.
//!
//! The shim is the parent; it clones one child per container, which sets itself up and becomes the container's first
//! process. They speak over a socket that keeps messages apart ([`stage::Message`]):
//!
//! ```text
//!  parent (shim)                                child (container)
//!  opens sources of binds, overlay
//!  clone3 (mount, pid) ───────────────────────> cgroup, namespaces of the pod
//!                                               overlay, mounts, devices, masks, pivot
//!                                               identity, capabilities, seccomp
//!        <──────────── Created (+ terminal) ─── waits
//!  Start ─────────────────────────────────────> finds the program
//!        <──────────── end of the socket ────── exec
//!        <──────────── Failed(text) ─────────── or the reason why not
//! ```

pub mod client;
pub mod config;
mod confine;
mod create;
mod devices;
mod exec;
pub mod protocol;
mod rootfs;
pub mod sandbox;
pub mod stage;

pub use create::{Created, PodNamespaces, create};
pub use exec::{ExecProcess, exec};
