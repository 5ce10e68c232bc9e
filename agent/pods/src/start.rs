//! Making and starting one container: environment, mounts and files, create, start, postStart.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use futures::future::try_join;
use k8s_openapi::api::core::v1::Pod;
use orlop_agent_core::container_spec::{
    ContainerContext, MountPlan, TERMINATION_MESSAGE_PATH, container_spec, plan_mounts,
};
use orlop_agent_core::containers::{self, ContainerKind, SpecContainer, find_container};
use orlop_agent_core::facts::{ContainerFact, ObservedContainer, ObservedPod};
use orlop_agent_core::metrics::names;
use orlop_agent_core::naming::{hosts_file, pod_names};
use orlop_agent_core::plan::spec_grace_seconds;
use orlop_agent_core::ports::{EventType, MountedVolume};
use orlop_agent_core::runtime::{ContainerSpec, MountSpec, SandboxSpec};
use orlop_agent_core::security::{check_non_root, check_profiles, wants_user_namespace};
use tokio_util::sync::CancellationToken;

use crate::environment::environment;
use crate::hooks::run_hook;
use crate::image::ReadyImage;
use crate::log_links::make_link;
use crate::recorder::container_event;
use crate::sandbox::prepare_sandbox;
use crate::shared::Shared;
use crate::sub_path::prepare_sub_path;

/// What a container is to be started with.
pub(crate) struct StartRequest {
    /// The pod with its current status, for the fields of it.
    pub pod: Arc<Pod>,
    pub container: String,
    pub attempt: u32,
    /// Starts of it that have failed since the last one that went well.
    pub failures: u32,
    pub sandbox_id: String,
    pub sandbox_attempt: u32,
    pub sandbox: Option<Arc<SandboxSpec>>,
    pub pod_ips: Vec<String>,
    pub replaces: Option<String>,
    pub image: ReadyImage,
    pub volumes: Arc<BTreeMap<String, MountedVolume>>,
    /// Cancelled when the pod ends: nothing is begun any more, and a hook is left alone.
    pub cancel: CancellationToken,
}

/// Why a container did not start.
#[derive(Debug)]
pub(crate) struct StartError {
    /// Waiting reason.
    pub reason: &'static str,
    pub message: String,
    /// The sandbox's description, if it had to be made anew.
    pub sandbox: Option<Arc<SandboxSpec>>,
}

/// What a start leaves.
#[derive(Debug)]
pub(crate) struct Started {
    /// The sandbox's description, where it is known.
    pub sandbox: Option<Arc<SandboxSpec>>,
}

/// Makes and starts a container, and records the events of it.
pub(crate) async fn start_container(shared: &Shared, request: StartRequest) -> Result<Started, StartError> {
    let pod = request.pod.clone();
    let Some(container) = find_container(&pod, &request.container) else {
        return Err(error("CreateContainerConfigError", format!("the pod has no container {:?}", request.container)));
    };
    let (metrics, kind) = (&*shared.ports.metrics, container.kind.metric_label());
    metrics.count(&names::STARTED_CONTAINERS, &[kind]);
    let result = start(shared, &request, &container).await;
    if result.is_ok() {
        metrics.add(&names::IMAGE_VOLUMES_MOUNTED, &[], request.image.volumes.len() as u64);
    }
    if let Err(failure) = &result {
        metrics.count(&names::STARTED_CONTAINERS_ERRORS, &[kind, failure.reason]);
        // The kubelet counts what fails in the pass that made the sandbox.
        if wants_user_namespace(&pod) && request.attempt == 0 && request.failures == 0 {
            metrics.count(&names::STARTED_USER_NAMESPACED_PODS_ERRORS, &[]);
        }
        let message = format!("Error: {}", failure.message);
        if failure.reason != "PostStartHookError" {
            container_event(&*shared.ports.events, &pod, &container, EventType::Warning, "Failed", &message);
        }
    }
    result
}

fn error(reason: &'static str, message: impl Into<String>) -> StartError {
    StartError { reason, message: message.into(), sandbox: None }
}

