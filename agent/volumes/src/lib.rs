//! Volumes of pods: what each kind needs, contents that change as a whole, CSI drivers, take-down by what is on disk.
//!
//! ```text
//!  pod ──> plan (pure) ──> set_up ──┬─> kinds: empty_dir, host_path, local
//!                                   ├─> contents ──> atomic_writer     configMap, secret, downwardAPI, projected
//!                                   └─> claim (pure) ──> csi: attach, stage, publish
//!  pods/<uid>/volumes/kubernetes.io~<kind>/<name> is the truth for tear_down and after a restart
//! ```
//! Each pod has its own slot: what hangs in one pod's volumes is waited for by nobody else. Operations run as tasks of
//! their own; a caller that gives up leaves them running, and the next call waits for them.

mod atomic_writer;
mod claim;
mod config;
mod contents;
mod csi;
mod file;
mod kinds;
mod layout;
mod ownership;
mod plan;
mod pod_volumes;
mod set_up;
mod slots;
mod tear_down;

pub use config::VolumesConfig;
pub use pod_volumes::PodVolumes;
