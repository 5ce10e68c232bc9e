//! Attached sessions: who reads a container's output, who writes its input.

use std::os::fd::OwnedFd;

use rustix::io::Errno;

use crate::log::Stream;
use crate::poller::Token;

/// Bytes of output that may wait for a session that doesn't read; one that is further behind is dropped.
const WAITING_BYTES_MAX: usize = 1 << 20;

/// A writing end that takes what it can and keeps the rest.
pub struct Sink {
    fd: OwnedFd,
    waiting: Vec<u8>,
    /// Its token while it waits for room.
    pub token: Option<Token>,
}

impl Sink {
    /// Takes a descriptor, which will not wait from now on.
    pub fn new(fd: OwnedFd) -> std::io::Result<Sink> {
        set_nonblocking(&fd)?;
        Ok(Sink { fd, waiting: Vec::new(), token: None })
    }

    /// Writes; false when the reader is gone or too far behind.
    pub fn write(&mut self, bytes: &[u8]) -> bool {
        self.waiting.extend(bytes);
        self.flush() && self.waiting.len() <= WAITING_BYTES_MAX
    }

    /// Writes what waits, as far as there is room; false when the reader is gone.
    pub fn flush(&mut self) -> bool {
        while !self.waiting.is_empty() {
            match rustix::io::write(&self.fd, &self.waiting) {
                Ok(written) => drop(self.waiting.drain(..written)),
                Err(Errno::AGAIN) => return true,
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
        true
    }

    /// Whether something waits for room.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The descriptor, to be polled.
    pub fn descriptor(&self) -> &OwnedFd {
        &self.fd
    }
}

/// One session.
pub struct Session {
    /// The connection that it belongs to.
    pub connection: Token,
    /// Where its input comes from.
    pub stdin: Option<(Token, OwnedFd)>,
    /// Where standard output goes.
    pub stdout: Option<Sink>,
    /// Where standard error goes.
    pub stderr: Option<Sink>,
}

impl Session {
    /// The sink of a stream.
    pub fn sink(&mut self, stream: Stream) -> &mut Option<Sink> {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }
}

/// Lets reads and writes of a descriptor return at once.
pub fn set_nonblocking(fd: &OwnedFd) -> std::io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    Ok(rustix::fs::fcntl_setfl(fd, flags | rustix::fs::OFlags::NONBLOCK)?)
}