async fn start(shared: &Shared, request: &StartRequest, container: &SpecContainer<'_>) -> Result<Started, StartError> {
    let pod = &*request.pod;
    let runtime = &*shared.ports.runtime;
    let events = &*shared.ports.events;
    if let Some(id) = &request.replaces {
        if has_begun(shared, id).await? {
            return Ok(Started { sandbox: request.sandbox.clone() });
        }
        runtime.remove_container(id).await.map_err(|failure| error("CreateContainerError", failure.message))?;
        shared.observed.gone(id);
    }
    check_non_root(pod, &container.container, &request.image.user)
        .and_then(|()| check_profiles(pod, &container.container))
        .map_err(|refused| error("CreateContainerConfigError", refused.to_string()))?;
    let sandbox = async {
        match &request.sandbox {
            Some(sandbox) => Ok(sandbox.clone()),
            None => prepare_sandbox(shared, pod, request.sandbox_attempt).await.map(Arc::new),
        }
    };
    let env = async {
        tokio::select! {
            biased;
            () = request.cancel.cancelled() => Err("the pod ends".to_owned()),
            env = environment(shared, pod, container, &request.volumes) => env,
        }
    };
    let prepared = try_join(sandbox, env).await;
    if request.cancel.is_cancelled() {
        return Ok(Started { sandbox: request.sandbox.clone() });
    }
    let (sandbox, env) = prepared.map_err(|message| error("CreateContainerConfigError", message))?;
    let spec = describe(shared, request, container, env, &sandbox).await?;
    let keep = |failure: StartError| StartError { sandbox: Some(sandbox.clone()), ..failure };
    let id = runtime
        .create_container(&request.sandbox_id, &spec, &sandbox)
        .await
        .map_err(|failure| keep(error("CreateContainerError", failure.message)))?;
    let made = ObservedContainer::made(&id, &request.sandbox_id, &spec, &sandbox, shared.now());
    container_event(events, pod, container, EventType::Normal, "Created", "Container created");
    if request.cancel.is_cancelled() {
        // It goes with its sandbox.
        let uid = containers::uid(pod).to_owned();
        shared.observed.merge(ObservedPod { uid, containers: vec![made], ..ObservedPod::default() });
        return Ok(Started { sandbox: Some(sandbox) });
    }
    if let Err(failure) = runtime.start_container(&id).await {
        observe(shared, pod, &id, Some(made)).await;
        return Err(keep(error("RunContainerError", failure.message)));
    }
    container_event(events, pod, container, EventType::Normal, "Started", "Container started");
    link_log(shared, pod, container, &id, &spec, &sandbox);
    let begun = ObservedContainer { fact: ContainerFact::Running, started_at: Some(shared.now()), ..made };
    observe(shared, pod, &id, Some(begun)).await;
    post_start(shared, request, container, &id).await.map_err(keep)?;
    Ok(Started { sandbox: Some(sandbox) })
}

/// Describes the container: mounts with final paths, environment, the files that the agent itself mounts.
async fn describe(
    shared: &Shared,
    request: &StartRequest,
    container: &SpecContainer<'_>,
    env: Vec<(String, String)>,
    sandbox: &SandboxSpec,
) -> Result<ContainerSpec, StartError> {
    let pod = &*request.pod;
    let config_error = |message: String| error("CreateContainerConfigError", message);
    let supported = shared.ports.node.handler(&sandbox.runtime_handler).recursive_read_only;
    let (mut plans, devices) = plan_mounts(container, &request.volumes, &env, supported)
        .map_err(|refused| config_error(refused.to_string()))?;
    for plan in plans.iter_mut().filter(|plan| plan.mount.image.is_some()) {
        // By the reference that was pulled, which the name may not stand for any more.
        plan.mount.image = request.image.volumes.get(&plan.volume).cloned().or(plan.mount.image.take());
    }
    let files = make_files(shared, request, container, plans).await.map_err(config_error)?;
    let uid = containers::uid(pod);
    let target_id = container.target.and_then(|target| {
        let observed = shared.observed.get(uid)?;
        observed.latest(target).filter(|instance| instance.running()).map(|instance| instance.id.clone())
    });
    Ok(container_spec(
        pod,
        container,
        ContainerContext {
            attempt: request.attempt,
            image: request.image.reference.clone(),
            image_user: &request.image.user,
            env,
            mounts: files,
            devices,
            target_id: target_id.as_deref(),
            user_namespace: sandbox.security.namespaces.user,
            security: &shared.security,
            resources: &shared.resource_policy(),
        },
    ))
}

/// Makes log directory, termination log, /etc/hosts and sub paths, and returns all mounts.
async fn make_files(
    shared: &Shared,
    request: &StartRequest,
    container: &SpecContainer<'_>,
    plans: Vec<MountPlan>,
) -> Result<Vec<MountSpec>, String> {
    let directories = shared.directories.clone();
    let (pod, name, attempt) = (request.pod.clone(), container.name().to_owned(), request.attempt);
    let message_path = container
        .container
        .termination_message_path
        .clone()
        .filter(|path| !path.is_empty())
        .unwrap_or_else(|| TERMINATION_MESSAGE_PATH.into());
    let names =
        pod_names(&pod, &shared.config.node_name, &shared.config.cluster_domain).map_err(|error| error.to_string())?;
    let ips = request.pod_ips.clone();
    let node_hosts = shared.config.hosts_file.clone();
    let work = shared.config.pace.blocking(move || -> Result<Vec<MountSpec>, String> {
        let uid = containers::uid(&pod).to_owned();
        directories.make_pod(&pod).map_err(|error| format!("error making pod data directories: {error}"))?;
        let log = directories
            .make_container(&pod, &name, attempt)
            .map_err(|error| format!("failed to make files of container {name:?}: {error}"))?;
        let mut mounts = Vec::new();
        let mut own_hosts = false;
        for (index, plan) in plans.into_iter().enumerate() {
            let mut mount = plan.mount;
            own_hosts |= mount.container_path.trim_end_matches('/') == "/etc/hosts";
            if let Some(sub_path) = &plan.sub_path {
                let target: PathBuf =
                    directories.sub_paths(&uid).join(&plan.volume).join(&name).join(index.to_string());
                let path = prepare_sub_path(std::path::Path::new(&mount.host_path), &plan.volume, sub_path, &target)
                    .map_err(|error| error.to_string())?;
                mount.host_path = path.to_string_lossy().into_owned();
            }
            mounts.push(mount);
        }
        if !own_hosts {
            let node_text = if containers::host_network(&pod) {
                std::fs::read_to_string(&node_hosts).unwrap_or_default()
            } else {
                String::new()
            };
            let hosts = directories
                .write_etc_hosts(&uid, &hosts_file(&pod, &names, &ips, &node_text))
                .map_err(|error| format!("/etc/hosts of the pod: {error}"))?;
            mounts.push(file_mount("/etc/hosts", &hosts));
        }
        mounts.push(file_mount(&message_path, &log));
        Ok(mounts)
    });
    work.await.map_err(|error| error.to_string())?
}

