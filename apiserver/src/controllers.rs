//! Controllers: what Kubernetes' controller manager, scheduler and CSI provisioner do, for one node.

mod first_objects;
mod garbage;
mod namespaces;
mod recorder;
mod scheduler;
mod volumes;

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use crate::api::Api;
use crate::error::ApiError;
use crate::registry::Resource;

pub use first_objects::{make_first_objects, tell_damage};
pub use namespaces::fill_namespace;

/// A pass that failed is tried again after so long.
const RETRY: Duration = Duration::from_secs(2);
/// A pass is made after so long even if nothing has changed.
const RESYNC: Duration = Duration::from_secs(300);

/// Starts all controllers; they end with the server.
pub fn start(api: &Arc<Api>) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    tasks.spawn(scheduler::run(api.clone()));
    tasks.spawn(volumes::run(api.clone()));
    tasks.spawn(namespaces::run(api.clone()));
    tasks.spawn(garbage::run(api.clone()));
    tasks.spawn(garbage::expire_events(api.clone()));
    tasks
}

/// Runs a pass whenever one of the resources has changed, until the server ends.
async fn on_change<F, Fut>(api: &Arc<Api>, resources: &[&'static Resource], name: &str, mut pass: F)
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<(), ApiError>>,
{
    let mut changes: Vec<_> = resources.iter().map(|resource| api.store.subscribe(resource)).collect();
    loop {
        for change in &mut changes {
            change.borrow_and_update();
        }
        let wait = match pass().await {
            Ok(()) => RESYNC,
            Err(error) => {
                tracing::warn!(controller = name, %error, "a pass failed; it is tried again");
                RETRY
            }
        };
        let changed = futures::future::select_all(changes.iter_mut().map(|change| Box::pin(change.changed())));
        tokio::select! {
            () = api.cancel.cancelled() => return,
            _ = changed => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}
