//! How long the node took to be there: from the boot of the machine to the first time that it was ready.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use orlop_agent_core::metrics::{Metric, Metrics, names};
use rustix::time::{ClockId, clock_gettime};

/// The steps of a node's start. Only that of a node which the API server did not know is told, once, as by the kubelet.
#[derive(Debug)]
pub struct NodeStartup {
    metrics: Arc<Metrics>,
    /// How long the machine had been up when the agent began.
    up: Duration,
    begun: Instant,
    steps: Mutex<Steps>,
}

/// What has happened so far.
#[derive(Clone, Copy, Debug, Default)]
struct Steps {
    tried: Option<Instant>,
    registered: Option<Instant>,
    ready: bool,
}

impl NodeStartup {
    /// Of an agent that begins now.
    pub fn new(metrics: Arc<Metrics>) -> NodeStartup {
        let up = clock_gettime(ClockId::Boottime);
        let up = Duration::new(up.tv_sec.unsigned_abs(), u32::try_from(up.tv_nsec).unwrap_or(0));
        NodeStartup { metrics, up, begun: Instant::now(), steps: Mutex::default() }
    }

    /// The node is about to be registered.
    pub(crate) fn tries(&self, now: Instant) {
        self.change(|steps| {
            steps.tried.get_or_insert(now);
        });
    }

    /// The node was made at the API server.
    pub(crate) fn registered(&self, now: Instant) {
        self.change(|steps| {
            let Some(tried) = steps.tried.filter(|_| steps.registered.is_none()) else { return };
            steps.registered = Some(now);
            self.set(&names::NODE_PRE_AGENT, self.up);
            self.set(&names::NODE_PRE_REGISTRATION, tried.duration_since(self.begun));
            self.set(&names::NODE_REGISTRATION, now.duration_since(tried));
        });
    }

    /// The API server has taken a status by which the node is ready.
    pub(crate) fn ready(&self, now: Instant) {
        self.change(|steps| {
            let Some(registered) = steps.registered.filter(|_| !steps.ready) else { return };
            steps.ready = true;
            self.set(&names::NODE_POST_REGISTRATION, now.duration_since(registered));
            self.set(&names::NODE_STARTUP, self.up + now.duration_since(self.begun));
        });
    }

    fn set(&self, metric: &'static Metric, took: Duration) {
        self.metrics.set(metric, &[], took.as_secs_f64());
    }

    fn change(&self, change: impl FnOnce(&mut Steps)) {
        change(&mut self.steps.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    enum Step {
        Tries,
        Registered,
        Ready,
    }

    #[test]
    fn only_the_first_start_of_a_new_node_is_told() {
        use Step::{Ready, Registered, Tries};
        // By the second at which they happen.
        type Steps<'a> = &'a [(u64, Step)];
        // What is told then of a machine that was up for 100 s: the four parts, and all.
        let cases: [(&str, Steps<'_>, [u64; 5]); 5] = [
            ("tried only", &[(1, Tries)], [0; 5]),
            ("one that was known", &[(1, Tries), (3, Ready)], [0; 5]),
            ("not ready yet", &[(1, Tries), (3, Registered)], [100, 1, 2, 0, 0]),
            ("a second try", &[(1, Tries), (5, Tries), (7, Registered)], [100, 1, 6, 0, 0]),
            (
                "all, and once more",
                &[(1, Tries), (3, Registered), (8, Ready), (20, Tries), (30, Registered), (40, Ready)],
                [100, 1, 2, 5, 108],
            ),
        ];
        for (what, steps, want) in cases {
            let metrics = Arc::new(Metrics::default());
            let startup = NodeStartup { up: Duration::from_secs(100), ..NodeStartup::new(metrics.clone()) };
            for (second, step) in steps {
                let now = startup.begun + Duration::from_secs(*second);
                match step {
                    Tries => startup.tries(now),
                    Registered => startup.registered(now),
                    Ready => startup.ready(now),
                }
            }
            let text = metrics.text(|metric| metric.name.starts_with("kubelet_node_startup"));
            for (part, want) in
                ["_pre_kubelet", "_pre_registration", "_registration", "_post_registration", ""].into_iter().zip(want)
            {
                let line = format!("\nkubelet_node_startup{part}_duration_seconds {want}\n");
                assert!(text.contains(&line), "{what}: no {line} in {text}");
            }
        }
    }
}
