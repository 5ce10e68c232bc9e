//! Waiting times between tries: doubling, bounded and spread, so that many nodes do not come back at once.

use std::time::Duration;

use crate::pace::{Chance, Pace};

/// A doubling delay with jitter.
#[derive(Clone)]
pub struct RetryDelay {
    first: Duration,
    longest: Duration,
    next: Duration,
    chance: Chance,
}

impl RetryDelay {
    /// A delay that starts at `first` and doubles up to `longest`.
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self::drawn_by(&Pace::default().chance, first, longest)
    }

    /// The same, spread by `chance`.
    pub fn drawn_by(chance: &Chance, first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first, chance: chance.clone() }
    }

    /// The next waiting time: between half and the whole of the current delay, which then doubles.
    pub fn next_delay(&mut self) -> Duration {
        let whole = self.next;
        self.next = (whole * 2).min(self.longest);
        whole.mul_f64(0.5 + (self.chance)() / 2.0)
    }

    /// Starts over after a success.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

/// `base` lengthened by a random part of at most `share` of it (0.04 is the kubelet's jitter of lease renewal).
pub fn spread(base: Duration, share: f64) -> Duration {
    base + base.mul_f64((Pace::default().chance)() * share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_bound_and_start_over() {
        let mut delay = RetryDelay::new(Duration::from_millis(100), Duration::from_millis(350));
        for (low, high) in [(50, 100), (100, 200), (175, 350), (175, 350)] {
            let got = delay.next_delay();
            assert!(
                got >= Duration::from_millis(low) && got <= Duration::from_millis(high),
                "{got:?} in {low}..={high}"
            );
        }
        delay.reset();
        assert!(delay.next_delay() <= Duration::from_millis(100));
    }

    #[test]
    fn spread_never_shortens() {
        for _ in 0..100 {
            let got = spread(Duration::from_secs(10), 0.04);
            assert!(got >= Duration::from_secs(10) && got <= Duration::from_millis(10_400));
        }
    }
}
