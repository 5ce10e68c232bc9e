//! Support for whole-system tests on the real kernel.

pub mod census;
pub mod place;
pub mod shim;
pub mod world;
