//! SPDY/3.1 as Kubernetes uses it: streams over one upgraded connection, without flow control.
//!
//! One task reads frames and hands bytes to their stream's bounded channel; one task writes. A stream whose reader
//! is slow holds the connection back, which is the only back-pressure that the peers know.

mod connection;
mod frame;
mod headers;

pub use connection::{Connection, Stream, StreamReceiver, StreamSender};
pub use headers::{HeaderList, HeadersError};
