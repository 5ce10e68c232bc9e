//! The agent's port to CRI: translation to and from CRI, the client and its retries.

mod call;
mod client;
mod connect;
mod events;
mod from_cri;
mod to_cri;

pub use client::{CriRuntime, RuntimeConfig};
pub use connect::ConnectError;
