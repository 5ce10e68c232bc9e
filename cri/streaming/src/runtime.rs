//! What the streaming server asks of the runtime, and the channels between them.

use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

/// A boxed future, so that the runtime can be a trait object.
pub type RuntimeFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A command to run in a container (CRI `ExecRequest`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecRequest {
    /// The container.
    pub container_id: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Standard input is wanted.
    pub stdin: bool,
    /// Standard output is wanted.
    pub stdout: bool,
    /// Standard error is wanted; never together with a terminal.
    pub stderr: bool,
    /// The command gets a terminal.
    pub tty: bool,
}

/// A connection to a container's first process (CRI `AttachRequest`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachRequest {
    /// The container.
    pub container_id: String,
    /// Standard input is wanted.
    pub stdin: bool,
    /// Standard output is wanted.
    pub stdout: bool,
    /// Standard error is wanted; never together with a terminal.
    pub stderr: bool,
    /// The container has a terminal.
    pub tty: bool,
}

/// Ports of a pod to reach (CRI `PortForwardRequest`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortForwardRequest {
    /// The sandbox.
    pub sandbox_id: String,
    /// Ports that WebSocket clients forward; SPDY clients name theirs per stream.
    pub ports: Vec<u16>,
}

/// Size of a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct TerminalSize {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// The streams of a process, as bounded channels. A closed channel is the end of the stream: of stdin when the
/// client has no more to say, of stdout or stderr when the client is gone.
#[derive(Debug)]
pub struct ProcessStreams {
    /// What the client writes.
    pub stdin: Option<mpsc::Receiver<Bytes>>,
    /// What the process writes to its standard output.
    pub stdout: Option<mpsc::Sender<Bytes>>,
    /// What the process writes to its standard error.
    pub stderr: Option<mpsc::Sender<Bytes>>,
    /// New sizes of the client's terminal.
    pub resize: mpsc::Receiver<TerminalSize>,
}

/// How a streamed process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Exit status of an exec; 0 for an attach that ended.
    pub exit_code: i32,
}

/// Why the runtime could not serve a stream; the text goes to the client.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct RuntimeError(pub String);

/// The runtime behind the streaming server. A dropped future means that the client is gone: what was started for it
/// must then end.
pub trait Runtime: Send + Sync + 'static {
    /// Runs a command and returns once it has ended and its output has been handed over.
    fn exec(&self, request: ExecRequest, streams: ProcessStreams) -> RuntimeFuture<'_, Result<Outcome, RuntimeError>>;
    /// Joins a container's streams and returns when the container ends or the client leaves.
    fn attach(
        &self,
        request: AttachRequest,
        streams: ProcessStreams,
    ) -> RuntimeFuture<'_, Result<Outcome, RuntimeError>>;
    /// Connects to `localhost:port` inside the pod's network namespace.
    fn dial<'a>(&'a self, sandbox_id: &'a str, port: u16) -> RuntimeFuture<'a, Result<TcpStream, RuntimeError>>;
}
