//! The end of a link, without the wait for its last readers.
//!
//! Who deletes a link is kept by the kernel for a grace period (15 ms and more), long after it has left its namespace and
//! nobody can find it. So a child of this process deletes it, and the parent goes on as soon as the link is told gone.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

use super::{Links, NetworkError, failed};
use crate::netlink::{Refusal, Talk};
use crate::process;

/// How long the kernel may take to take a link away.
const DEADLINE: Duration = Duration::from_secs(10);
const RTM_DELLINK: u16 = 17;
/// Bytes of `ifinfomsg`, which begins with the family.
const HEADER_BYTES: usize = 16;

/// A link that is to go, in the network namespace of the thread that looked for it.
#[derive(Debug)]
pub struct Departure {
    links: Links,
    /// Hears of links that come and go there.
    news: Talk,
    name: String,
    index: u32,
}

impl Departure {
    /// Looks for a link in this thread's network namespace; none when it is gone.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn of(name: &str) -> Result<Option<Departure>, NetworkError> {
        let links = Links::open()?;
        // Before the look, so that nothing is missed.
        let news = Talk::with_news_of_links().map_err(Refusal::from).map_err(failed("listen for links"))?;
        let found = links.find(name)?;
        Ok(found.map(|link| Departure { links, news, name: name.into(), index: link.index }))
    }

    /// Deletes the link, and the other end of a pair with it. For a process of one thread that ends soon, as
    /// [`process::linger`] says; in any other the caller itself waits for the kernel.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn carry_out(self) -> Result<(), NetworkError> {
        let child = process::linger(|| self.links.delete(&self.name).is_ok());
        if child.is_ok_and(|child| self.is_told_gone(&child).unwrap_or(false)) {
            return Ok(());
        }
        // The child was refused, hangs, or could not be: asking once more tells the reason.
        self.links.talk.forget_answers();
        self.links.delete(&self.name)
    }

    /// Whether the link is told gone before the child ends, which it does only when it was refused.
    fn is_told_gone(&self, child: &OwnedFd) -> io::Result<bool> {
        let limit = DEADLINE.try_into().map_err(io::Error::other)?;
        loop {
            let mut waits = [PollFd::new(&self.news, PollFlags::IN), PollFd::new(child, PollFlags::IN)];
            let count = rustix::io::retry_on_intr(|| poll(&mut waits, Some(&limit)))?;
            if waits[0].revents().is_empty() || count == 0 {
                return Ok(false);
            }
            if self.news.hear()?.iter().any(|(kind, body)| self.is_gone_by(*kind, body)) {
                return Ok(true);
            }
        }
    }

    /// A bridge tells of the ports that it loses with its own family; that is not the end yet.
    fn is_gone_by(&self, kind: u16, body: &[u8]) -> bool {
        kind == RTM_DELLINK
            && body.len() >= HEADER_BYTES
            && i32::from(body[0]) == libc::AF_UNSPEC
            && crate::netlink::number(&body[4..]) == self.index
    }
}
