//! The safe face of Linux: the only crate with `unsafe`.

pub mod capability;
pub mod cgroup;
pub mod mount;
pub mod namespace;
pub mod network;
pub mod nftables;
pub mod path;
pub mod process;
pub mod seccomp;
pub mod socket;
