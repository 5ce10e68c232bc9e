//! A caller's connection: one request, then replies.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use orlop_container::client::{decode, encode};
use orlop_container::protocol::{Reply, Request};
use orlop_kernel::socket;

/// Bytes of replies that may wait for a caller that doesn't read; one that is further behind is dropped.
const WAITING_BYTES_MAX: usize = 1 << 20;

/// A connection.
pub struct Connection {
    socket: OwnedFd,
    received: Vec<u8>,
    /// Descriptors that came with the request.
    pub descriptors: Vec<OwnedFd>,
    waiting: Vec<u8>,
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
            subscribed: false,
        }
    }

    /// Reads what is there; a request once it is whole. An error means that the connection is over.
    pub fn read(&mut self) -> std::io::Result<Option<Request>> {
        let mut chunk = [0u8; 16 << 10];
        loop {
            match socket::receive(&self.socket, &mut chunk, &mut self.descriptors) {
                Ok(0) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.received.extend(&chunk[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return decode(&mut self.received),
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
