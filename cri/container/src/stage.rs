//! What the shim and a container that is being made say to each other, and how a step that fails is named.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use orlop_kernel::socket;

/// Bytes of the longest message; longer texts are cut.
const MESSAGE_BYTES: usize = 4096;

/// One message.
#[derive(Debug)]
pub enum Message {
    /// Child to parent: all is set up; the terminal's master comes along where there is one.
    Created(Option<OwnedFd>),
    /// Child to parent: the root is built and not entered yet; hooks may run.
    Ready,
    /// Driver to shim: a program has made this process (in the machine's PID namespace) and its terminal, where it has one.
    Made {
        /// The process.
        pid: i32,
        /// The terminal's master.
        terminal: Option<OwnedFd>,
    },
    /// Driver to shim: a program has done its step.
    Done,
    /// Parent to child: go.
    Start,
    /// Child to parent: the reason why it ends now.
    Failed(String),
}

/// A step that failed, with its object. It travels as text, so its text holds all causes.
#[derive(Debug, thiserror::Error)]
pub struct StageError {
    /// What was being done, and to what.
    pub step: String,
    /// Why it failed.
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

impl std::fmt::Display for StageError {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}: {}", self.step, self.source)?;
        // One that is a step itself has said its causes already.
        let mut cause = if self.source.is::<StageError>() { None } else { self.source.source() };
        while let Some(error) = cause {
            write!(out, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

/// Names the step of a failure.
pub trait Step<T> {
    /// Says what was being done.
    ///
    /// # Errors
    /// When this is one.
    fn step(self, what: impl Into<String>) -> Result<T, StageError>;
}

impl<T, E: Into<Box<dyn std::error::Error + Send + Sync>>> Step<T> for Result<T, E> {
    fn step(self, what: impl Into<String>) -> Result<T, StageError> {
        self.map_err(|error| StageError { step: what.into(), source: error.into() })
    }
}

/// Sends a message.
///
/// # Errors
/// When the other side is gone.
pub fn send(socket: impl AsFd, message: &Message) -> std::io::Result<()> {
    let (bytes, descriptor): (Vec<u8>, Option<BorrowedFd<'_>>) = match message {
        Message::Created(terminal) => (vec![b'C'], terminal.as_ref().map(AsFd::as_fd)),
        Message::Made { pid, terminal } => {
            let bytes = [b'M'].into_iter().chain(pid.to_be_bytes()).collect();
            (bytes, terminal.as_ref().map(AsFd::as_fd))
        }
        Message::Ready => (vec![b'R'], None),
        Message::Done => (vec![b'D'], None),
        Message::Start => (vec![b'S'], None),
        Message::Failed(text) => {
            let mut bytes = vec![b'F'];
            bytes.extend(text.bytes().take(MESSAGE_BYTES - 1));
            (bytes, None)
        }
    };
    socket::send(socket, &bytes, descriptor.as_slice()).map(drop)
}

/// Waits for the word to go on.
pub(crate) fn hear_start(socket: impl AsFd, what: &str) -> Result<(), StageError> {
    match receive(socket).step(what)? {
        Some(Message::Start) => Ok(()),
        _ => Err("the runtime is gone").step(what),
    }
}

/// Receives a message; none at the end of the socket.
///
/// # Errors
/// When nothing is there on a socket that doesn't wait, or the message is not one of ours.
pub fn receive(socket: impl AsFd) -> std::io::Result<Option<Message>> {
    let (mut buffer, mut descriptors) = ([0u8; MESSAGE_BYTES], Vec::new());
    let length = socket::receive(socket, &mut buffer, &mut descriptors)?;
    match buffer[..length].split_first() {
        None => Ok(None),
        Some((b'C', _)) => Ok(Some(Message::Created(descriptors.pop()))),
        Some((b'M', pid)) => {
            let pid = <[u8; 4]>::try_from(pid).map_err(|_| std::io::Error::other("no process number"))?;
            Ok(Some(Message::Made { pid: i32::from_be_bytes(pid), terminal: descriptors.pop() }))
        }
        Some((b'R', _)) => Ok(Some(Message::Ready)),
        Some((b'D', _)) => Ok(Some(Message::Done)),
        Some((b'S', _)) => Ok(Some(Message::Start)),
        Some((b'F', text)) => Ok(Some(Message::Failed(String::from_utf8_lossy(text).into_owned()))),
        Some(_) => Err(std::io::Error::other("unknown stage message")),
    }
}
