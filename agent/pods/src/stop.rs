//! Stopping one container: preStop, its turn after others, then the signal and at last the kill.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod};
use orlop_agent_core::containers::{self, ContainerKind, find_container};
use orlop_agent_core::facts::ObservedContainer;
use orlop_agent_core::labels;
use orlop_agent_core::plan::StopReason;
use orlop_agent_core::ports::EventType;
use tokio::time::Instant;

use crate::hooks::run_hook;
use crate::recorder::named_event;
use crate::shared::Shared;

/// Least time between signal and kill, unless the grace is 0 (kubelet `minimumGracePeriodInSeconds`).
const LEAST_GRACE_SECONDS: i64 = 2;

/// What is to be stopped.
pub(crate) struct StopRequest {
    pub pod: Arc<Pod>,
    pub container: ObservedContainer,
    pub reason: StopReason,
    pub grace_seconds: i64,
    /// Ids that must have ended before.
    pub after: Vec<String>,
    pub pod_ip: String,
    /// preStop has been run for it by an earlier stop.
    pub hook_done: bool,
}

fn killing_message(request: &StopRequest) -> String {
    let name = &request.container.name;
    match request.reason {
        StopReason::PodEnds | StopReason::RestartAll => format!("Stopping container {name}"),
        StopReason::Changed => format!("Container {name} definition changed, will be restarted"),
        StopReason::Liveness => format!("Container {name} failed liveness probe, will be restarted"),
        StopReason::Startup => format!("Container {name} failed startup probe, will be restarted"),
    }
}

/// Stops a container. It has ended, and the observed set knows, when this returns well.
pub(crate) async fn stop_container(shared: &Shared, request: &StopRequest) -> Result<(), String> {
    let (pod, container) = (&*request.pod, &request.container);
    if !request.hook_done {
        named_event(
            &*shared.ports.events,
            pod,
            &container.name,
            EventType::Normal,
            "Killing",
            &killing_message(request),
        );
    }
    let begun = Instant::now();
    let grace = Duration::from_secs(request.grace_seconds.max(0) as u64);
    if !grace.is_zero() && !request.hook_done {
        pre_stop(shared, request, grace).await;
    }
    if !grace.is_zero() && !request.after.is_empty() {
        let left = grace.saturating_sub(begun.elapsed());
        let _ = tokio::time::timeout(left, all_ended(shared, pod, &request.after)).await;
    }
    let left = if grace.is_zero() {
        0
    } else {
        (grace.saturating_sub(begun.elapsed()).as_millis().div_ceil(1000) as i64).max(LEAST_GRACE_SECONDS)
    };
    shared.ports.runtime.stop_container(&container.id, left).await.map_err(|failure| failure.message)?;
    let seen = shared
        .observed
        .get(containers::uid(pod))
        .is_some_and(|observed| !observed.containers.iter().any(|c| c.id == container.id && c.running()));
    if !seen {
        match shared.ports.runtime.container(&container.id).await {
            Ok(Some(part)) => shared.observed.merge(part),
            Ok(None) => shared.observed.gone(&container.id),
            Err(failure) => return Err(failure.message),
        }
    }
    Ok(())
}

/// Runs preStop within the grace. Its failure is an event, nothing more.
async fn pre_stop(shared: &Shared, request: &StopRequest, grace: Duration) {
    let pod = &*request.pod;
    let Some((definition, handler)) = handler(pod, &request.container) else { return };
    let hook = run_hook(shared, pod, &definition, &request.container.id, &handler, &request.pod_ip, Some(grace));
    let ended = all_ended(shared, pod, std::slice::from_ref(&request.container.id));
    let result = tokio::select! {
        biased;
        () = ended => Ok(()),
        result = tokio::time::timeout(grace, hook) => result.unwrap_or_else(|_| Err("the grace period ended before the hook did".to_owned())),
    };
    if let Err(message) = result {
        let text = format!("PreStopHook failed: {message}");
        named_event(
            &*shared.ports.events,
            pod,
            &request.container.name,
            EventType::Warning,
            "FailedPreStopHook",
            &text,
        );
    }
}

/// The handler by the spec, or by the container's annotation when the spec is not known any more.
fn handler(pod: &Pod, instance: &ObservedContainer) -> Option<(Container, LifecycleHandler)> {
    match find_container(pod, &instance.name) {
        Some(container) if container.kind == ContainerKind::Ephemeral => None,
        Some(container) => {
            let definition = container.container.into_owned();
            let handler = definition.lifecycle.as_ref()?.pre_stop.clone()?;
            Some((definition, handler))
        }
        None => {
            let handler = serde_json::from_str(instance.annotations.get(labels::PRE_STOP_HANDLER)?).ok()?;
            let ports =
                instance.annotations.get(labels::CONTAINER_PORTS).and_then(|text| serde_json::from_str(text).ok());
            Some((Container { name: instance.name.clone(), ports, ..Container::default() }, handler))
        }
    }
}

async fn all_ended(shared: &Shared, pod: &Pod, ids: &[String]) {
    let mut observed = shared.observed.subscribe(containers::uid(pod));
    let _ = observed
        .wait_for(|observed| {
            !observed.containers.iter().any(|container| ids.contains(&container.id) && container.running())
        })
        .await;
}
