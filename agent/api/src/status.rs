//! Pod statuses on their way to the API server; the only writer.

mod diff;
mod ledger;
mod writer;

pub use diff::status_patch;
pub use writer::StatusWriter;
pub(crate) use writer::delete_now;
