//! Resources: the cgroup tree of pods, what the node has and may give away, and what to collect as garbage.
//!
//! Deciding is pure (`allocatable`, `qos`, `image_garbage`, `container_garbage`); `cgroup_tree` and `machine` touch the
//! kernel.

pub mod allocatable;
pub mod cgroup_tree;
pub mod container_garbage;
pub mod image_garbage;
pub mod machine;
pub mod qos;

pub use allocatable::{Amounts, NodeReserve, Threshold, allocatable};
pub use cgroup_tree::{CgroupTree, CgroupTreeConfig};
pub use container_garbage::{ContainerPolicy, DeadContainer, SandboxFact, plan_containers, plan_sandboxes};
pub use image_garbage::{DiskUse, ImageLedger, ImagePlan, ImagePolicy, SeenImage};
pub use machine::{MachineError, read_machine};
