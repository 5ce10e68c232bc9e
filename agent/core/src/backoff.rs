//! Exponential back-off of container restarts and image pulls, as values with the time passed in.

use jiff::{SignedDuration, Timestamp};

/// Bounds of a back-off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackoffBounds {
    /// First delay.
    pub initial: SignedDuration,
    /// Longest delay.
    pub max: SignedDuration,
    /// What has worked for longer than this has no back-off any more.
    pub reset_after: SignedDuration,
}

/// Time of good work that ends a back-off, however long the longest delay is (kubelet `HasExpiredFunc`).
const RESET_AFTER: SignedDuration = SignedDuration::from_secs(600);

impl Default for BackoffBounds {
    /// The kubelet's: 10 s doubling to 300 s.
    fn default() -> Self {
        BackoffBounds {
            initial: SignedDuration::from_secs(10),
            max: SignedDuration::from_secs(300),
            reset_after: RESET_AFTER,
        }
    }
}

impl BackoffBounds {
    /// Bounds with the node's `maxContainerRestartPeriod`; the first delay is never longer than the longest.
    pub fn with_max(max: SignedDuration) -> Self {
        let standard = BackoffBounds::default();
        BackoffBounds { initial: standard.initial.min(max), max, ..standard }
    }
}

/// One back-off that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Delay of the next try, counted from the failure.
    pub delay: SignedDuration,
    /// When the delay was set.
    pub updated_at: Timestamp,
}

impl Backoff {
    /// When a try may follow the failure at `failed_at`. At once without back-off, and again once the thing has
    /// worked long enough.
    pub fn next_try(this: Option<&Backoff>, failed_at: Timestamp, bounds: BackoffBounds) -> Timestamp {
        match this {
            Some(backoff) if !backoff.expired(failed_at, bounds) => {
                failed_at.saturating_add(backoff.delay).unwrap_or(failed_at)
            }
            _ => failed_at,
        }
    }

    /// The back-off after a try at `now` that followed the failure at `failed_at`.
    pub fn after_try(this: Option<&Backoff>, failed_at: Timestamp, now: Timestamp, bounds: BackoffBounds) -> Backoff {
        let delay = match this {
            Some(backoff) if !backoff.expired(failed_at, bounds) => (backoff.delay * 2).min(bounds.max),
            _ => bounds.initial,
        };
        Backoff { delay, updated_at: now }
    }

    fn expired(&self, failed_at: Timestamp, bounds: BackoffBounds) -> bool {
        failed_at.duration_since(self.updated_at) > bounds.reset_after
    }
}

/// A duration as the kubelet's messages print it: `10s`, `1m20s`, `5m0s`.
pub fn format_delay(delay: SignedDuration) -> String {
    let seconds = delay.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s}s"),
        (h, m, s) => format!("{h}h{m}m{s}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn delays_double_to_the_longest_and_start_anew_after_ten_good_minutes() {
        let bounds = BackoffBounds::default();
        let mut backoff = None;
        let mut now = 1000;
        let mut waits = Vec::new();
        for _ in 0..8 {
            let failed = at(now + 1);
            let next = Backoff::next_try(backoff.as_ref(), failed, bounds);
            waits.push(next.duration_since(failed).as_secs());
            backoff = Some(Backoff::after_try(backoff.as_ref(), failed, next, bounds));
            now = next.as_second();
        }
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300]);
        let failed = at(now + 601);
        assert_eq!(Backoff::next_try(backoff.as_ref(), failed, bounds), failed);
        assert_eq!(Backoff::after_try(backoff.as_ref(), failed, failed, bounds).delay, bounds.initial);
    }

    #[test]
    fn delays_print_like_go_durations() {
        for (seconds, text) in [(10, "10s"), (80, "1m20s"), (300, "5m0s"), (3600, "1h0m0s")] {
            assert_eq!(format_delay(SignedDuration::from_secs(seconds)), text);
        }
    }
}
