//! Readiness of descriptors, by epoll.

use std::os::fd::{AsFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

/// A descriptor's name in the poller; never used twice.
pub type Token = u64;

/// The poller.
pub struct Poller {
    epoll: OwnedFd,
    next: Token,
    events: Vec<Event>,
}

impl Poller {
    /// Makes one.
    pub fn new() -> std::io::Result<Poller> {
        Ok(Poller { epoll: epoll::create(CreateFlags::CLOEXEC)?, next: 0, events: Vec::with_capacity(64) })
    }

    /// Watches a descriptor for reading and returns its token.
    pub fn watch_reading(&mut self, fd: impl AsFd) -> std::io::Result<Token> {
        self.watch(fd, EventFlags::IN | EventFlags::RDHUP)
    }

    /// Watches a descriptor for room to write.
    pub fn watch_writing(&mut self, fd: impl AsFd) -> std::io::Result<Token> {
        self.watch(fd, EventFlags::OUT)
    }

    fn watch(&mut self, fd: impl AsFd, flags: EventFlags) -> std::io::Result<Token> {
        self.next += 1;
        epoll::add(&self.epoll, fd, EventData::new_u64(self.next), flags)?;
        Ok(self.next)
    }

    /// Stops watching.
    pub fn forget(&self, fd: impl AsFd) {
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// Waits for something to happen.
    pub fn wait(&mut self) -> Vec<Token> {
        self.events.clear();
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), None) {
            Ok(_) => self.events.drain(..).map(|event| event.data.u64()).collect(),
            Err(_) => Vec::new(),
        }
    }
}
