//! Streaming of exec, attach and port-forward over SPDY/3.1 and WebSocket.
//!
//! The CRI server registers a request with [`Server`] and hands the URL to the caller; whoever fetches the URL
//! upgrades the connection, and the streams are joined to what [`Runtime`] runs.
//!
//! ```text
//!  kubelet port / crictl ──HTTP upgrade──> Server ──┬─ spdy::Connection ─┐
//!                                                   └─ websocket         ├─> channels ──> Runtime (shim, pod network)
//! ```

pub mod port_forward;
pub mod process;
pub mod runtime;
mod server;
pub mod spdy;
mod status;
mod tokens;
mod upgrade;
mod websocket;

pub use runtime::{
    AttachRequest, ExecRequest, Outcome, PortForwardRequest, ProcessStreams, Runtime, RuntimeError, TerminalSize,
};
pub use server::{Server, ServerError, StreamingConfig};
pub use tokens::TooManyRequests;
