//! The observed set: what the runtime has of every pod, kept up to date by its events, with a slow list as a safety net.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use orlop_agent_core::facts::ObservedPod;
use orlop_agent_core::metrics::{Metrics, names};
use orlop_agent_core::runtime::{Runtime, RuntimeEvent};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::shared::lock;

/// Between two lists when the runtime has no events (the kubelet's relist period).
const RELIST_WITHOUT_EVENTS: Duration = Duration::from_secs(1);
/// Longest wait for one list; a runtime that hangs is tried again.
const LIST_DEADLINE: Duration = Duration::from_secs(120);
const LIST_RETRY: Duration = Duration::from_millis(500);

type Slot = watch::Sender<Arc<ObservedPod>>;

/// The observed set.
pub(crate) struct ObservedSet {
    pods: Mutex<HashMap<String, Slot>>,
    /// When the last list succeeded.
    listed: watch::Sender<Option<Instant>>,
    /// A pod appeared that nobody had asked for.
    pub appeared: Notify,
}

impl ObservedSet {
    pub(crate) fn new() -> ObservedSet {
        ObservedSet { pods: Mutex::default(), listed: watch::Sender::new(None), appeared: Notify::new() }
    }

    /// The pod of that uid, as it is and as it becomes.
    pub(crate) fn subscribe(&self, uid: &str) -> watch::Receiver<Arc<ObservedPod>> {
        lock(&self.pods).entry(uid.to_owned()).or_insert_with(|| new_slot(uid)).subscribe()
    }

    /// The pod of that uid as it is now.
    pub(crate) fn get(&self, uid: &str) -> Option<Arc<ObservedPod>> {
        lock(&self.pods).get(uid).map(|slot| slot.borrow().clone())
    }

    /// All pods that the runtime has something of.
    pub(crate) fn all(&self) -> Vec<Arc<ObservedPod>> {
        lock(&self.pods).values().map(|slot| slot.borrow().clone()).filter(|pod| !pod.is_empty()).collect()
    }

    /// When the runtime was last listed.
    pub(crate) fn listed(&self) -> watch::Receiver<Option<Instant>> {
        self.listed.subscribe()
    }

    /// Takes in news; what they don't name stays.
    pub(crate) fn merge(&self, news: ObservedPod) {
        if news.uid.is_empty() {
            return;
        }
        let uid = news.uid.clone();
        let mut pods = lock(&self.pods);
        let slot = pods.entry(uid.clone()).or_insert_with(|| new_slot(&uid));
        let watched = slot.receiver_count() > 0;
        slot.send_if_modified(|known| {
            let mut next = (**known).clone();
            next.merge(news);
            replace(known, next)
        });
        if !watched {
            self.appeared.notify_one();
        }
    }

    /// Forgets a container or sandbox, wherever it is.
    pub(crate) fn gone(&self, id: &str) {
        for slot in lock(&self.pods).values() {
            slot.send_if_modified(|known| {
                let mut next = (**known).clone();
                next.remove_container(id);
                next.remove_sandbox(id);
                replace(known, next)
            });
        }
    }

    /// Keeps the termination message of a container.
    pub(crate) fn set_message(&self, uid: &str, id: &str, message: Option<String>) {
        if let Some(slot) = lock(&self.pods).get(uid) {
            slot.send_if_modified(|known| {
                let mut next = (**known).clone();
                if let Some(container) = next.containers.iter_mut().find(|container| container.id == id) {
                    container.message_read = true;
                    if let Some(message) = message {
                        container.message = message;
                    }
                }
                replace(known, next)
            });
        }
    }

