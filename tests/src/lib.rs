//! Support for whole-system tests on the real kernel.

pub mod api;
pub mod case;
pub mod census;
pub mod cluster;
pub mod containerd;
pub mod control_plane;
pub mod cri;
pub mod critest;
pub mod faulty_registry;
pub mod hostile_image;
pub mod images;
pub mod invariant;
pub mod kubelet;
pub mod logind;
pub mod peer;
pub mod place;
pub mod process;
pub mod provisioner;
pub mod runner;
pub mod shim;
pub mod world;
