//! Links, addresses and routes of a network namespace, by netlink.
//!
//! A [`Links`] speaks to the namespace of the thread that opened it, and waits for each answer: programs that do one
//! thing and end use it as it is, daemons on a thread that may block.

mod address;
mod counters;
mod departure;
mod flow;
mod link;
mod route;

use std::io;

use crate::netlink::{Message, Refusal, Talk};

pub use counters::{Counters, InterfaceCounters, interface_counters};
pub use departure::Departure;
pub use flow::forget_udp_flows;
pub use link::{Link, VethPair};
pub use route::Route;

/// Why something of the network can't be had.
#[derive(Debug, thiserror::Error)]
#[error("{step}")]
pub struct NetworkError {
    step: String,
    #[source]
    source: io::Error,
}

impl NetworkError {
    /// The kernel's answer.
    #[must_use]
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }

    /// The kernel's answer as a number (`EEXIST`, `ENODEV`, …).
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        self.source.raw_os_error()
    }
}

/// A talk with the kernel about links.
#[derive(Debug)]
pub struct Links {
    talk: Talk,
}

/// An error of a step, with the kernel's words where it has any.
fn failed(step: impl Into<String>) -> impl FnOnce(Refusal) -> NetworkError {
    let mut step = step.into();
    move |refusal| {
        if !refusal.words.is_empty() {
            step.push_str(&format!(" ({})", refusal.words));
        }
        NetworkError { step, source: refusal.source }
    }
}

/// Takes an error that means "it is so already" for success.
fn fine_when(code: i32, done: Result<(), NetworkError>) -> Result<(), NetworkError> {
    match done {
        Err(error) if error.code() == Some(code) => Ok(()),
        other => other,
    }
}

impl Links {
    /// Opens a talk in this thread's network namespace.
    ///
    /// # Errors
    /// When out of descriptors.
    pub fn open() -> Result<Links, NetworkError> {
        let opened = Talk::with_routing().map_err(Refusal::from);
        Ok(Links { talk: opened.map_err(failed("open a netlink socket"))? })
    }

    /// Asks for a change.
    fn change(&self, kind: u16, flags: u16, message: &Message, step: String) -> Result<(), NetworkError> {
        self.talk.ask(kind, flags, message).map(|_| ()).map_err(failed(step))
    }

    /// Asks for what is there.
    fn read(&self, kind: u16, flags: u16, message: &Message, step: String) -> Result<Vec<Vec<u8>>, NetworkError> {
        self.talk.ask(kind, flags, message).map_err(failed(step))
    }
}

/// Writes a sysctl of this thread's network namespace, by its file below `/proc/sys/net`: the kernel shows each thread
/// the values of its own namespace.
///
/// # Errors
/// When there is none or the kernel refuses the value.
pub fn write_sysctl(file: &str, value: &str) -> io::Result<()> {
    std::fs::write(std::path::Path::new("/proc/sys/net").join(file), value)
}

/// Reads a sysctl of this thread's network namespace, without its line end.
///
/// # Errors
/// When there is none.
pub fn read_sysctl(file: &str) -> io::Result<String> {
    let text = std::fs::read_to_string(std::path::Path::new("/proc/sys/net").join(file))?;
    Ok(text.trim_end().to_string())
}