    /// Takes in a complete list that was begun at `begun`: what is older and not in it is gone.
    pub(crate) fn relisted(&self, begun: Timestamp, list: Vec<ObservedPod>) {
        let mut listed: HashMap<String, ObservedPod> = list.into_iter().map(|pod| (pod.uid.clone(), pod)).collect();
        for (uid, slot) in lock(&self.pods).iter() {
            let found = listed.remove(uid).unwrap_or_default();
            slot.send_if_modified(|known| {
                let mut next = (**known).clone();
                next.containers.retain(|container| {
                    container.created_at >= begun || found.containers.iter().any(|other| other.id == container.id)
                });
                next.sandboxes.retain(|sandbox| {
                    sandbox.created_at >= begun || found.sandboxes.iter().any(|other| other.id == sandbox.id)
                });
                next.merge(found);
                replace(known, next)
            });
        }
        for pod in listed.into_values() {
            self.merge(pod);
        }
        self.listed.send_replace(Some(Instant::now()));
    }

    /// Takes in all that the runtime has of one pod, asked for at `begun`.
    pub(crate) fn refreshed(&self, begun: Timestamp, pod: ObservedPod) {
        if let Some(slot) = lock(&self.pods).get(&pod.uid) {
            slot.send_if_modified(|known| {
                let mut next = (**known).clone();
                next.containers.retain(|container| {
                    container.created_at >= begun || pod.containers.iter().any(|other| other.id == container.id)
                });
                next.sandboxes.retain(|sandbox| {
                    sandbox.created_at >= begun || pod.sandboxes.iter().any(|other| other.id == sandbox.id)
                });
                next.merge(pod);
                replace(known, next)
            });
        }
    }

    /// Drops a pod that nobody watches and the runtime has nothing of.
    pub(crate) fn forget(&self, uid: &str) {
        let mut pods = lock(&self.pods);
        if pods.get(uid).is_some_and(|slot| slot.borrow().is_empty()) {
            pods.remove(uid);
        }
    }

    /// Follows the runtime's events until cancelled, and lists it all once in a while.
    pub(crate) async fn follow(
        &self,
        runtime: &dyn Runtime,
        metrics: &Metrics,
        relist: Duration,
        cancel: &CancellationToken,
    ) {
        let mut events = runtime.events();
        let mut last_list: Option<Instant> = None;
        let mut period = relist;
        let mut next_list = Instant::now();
        loop {
            // The list comes before news, so that a runtime with much news is listed all the same.
            let event = tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                () = tokio::time::sleep_until(next_list) => None,
                event = events.next() => Some(event),
            };
            match event {
                Some(RuntimeEvent::Changed(pod)) => self.merge(pod),
                Some(RuntimeEvent::Gone(id)) => self.gone(&id),
                Some(RuntimeEvent::Lost) => {
                    period = relist;
                    next_list = Instant::now();
                }
                Some(RuntimeEvent::Unsupported) => {
                    period = RELIST_WITHOUT_EVENTS.min(relist);
                    next_list = Instant::now();
                }
                None => {
                    let asked = Instant::now();
                    if let Some(last) = last_list.replace(asked) {
                        metrics.observe(&names::RELIST_INTERVAL_SECONDS, &[], (asked - last).as_secs_f64());
                    }
                    let list = tokio::select! {
                        biased;
                        () = cancel.cancelled() => return,
                        list = tokio::time::timeout(LIST_DEADLINE, runtime.pods()) => list,
                    };
                    metrics.observe(&names::RELIST_SECONDS, &[], asked.elapsed().as_secs_f64());
                    let wait = match list {
                        Ok(Ok((begun, pods))) => {
                            metrics.set(&names::RELIST_LAST, &[], begun.as_second() as f64);
                            self.relisted(begun, pods);
                            period
                        }
                        Ok(Err(error)) => {
                            tracing::warn!(%error, "can't list what the runtime has");
                            LIST_RETRY
                        }
                        Err(_) => LIST_RETRY,
                    };
                    next_list = Instant::now() + wait;
                }
            }
        }
    }
}

fn new_slot(uid: &str) -> Slot {
    watch::Sender::new(Arc::new(ObservedPod { uid: uid.to_owned(), ..ObservedPod::default() }))
}

fn replace(known: &mut Arc<ObservedPod>, next: ObservedPod) -> bool {
    if **known == next {
        return false;
    }
    *known = Arc::new(next);
    true
}
