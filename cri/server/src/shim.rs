//! The server's side of a shim's socket: requests, replies, descriptors, each with a deadline.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use orlop_container::client::{decode, encode};
use orlop_container::protocol::{FailureKind, Reply, Request};
use orlop_kernel::socket;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::time::timeout;

/// How long a shim may take until it is ready.
const READY_TIME: Duration = Duration::from_secs(30);
/// How long a shim may take for an answer: longer than the 10 s that it gives a killed process to end.
pub(crate) const ANSWER_TIME: Duration = Duration::from_secs(60);
/// Bytes of a failed shim's words.
const WORDS_MAX: usize = 4096;

/// Why a shim did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    /// It could not be started.
    #[error("start the shim {program:?}: {message}")]
    Spawn {
        /// The program.
        program: std::path::PathBuf,
        /// Its own words, or the system's.
        message: String,
    },
    /// It is not there.
    #[error("the shim in {folder:?} is not running")]
    Gone {
        /// The sandbox's folder.
        folder: std::path::PathBuf,
    },
    /// The connection broke.
    #[error("talk to the shim in {folder:?}")]
    Connection {
        /// The sandbox's folder.
        folder: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It gave no answer in time.
    #[error("the shim in {folder:?} gave no answer within {seconds} s")]
    Timeout {
        /// The sandbox's folder.
        folder: std::path::PathBuf,
        /// The limit.
        seconds: u64,
    },
    /// It said no.
    #[error("{message}")]
    Failed {
        /// What kind of failure.
        kind: FailureKind,
        /// Step and object.
        message: String,
    },
    /// It answered what was not asked.
    #[error("the shim answered {reply}")]
    Unexpected {
        /// What it said.
        reply: String,
    },
}

/// Starts the shim of a sandbox's folder and returns when its pause process runs.
///
/// # Errors
/// With the shim's own words; nothing of it is left then.
pub(crate) async fn start(program: &Path, folder: &Path) -> Result<(), ShimError> {
    let failed = |message: String| ShimError::Spawn { program: program.to_path_buf(), message };
    let child = tokio::process::Command::new(program)
        .arg(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    match timeout(READY_TIME, child.wait_with_output()).await {
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => {
            let words = &output.stderr[..output.stderr.len().min(WORDS_MAX)];
            Err(failed(format!("{}: {}", output.status, String::from_utf8_lossy(words).trim())))
        }
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_) => Err(failed(format!("not ready within {} s", READY_TIME.as_secs()))),
    }
}

/// Whether pods can have user namespaces: the shim tries with an overlay in the folder of the layers.
///
/// # Errors
/// Why not, in its words.
pub(crate) async fn check_user_namespaces(program: &Path, layers: &Path) -> Result<(), String> {
    let child = tokio::process::Command::new(program)
        .arg("--check-user-namespaces")
        .arg(layers)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| error.to_string())?;
    match timeout(READY_TIME, child.wait_with_output()).await {
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => {
            Err(String::from_utf8_lossy(&output.stderr[..output.stderr.len().min(WORDS_MAX)]).trim().to_string())
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("the shim gave no answer within {} s", READY_TIME.as_secs())),
    }
}