fn file_mount(container_path: &str, host_path: &std::path::Path) -> MountSpec {
    MountSpec {
        container_path: container_path.to_owned(),
        host_path: host_path.to_string_lossy().into_owned(),
        ..MountSpec::default()
    }
}

fn link_log(
    shared: &Shared,
    pod: &Pod,
    container: &SpecContainer<'_>,
    id: &str,
    spec: &ContainerSpec,
    sandbox: &SandboxSpec,
) {
    if let Some(folder) = &shared.config.container_logs {
        let log = PathBuf::from(&sandbox.log_directory).join(&spec.log_path);
        if let Err(error) = make_link(folder, pod, container.name(), id, &log) {
            tracing::warn!(container = id, %error, "no link to a container's log");
        }
    }
}

/// Whether a left-over instance, which was never seen to run, runs or has run by now: the answer to its start may have
/// been lost.
async fn has_begun(shared: &Shared, id: &str) -> Result<bool, StartError> {
    let answer = shared.ports.runtime.container(id).await;
    let Some(part) = answer.map_err(|failure| error("CreateContainerError", failure.message))? else {
        return Ok(false);
    };
    let begun = part.containers.iter().any(|container| container.running() || container.exited());
    shared.observed.merge(part);
    Ok(begun)
}

/// Waits until the observed set has the container, so that no pass takes it for missing. The runtime's event has
/// usually come by now. Where the runtime does not tell, `known` is what is true by its answers so far.
async fn observe(shared: &Shared, pod: &Pod, id: &str, known: Option<ObservedContainer>) {
    let seen = shared.observed.get(containers::uid(pod)).is_some_and(|observed| {
        observed.containers.iter().any(|container| container.id == id && (container.running() || container.exited()))
    });
    if seen && known.as_ref().is_some_and(ObservedContainer::running) {
        return;
    }
    match shared.ports.runtime.container(id).await {
        Ok(Some(part)) => shared.observed.merge(part),
        Ok(None) => shared.observed.gone(id),
        Err(failure) => {
            tracing::warn!(container = id, error = %failure, "no status of a container that was just started");
            let uid = containers::uid(pod).to_owned();
            shared.observed.merge(ObservedPod {
                uid,
                containers: known.into_iter().collect(),
                ..ObservedPod::default()
            });
        }
    }
}

async fn post_start(
    shared: &Shared,
    request: &StartRequest,
    container: &SpecContainer<'_>,
    id: &str,
) -> Result<(), StartError> {
    let handler = container.container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.as_ref());
    let Some(handler) = handler.filter(|_| container.kind != ContainerKind::Ephemeral) else { return Ok(()) };
    let pod = &*request.pod;
    let pod_ip = request.pod_ips.first().cloned().unwrap_or_default();
    let ended = exited(shared, pod, id);
    let result = tokio::select! {
        biased;
        () = request.cancel.cancelled() => return Ok(()),
        result = run_hook(shared, pod, &container.container, id, handler, &pod_ip, None) => result,
        () = ended => Err("the container ended before the hook did".to_owned()),
    };
    let Err(message) = result else { return Ok(()) };
    let text = format!("PostStartHook failed: {message}");
    container_event(&*shared.ports.events, pod, container, EventType::Warning, "FailedPostStartHook", &text);
    let killing = format!("FailedPostStartHook: Stopping container {}", container.name());
    container_event(&*shared.ports.events, pod, container, EventType::Normal, "Killing", &killing);
    if let Err(failure) = shared.ports.runtime.stop_container(id, spec_grace_seconds(pod)).await {
        tracing::warn!(container = id, error = %failure, "can't stop a container whose postStart failed");
    }
    observe(shared, pod, id, None).await;
    Err(error("PostStartHookError", text))
}

async fn exited(shared: &Shared, pod: &Pod, id: &str) {
    let mut observed = shared.observed.subscribe(containers::uid(pod));
    let gone = |observed: &Arc<ObservedPod>| {
        observed.containers.iter().find(|container| container.id == id).is_some_and(ObservedContainer::exited)
    };
    let _ = observed.wait_for(gone).await;
}
