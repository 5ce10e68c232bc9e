//! The Kubernetes client side of the agent: pod source, caches, status writer, events, lease, tokens.
//!
//! ```text
//!  API server ──list+watch──> pod_source, node_source ──watch channel──> workers
//!             ──per object──> objects (ConfigMap, Secret; other kinds by GET with a short life) ──> Objects port
//!             <──PATCH /status, DELETE── status::StatusWriter <── StatusSink port
//!             <──create, patch────────── events::EventWriter  <── Events port
//!             <──PUT each 10 s────────── lease
//! ```
//! Every request has a deadline; a lost API server costs retries with back-off and nothing else.

pub mod access;
pub mod client;
pub mod csi_node;
pub mod events;
pub mod lease;
pub mod list_watch;
pub mod mirror;
pub mod node_source;
pub mod objects;
pub mod pace;
pub mod pod_source;
pub mod retry;
pub mod status;
pub mod tokens;

pub use client::{ApiClients, ApiError, ClientError};