/// One connection, which carries one request.
pub(crate) struct ShimCall {
    socket: UnixStream,
    folder: std::path::PathBuf,
    buffer: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl ShimCall {
    /// Connects and sends a request with its descriptors.
    pub(crate) async fn open(
        folder: &Path,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<ShimCall, ShimError> {
        let broken = |source| ShimError::Connection { folder: folder.to_path_buf(), source };
        let path = folder.join("shim.sock");
        // A connect waits when the shim is busy: not on a thread that others need.
        let connected = tokio::task::spawn_blocking(move || socket::connect(&path)).await;
        let socket = match connected.map_err(|error| broken(std::io::Error::other(error)))? {
            Ok(socket) => socket,
            Err(error) if is_gone(&error) => return Err(ShimError::Gone { folder: folder.to_path_buf() }),
            Err(error) => return Err(broken(error)),
        };
        let socket = UnixStream::from_std(socket.into()).map_err(broken)?;
        let call = ShimCall { socket, folder: folder.to_path_buf(), buffer: Vec::new(), descriptors: Vec::new() };
        let bytes = encode(request).map_err(broken)?;
        timeout(ANSWER_TIME, call.send(&bytes, descriptors)).await.map_err(|_| call.late(ANSWER_TIME))??;
        Ok(call)
    }

    async fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<(), ShimError> {
        let mut sent = 0;
        while sent < bytes.len() {
            let attached = if sent == 0 { descriptors } else { &[] };
            self.socket.writable().await.map_err(|error| self.broken(error))?;
            let part = &bytes[sent..];
            match self.socket.try_io(Interest::WRITABLE, || socket::send(&self.socket, part, attached)) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) if is_gone(&error) => return Err(ShimError::Gone { folder: self.folder.clone() }),
                Err(error) => return Err(self.broken(error)),
            }
        }
        Ok(())
    }

    /// The next reply, however long it takes; none when the shim has closed the connection. May be dropped at any
    /// point and called again.
    pub(crate) async fn next(&mut self) -> Result<Option<Reply>, ShimError> {
        loop {
            if let Some(reply) = decode(&mut self.buffer).map_err(|error| self.broken(error))? {
                return match reply {
                    Reply::Failed { kind, message } => Err(ShimError::Failed { kind, message }),
                    reply => Ok(Some(reply)),
                };
            }
            let mut chunk = [0u8; 4096];
            self.socket.readable().await.map_err(|error| self.broken(error))?;
            let (socket, descriptors) = (&self.socket, &mut self.descriptors);
            match socket.try_io(Interest::READABLE, || socket::receive(socket, &mut chunk, descriptors)) {
                Ok(0) => return Ok(None),
                Ok(count) => self.buffer.extend(&chunk[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) if is_gone(&error) => return Ok(None),
                Err(error) => return Err(self.broken(error)),
            }
        }
    }

    /// The next reply, which has to come in time.
    pub(crate) async fn answer(&mut self, limit: Duration) -> Result<Reply, ShimError> {
        let reply = timeout(limit, self.next()).await.map_err(|_| self.late(limit))??;
        reply.ok_or_else(|| ShimError::Gone { folder: self.folder.clone() })
    }

    /// A descriptor that came with a reply.
    pub(crate) fn take_descriptor(&mut self) -> Option<OwnedFd> {
        self.descriptors.pop()
    }

    fn broken(&self, source: std::io::Error) -> ShimError {
        ShimError::Connection { folder: self.folder.clone(), source }
    }

    fn late(&self, limit: Duration) -> ShimError {
        ShimError::Timeout { folder: self.folder.clone(), seconds: limit.as_secs() }
    }
}

/// Sends a request and returns its only reply; hooks that are run for it may take `more` time.
pub(crate) async fn call(folder: &Path, request: &Request, more: Duration) -> Result<Reply, ShimError> {
    ShimCall::open(folder, request, &[]).await?.answer(ANSWER_TIME + more).await
}

/// A request whose reply says only that it is done.
pub(crate) async fn tell(folder: &Path, request: &Request) -> Result<(), ShimError> {
    tell_within(folder, request, Duration::ZERO).await
}

/// The same where hooks are run for it.
pub(crate) async fn tell_within(folder: &Path, request: &Request, more: Duration) -> Result<(), ShimError> {
    match call(folder, request, more).await? {
        Reply::Done => Ok(()),
        other => Err(unexpected(&other)),
    }
}

pub(crate) fn unexpected(reply: &Reply) -> ShimError {
    ShimError::Unexpected { reply: format!("{reply:?}").chars().take(200).collect() }
}

fn is_gone(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotFound};
    matches!(error.kind(), ConnectionRefused | NotFound | BrokenPipe | ConnectionReset)
}
