//! What is to be written, what is being written and what was written last, pod by pod. Pure: time comes from outside.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use orlop_agent_core::ports::{PodSet, StatusUpdate};

use super::diff::status_patch;
use crate::pace::Pace;
use crate::retry::RetryDelay;

/// Writes under way at once.
const WRITES_MAX: usize = 16;
/// Waiting times after failures.
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_LONGEST: Duration = Duration::from_secs(30);

/// One write to be done.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) update: StatusUpdate,
    /// Which update of the pod this is.
    generation: u64,
    /// The newest state of the object that is known; none means that it has to be read first.
    pub(super) base: Option<Arc<Pod>>,
}

/// How a write ended.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The object has the status now; `deleted` tells that the object was then removed.
    Written { object: Arc<Pod>, deleted: bool },
    /// There is no such object any more.
    Gone,
    /// To be tried again.
    Failed { refused: bool },
}

struct Entry {
    wanted: StatusUpdate,
    generation: u64,
    /// The newest update is not written yet.
    dirty: bool,
    in_flight: bool,
    /// The object after the last write.
    written: Option<Arc<Pod>>,
    /// Version of the object in the pod set that was last compared with what is wanted.
    compared: Option<String>,
    delay: RetryDelay,
    not_before: Option<Instant>,
    /// The server said that the update itself is wrong; only another update is worth an early try.
    refused: bool,
}

/// All pods with a status to write.
#[derive(Default)]
pub(super) struct Ledger {
    entries: BTreeMap<String, Entry>,
    writes: usize,
    pace: Pace,
}

impl Ledger {
    pub(super) fn new(pace: Pace) -> Ledger {
        Ledger { pace, ..Ledger::default() }
    }

    /// Takes a new status; the one before is forgotten.
    pub(super) fn publish(&mut self, update: StatusUpdate) {
        match self.entries.get_mut(&update.uid) {
            Some(entry) => {
                entry.generation += 1;
                entry.dirty = true;
                entry.wanted = update;
                if std::mem::take(&mut entry.refused) {
                    entry.not_before = None;
                }
            }
            None => {
                let entry = Entry {
                    generation: 0,
                    dirty: true,
                    in_flight: false,
                    written: None,
                    compared: None,
                    delay: RetryDelay::drawn_by(&self.pace.chance, RETRY_FIRST, RETRY_LONGEST),
                    not_before: None,
                    refused: false,
                    wanted: update,
                };
                self.entries.insert(entry.wanted.uid.clone(), entry);
            }
        }
    }

    /// Writes that can start now; each is under way until [`Ledger::finish`].
    pub(super) fn start(&mut self, pods: &PodSet, now: Instant) -> Vec<Job> {
        let mut jobs = Vec::new();
        for (uid, entry) in &mut self.entries {
            if self.writes >= WRITES_MAX {
                break;
            }
            if !entry.dirty || entry.in_flight || entry.not_before.is_some_and(|at| at > now) {
                continue;
            }
            entry.in_flight = true;
            self.writes += 1;
            let base = newest(pods.pods.get(uid), entry.written.as_ref());
            jobs.push(Job { update: entry.wanted.clone(), generation: entry.generation, base });
        }
        jobs
    }

    /// Takes the outcome of a write.
    pub(super) fn finish(&mut self, job: &Job, outcome: Outcome, now: Instant) {
        self.writes -= 1;
        let Some(entry) = self.entries.get_mut(&job.update.uid) else { return };
        entry.in_flight = false;
        match outcome {
            Outcome::Gone | Outcome::Written { deleted: true, .. } => {
                self.entries.remove(&job.update.uid);
            }
            Outcome::Written { object, deleted: false } => {
                entry.dirty = entry.generation != job.generation;
                entry.written = Some(object);
                entry.delay.reset();
                entry.not_before = None;
                entry.refused = false;
            }
            Outcome::Failed { refused } => {
                entry.refused = refused && entry.generation == job.generation;
                let delay = if refused { RETRY_LONGEST } else { entry.delay.next_delay() };
                entry.not_before = (entry.refused || !refused).then(|| now + delay);
            }
        }
    }

    /// Compares with the pods of the API server: forgets pods that are gone, writes again what somebody else has
    /// overwritten, and has finished pods deleted whose deletion was asked for after their last write.
    pub(super) fn compare(&mut self, pods: &PodSet) {
        self.entries.retain(|uid, entry| {
            let Some(object) = pods.pods.get(uid) else {
                // Not yet listed, or just being written by its old name: the write itself will find out.
                return !pods.synced || entry.dirty || entry.in_flight;
            };
            let version = object.metadata.resource_version.clone();
            if entry.dirty || entry.in_flight || entry.compared == version {
                return true;
            }
            let older = entry.written.as_ref().is_some_and(|written| version_of(written) > version_of(object));
            if older {
                return true;
            }
            entry.compared = version;
            let delete = entry.wanted.finished && object.metadata.deletion_timestamp.is_some();
            let empty = PodStatus::default();
            let status = object.status.as_ref().unwrap_or(&empty);
            entry.dirty = delete || status_patch(uid, status, &entry.wanted.status).is_some();
            true
        });
    }

    /// When the next waiting write becomes due; none where nothing waits.
    pub(super) fn next_due(&self) -> Option<Instant> {
        if self.writes >= WRITES_MAX {
            return None;
        }
        self.entries.values().filter(|entry| entry.dirty && !entry.in_flight).filter_map(|entry| entry.not_before).min()
    }

