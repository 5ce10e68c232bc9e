//! Waiting times between tries: doubling, bounded and spread, so that many nodes do not come back at once.

use std::time::Duration;

use rand::Rng;

/// A doubling delay with jitter.
#[derive(Clone, Debug)]
pub struct RetryDelay {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl RetryDelay {
    /// A delay that starts at `first` and doubles up to `longest`.
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first }
    }

    /// The next waiting time: between half and the whole of the current delay, which then doubles.
    pub fn next_delay(&mut self) -> Duration {
        let whole = self.next;
        self.next = (whole * 2).min(self.longest);
        whole.mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    /// Starts over after a success.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

/// `base` lengthened by a random part of at most `share` of it (0.04 is the kubelet's jitter of lease renewal).
pub fn spread(base: Duration, share: f64) -> Duration {
    base + base.mul_f64(rand::rng().random_range(0.0..=share))
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
