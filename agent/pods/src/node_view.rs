//! What the kubelet port sees of the pods.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use orlop_agent_core::containers;
use orlop_agent_core::facts::ContainerFact;
use orlop_agent_core::metrics::{Metrics, names};
use orlop_agent_core::ports::{ContainerRef, NodeView, NodeViewError, PortFuture, StreamOptions};
use orlop_agent_core::runtime::{RuntimeError, RuntimeFailure};

use crate::shared::{PodEntry, Shared, lock};

/// A list of the runtime that is older than this makes the agent unhealthy (kubelet: PLEG threshold).
const LIST_THRESHOLD: Duration = Duration::from_secs(180);

/// The view.
pub(crate) struct ViewOfPods {
    shared: Arc<Shared>,
}

type Answer<'a, T> = PortFuture<'a, Result<T, NodeViewError>>;

fn words(error: RuntimeError) -> NodeViewError {
    match error.failure {
        RuntimeFailure::NotFound => NodeViewError::NotFound(error.message),
        _ => NodeViewError::Internal(error.message),
    }
}

impl ViewOfPods {
    pub(crate) fn new(shared: Arc<Shared>) -> ViewOfPods {
        ViewOfPods { shared }
    }

    /// A pod by name, and by uid where one is given; a static pod is also known by its mirror's uid.
    fn find(&self, namespace: &str, name: &str, uid: Option<&str>) -> Result<PodEntry, NodeViewError> {
        let entries = lock(&self.shared.entries);
        let found = entries.values().find(|entry| {
            let named = containers::namespace(&entry.pod) == namespace && containers::name(&entry.pod) == name;
            named
                && uid.is_none_or(|uid| containers::uid(&entry.pod) == uid || entry.mirror_uid.as_deref() == Some(uid))
        });
        found.cloned().ok_or_else(|| NodeViewError::NotFound(format!("pod \"{name}_{namespace}\" does not exist")))
    }

    /// Counts pods and containers as they are now.
    fn set_gauges(&self, metrics: &Metrics) {
        for (labels, count) in self.shared.census.counts() {
            metrics.set(&names::WORKING_PODS, &labels, count as f64);
        }
        let desired = self.shared.census.desired();
        let (mut mirrors, mut ephemeral) = (0, 0);
        for entry in lock(&self.shared.entries).values() {
            mirrors += u32::from(entry.mirror_uid.is_some());
            let spec = containers::spec(&entry.pod);
            ephemeral += spec.and_then(|spec| spec.ephemeral_containers.as_ref()).map_or(0, Vec::len);
        }
        let mut active = [0, 0];
        for pod in lock(&self.shared.admitted).values() {
            active[usize::from(containers::is_static(pod))] += 1;
        }
        for (label, index) in [("", 0), ("true", 1)] {
            metrics.set(&names::DESIRED_PODS, &[label], desired[index] as f64);
            metrics.set(&names::ACTIVE_PODS, &[label], f64::from(active[index]));
        }
        metrics.set(&names::MIRROR_PODS, &[], f64::from(mirrors));
        metrics.set(&names::EPHEMERAL_CONTAINERS, &[], ephemeral as f64);
        let (mut running, mut states) = (0, [0; 4]);
        for pod in self.shared.observed.all() {
            running += u32::from(pod.sandboxes.iter().any(|sandbox| sandbox.ready));
            for container in &pod.containers {
                states[container.fact as usize] += 1;
            }
        }
        metrics.set(&names::RUNNING_PODS, &[], f64::from(running));
        for fact in ContainerFact::ALL {
            metrics.set(&names::RUNNING_CONTAINERS, &[fact.as_str()], f64::from(states[fact as usize]));
        }
    }

    fn find_container(
        &self,
        namespace: &str,
        pod_name: &str,
        uid: Option<&str>,
        name: &str,
        previous: bool,
    ) -> Result<ContainerRef, NodeViewError> {
        let entry = self.find(namespace, pod_name, uid)?;
        let Some(container) = containers::find_container(&entry.pod, name) else {
            return Err(NodeViewError::NotFound(format!(
                "container {name:?} not found in pod \"{pod_name}_{namespace}\""
            )));
        };
        let observed = self.shared.observed.get(containers::uid(&entry.pod));
        let mut instances = observed.iter().flat_map(|observed| observed.instances(name));
        let instance = if previous {
            instances.find(|instance| instance.exited() && entry_shows_later(&entry, name, &instance.id))
        } else {
            instances.next()
        };
        let Some(instance) = instance else {
            return Err(NodeViewError::BadRequest(if previous {
                format!("previous terminated container {name:?} in pod {pod_name:?} not found")
            } else {
                format!("container {name:?} in pod {pod_name:?} is waiting to start: {}", waiting_reason(&entry, name))
            }));
        };
        Ok(ContainerRef {
            id: instance.id.clone(),
            log_path: PathBuf::from(&instance.log_path),
            running: instance.running(),
            tty: container.container.tty == Some(true),
            stdin: container.container.stdin == Some(true),
        })
    }
}

