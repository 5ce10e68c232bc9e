//! The stream of container events, with reconnection.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use orlop_agent_core::metrics::Metrics;
use orlop_agent_core::ports::PortFuture;
use orlop_agent_core::runtime::{RuntimeEvent, RuntimeEvents};
use orlop_proto::cri;
use orlop_proto::cri::runtime_service_client::RuntimeServiceClient;
use tonic::Code;
use tonic::transport::Channel;

use crate::call::Operation;
use crate::from_cri;

const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(3);
/// A runtime without the stream may be replaced by one that has it.
const UNSUPPORTED_DELAY: Duration = Duration::from_secs(60);

/// The stream.
pub(crate) struct EventStream {
    client: RuntimeServiceClient<Channel>,
    metrics: Arc<Metrics>,
    /// The stream, and the call that it is part of: it ends, badly, with the stream.
    stream: Option<(tonic::Streaming<cri::ContainerEventResponse>, Operation)>,
    ready: VecDeque<RuntimeEvent>,
    delay: Duration,
}

impl EventStream {
    pub(crate) fn new(client: RuntimeServiceClient<Channel>, metrics: Arc<Metrics>) -> EventStream {
        EventStream { client, metrics, stream: None, ready: VecDeque::new(), delay: Duration::ZERO }
    }

    async fn next_event(&mut self) -> RuntimeEvent {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return event;
            }
            let Some((stream, _)) = &mut self.stream else {
                if let Some(event) = self.connect().await {
                    return event;
                }
                continue;
            };
            match stream.message().await {
                Ok(Some(response)) => translate(response, &mut self.ready),
                Ok(None) | Err(_) => self.stream = None,
            }
        }
    }

    /// Opens the stream. News from before it was open are lost, so the listener is told to ask anew.
    async fn connect(&mut self) -> Option<RuntimeEvent> {
        tokio::time::sleep(self.delay).await;
        let operation = Operation::begin(&self.metrics, "get_container_events");
        match self.client.get_container_events(cri::GetEventsRequest {}).await {
            Ok(response) => {
                self.stream = Some((response.into_inner(), operation));
                self.delay = FIRST_DELAY;
                Some(RuntimeEvent::Lost)
            }
            Err(status) if status.code() == Code::Unimplemented => {
                self.delay = UNSUPPORTED_DELAY;
                Some(RuntimeEvent::Unsupported)
            }
            Err(status) => {
                tracing::debug!(error = %status, "container events are not to be had");
                self.delay = (self.delay * 2).clamp(FIRST_DELAY, LONGEST_DELAY);
                None
            }
        }
    }
}

fn translate(response: cri::ContainerEventResponse, events: &mut VecDeque<RuntimeEvent>) {
    if let Some(status) = &response.pod_sandbox_status
        && let Some(mut pod) = from_cri::sandbox(status)
    {
        let deleted = response.container_event_type == cri::ContainerEventType::ContainerDeletedEvent as i32;
        pod.containers = response
            .containers_statuses
            .iter()
            .filter(|container| !(deleted && container.id == response.container_id))
            .map(|container| from_cri::container(&status.id, container))
            .collect();
        if deleted && status.id == response.container_id {
            pod.sandboxes.clear();
        }
        pod.sort();
        events.push_back(RuntimeEvent::Changed(pod));
    }
    if response.container_event_type == cri::ContainerEventType::ContainerDeletedEvent as i32 {
        events.push_back(RuntimeEvent::Gone(response.container_id));
    } else if response.pod_sandbox_status.is_none() {
        events.push_back(RuntimeEvent::Lost);
    }
}

impl RuntimeEvents for EventStream {
    fn next(&mut self) -> PortFuture<'_, RuntimeEvent> {
        Box::pin(self.next_event())
    }
}
