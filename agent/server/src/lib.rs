//! The kubelet port: TLS, authentication, authorisation, logs, exec, attach, port-forward and health.
//!
//! ```text
//!  client ─TLS─> who? (certificate, token) ─> may they? (nodes/<subresource>) ─┬─ /pods, /healthz, /metrics, /configz
//!                                                                              ├─ /containerLogs ── CRI log files
//!                                                                              └─ /exec, /attach, /portForward ── raw
//!                                                                                  bytes to the runtime's stream server
//! ```

mod access;
mod answers;
mod logs;
mod metrics;
mod proxy;
mod query;
mod routes;
mod server;
mod tls;

pub use access::Authorization;
pub use logs::{LogOptions, LogRecord, LogStream, LogText, RecordError, parse_record};
pub use server::{KubeletServer, KubeletServerConfig, KubeletServerError, KubeletServerPorts};
pub use tls::{ServerIdentity, TlsError};
