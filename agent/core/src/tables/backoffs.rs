//! The back-off of a container that fails again and again: longest wait × how long it works each time.

use jiff::{SignedDuration, Timestamp};

use super::{compare, render};
use crate::backoff::{Backoff, BackoffBounds};

/// Seconds that the container works before each of its failures.
const WORKS: [(&str, [i64; 9]); 6] = [
    ("fails at once", [0; 9]),
    ("works for 30 s", [30; 9]),
    ("works for 599 s", [599; 9]),
    ("works for 601 s", [601; 9]),
    ("works for 601 s once", [0, 0, 0, 0, 601, 0, 0, 0, 0]),
    ("works for 61 s once", [0, 0, 0, 0, 61, 0, 0, 0, 0]),
];

#[test]
fn crash_loops() {
    let mut rows = Vec::new();
    for max in [1, 30, 300] {
        for (what, works) in WORKS {
            let bounds = BackoffBounds::with_max(SignedDuration::from_secs(max));
            let (mut backoff, mut now) = (None, Timestamp::UNIX_EPOCH);
            let waits = works.map(|seconds| {
                let failed_at = now + SignedDuration::from_secs(seconds);
                let next = Backoff::next_try(backoff.as_ref(), failed_at, bounds);
                backoff = Some(Backoff::after_try(backoff.as_ref(), failed_at, next, bounds));
                now = next;
                next.duration_since(failed_at).as_secs().to_string()
            });
            rows.push(vec![format!("{max}s"), what.to_owned(), waits.join(" ")]);
        }
    }
    compare("backoffs.txt", &render(&["longest", "the container", "waits in seconds before each restart"], &rows));
}
