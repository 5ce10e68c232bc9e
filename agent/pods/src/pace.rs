//! Time, work on files and the order of steps: the machine's own, or what a simulation sets by its seed.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use jiff::Timestamp;
use orlop_agent_core::turns::{InTurn, Turns, in_turn};
use tokio::task::JoinError;

/// Where the pod manager takes time, threads and order from. The default is the machine.
#[derive(Clone)]
pub struct Pace {
    /// The time of day.
    pub clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    /// Work on files, which may hang, is done on threads of its own; otherwise in place, one thing after the other.
    pub threads: bool,
    /// Who decides which task takes the next step; none lets each go on when it is woken.
    pub turns: Option<Arc<dyn Turns>>,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace { clock: Arc::new(Timestamp::now), threads: true, turns: None }
    }
}

impl fmt::Debug for Pace {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Pace").field("threads", &self.threads).finish_non_exhaustive()
    }
}

impl Pace {
    pub(crate) fn now(&self) -> Timestamp {
        (self.clock)()
    }

    /// A task that is about to be spawned.
    pub(crate) fn task<F: Future>(&self, name: &'static str, work: F) -> InTurn<F> {
        in_turn(self.turns.as_ref(), name, work)
    }

    /// Does work on files.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, JoinError> {
        if self.threads {
            return tokio::task::spawn_blocking(work).await;
        }
        tokio::task::yield_now().await;
        Ok(work())
    }
}
