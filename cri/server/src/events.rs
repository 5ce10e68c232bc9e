//! Events of containers and sandboxes, for those who follow them.

use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use orlop_proto::cri;
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::wrappers::errors::BroadcastStreamRecvError;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::server::now;

/// Events that a slow follower may lag behind.
const LAG_MAX: usize = 1024;

/// The stream of one follower.
pub(crate) type EventStream = Pin<Box<dyn Stream<Item = Result<cri::ContainerEventResponse, Status>> + Send>>;

/// Hands events to followers and never waits for one.
pub(crate) struct Events(broadcast::Sender<Arc<cri::ContainerEventResponse>>);

impl Default for Events {
    fn default() -> Events {
        Events(broadcast::Sender::new(LAG_MAX))
    }
}

impl Events {
    /// Publishes an event; `state` gives the pod's state and is only asked when somebody follows.
    pub(crate) fn publish(
        &self,
        kind: cri::ContainerEventType,
        id: &str,
        state: impl FnOnce() -> (cri::PodSandboxStatus, Vec<cri::ContainerStatus>),
    ) {
        if self.0.receiver_count() == 0 {
            return;
        }
        let (sandbox, containers) = state();
        let event = cri::ContainerEventResponse {
            container_id: id.into(),
            container_event_type: kind.into(),
            created_at: now(),
            pod_sandbox_status: Some(sandbox),
            containers_statuses: containers,
        };
        let _ = self.0.send(Arc::new(event));
    }

    /// All events from now on. A follower who lags too far behind is told so by the end of the stream: it has to list
    /// everything and follow again.
    pub(crate) fn follow(&self, cancel: CancellationToken) -> EventStream {
        let stream = BroadcastStream::new(self.0.subscribe()).map(|event| match event {
            Ok(event) => Ok((*event).clone()),
            Err(BroadcastStreamRecvError::Lagged(count)) => Err(Status::data_loss(format!(
                "{count} events were lost because they were not read in time; list everything and follow again"
            ))),
        });
        Box::pin(stream.take_until(cancel.cancelled_owned()))
    }
}
