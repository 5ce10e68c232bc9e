//! Synchronous container life: stages, rootfs, identity, confinement, exec and kill. No tokio.

pub mod protocol;
