//! The law of the pod: pure planning from desired and observed state. No tokio, no file system, no clock.

pub mod admission;
pub mod allowance;
pub mod backoff;
pub mod container_spec;
pub mod containers;
pub mod credential_providers;
pub mod dns;
pub mod downward;
pub mod env;
pub mod env_file;
pub mod expansion;
pub mod facts;
pub mod hash;
pub mod images;
pub mod labels;
pub mod lifecycle;
pub mod log_rotation;
pub mod memory;
pub mod metrics;
pub mod naming;
pub mod plan;
pub mod ports;
pub mod probe;
pub mod pull_records;
pub mod quantity;
pub mod resources;
pub mod restart;
pub mod rounds;
pub mod runtime;
pub mod sandbox_spec;
pub mod security;
pub mod shutdown;
pub mod startup;
pub mod static_pods;
pub mod status;
pub mod turns;
pub mod user_namespaces;

#[cfg(test)]
mod tables;
#[cfg(test)]
mod world;