    /// Nothing is to be written or being written.
    pub(super) fn is_idle(&self) -> bool {
        self.entries.values().all(|entry| !entry.dirty && !entry.in_flight)
    }
}

/// Versions are numbers that grow (Kubernetes 1.35 promises it); unreadable ones count as old.
fn version_of(pod: &Pod) -> u64 {
    pod.metadata.resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or(0)
}

fn newest(listed: Option<&Arc<Pod>>, written: Option<&Arc<Pod>>) -> Option<Arc<Pod>> {
    match (listed, written) {
        (Some(listed), Some(written)) if version_of(written) > version_of(listed) => Some(written.clone()),
        (Some(listed), _) => Some(listed.clone()),
        (None, written) => written.cloned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn update(uid: &str, phase: &str, finished: bool) -> StatusUpdate {
        let status = serde_json::from_value(json!({"phase": phase})).unwrap();
        StatusUpdate { namespace: "ns".into(), name: "p".into(), uid: uid.into(), status, finished }
    }

    fn object(uid: &str, version: &str, phase: &str, deleting: bool) -> Arc<Pod> {
        let stamp = deleting.then_some("2026-01-01T00:00:00Z");
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"namespace": "ns", "name": "p", "uid": uid, "resourceVersion": version, "deletionTimestamp": stamp},
                "status": {"phase": phase},
            }))
            .unwrap(),
        )
    }

    fn set(pods: &[Arc<Pod>]) -> PodSet {
        let pods = pods.iter().map(|pod| (pod.metadata.uid.clone().unwrap(), pod.clone())).collect();
        PodSet { synced: true, pods }
    }

    fn written(object: Arc<Pod>) -> Outcome {
        Outcome::Written { object, deleted: false }
    }

    #[test]
    fn updates_of_one_pod_coalesce_and_one_is_under_way_at_a_time() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        let pods = set(&[object("a", "1", "Pending", false)]);
        ledger.publish(update("a", "Pending", false));
        ledger.publish(update("a", "Running", false));
        let jobs = ledger.start(&pods, now);
        assert_eq!(jobs.len(), 1);
        assert_eq!(jobs[0].update.status.phase.as_deref(), Some("Running"), "only the newest is written");
        assert_eq!(version_of(jobs[0].base.as_ref().unwrap()), 1);
        ledger.publish(update("a", "Succeeded", true));
        assert!(ledger.start(&pods, now).is_empty(), "one in flight");
        ledger.finish(&jobs[0], written(object("a", "2", "Running", false)), now);
        let jobs = ledger.start(&pods, now);
        assert_eq!(jobs[0].update.status.phase.as_deref(), Some("Succeeded"), "what came meanwhile follows");
        assert_eq!(
            version_of(jobs[0].base.as_ref().unwrap()),
            2,
            "compared with what was acknowledged, not with the older list"
        );
        ledger.finish(&jobs[0], written(object("a", "3", "Succeeded", false)), now);
        assert!(ledger.is_idle() && ledger.next_due().is_none());
    }

    #[test]
    fn failures_wait_and_a_refused_update_waits_for_another_one() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        let pods = set(&[object("a", "1", "Pending", false)]);
        ledger.publish(update("a", "Running", false));
        let job = ledger.start(&pods, now).remove(0);
        ledger.finish(&job, Outcome::Failed { refused: false }, now);
        assert!(ledger.start(&pods, now).is_empty());
        let due = ledger.next_due().unwrap();
        let job = ledger.start(&pods, due).remove(0);
        ledger.finish(&job, Outcome::Failed { refused: true }, now);
        assert!(ledger.start(&pods, now + RETRY_LONGEST / 2).is_empty());
        ledger.publish(update("a", "Failed", false));
        assert_eq!(ledger.start(&pods, now).len(), 1, "a new update is tried at once");
    }

    #[test]
    fn what_somebody_overwrote_is_written_again_and_late_deletions_are_carried_out() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        ledger.publish(update("a", "Succeeded", true));
        let job = ledger.start(&set(&[object("a", "1", "Running", false)]), now).remove(0);
        ledger.finish(&job, written(object("a", "5", "Succeeded", false)), now);
        let cases = [
            ("older than the last write", object("a", "4", "Running", false), false),
            ("our own write comes back", object("a", "5", "Succeeded", false), false),
            ("overwritten", object("a", "6", "Pending", false), true),
            ("deletion asked for", object("a", "7", "Succeeded", true), true),
        ];
        for (what, object, want) in cases {
            let pods = set(&[object]);
            ledger.compare(&pods);
            let jobs = ledger.start(&pods, now);
            assert_eq!(!jobs.is_empty(), want, "{what}");
            for job in jobs {
                ledger.finish(&job, written(job.base.clone().unwrap()), now);
            }
        }
        ledger.compare(&set(&[]));
        assert!(ledger.entries.is_empty(), "a pod that is gone is forgotten");
    }

    #[test]
    fn writes_under_way_are_bounded() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        for n in 0..WRITES_MAX + 5 {
            ledger.publish(update(&n.to_string(), "Running", false));
        }
        let jobs = ledger.start(&PodSet::default(), now);
        assert_eq!(jobs.len(), WRITES_MAX);
        for job in &jobs {
            ledger.finish(job, Outcome::Gone, now);
        }
        assert_eq!(ledger.start(&PodSet::default(), now).len(), 5);
    }
}
