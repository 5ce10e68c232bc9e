//! A caller's connection: one request, then replies.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use orlop_container::client::{decode, encode};
use orlop_container::protocol::{MESSAGE_BYTES_MAX, Reply, Request};
use orlop_kernel::socket;

/// Bytes of replies that may wait for a caller that doesn't read; one that is further behind is dropped.
const WAITING_BYTES_MAX: usize = 1 << 20;
/// Descriptors that a request may bring along.
const DESCRIPTORS_MAX: usize = 3;

/// A connection.
pub struct Connection {
    socket: OwnedFd,
    received: Vec<u8>,
    /// Descriptors that came with the request.
    pub descriptors: Vec<OwnedFd>,
    waiting: Vec<u8>,
    served: bool,
    /// Told of every exit.
    pub subscribed: bool,
}

impl Connection {
    /// Takes an accepted socket.
    pub fn new(socket: OwnedFd) -> Connection {
        Connection {
            socket,
            received: Vec::new(),
            descriptors: Vec::new(),
            waiting: Vec::new(),
            served: false,
            subscribed: false,
        }
    }

    /// Reads what is there; a request once it is whole. An error means that the connection is over.
    pub fn read(&mut self) -> std::io::Result<Option<Request>> {
        let mut chunk = [0u8; 4 << 10];
        loop {
            match socket::receive(&self.socket, &mut chunk, &mut self.descriptors) {
                Ok(0) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                Ok(_)
                    if self.served
                        || self.received.len() > MESSAGE_BYTES_MAX
                        || self.descriptors.len() > DESCRIPTORS_MAX =>
                {
                    return Err(std::io::Error::other("more than one request on a connection"));
                }
                Ok(count) => self.received.extend(&chunk[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    let request = decode(&mut self.received)?;
                    if request.is_some() {
                        (self.served, self.received) = (true, Vec::new());
                    }
                    return Ok(request);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends a reply, with a descriptor perhaps; false when the caller is gone or hopelessly behind.
    pub fn reply(&mut self, reply: &Reply, descriptor: Option<BorrowedFd<'_>>) -> bool {
        let Ok(bytes) = encode(reply) else { return false };
        if descriptor.is_some() {
            // A descriptor goes with the first byte of its message; nothing waits at that point of a connection.
            return match socket::send(&self.socket, &bytes, descriptor.as_slice()) {
                Ok(sent) => {
                    self.waiting.extend(&bytes[sent..]);
                    true
                }
                Err(_) => false,
            };
        }
        self.waiting.extend(bytes);
        self.flush() && self.waiting.len() <= WAITING_BYTES_MAX
    }

    /// Whether replies wait for room.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Sends what waits, as far as there is room.
    pub fn flush(&mut self) -> bool {
        while !self.waiting.is_empty() {
            match socket::send(&self.socket, &self.waiting, &[]) {
                Ok(sent) => drop(self.waiting.drain(..sent)),
                Err(error) => return error.kind() == std::io::ErrorKind::WouldBlock,
            }
        }
        true
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
