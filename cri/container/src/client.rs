//! Framing of the shim's protocol, and a client that waits, for tests and tools.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use orlop_kernel::socket;
use rustix::event::{PollFd, PollFlags, poll};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::protocol::{MESSAGE_BYTES_MAX, Reply, Request};

/// Bytes of a message's length.
const LENGTH_BYTES: usize = 4;

/// A message as it goes over the wire.
///
/// # Errors
/// When it is too long.
pub fn encode(message: &impl Serialize) -> std::io::Result<Vec<u8>> {
    let body = serde_json::to_vec(message)?;
    if body.len() > MESSAGE_BYTES_MAX {
        return Err(std::io::Error::other(format!(
            "a message of {} bytes is longer than {MESSAGE_BYTES_MAX}",
            body.len()
        )));
    }
    let mut bytes = Vec::with_capacity(LENGTH_BYTES + body.len());
    bytes.extend((body.len() as u32).to_be_bytes());
    bytes.extend(body);
    Ok(bytes)
}

/// Takes one message off the buffer; none while it isn't whole.
///
/// # Errors
/// When it is too long or not one of ours.
pub fn decode<T: DeserializeOwned>(buffer: &mut Vec<u8>) -> std::io::Result<Option<T>> {
    let Some(head) = buffer.first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
    let length = u32::from_be_bytes(*head) as usize;
    if length > MESSAGE_BYTES_MAX {
        return Err(std::io::Error::other(format!("a message of {length} bytes is longer than {MESSAGE_BYTES_MAX}")));
    }
    if buffer.len() < LENGTH_BYTES + length {
        return Ok(None);
    }
    let message = serde_json::from_slice(&buffer[LENGTH_BYTES..LENGTH_BYTES + length])?;
    buffer.drain(..LENGTH_BYTES + length);
    Ok(Some(message))
}

/// A connection that waits for its replies.
pub struct Client {
    socket: OwnedFd,
    buffer: Vec<u8>,
    /// Descriptors that came with replies, oldest first.
    pub descriptors: Vec<OwnedFd>,
    deadline: Duration,
}

impl Client {
    /// Connects to the shim of a sandbox's folder and sends a request.
    ///
    /// # Errors
    /// When no shim listens.
    pub fn send(
        folder: &Path,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
        deadline: Duration,
    ) -> std::io::Result<Client> {
        let socket = socket::connect(&folder.join("shim.sock"))?;
        let bytes = encode(request)?;
        let mut sent = 0;
        while sent < bytes.len() {
            let attached = if sent == 0 { descriptors } else { &[] };
            match socket::send(&socket, &bytes[sent..], attached) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    wait(&socket, PollFlags::OUT, deadline)?
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Client { socket, buffer: Vec::new(), descriptors: Vec::new(), deadline })
    }

    /// The next reply; none when the shim has closed.
    ///
    /// # Errors
    /// When it takes longer than the deadline.
    pub fn receive(&mut self) -> std::io::Result<Option<Reply>> {
        loop {
            if let Some(reply) = decode(&mut self.buffer)? {
                return Ok(Some(reply));
            }
            let mut chunk = [0u8; 4096];
            match socket::receive(&self.socket, &mut chunk, &mut self.descriptors) {
                Ok(0) => return Ok(None),
                Ok(count) => self.buffer.extend(&chunk[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    wait(&self.socket, PollFlags::IN, self.deadline)?
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends a request and returns its first reply.
    ///
    /// # Errors
    /// When the shim can't be reached or says nothing in time.
    pub fn call(folder: &Path, request: &Request, deadline: Duration) -> std::io::Result<Reply> {
        Client::send(folder, request, &[], deadline)?
            .receive()?
            .ok_or_else(|| std::io::Error::other("the shim has closed the connection"))
    }
}

fn wait(socket: &OwnedFd, what: PollFlags, deadline: Duration) -> std::io::Result<()> {
    let mut fds = [PollFd::new(socket, what)];
    let limit =
        rustix::time::Timespec { tv_sec: deadline.as_secs() as i64, tv_nsec: i64::from(deadline.subsec_nanos()) };
    match poll(&mut fds, Some(&limit))? {
        0 => Err(std::io::Error::new(std::io::ErrorKind::TimedOut, "the shim gave no answer in time")),
        _ => Ok(()),
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
