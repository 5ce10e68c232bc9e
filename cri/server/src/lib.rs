//! The CRI server: one file per RPC, stores and recovery.
//!
//! ```text
//!  socket ──> runtime_service ──> <object>_<verb> ──┬─> shim (one per pod, by its socket)
//!        └──> image_service   ──> image_<verb>      ├─> network (CNI plugins)
//!                                                   ├─> images
//!  shim_watch <── exits ── shim                     └─> records (meta/)
//! ```
//! The records, the shims and the kernel are the truth; [`serve()`] compares them at its start.

mod apparmor;
mod checkpoint;
mod config;
mod container;
mod container_cdi;
mod container_create;
mod container_devices;
mod container_exec;
mod container_list;
mod container_remove;
mod container_reopen_log;
mod container_start;
mod container_stats;
mod container_status;
mod container_stop;
mod container_update;
mod container_user;
mod deadline;
mod error;
mod events;
mod handlers;
mod image_fs_info;
mod image_list;
mod image_pull;
mod image_remove;
pub mod image_service;
mod image_status;
mod image_volumes;
mod metric_table;
mod metrics;
mod metrics_server;
mod network_status;
mod record;
mod recovery;
mod reload;
mod runtime_service;
mod runtime_status;
mod sandbox;
mod sandbox_list;
mod sandbox_metrics;
mod sandbox_remove;
mod sandbox_run;
mod sandbox_stats;
mod sandbox_status;
mod sandbox_stop;
mod sandbox_update;
mod scope;
mod serve;
mod server;
mod shim;
mod shim_watch;
mod signals;
mod store;
mod stream_urls;
mod streams;
mod traces;
mod usage;

pub use config::CriConfig;
pub use orlop_container::protocol::RuntimeProgram;
pub use orlop_kernel::cgroup::unit::Driver;
pub use reload::Reload;
pub use serve::{CriError, remove_all, serve};
pub use traces::TracingConfig;
