//! How many images may be pulled in a time: a bucket of pulls that fills evenly, as the kubelet's `registryPullQPS` and
//! `registryBurst`. The time is passed in.

use jiff::Timestamp;

/// Message of a pull that there is no allowance for, in the kubelet's words.
pub const PULLS_EXCEEDED: &str = "pull QPS exceeded";

/// Pulls that are allowed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PullRate {
    /// Pulls per second; 0 for no limit.
    pub per_second: u32,
    /// Pulls that may be begun at once after a rest.
    pub burst: u32,
}

impl Default for PullRate {
    /// The kubelet's.
    fn default() -> PullRate {
        PullRate { per_second: 5, burst: 10 }
    }
}

/// The allowance of a node.
#[derive(Clone, Debug)]
pub struct PullAllowance {
    rate: PullRate,
    left: f64,
    at: Option<Timestamp>,
}

impl PullAllowance {
    /// An allowance of which nothing was taken yet.
    pub fn new(rate: PullRate) -> PullAllowance {
        PullAllowance { rate, left: f64::from(rate.burst), at: None }
    }

    /// Takes one pull, if there is one to take.
    pub fn take(&mut self, now: Timestamp) -> bool {
        if self.rate.per_second == 0 {
            return true;
        }
        let rested = self.at.map_or(0.0, |at| now.duration_since(at).as_secs_f64().max(0.0));
        self.at = Some(now);
        self.left = (self.left + rested * f64::from(self.rate.per_second)).min(f64::from(self.rate.burst));
        let allowed = self.left >= 1.0;
        if allowed {
            self.left -= 1.0;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            let mut allowance = PullAllowance::new(PullRate { per_second, burst });
            let took = |at: &i64| allowance.take(Timestamp::from_millisecond(*at).unwrap());
            let got: String = tries.iter().map(took).map(|allowed| if allowed { '+' } else { '-' }).collect();
            assert_eq!(got, want, "{per_second} per second, burst {burst}, at {tries:?}");
        }
    }
}
