//! The volumes port: one operation at a time per pod, each a task of its own, awaited with a deadline.

use std::collections::{BTreeMap, HashSet};
use std::future::Future;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use orlop_agent_core::containers;
use orlop_agent_core::ports::{MountedVolume, PortFuture, VolumeError, Volumes};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::config::VolumesConfig;
use crate::csi::sweep_stages;
use crate::layout::Layout;
use crate::set_up::{PodContext, set_up};
use crate::slots::{NamedLocks, Slot, Slots};
use crate::tear_down::tear_down;

/// Between two looks for staged volumes that no pod has, besides those when a driver registers.
const SWEEP_INTERVAL: Duration = Duration::from_secs(300);

/// What all operations share.
pub(crate) struct Shared {
    pub(crate) config: VolumesConfig,
    pub(crate) layout: Layout,
    pub(crate) locks: NamedLocks,
    slots: Slots,
    /// Volumes that were staged since the agent's start, by their key.
    staged: Mutex<HashSet<String>>,
}

impl Shared {
    /// Whether a volume has been staged since the agent's start.
    pub(crate) fn is_staged(&self, key: &str) -> bool {
        self.staged.lock().unwrap_or_else(PoisonError::into_inner).contains(key)
    }

    /// Notes whether it is.
    pub(crate) fn set_staged(&self, key: &str, staged: bool) {
        let mut all = self.staged.lock().unwrap_or_else(PoisonError::into_inner);
        if staged {
            all.insert(key.to_owned());
        } else {
            all.remove(key);
        }
    }
}

/// The volumes of all pods of a node.
pub struct PodVolumes {
    shared: Arc<Shared>,
}

impl PodVolumes {
    /// Volumes below the kubelet's root. A task looks for left-overs until cancelled.
    #[must_use]
    pub fn start(config: VolumesConfig, cancel: CancellationToken) -> Arc<PodVolumes> {
        let layout = Layout::new(&config.kubelet_root);
        let shared = Arc::new(Shared {
            config,
            layout,
            locks: NamedLocks::default(),
            slots: Slots::default(),
            staged: Mutex::default(),
        });
        tokio::spawn(keep_swept(shared.clone(), cancel));
        Arc::new(PodVolumes { shared })
    }

    /// Runs an operation on a pod's volumes once no other is under way. It goes on when the caller gives up.
    async fn run<T, F>(
        &self,
        uid: &str,
        slot: Arc<Slot>,
        late: impl Fn(String, String) -> VolumeError,
        operation: impl FnOnce() -> F,
    ) -> Result<T, VolumeError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, VolumeError>> + Send + 'static,
    {
        let until = Instant::now() + self.shared.config.pod_deadline;
        let waits = || {
            let (volumes, steps) = slot.under_way();
            late(volumes, format!("timed out waiting for the condition; still under way: {steps}"))
        };
        let Ok(held) = timeout_at(until, slot.gate.clone().lock_owned()).await else { return Err(waits()) };
        let work = operation();
        let task = tokio::spawn(async move {
            let _held = held;
            work.await
        });
        match timeout_at(until, task).await {
            Ok(Ok(result)) => result,
            Ok(Err(fault)) => {
                tracing::error!(pod = uid, %fault, "an operation on a pod's volumes ended by a fault");
                Err(late(String::new(), "the operation ended by a fault of the agent; see its log".to_owned()))
            }
            Err(_) => Err(waits()),
        }
    }
}

impl Volumes for PodVolumes {
    fn set_up<'a>(&'a self, pod: &'a Arc<Pod>) -> PortFuture<'a, Result<BTreeMap<String, MountedVolume>, VolumeError>> {
        Box::pin(async move {
            let uid = containers::uid(pod);
            let slot = self.shared.slots.get(uid);
            let context =
                PodContext { shared: self.shared.clone(), pod: pod.clone(), uid: uid.to_owned(), slot: slot.clone() };
            let late = |volumes, message| VolumeError::Waiting { volumes, message };
            self.run(uid, slot, late, move || set_up(context)).await
        })
    }

    fn tear_down<'a>(&'a self, pod_uid: &'a str) -> PortFuture<'a, Result<(), VolumeError>> {
        Box::pin(async move {
            let slot = self.shared.slots.get(pod_uid);
            // Whatever only waits ends at once; what a driver is at work on is broken off and undone.
            slot.ending.cancel();
            let late = |volume, message| VolumeError::TearDown { volume, message };
            let (shared, uid, own) = (self.shared.clone(), pod_uid.to_owned(), slot.clone());
            self.run(pod_uid, slot.clone(), late, move || async move { tear_down(&shared, &uid, &own).await }).await?;
            self.shared.slots.forget(pod_uid, &slot);
            Ok(())
        })
    }

    fn pods_on_disk(&self) -> Vec<String> {
        let entries = |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().flatten();
        let has_volumes = |pod: &Path| {
            let mut volumes = entries(&pod.join("volumes")).flat_map(|kind| entries(&kind.path()).collect::<Vec<_>>());
            volumes.next().is_some()
        };
        let pods = entries(&self.shared.layout.pods()).filter(|pod| has_volumes(&pod.path()));
        pods.filter_map(|pod| pod.file_name().into_string().ok()).collect()
    }
}

async fn keep_swept(shared: Arc<Shared>, cancel: CancellationToken) {
    let mut drivers = shared.config.drivers.clone();
    loop {
        sweep_stages(&shared).await;
        tokio::select! {
            () = cancel.cancelled() => return,
            changed = drivers.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(SWEEP_INTERVAL) => {}
        }
    }
}
