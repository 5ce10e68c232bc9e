//! The task that writes pod statuses: newest first known, one write per pod at a time, repeated until written.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use orlop_agent_core::ports::{PodSet, PortFuture, StatusSink, StatusUpdate};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::diff::status_patch;
use super::ledger::{Job, Ledger, Outcome};
use crate::client::{ApiClients, ApiError, REQUEST_DEADLINE, within};

/// How long a shutdown waits for statuses to be written.
const FLUSH_DEADLINE: Duration = Duration::from_secs(3);

/// The `StatusSink` port on the API server.
pub struct StatusWriter {
    ledger: Mutex<Ledger>,
    wake: Notify,
    /// Told when there is nothing to write.
    idle: Notify,
}

impl StatusWriter {
    /// Starts the writer. `pods` is what the API server has; a status that it already has is not written.
    pub fn start(
        clients: ApiClients,
        pods: watch::Receiver<Arc<PodSet>>,
        cancel: CancellationToken,
    ) -> (Arc<Self>, tokio::task::JoinHandle<()>) {
        let ledger = Mutex::new(Ledger::new(clients.pace.clone()));
        let writer = Arc::new(Self { ledger, wake: Notify::new(), idle: Notify::new() });
        let pace = clients.pace.clone();
        let task = tokio::spawn(pace.task("status writer", writer.clone().run(clients, pods, cancel)));
        (writer, task)
    }

    fn ledger(&self) -> std::sync::MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run(
        self: Arc<Self>,
        clients: ApiClients,
        mut pods: watch::Receiver<Arc<PodSet>>,
        cancel: CancellationToken,
    ) {
        let mut writes: JoinSet<(Job, Outcome)> = JoinSet::new();
        let mut flush_until: Option<Instant> = None;
        loop {
            let set = pods.borrow_and_update().clone();
            let (jobs, due, idle) = {
                let mut ledger = self.ledger();
                ledger.compare(&set);
                let jobs = ledger.start(&set, Instant::now().into_std());
                (jobs, ledger.next_due().map(Instant::from_std), ledger.is_idle())
            };
            if idle {
                self.idle.notify_waiters();
            }
            if flush_until.is_some_and(|until| idle || until <= Instant::now()) {
                return;
            }
            for job in jobs {
                let clients = clients.clone();
                let pace = clients.pace.clone();
                writes.spawn(pace.task("status write", async move {
                    let outcome = write(&clients, &job).await;
                    (job, outcome)
                }));
            }
            let due = [due, flush_until].into_iter().flatten().min();
            tokio::select! {
                biased;
                Some(done) = writes.join_next() => {
                    if let Ok((job, outcome)) = done {
                        self.ledger().finish(&job, outcome, Instant::now().into_std());
                    }
                }
                () = self.wake.notified() => {}
                () = sleep_until(due), if due.is_some() => {}
                changed = pods.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = cancel.cancelled(), if flush_until.is_none() => {
                    flush_until = Some(Instant::now() + FLUSH_DEADLINE);
                }
            }
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

impl StatusSink for StatusWriter {
    fn publish(&self, update: StatusUpdate) {
        self.ledger().publish(update);
        self.wake.notify_one();
    }

    fn settled(&self) -> PortFuture<'_, ()> {
        Box::pin(async move {
            loop {
                let mut told = std::pin::pin!(self.idle.notified());
                // What is told from here on is heard.
                told.as_mut().enable();
                if self.ledger().is_idle() {
                    return;
                }
                told.await;
            }
        })
    }
}

/// One write: the status where it differs, then the deletion where the pod is finished and to be deleted.
async fn write(clients: &ApiClients, job: &Job) -> Outcome {
    let update = &job.update;
    let pod = format!("{}/{}", update.namespace, update.name);
    match try_write(clients, job, &pod).await {
        Ok(outcome) => outcome,
        Err(error) if error.is_not_found() => Outcome::Gone,
        Err(error) => {
            let refused = error.is_invalid();
            if refused {
                warn!(%pod, uid = %update.uid, %error, "the API server refuses the status of a pod");
            } else {
                debug!(%pod, uid = %update.uid, %error, "the status of a pod could not be written; it will be tried again");
            }
            Outcome::Failed { refused }
        }
    }
}

async fn try_write(clients: &ApiClients, job: &Job, pod: &str) -> Result<Outcome, ApiError> {
    let update = &job.update;
    let api: Api<Pod> = Api::namespaced(clients.requests.clone(), &update.namespace);
    let read = || async {
        let what = format!("get pod {pod}");
        within(&what, REQUEST_DEADLINE, api.get(&update.name)).await.map(Arc::new)
    };
    let mut object = match &job.base {
        Some(base) => base.clone(),
        None => read().await?,
    };
    if object.metadata.uid.as_deref() != Some(&update.uid) {
        return Ok(Outcome::Gone);
    }
    let empty = PodStatus::default();
    if let Some(patch) = status_patch(&update.uid, object.status.as_ref().unwrap_or(&empty), &update.status) {
        let what = format!("patch status of pod {pod}");
        let params = PatchParams::default();
        let patch = Patch::Strategic(&patch);
        let sent = api.patch_status(&update.name, &params, &patch);
        object = match within(&what, REQUEST_DEADLINE, sent).await {
            Ok(mut object) => {
                object.metadata.managed_fields = None;
                Arc::new(object)
            }
            // Another pod has the name, or a write of somebody else came between; the object tells.
            Err(error) if error.is_conflict() || error.is_invalid() => {
                let current = read().await?;
                return if current.metadata.uid.as_deref() == Some(&update.uid) {
                    Err(error)
                } else {
                    Ok(Outcome::Gone)
                };
            }
            Err(error) => return Err(error),
        };
    }
    if !update.finished || object.metadata.deletion_timestamp.is_none() {
        return Ok(Outcome::Written { object, deleted: false });
    }
    delete_now(&api, &update.name, &update.uid, pod).await?;
    Ok(Outcome::Written { object, deleted: true })
}

/// Deletes a pod with grace 0 if it still has the uid; its absence, or another pod of the name, is success.
pub(crate) async fn delete_now(api: &Api<Pod>, name: &str, uid: &str, pod: &str) -> Result<(), ApiError> {
    let params = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions { uid: Some(uid.to_owned()), resource_version: None }),
        ..DeleteParams::default()
    };
    let what = format!("delete pod {pod}");
    match within(&what, REQUEST_DEADLINE, api.delete(name, &params)).await {
        Ok(_) => Ok(()),
        Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
        Err(error) => Err(error),
    }
}
