//! The task that writes events, and the port that hands them to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Api, Patch, PatchParams, PostParams};
use orlop_agent_core::allowance::{Allowance, Rate};
use orlop_agent_core::ports::{EventType, Events, ObjectRef};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::correlator::{Correlator, Decision, Observation};
use crate::client::{ApiClients, ApiError, within};
use crate::retry::RetryDelay;

/// Events that wait to be written; more are dropped.
const QUEUE_MAX: usize = 1000;
/// Tries of one event before it is given up.
const TRIES: u32 = 5;
const WRITE_DEADLINE: Duration = Duration::from_secs(10);
/// How long a shutdown goes on writing what waits.
const FLUSH_DEADLINE: Duration = Duration::from_secs(2);
/// `source.component`, as the kubelet's events have it.
const COMPONENT: &str = "kubelet";
/// Longest name of an object (DNS subdomain).
const NAME_MAX: usize = 253;

/// The `Events` port on the API server.
pub struct EventRecorder {
    queue: mpsc::Sender<Observation>,
    dropped: AtomicU64,
}

impl EventRecorder {
    /// Starts the writer of events of this node, which writes no more than the rate.
    pub fn start(clients: ApiClients, node_name: &str, rate: Rate, cancel: CancellationToken) -> Arc<Self> {
        let (queue, waiting) = mpsc::channel(QUEUE_MAX);
        let (correlator, allowance) = (Correlator::default(), Allowance::new(rate));
        let writer = EventWriter { clients, node_name: node_name.to_owned(), correlator, allowance };
        tokio::spawn(writer.run(waiting, cancel));
        Arc::new(Self { queue, dropped: AtomicU64::new(0) })
    }
}

impl Events for EventRecorder {
    fn record(&self, object: ObjectRef, event_type: EventType, reason: &str, message: &str) {
        tracing::info!(
            target: "orlop::event",
            kind = %object.kind, namespace = %object.namespace, name = %object.name, reason, "{message}"
        );
        let event = Observation { object, event_type, reason: reason.to_owned(), message: message.to_owned() };
        if self.queue.try_send(event).is_err() {
            let dropped = self.dropped.fetch_add(1, Ordering::Relaxed) + 1;
            if dropped.is_power_of_two() {
                warn!(dropped, "events were dropped, because they can't be written as fast as they come");
            }
        }
    }
}

struct EventWriter {
    clients: ApiClients,
    node_name: String,
    correlator: Correlator,
    allowance: Allowance,
}

impl EventWriter {
    async fn run(mut self, mut waiting: mpsc::Receiver<Observation>, cancel: CancellationToken) {
        loop {
            let event = tokio::select! {
                biased;
                event = waiting.recv() => event,
                () = cancel.cancelled() => None,
            };
            let Some(event) = event else { break };
            let wait = self.allowance.take_in_advance(Timestamp::now());
            let work = async {
                if !wait.is_zero() {
                    tokio::time::sleep(wait).await;
                }
                self.write(&event).await;
            };
            tokio::select! {
                () = work => {}
                () = cancelled_for(&cancel, FLUSH_DEADLINE) => break,
            }
        }
    }

    async fn write(&mut self, event: &Observation) {
        let Some(decision) = self.correlator.observe(event, Instant::now()) else { return };
        let now = Timestamp::now();
        let mut delay = RetryDelay::new(Duration::from_millis(200), Duration::from_secs(10));
        let mut written = decision.written.clone();
        for _ in 0..TRIES {
            let result = match &written {
                Some(name) => self.count_up(event, &decision, name, now).await.map(|()| name.clone()),
                None => self.create(event, &decision, now).await,
            };
            match result {
                Ok(name) => return self.correlator.written(&decision.key, Some(name)),
                // The event has ended its life of an hour on the server: write it anew, with its count.
                Err(error) if error.is_not_found() && written.is_some() => written = None,
                // Refused for good: the namespace is being deleted, or the event itself is wrong.
                Err(error) if matches!(error.code(), Some(400..=499)) && error.code() != Some(429) => {
                    debug!(%error, reason = %event.reason, "an event was refused");
                    return self.correlator.written(&decision.key, None);
                }
                Err(error) => {
                    debug!(%error, reason = %event.reason, "an event could not be written yet");
                    tokio::time::sleep(delay.next_delay()).await;
                }
            }
        }
        warn!(reason = %event.reason, object = %event.object.name, "an event could not be written and is given up");
    }

    async fn count_up(
        &self,
        event: &Observation,
        decision: &Decision,
        name: &str,
        now: Timestamp,
    ) -> Result<(), ApiError> {
        let api: Api<Event> = Api::namespaced(self.clients.requests.clone(), event_namespace(&event.object));
        let patch = json!({"count": decision.count, "lastTimestamp": Time(now), "message": decision.message});
        let params = PatchParams::default();
        within("count an event", WRITE_DEADLINE, api.patch(name, &params, &Patch::Strategic(&patch))).await.map(drop)
    }

    async fn create(&self, event: &Observation, decision: &Decision, now: Timestamp) -> Result<String, ApiError> {
        let namespace = event_namespace(&event.object);
        let name = event_name(&event.object.name, now);
        let object = &event.object;
        let present = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        let body = Event {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(namespace.to_owned()),
                ..ObjectMeta::default()
            },
            involved_object: ObjectReference {
                kind: present(&object.kind),
                namespace: present(&object.namespace),
                name: present(&object.name),
                uid: present(&object.uid),
                api_version: Some("v1".to_owned()),
                field_path: object.field_path.clone(),
                resource_version: None,
            },
            type_: Some(match event.event_type {
                EventType::Normal => "Normal".to_owned(),
                EventType::Warning => "Warning".to_owned(),
            }),
            reason: Some(event.reason.clone()),
            message: Some(decision.message.clone()),
            source: Some(EventSource { component: Some(COMPONENT.to_owned()), host: Some(self.node_name.clone()) }),
            reporting_component: Some(COMPONENT.to_owned()),
            reporting_instance: Some(self.node_name.clone()),
            first_timestamp: Some(Time(now)),
            last_timestamp: Some(Time(now)),
            count: Some(decision.count),
            ..Event::default()
        };
        let api: Api<Event> = Api::namespaced(self.clients.requests.clone(), namespace);
        let params = PostParams::default();
        within("create an event", WRITE_DEADLINE, api.create(&params, &body)).await.map(|_| name)
    }
}

/// Events about objects without a namespace live in `default`.
fn event_namespace(object: &ObjectRef) -> &str {
    if object.namespace.is_empty() { "default" } else { &object.namespace }
}

/// `<object>.<nanoseconds in hex>`, short enough to be a name.
fn event_name(object: &str, now: Timestamp) -> String {
    let suffix = format!(".{:x}", now.as_nanosecond());
    let kept = object.floor_char_boundary(object.len().min(NAME_MAX - suffix.len()));
    format!("{}{suffix}", object[..kept].trim_end_matches(['.', '-']))
}

/// Ends `grace` after the cancellation.
async fn cancelled_for(cancel: &CancellationToken, grace: Duration) {
    cancel.cancelled().await;
    tokio::time::sleep(grace).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_events_are_names_of_objects() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        assert_eq!(event_name("pod-1", now), format!("pod-1.{:x}", now.as_nanosecond()));
        let long = event_name(&"a".repeat(NAME_MAX), now);
        assert_eq!(long.len(), NAME_MAX);
    }
}
