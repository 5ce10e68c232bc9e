//! Why a command fails, in words that callers of the OCI's runtimes look for.

use orlop_container::stage::StageError;

/// A command that failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The command line is wrong.
    #[error("{0}")]
    Usage(String),
    /// Something is not done here.
    #[error("{0}: not supported by this runtime")]
    Unsupported(String),
    /// An id that could be no folder.
    #[error("invalid id format: {0:?} must be 1 to 255 letters, digits, _, +, - and ., and no folder's own name")]
    Id(String),
    /// There is no such container.
    #[error("container does not exist")]
    Missing,
    /// There is one already.
    #[error("container with given ID already exists: {0}")]
    Exists(String),
    /// It has no process.
    #[error("container not running")]
    NotRunning,
    /// The command is not for a container in this state.
    #[error("{command} container {id}: it is {status}{advice}")]
    WrongState {
        /// What was asked.
        command: &'static str,
        /// The container.
        id: String,
        /// Its state.
        status: String,
        /// What to do.
        advice: &'static str,
    },
    /// Another command works on it.
    #[error("container {0} is busy: another command has been working on it for {1} s")]
    Busy(String, u64),
    /// A step failed.
    #[error(transparent)]
    Step(#[from] StageError),
    /// A process could not be run in a container.
    #[error("exec failed: {0}")]
    Exec(#[source] Box<Failure>),
}

impl Failure {
    /// The exit status of the program.
    pub fn code(&self) -> u8 {
        match self {
            Failure::Exec(_) => 255,
            _ => 1,
        }
    }
}

/// A step that failed, and why.
pub fn failed(step: impl Into<String>, why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Failure {
    Failure::Step(StageError { step: step.into(), source: why.into() })
}

/// What a command gives: the exit status of the program.
pub type Outcome = Result<u8, Failure>;
