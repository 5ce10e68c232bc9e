//! Renewing volumes whose contents end with time: tokens.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use orlop_agent_core::containers;
use orlop_agent_core::ports::Volumes;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::PodVolumes;

/// How long a failed renewal waits for the next try.
const RETRY: Duration = Duration::from_secs(60);

/// Pods whose volumes have to be renewed, and when.
#[derive(Default)]
pub(crate) struct Refresh {
    due: Mutex<HashMap<String, (Arc<Pod>, Instant)>>,
    next: watch::Sender<Option<Instant>>,
}

impl Refresh {
    /// Nothing to renew yet; the receiver tells when the next renewal is due.
    pub(crate) fn new() -> (Refresh, watch::Receiver<Option<Instant>>) {
        let (next, receiver) = watch::channel(None);
        (Refresh { due: Mutex::default(), next }, receiver)
    }

    /// A volume of the pod has to be renewed after a while, or never.
    pub(crate) fn note(&self, pod: &Arc<Pod>, after: Option<Duration>) {
        let Some(after) = after else { return };
        self.change(|due| {
            due.insert(containers::uid(pod).to_owned(), (pod.clone(), Instant::now() + after));
        });
    }

    /// The pod's volumes are going.
    pub(crate) fn forget(&self, uid: &str) {
        self.change(|due| {
            due.remove(uid);
        });
    }

    fn change(&self, work: impl FnOnce(&mut HashMap<String, (Arc<Pod>, Instant)>)) {
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        work(&mut due);
        let first = due.values().map(|(_, at)| *at).min();
        self.next.send_if_modified(|next| std::mem::replace(next, first) != first);
    }

    fn take_due(&self) -> Vec<Arc<Pod>> {
        let now = Instant::now();
        let mut taken = Vec::new();
        self.change(|due| {
            for (pod, at) in due.values_mut().filter(|(_, at)| *at <= now) {
                taken.push(pod.clone());
                // A success sets its own time.
                *at = now + RETRY;
            }
        });
        taken
    }
}

/// Renews what is due until cancelled; asleep until then.
pub(crate) async fn run(
    volumes: Weak<PodVolumes>,
    mut next: watch::Receiver<Option<Instant>>,
    cancel: CancellationToken,
) {
    loop {
        let at = *next.borrow_and_update();
        let due = async {
            match at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = cancel.cancelled() => return,
            changed = next.changed() => if changed.is_err() { return },
            () = due => {
                let Some(volumes) = volumes.upgrade() else { return };
                for pod in volumes.refresh.take_due() {
                    if let Err(error) = volumes.set_up(&pod).await {
                        tracing::warn!(pod = containers::name(&pod), %error, "renew a volume; tried again in a minute");
                    }
                }
            }
        }
    }
}
