//! What is logged: `RUST_LOG`, else what the configuration says, else `info`. It can be changed while the program runs.

use std::sync::OnceLock;

use anyhow::{Context, Result};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::reload::Error;

/// What nobody has said anything of.
const DEFAULT: &str = "info";

type Change = Box<dyn Fn(EnvFilter) -> Result<(), Error> + Send + Sync>;

/// How the filter of the process is changed, as there is one log of the process.
static CHANGE: OnceLock<Change> = OnceLock::new();

/// The words of a filter that hold beside those of a configuration.
pub fn choose(configured: Option<String>) -> String {
    let said = std::env::var(EnvFilter::DEFAULT_ENV).ok().filter(|said| parse(said).is_ok());
    said.or(configured).unwrap_or_else(|| DEFAULT.into())
}

/// A filter from its words.
///
/// # Errors
/// Names the words that are none.
pub fn parse(words: &str) -> Result<EnvFilter> {
    EnvFilter::try_new(words).with_context(|| format!("{words:?} does not say what to log"))
}

/// The filter at the start, before any configuration is read.
pub fn first() -> EnvFilter {
    parse(&choose(None)).unwrap_or_else(|_| DEFAULT.into())
}

/// Takes the way to change the filter.
pub fn keep(change: impl Fn(EnvFilter) -> Result<(), Error> + Send + Sync + 'static) {
    let _ = CHANGE.set(Box::new(change));
}

/// Logs what these words say from now on.
///
/// # Errors
/// When they say nothing, or the log is gone.
pub fn change(words: &str) -> Result<()> {
    let filter = parse(words)?;
    CHANGE.get().map_or(Ok(()), |change| change(filter)).context("change what is logged")
}
