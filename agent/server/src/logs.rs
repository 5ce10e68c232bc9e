//! Logs of containers: the CRI file format, which part of it a client asked for, reading and following.

mod follow;
mod options;
mod reader;
mod record;
mod segments;
mod tail;
mod text;

pub(crate) use follow::{Liveness, LogSource, stream_log};
pub use options::LogOptions;
pub(crate) use options::parse_options;
pub use record::{LogRecord, LogStream, RecordError, parse_record};
pub use text::LogText;
