//! One slot per pod, so that what hangs is waited for by its own pod only, and one lock per volume of a driver.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use orlop_agent_core::ports::MountedVolume;
use tokio::sync::Mutex as AsyncMutex;
use tokio_util::sync::CancellationToken;

use crate::csi::VolumeState;

/// What is known of a volume of a driver in a pod, from this run of the agent.
#[derive(Clone, Debug)]
pub(crate) struct Mounted {
    /// What the pod was told.
    pub(crate) volume: MountedVolume,
    /// Name of its folder.
    pub(crate) spec_name: String,
    /// Something is mounted at its path; some drivers only make folders.
    pub(crate) is_mount: bool,
    /// The driver wants to be told of the pod again and again (`requiresRepublish`).
    pub(crate) republish: bool,
}

/// The volumes of one pod.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    /// Held by the operation that is under way.
    pub(crate) gate: Arc<AsyncMutex<()>>,
    /// Cancelled when the pod's volumes are to be taken down.
    pub(crate) ending: CancellationToken,
    steps: Mutex<BTreeMap<String, &'static str>>,
    states: Mutex<HashMap<String, VolumeState>>,
    mounted: Mutex<HashMap<String, Mounted>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Slot {
    /// Notes what is being done to a volume, for those who wait; forgotten with the guard.
    pub(crate) fn step(&self, volume: &str, step: &'static str) -> StepGuard<'_> {
        lock(&self.steps).insert(volume.to_owned(), step);
        StepGuard { slot: self, volume: volume.to_owned() }
    }

    /// What is under way: names of volumes, and in words.
    pub(crate) fn under_way(&self) -> (String, String) {
        let steps = lock(&self.steps);
        let names: Vec<&str> = steps.keys().map(String::as_str).collect();
        let words: Vec<String> = steps.iter().map(|(volume, step)| format!("{volume}: {step}")).collect();
        (names.join(" "), words.join(", "))
    }

    /// State of a volume of a driver.
    pub(crate) fn state(&self, spec_name: &str) -> VolumeState {
        lock(&self.states).get(spec_name).copied().unwrap_or_default()
    }

    /// Sets it.
    pub(crate) fn set_state(&self, spec_name: &str, state: VolumeState) {
        lock(&self.states).insert(spec_name.to_owned(), state);
    }

    /// A volume of the pod that has been mounted since the agent's start.
    pub(crate) fn mounted(&self, volume: &str) -> Option<Mounted> {
        lock(&self.mounted).get(volume).cloned()
    }

    /// A volume that was mounted is not there any more; who knows what else has happened to it.
    pub(crate) fn lose(&self, volume: &str) {
        if let Some(known) = lock(&self.mounted).remove(volume) {
            self.set_state(&known.spec_name, VolumeState::Uncertain);
        }
    }

    /// Notes one.
    pub(crate) fn set_mounted(&self, volume: &str, mounted: Mounted) {
        lock(&self.mounted).insert(volume.to_owned(), mounted);
    }
}

/// A step that is under way.
pub(crate) struct StepGuard<'a> {
    slot: &'a Slot,
    volume: String,
}

impl Drop for StepGuard<'_> {
    fn drop(&mut self) {
        lock(&self.slot.steps).remove(&self.volume);
    }
}

/// The slots of all pods that have volumes.
#[derive(Debug, Default)]
pub(crate) struct Slots(Mutex<HashMap<String, Arc<Slot>>>);

impl Slots {
    /// The slot of a pod.
    pub(crate) fn get(&self, uid: &str) -> Arc<Slot> {
        lock(&self.0).entry(uid.to_owned()).or_default().clone()
    }

    /// Forgets a pod whose volumes are gone, unless a new slot has been made for it.
    pub(crate) fn forget(&self, uid: &str, slot: &Arc<Slot>) {
        let mut slots = lock(&self.0);
        if slots.get(uid).is_some_and(|known| Arc::ptr_eq(known, slot)) {
            slots.remove(uid);
        }
    }
}

/// Locks by name, which live as long as somebody holds or wants them.
#[derive(Debug, Default)]
pub(crate) struct NamedLocks(Mutex<HashMap<String, Weak<AsyncMutex<()>>>>);

impl NamedLocks {
    /// The lock of that name.
    pub(crate) fn get(&self, name: &str) -> Arc<AsyncMutex<()>> {
        let mut locks = lock(&self.0);
        if let Some(known) = locks.get(name).and_then(Weak::upgrade) {
            return known;
        }
        locks.retain(|_, known| known.strong_count() > 0);
        let fresh = Arc::new(AsyncMutex::new(()));
        locks.insert(name.to_owned(), Arc::downgrade(&fresh));
        fresh
    }
}
