//! What a worker counts of itself: where its pod stands, rounds of work, and how long the pod took to start.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodStatus;
use orlop_agent_core::containers;
use orlop_agent_core::lifecycle::Lifecycle;
use orlop_agent_core::metrics::names;
use orlop_agent_core::rounds::{Rounds, Work};
use orlop_agent_core::startup::Startup;
use orlop_agent_core::status::is_terminal;
use tokio::time::Instant;

use crate::census::{Place, Standing};
use crate::shared::{Shared, lock};
use crate::worker::{Desired, Worker};

/// What a worker keeps for its counts.
pub(super) struct Accounts {
    place: Place,
    rounds: Rounds,
    /// When the pod was first seen, until work on it has begun and until it runs. None for one that is not new.
    new_since: Option<Instant>,
    starts_since: Option<Instant>,
    /// Held by every operation that is under way but probes.
    pub(super) under_way: Arc<()>,
}

impl Accounts {
    /// Of a pod that was first seen then; none for one that the runtime has something of, from before the agent's start.
    pub(super) fn new(shared: &Shared, desired: &Desired, seen: Option<Instant>) -> Accounts {
        let phase = desired.pod.status.as_ref().and_then(|status| status.phase.as_deref());
        let seen = seen.filter(|_| !desired.orphan && matches!(phase, None | Some("" | "Pending")));
        let followed = seen.is_some() && !containers::is_static(&desired.pod);
        if let Some(startup) = Startup::of(&desired.pod).filter(|_| followed) {
            lock(&shared.startups).insert(containers::uid(&desired.pod).to_owned(), startup);
        }
        Accounts {
            place: Place::new(shared.census.clone()),
            rounds: Rounds::default(),
            new_since: seen,
            starts_since: seen,
            under_way: Arc::default(),
        }
    }
}

impl Worker {
    /// There is cause to look at the pod.
    pub(super) fn begin_round(&mut self, cause: Work) {
        self.accounts.rounds.begin(cause, std::time::Instant::now());
        if let Some(seen) = self.accounts.new_since.take()
            && self.memory.lifecycle == Lifecycle::Syncing
        {
            let metrics = &*self.shared.ports.metrics;
            metrics.observe(&names::WORKER_START_SECONDS, &[], seen.elapsed().as_secs_f64());
            let count = containers::app_containers(&self.pod).count();
            metrics.observe(&names::CONTAINERS_PER_POD, &[], count as f64);
        }
    }

    /// The pod was looked at, and what is to be done was begun.
    pub(super) fn look_at_round(&mut self) {
        let life = self.memory.lifecycle;
        self.accounts.place.take(Standing {
            life,
            gone: self.gone,
            orphan: self.orphan,
            is_static: containers::is_static(&self.pod),
        });
        let busy = Arc::strong_count(&self.accounts.under_way) > 1;
        if let Some((work, took)) = self.accounts.rounds.looked(life, busy, std::time::Instant::now()) {
            self.shared.ports.metrics.observe(&names::WORKER_SECONDS, &[work.as_str()], took.as_secs_f64());
        }
    }

    /// Counts how long it took until the pod's phase was Running.
    pub(super) fn count_running(&mut self, status: &PodStatus) {
        let phase = status.phase.as_deref();
        if phase == Some("Running") || is_terminal(phase) {
            let seen = self.accounts.starts_since.take();
            if let Some(seen) = seen.filter(|_| phase == Some("Running")) {
                self.shared.ports.metrics.observe(&names::START_SECONDS, &[], seen.elapsed().as_secs_f64());
            }
        }
    }

    /// Counts how long the whole start took, once the API shows that all containers run.
    pub(super) fn count_start(&self, now: Timestamp) {
        let mut startups = lock(&self.shared.startups);
        let Some(startup) = startups.get(&self.uid) else { return };
        let ended = self.pod.status.as_ref().is_some_and(|status| is_terminal(status.phase.as_deref()));
        let times = startup.times(&self.pod, &self.observed.borrow(), now);
        if ended || times.is_some() {
            startups.remove(&self.uid);
        }
        let Some(times) = times else { return };
        let metrics = &*self.shared.ports.metrics;
        metrics.observe(&names::START_TOTAL_SECONDS, &[], times.total.as_secs_f64());
        if let Some(own) = times.own {
            metrics.observe(&names::START_SLI_SECONDS, &[], own.as_secs_f64());
        }
    }
}
