//! The CSI driver for node-local storage: volumes are folders of one machine, mounted into its pods.
//!
//! ```text
//!  registration socket ──> agent or kubelet learns the driver's name and socket
//!  csi.sock ──> identity ─┐
//!           ──> controller ├─> volume (pure: ids, sizes, access) ─> store  <data dir>/volumes/<id>/{volume.json,data}
//!           ──> node ──────┘                                     └> place  bind mounts below the kubelet's root, by fd
//! ```
//! A volume is reachable from this node only, and says so by its topology. Sizes are checked against the free space
//! when a volume is made; they are not enforced later.

mod busy;
mod config;
mod controller;
mod identity;
mod node;
mod place;
mod record;
mod registration;
mod serve;
mod store;
mod volume;

pub use config::{CsiConfig, DRIVER_NAME};
pub use serve::{CsiError, serve};
