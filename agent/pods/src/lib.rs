//! Pod workers: desired and observed sets, static pods, execution of plans, hooks, probes, orphans, and the end of all pods
//! when the machine goes down.

mod census;
mod config;
mod credential_plugins;
mod directories;
mod environment;
mod grpc_health;
mod hooks;
mod http_client;
mod image;
mod log_links;
mod log_rotation;
mod manager;
mod mirror;
mod node_credentials;
mod node_view;
mod observed;
mod pace;
mod probe_stream;
mod probing;
mod pull_records;
mod recorder;
mod resolv_conf;
mod sandbox;
mod shared;
mod shutdown;
mod start;
mod static_source;
mod static_url;
mod stop;
mod sub_path;
mod teardown;
mod termination_message;
mod user_namespaces;
mod worker;

pub use config::{PodPorts, PodsConfig};
pub use manager::{PodHandle, PodManager};
pub use node_credentials::CredentialFolders;
pub use pace::Pace;
pub use shutdown::{NextEnd, PodShutdown};
pub use static_url::StaticUrl;
