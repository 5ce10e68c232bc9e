//! Readiness of descriptors, by epoll.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
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

    /// Goes on watching a descriptor for reading, and for room to write when `writing`.
    pub fn change(&self, token: Token, fd: impl AsFd, writing: bool) -> std::io::Result<()> {
        let room = if writing { EventFlags::OUT } else { EventFlags::empty() };
        Ok(epoll::modify(&self.epoll, fd, EventData::new_u64(token), EventFlags::IN | EventFlags::RDHUP | room)?)
    }

    /// Stops watching.
    pub fn forget(&self, fd: impl AsFd) {
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// Waits for something to happen, until a moment at most.
    pub fn wait(&mut self, until: Option<Instant>) -> Vec<Token> {
        self.events.clear();
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        // Rounded up: to wake a little late is better than to wake for nothing.
        let limit = left.map(|left| Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: i64::from(left.subsec_millis() + 1) * 1_000_000,
        });
        let limit = limit.map(|limit| {
            if limit.tv_nsec < 1_000_000_000 { limit } else { Timespec { tv_sec: limit.tv_sec + 1, tv_nsec: 0 } }
        });
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), limit.as_ref()) {
            Ok(_) => self.events.drain(..).map(|event| event.data.u64()).collect(),
            Err(_) => Vec::new(),
        }
    }
}
