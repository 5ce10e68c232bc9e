//! Chance and the order of steps: the machine's own, or what a simulation sets by its seed.

use std::sync::Arc;

use orlop_agent_core::turns::{InTurn, Turns, in_turn};
use rand::Rng;

/// Draws a number of 0.0..1.0; it spreads waiting times, so that many nodes do not come back at once.
pub type Chance = Arc<dyn Fn() -> f64 + Send + Sync>;

/// Where what speaks with the API server takes chance and order from. The default is the machine.
#[derive(Clone)]
pub struct Pace {
    /// Random numbers.
    pub chance: Chance,
    /// Who decides which task takes the next step; none lets each go on when it is woken.
    pub turns: Option<Arc<dyn Turns>>,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace { chance: Arc::new(|| rand::rng().random()), turns: None }
    }
}

impl Pace {
    /// A task that is about to be spawned.
    pub(crate) fn task<F: Future>(&self, name: &'static str, work: F) -> InTurn<F> {
        in_turn(self.turns.as_ref(), name, work)
    }
}
