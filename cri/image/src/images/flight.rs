//! Pulls of the same image share one piece of work; when nobody waits for it any more, it stops.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
use tokio::sync::watch;

use super::{Images, ShortNames, blocking};
use crate::error::ImageError;
use crate::progress::{ProgressHub, PullProgress};
use crate::reference::Reference;
use crate::registry::Credentials;

/// How long the layers of a failed pull are kept for its next try. The kubelet tries again after 5 min at most.
const FAILED_LAYERS_KEPT: Duration = Duration::from_secs(30 * 60);

type Outcome = Result<String, Arc<ImageError>>;
type Work = BoxFuture<'static, Outcome>;

/// What makes two pulls the same: with other credentials the answer may be another one.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    reference: Reference,
    credentials: Option<Credentials>,
}

/// The pulls that run.
#[derive(Default)]
pub(super) struct Flights(Mutex<HashMap<Key, (WeakShared<Work>, ProgressHub)>>);

/// A pull that runs, perhaps for several callers. Dropping the last handle cancels it.
pub struct Pull {
    work: Shared<Work>,
    progress: watch::Receiver<PullProgress>,
}

impl Pull {
    /// How far it is; changes wake the receiver.
    pub fn progress(&self) -> watch::Receiver<PullProgress> {
        self.progress.clone()
    }

    /// Waits for the end: the image id.
    pub async fn finish(self) -> Outcome {
        self.work.await
    }
}

impl Images {
    /// Pulls an image and returns its id, `sha256:<hex>`.
    pub async fn pull(self: &Arc<Self>, reference: &str, credentials: Option<Credentials>) -> Outcome {
        self.start_pull(reference, credentials).map_err(Arc::new)?.finish().await
    }

    /// Starts a pull, or joins one of the same image with the same credentials. It goes on while a handle is polled.
    pub fn start_pull(self: &Arc<Self>, reference: &str, credentials: Option<Credentials>) -> Result<Pull, ImageError> {
        let reference = match self.policy().short_names {
            ShortNames::Refuse => Reference::parse_with_registry(reference)?,
            ShortNames::DockerHub => reference.parse()?,
        };
        let credentials = credentials.filter(|given| !given.is_empty());
        let mut flights = self.flights.0.lock().unwrap_or_else(PoisonError::into_inner);
        flights.retain(|_, (work, _)| work.upgrade().is_some_and(|work| work.peek().is_none()));
        let key = Key { reference: reference.clone(), credentials: credentials.clone() };
        if let Some((work, hub)) = flights.get(&key)
            && let Some(work) = work.upgrade()
        {
            return Ok(Pull { work, progress: hub.watch() });
        }
        let hub = ProgressHub::new();
        let (images, hub_of_work) = (Arc::clone(self), hub.clone());
        let work = async move {
            let outcome = images.pull_now(&reference, credentials, &hub_of_work).await;
            if outcome.is_err() {
                images.forget_failed_pulls().await;
            }
            outcome.map_err(Arc::new)
        };
        let work = work.boxed().shared();
        let progress = hub.watch();
        if let Some(weak) = work.downgrade() {
            flights.insert(key, (weak, hub));
        }
        Ok(Pull { work, progress })
    }

    /// Removes what pulls that failed a while ago have left, so that those that always fail don't fill the disk.
    async fn forget_failed_pulls(&self) {
        let store = Arc::clone(&self.store);
        if let Err(error) = blocking(move || store.collect_older_than(FAILED_LAYERS_KEPT)).await {
            tracing::warn!(%error, "layers of failed pulls can't be removed; it is tried again at the next start");
        }
    }
}
