//! The order of steps: tasks that were woken wait here, and the dice pick the one that goes on.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use orlop_agent_core::turns::{Turn, Turns};
use tokio::sync::Notify;

#[derive(Default)]
struct Inner {
    serial: u64,
    /// Tasks that are there, by number.
    alive: BTreeMap<u64, &'static str>,
    /// Tasks that were woken and wait for their turn.
    waiting: BTreeMap<u64, Waker>,
    granted: Option<u64>,
    polls: u64,
    dead: bool,
}

/// The tasks of one life of the agent.
#[derive(Default)]
pub struct Gate {
    inner: Mutex<Inner>,
    pub arrival: Arc<Notify>,
}

struct Place {
    gate: Arc<Gate>,
    number: u64,
}

/// A handle that the agent's parts take turns from.
pub struct Order(pub Arc<Gate>);

impl Gate {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    /// The agent is killed: none of its tasks ever takes a step again.
    pub fn kill(&self) {
        let mut inner = self.inner();
        inner.dead = true;
        inner.waiting.clear();
        inner.granted = None;
    }

    /// How many tasks wait for a turn.
    pub fn waiting(&self) -> usize {
        self.inner().waiting.len()
    }

    /// Lets one of the waiting tasks take a step. Returns its number and what it is.
    pub fn grant(&self, choice: usize) -> Option<(u64, &'static str)> {
        let mut inner = self.inner();
        let number = *inner.waiting.keys().nth(choice)?;
        let waker = inner.waiting.remove(&number)?;
        inner.granted = Some(number);
        let name = inner.alive.get(&number).copied().unwrap_or("?");
        drop(inner);
        waker.wake();
        Some((number, name))
    }

    /// How many tasks of that name there are.
    pub fn alive(&self, name: &str) -> usize {
        self.inner().alive.values().filter(|known| **known == name).count()
    }

    /// Waits until nothing moves any more that doesn't wait for its turn.
    pub async fn settle(&self) {
        loop {
            let before = self.inner().polls;
            for _ in 0..4 {
                tokio::task::yield_now().await;
            }
            if self.inner().polls == before {
                self.inner().granted = None;
                return;
            }
        }
    }
}

impl Turns for Order {
    fn begin(&self, name: &'static str) -> Box<dyn Turn> {
        let mut inner = self.0.inner();
        inner.serial += 1;
        let number = inner.serial;
        inner.alive.insert(number, name);
        Box::new(Place { gate: self.0.clone(), number })
    }
}

impl Turn for Place {
    fn poll_step(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let mut inner = self.gate.inner();
        if inner.dead {
            return Poll::Pending;
        }
        inner.polls += 1;
        if inner.granted == Some(self.number) {
            inner.granted = None;
            return Poll::Ready(());
        }
        inner.waiting.insert(self.number, context.waker().clone());
        drop(inner);
        self.gate.arrival.notify_one();
        Poll::Pending
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inner = self.gate.inner();
        inner.alive.remove(&self.number);
        inner.waiting.remove(&self.number);
    }
}
