//! How much may be done in a time: a bucket that fills evenly, as the kubelet's `registryPullQPS` and `registryBurst`, or
//! `eventRecordQPS` and `eventBurst`. The time is passed in.

use std::time::Duration;

use jiff::Timestamp;

/// Message of a pull that there is no allowance for, in the kubelet's words.
pub const PULLS_EXCEEDED: &str = "pull QPS exceeded";

/// What is allowed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// So many per second; 0 for no limit.
    pub per_second: u32,
    /// So many at once after a rest.
    pub burst: u32,
}

impl Rate {
    /// The kubelet's for pulls of images.
    pub const PULLS: Rate = Rate { per_second: 5, burst: 10 };
    /// The kubelet's for events.
    pub const EVENTS: Rate = Rate { per_second: 50, burst: 100 };
}

/// What is left of it.
#[derive(Clone, Debug)]
pub struct Allowance {
    rate: Rate,
    left: f64,
    at: Option<Timestamp>,
}

impl Allowance {
    /// An allowance of which nothing was taken yet.
    pub fn new(rate: Rate) -> Allowance {
        Allowance { rate, left: f64::from(rate.burst), at: None }
    }

    /// Takes one, if there is one to take.
    pub fn take(&mut self, now: Timestamp) -> bool {
        if self.rate.per_second == 0 {
            return true;
        }
        self.fill(now);
        let allowed = self.left >= 1.0;
        if allowed {
            self.left -= 1.0;
        }
        allowed
    }

    /// How long it takes until there is one to take. What is late already is not waited for twice: each taken in advance
    /// adds to the wait of the next.
    pub fn take_in_advance(&mut self, now: Timestamp) -> Duration {
        if self.rate.per_second == 0 {
            return Duration::ZERO;
        }
        self.fill(now);
        self.left -= 1.0;
        Duration::from_secs_f64((-self.left).max(0.0) / f64::from(self.rate.per_second))
    }

    fn fill(&mut self, now: Timestamp) {
        let rested = self.at.map_or(0.0, |at| now.duration_since(at).as_secs_f64().max(0.0));
        self.at = Some(now);
        self.left = (self.left + rested * f64::from(self.rate.per_second)).min(f64::from(self.rate.burst));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_in_advance_is_waited_for() {
        let mut allowance = Allowance::new(Rate { per_second: 10, burst: 2 });
        let mut take = |at: i64| allowance.take_in_advance(Timestamp::from_millisecond(at).unwrap()).as_millis();
        assert_eq!([0, 0, 0, 0, 150, 1000].map(&mut take), [0, 0, 100, 200, 150, 0]);
        let mut unbounded = Allowance::new(Rate { per_second: 0, burst: 0 });
        assert_eq!(unbounded.take_in_advance(Timestamp::UNIX_EPOCH), Duration::ZERO);
    }

    #[test]
    fn pulls_are_allowed_up_to_the_burst_and_then_by_the_rate() {
        // Rate, burst, milliseconds of the tries and whether each is allowed.
        let cases: [(u32, u32, &[i64], &str); 6] = [
            (5, 3, &[0, 0, 0, 0], "+++-"),
            (5, 1, &[0, 100, 200, 300, 399, 400], "+-+--+"),
            (1, 2, &[0, 0, 500, 1000, 1000, 9000, 9000, 9000], "++-+-++-"),
            (1, 0, &[0, 5000], "--"),
            (0, 0, &[0, 0, 0], "+++"),
            // A clock that is set back takes nothing away.
            (1, 1, &[5000, 1000, 2000], "+-+"),
        ];
        for (per_second, burst, tries, want) in cases {
            let mut allowance = Allowance::new(Rate { per_second, burst });
            let took = |at: &i64| allowance.take(Timestamp::from_millisecond(*at).unwrap());
            let got: String = tries.iter().map(took).map(|allowed| if allowed { '+' } else { '-' }).collect();
            assert_eq!(got, want, "{per_second} per second, burst {burst}, at {tries:?}");
        }
    }
}
