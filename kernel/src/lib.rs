//! The safe face of Linux: the only crate with `unsafe`.
//!
//! rustix comes first, nix for what it lacks, raw system calls only where neither has them. The feature `network`
//! (on by default) adds netlink; the shim does without it.

#![allow(unsafe_code)]

pub mod capability;
pub mod cgroup;
pub mod file;
pub mod lock;
pub mod lsm;
pub mod mount;
pub mod namespace;
#[cfg(feature = "network")]
mod netlink;
#[cfg(feature = "network")]
pub mod network;
#[cfg(feature = "network")]
pub mod nftables;
pub mod path;
pub mod process;
pub mod procfs;
pub mod seccomp;
pub mod socket;
pub mod terminal;
