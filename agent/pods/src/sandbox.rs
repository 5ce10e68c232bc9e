//! Making a pod's sandbox: directories, cgroup and RuntimeClass side by side, then the runtime.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use orlop_agent_core::containers;
use orlop_agent_core::dns::pod_dns;
use orlop_agent_core::metrics::names;
use orlop_agent_core::naming::pod_names;
use orlop_agent_core::ports::EventType;
use orlop_agent_core::resources::{pod_cgroup_limits, qos_class};
use orlop_agent_core::runtime::SandboxSpec;
use orlop_agent_core::sandbox_spec::{SandboxContext, sandbox_spec};
use orlop_agent_core::security::wants_user_namespace;
use orlop_agent_core::user_namespaces::IdMapping;
use tokio::time::Instant;

use crate::recorder::pod_event;
use crate::shared::Shared;

/// Why a pod has no sandbox.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SandboxError {
    /// The runtime has no network for pods; one on the node's network would start.
    #[error("network is not ready: {0}")]
    Network(String),
    /// It can't be made.
    #[error("Failed to create pod sandbox: {0}")]
    Failed(String),
}

impl From<String> for SandboxError {
    fn from(message: String) -> Self {
        SandboxError::Failed(message)
    }
}

impl SandboxError {
    /// Reason of the event.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            SandboxError::Network(_) => "NetworkNotReady",
            SandboxError::Failed(_) => "FailedCreatePodSandBox",
        }
    }
}

/// Prepares all that a sandbox needs and describes it. Idempotent: also used for a sandbox that is there already.
pub(crate) async fn prepare_sandbox(shared: &Shared, pod: &Pod, attempt: u32) -> Result<SandboxSpec, String> {
    let names =
        pod_names(pod, &shared.config.node_name, &shared.config.cluster_domain).map_err(|error| error.to_string())?;
    let directories = shared.directories.clone();
    let owned = pod.clone();
    let folders = shared.config.pace.blocking(move || directories.make_pod(&owned));
    let limits = pod_cgroup_limits(pod, shared.config.cpu_period_us, shared.config.cpu_quota);
    let class = qos_class(pod).as_str();
    let cgroup = shared.ports.cgroups.ensure(containers::uid(pod), class, &limits);
    let (folders, cgroup, handler, node_dns) =
        tokio::join!(folders, cgroup, runtime_handler(shared, pod), shared.node_dns());
    folders
        .map_err(|error| error.to_string())?
        .map_err(|error| format!("error making pod data directories: {error}"))?;
    let cgroup_parent = cgroup.map_err(|error| format!("failed to create the pod's cgroup: {error}"))?;
    let (dns, warnings) = pod_dns(pod, &node_dns);
    for (reason, message) in warnings {
        pod_event(&*shared.ports.events, pod, EventType::Warning, reason, &message);
    }
    let handler = handler?;
    let user_namespace = user_namespace(shared, pod, &handler).await?;
    let logs_root = shared.directories.logs_root().to_string_lossy().into_owned();
    Ok(sandbox_spec(
        pod,
        SandboxContext {
            attempt,
            names: &names,
            dns,
            logs_root: &logs_root,
            cgroup_parent,
            runtime_handler: handler,
            user_namespace,
            security: &shared.security,
            resources: &shared.resource_policy(),
        },
    ))
}

async fn runtime_handler(shared: &Shared, pod: &Pod) -> Result<String, String> {
    let Some(name) =
        containers::spec(pod).and_then(|spec| spec.runtime_class_name.as_deref()).filter(|name| !name.is_empty())
    else {
        return Ok(String::new());
    };
    match shared.ports.objects.runtime_class(name).await {
        Ok(class) => Ok(class.handler.clone()),
        Err(error) => Err(format!("failed to get sandbox runtime: RuntimeClass {name:?}: {error}")),
    }
}

/// Ids of the pod's user namespace, if it asks for one. The pod's folder is there by now.
async fn user_namespace(shared: &Shared, pod: &Pod, handler: &str) -> Result<Option<IdMapping>, String> {
    if !wants_user_namespace(pod) {
        return Ok(None);
    }
    if !shared.ports.node.handler(handler).user_namespaces {
        let who = if handler.is_empty() { "runtime".to_owned() } else { format!("RuntimeClass handler {handler:?}") };
        return Err(format!("can't set `spec.hostUsers: false`, {who} does not support user namespaces"));
    }
    let (ranges, uid) = (shared.user_namespaces.clone(), containers::uid(pod).to_owned());
    match shared.config.pace.blocking(move || ranges.get_or_allocate(&uid)).await {
        Ok(mapping) => mapping.map(Some).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

/// Makes a sandbox and waits until the observed set shows it.
pub(crate) async fn create_sandbox(shared: &Shared, pod: &Pod, attempt: u32) -> Result<Arc<SandboxSpec>, SandboxError> {
    let result = create(shared, pod, attempt).await;
    let metrics = &*shared.ports.metrics;
    // A pod that waits for the network has not been begun.
    if matches!(result, Err(SandboxError::Network(_))) {
        return result;
    }
    metrics.count(&names::STARTED_PODS, &[]);
    if wants_user_namespace(pod) {
        metrics.count(&names::STARTED_USER_NAMESPACED_PODS, &[]);
    }
    if result.is_err() {
        metrics.count(&names::STARTED_PODS_ERRORS, &[]);
        if wants_user_namespace(pod) {
            metrics.count(&names::STARTED_USER_NAMESPACED_PODS_ERRORS, &[]);
        }
    }
    result
}

async fn create(shared: &Shared, pod: &Pod, attempt: u32) -> Result<Arc<SandboxSpec>, SandboxError> {
    if let Some(problem) = shared.ports.node.network_problem().filter(|_| !containers::host_network(pod)) {
        return Err(SandboxError::Network(problem));
    }
    let spec = prepare_sandbox(shared, pod, attempt).await?;
    let begun = shared.now();
    let id = run(shared, &spec).await?;
    let uid = containers::uid(pod);
    let seen = shared.observed.get(uid).is_some_and(|observed| {
        observed
            .sandboxes
            .iter()
            .any(|sandbox| sandbox.id == id && sandbox.ready && (sandbox.host_network || !sandbox.ips.is_empty()))
    });
    if !seen {
        let observed = shared.ports.runtime.pod(uid).await.map_err(|error| error.message)?;
        shared.observed.refreshed(begun, observed);
    }
    Ok(Arc::new(spec))
}

/// Lets the runtime make the sandbox.
async fn run(shared: &Shared, spec: &SandboxSpec) -> Result<String, String> {
    let (metrics, begun) = (&*shared.ports.metrics, Instant::now());
    let result = shared.ports.runtime.run_sandbox(spec).await;
    let handler = [spec.runtime_handler.as_str()];
    metrics.observe(&names::SANDBOX_SECONDS, &handler, begun.elapsed().as_secs_f64());
    if result.is_err() {
        metrics.count(&names::SANDBOX_ERRORS, &handler);
    }
    result.map_err(|error| error.message)
}