/// The instance before is the one that the status shows as the last state, or any that is not the current one.
fn entry_shows_later(entry: &PodEntry, name: &str, id: &str) -> bool {
    let lists = [
        &entry.status.container_statuses,
        &entry.status.init_container_statuses,
        &entry.status.ephemeral_container_statuses,
    ];
    let status = lists.into_iter().flatten().flatten().find(|status| status.name == name);
    let Some(status) = status else { return false };
    let terminated = |state: &Option<k8s_openapi::api::core::v1::ContainerState>| {
        state
            .as_ref()
            .and_then(|state| state.terminated.as_ref())
            .and_then(|end| end.container_id.as_deref())
            .is_some_and(|known| known.ends_with(id))
    };
    terminated(&status.last_state) || !status.container_id.as_deref().is_some_and(|known| known.ends_with(id))
}

fn waiting_reason(entry: &PodEntry, name: &str) -> String {
    let lists = [
        &entry.status.container_statuses,
        &entry.status.init_container_statuses,
        &entry.status.ephemeral_container_statuses,
    ];
    let status = lists.into_iter().flatten().flatten().find(|status| status.name == name);
    let waiting = status.and_then(|status| status.state.as_ref()).and_then(|state| state.waiting.as_ref());
    waiting.and_then(|waiting| waiting.reason.clone()).unwrap_or_else(|| "ContainerCreating".to_owned())
}

impl NodeView for ViewOfPods {
    fn pods(&self) -> Vec<Arc<Pod>> {
        let with_status =
            |entry: &PodEntry| Arc::new(Pod { status: Some(entry.status.clone()), ..(*entry.pod).clone() });
        lock(&self.shared.entries).values().map(with_status).collect()
    }

    fn container<'a>(
        &'a self,
        namespace: &'a str,
        pod: &'a str,
        uid: Option<&'a str>,
        container: &'a str,
        previous: bool,
    ) -> Answer<'a, ContainerRef> {
        Box::pin(async move { self.find_container(namespace, pod, uid, container, previous) })
    }

    fn exec_url<'a>(
        &'a self,
        container_id: &'a str,
        command: Vec<String>,
        options: StreamOptions,
    ) -> Answer<'a, String> {
        Box::pin(async move { self.shared.ports.runtime.exec_url(container_id, command, options).await.map_err(words) })
    }

    fn attach_url<'a>(&'a self, container_id: &'a str, options: StreamOptions) -> Answer<'a, String> {
        Box::pin(async move { self.shared.ports.runtime.attach_url(container_id, options).await.map_err(words) })
    }

    fn port_forward_url<'a>(
        &'a self,
        namespace: &'a str,
        pod: &'a str,
        uid: Option<&'a str>,
        ports: Vec<i32>,
    ) -> Answer<'a, String> {
        Box::pin(async move {
            let entry = self.find(namespace, pod, uid)?;
            let observed = self.shared.observed.get(containers::uid(&entry.pod));
            let sandbox = observed.as_ref().and_then(|observed| observed.sandbox()).filter(|sandbox| sandbox.ready);
            let Some(sandbox) = sandbox else {
                return Err(NodeViewError::NotFound(format!("pod \"{pod}_{namespace}\" has no running sandbox")));
            };
            self.shared.ports.runtime.port_forward_url(&sandbox.id, ports).await.map_err(words)
        })
    }

    fn run<'a>(&'a self, container_id: &'a str, command: Vec<String>) -> Answer<'a, (i32, Vec<u8>)> {
        Box::pin(async move {
            let output =
                self.shared.ports.runtime.exec_sync(container_id, &command, Duration::ZERO).await.map_err(words)?;
            let mut text = output.stdout;
            text.extend(output.stderr);
            Ok((output.exit_code, text))
        })
    }

    fn health(&self) -> Result<(), String> {
        match *self.shared.observed.listed().borrow() {
            Some(at) if at.elapsed() <= LIST_THRESHOLD => Ok(()),
            Some(at) => Err(format!(
                "PLEG is not healthy: pleg was last seen active {}s ago; threshold is {}s",
                at.elapsed().as_secs(),
                LIST_THRESHOLD.as_secs()
            )),
            None => Err("PLEG is not healthy: pleg has yet to be successful".to_owned()),
        }
    }

    fn metrics(&self) -> Arc<Metrics> {
        let metrics = self.shared.ports.metrics.clone();
        self.set_gauges(&metrics);
        metrics
    }
}
