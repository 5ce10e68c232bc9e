//! Whose turn it is: tasks are wrapped so that a simulation can decide which one takes the next step. Without one they
//! go on as they are woken.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

/// Who decides which task takes the next step.
pub trait Turns: Send + Sync {
    /// A task begins; `name` says what it is. It ends when its turn is dropped.
    fn begin(&self, name: &'static str) -> Box<dyn Turn>;
}

/// The turns of one task.
pub trait Turn: Send {
    /// Whether the task, which was woken, may take a step now; that uses the turn up. The waker of `context` is woken
    /// when its turn has come.
    fn poll_step(&mut self, context: &mut Context<'_>) -> Poll<()>;
}

/// A task that takes its steps in its turn.
pub struct InTurn<F> {
    turn: Option<Box<dyn Turn>>,
    work: Pin<Box<F>>,
}

/// A task that takes its steps when `turns` says so, or whenever it is woken.
pub fn in_turn<F: Future>(turns: Option<&Arc<dyn Turns>>, name: &'static str, work: F) -> InTurn<F> {
    InTurn { turn: turns.map(|turns| turns.begin(name)), work: Box::pin(work) }
}

impl<F: Future> Future for InTurn<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        if let Some(turn) = &mut self.turn {
            ready!(turn.poll_step(context));
        }
        self.work.as_mut().poll(context)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Waker;

    use super::*;

    struct Every(usize);

    /// Ready at every second poll.
    struct Second(Arc<AtomicUsize>);

    impl Turns for Every {
        fn begin(&self, _name: &'static str) -> Box<dyn Turn> {
            Box::new(Second(Arc::new(AtomicUsize::new(self.0))))
        }
    }

    impl Turn for Second {
        fn poll_step(&mut self, _context: &mut Context<'_>) -> Poll<()> {
            if self.0.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) { Poll::Pending } else { Poll::Ready(()) }
        }
    }

    #[test]
    fn a_task_steps_only_in_its_turn() {
        let turns: Arc<dyn Turns> = Arc::new(Every(0));
        for (turns, want) in [(Some(&turns), vec![false, true]), (None, vec![true])] {
            let mut task = std::pin::pin!(in_turn(turns, "test", std::future::ready(7)));
            let mut context = Context::from_waker(Waker::noop());
            let polls: Vec<bool> = want.iter().map(|_| task.as_mut().poll(&mut context).is_ready()).collect();
            assert_eq!(polls, want);
        }
    }
}
