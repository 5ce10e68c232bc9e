//! The admin socket: by it `orlop image …` works on the store of a running daemon.
//!
//! One request per connection; requests and answers are JSON, each after its length in four bytes, big-endian. The
//! socket is for root alone (0600 and checked by peer credentials).

mod client;
mod protocol;
mod server;
mod socket;

pub use client::{AdminClient, AdminError};
pub use protocol::{Answer, ImageSummary, Request};
pub use server::{AdminServerError, serve};
