//! The status of a pod, computed from the wanted and the observed state, the worker's memory and the time.

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, HostIP, Pod, PodIP, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::backoff::BackoffBounds;
use crate::containers::{ContainerKind, host_network, is_static};
use crate::facts::ObservedPod;
use crate::lifecycle::Lifecycle;
use crate::memory::PodMemory;
use crate::resources::qos_class;

mod conditions;
mod instances;
mod phase;

/// All that a status is computed from.
#[derive(Clone, Copy, Debug)]
pub struct StatusInput<'a> {
    /// The pod as wanted.
    pub pod: &'a Pod,
    /// The status last published, or the API's after a restart: times of transitions, and instances long gone.
    pub previous: &'a PodStatus,
    /// What the runtime has of it.
    pub observed: &'a ObservedPod,
    /// What the worker remembers.
    pub memory: &'a PodMemory,
    /// Addresses of the node, the main one first.
    pub host_ips: &'a [IpAddr],
    /// Name of the runtime, as in container ids (`<runtime>://<id>`).
    pub runtime: &'a str,
    /// Bounds of the restart back-off.
    pub bounds: BackoffBounds,
    /// Read-only mounts of the pod's runtime can hold for everything below them.
    pub recursive_read_only: bool,
    /// The time.
    pub now: Timestamp,
}

/// An instance of a container that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndedInstance {
    /// What its container is in the pod.
    pub kind: ContainerKind,
    /// Its exit code.
    pub exit_code: i32,
    /// The reason that the status gives.
    pub reason: String,
}

/// Instances that have ended by `new` and not by `old`. Init containers and sidecars are told as the former.
pub fn ended_since(old: &PodStatus, new: &PodStatus) -> Vec<EndedInstance> {
    let known: Vec<&str> =
        lists(old).flat_map(|(_, statuses)| ends(statuses)).filter_map(|end| end.container_id.as_deref()).collect();
    let fresh = |end: &&ContainerStateTerminated| end.container_id.as_deref().is_some_and(|id| !known.contains(&id));
    lists(new)
        .flat_map(|(kind, statuses)| ends(statuses).filter(fresh).map(move |end| (kind, end)))
        .map(|(kind, end)| EndedInstance {
            kind,
            exit_code: end.exit_code,
            reason: end.reason.clone().unwrap_or_default(),
        })
        .collect()
}

fn lists(status: &PodStatus) -> impl Iterator<Item = (ContainerKind, &[ContainerStatus])> {
    [
        (ContainerKind::Init, &status.init_container_statuses),
        (ContainerKind::App, &status.container_statuses),
        (ContainerKind::Ephemeral, &status.ephemeral_container_statuses),
    ]
    .into_iter()
    .map(|(kind, statuses)| (kind, statuses.as_deref().unwrap_or_default()))
}

/// What a container's status tells of instances that have ended: the one before the current one, and the current one.
fn ends(statuses: &[ContainerStatus]) -> impl Iterator<Item = &ContainerStateTerminated> {
    let states = statuses.iter().flat_map(|status| [status.last_state.as_ref(), status.state.as_ref()]);
    states.flatten().filter_map(|state| state.terminated.as_ref())
}

/// Whether a phase is an end.
pub fn is_terminal(phase: Option<&str>) -> bool {
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// The status of a pod.
pub fn status(input: &StatusInput<'_>) -> PodStatus {
    let mut statuses = instances::container_statuses(input);
    if input.memory.lifecycle >= Lifecycle::Terminated {
        instances::settle(input, &mut statuses);
    }
    let phase = sticky_phase(input).unwrap_or_else(|| phase::phase(input, &statuses));
    let verdict = input.memory.verdict.as_ref();
    let (pod_ips, host_ips) = addresses(input);
    let mut status = PodStatus {
        phase: Some(phase.to_owned()),
        reason: verdict
            .map(|verdict| verdict.reason.clone())
            .or_else(|| input.previous.reason.clone().filter(|_| is_terminal(Some(&phase)))),
        message: verdict
            .map(|verdict| verdict.message.clone())
            .or_else(|| input.previous.message.clone().filter(|_| is_terminal(Some(&phase)))),
        observed_generation: input.pod.metadata.generation,
        qos_class: Some(
            input
                .pod
                .status
                .as_ref()
                .and_then(|status| status.qos_class.clone())
                .unwrap_or_else(|| qos_class(input.pod).as_str().to_owned()),
        ),
        start_time: Some(input.previous.start_time.clone().unwrap_or(Time(input.now))),
        pod_ip: pod_ips.first().cloned(),
        pod_ips: (!pod_ips.is_empty()).then(|| pod_ips.iter().map(|ip| PodIP { ip: ip.clone() }).collect()),
        host_ip: host_ips.first().cloned(),
        host_ips: (!host_ips.is_empty()).then(|| host_ips.iter().map(|ip| HostIP { ip: ip.clone() }).collect()),
        nominated_node_name: input.previous.nominated_node_name.clone(),
        resource_claim_statuses: input.previous.resource_claim_statuses.clone(),
        extended_resource_claim_status: input.previous.extended_resource_claim_status.clone(),
        ..PodStatus::default()
    };
    status.conditions = Some(conditions::conditions(input, &phase, &statuses));
    hold_end(input, &mut status);
    status.init_container_statuses = (!statuses.init.is_empty()).then_some(statuses.init);
    status.container_statuses = Some(statuses.apps);
    status.ephemeral_container_statuses = (!statuses.ephemeral.is_empty()).then_some(statuses.ephemeral);
    status
}

/// The phase that is fixed: by the agent's word, or because the API has seen an end before.
fn sticky_phase(input: &StatusInput<'_>) -> Option<String> {
    if let Some(phase) = input.memory.verdict.as_ref().and_then(|verdict| verdict.phase) {
        return Some(phase.to_owned());
    }
    input.previous.phase.clone().filter(|phase| {
        is_terminal(Some(phase)) && (!is_static(input.pod) || input.memory.lifecycle > Lifecycle::Syncing)
    })
}

/// A pod has not ended while one of its containers runs or is being started (kubelet `mergePodStatus`): whoever sees the end may give away
/// what the pod had.
fn hold_end(input: &StatusInput<'_>, status: &mut PodStatus) {
    let known = input.previous.phase.as_deref().filter(|phase| !phase.is_empty());
    let runs = input.observed.containers.iter().any(|container| container.running())
        || input.memory.containers.values().any(|container| container.starting);
    if runs && is_terminal(status.phase.as_deref()) && !is_terminal(known) {
        status.phase = Some(known.unwrap_or("Running").to_owned());
        status.reason.clone_from(&input.previous.reason);
        status.message.clone_from(&input.previous.message);
    }
}

/// Addresses of pod and node. A pod that has no sandbox any more keeps the addresses it had.
fn addresses(input: &StatusInput<'_>) -> (Vec<String>, Vec<String>) {
    let host: Vec<String> = input.host_ips.iter().map(ToString::to_string).collect();
    let pod = match input.observed.sandbox() {
        Some(sandbox) if host_network(input.pod) => {
            if sandbox.ready {
                host.clone()
            } else {
                known_ips(input.previous)
            }
        }
        Some(sandbox) if sandbox.ready && !sandbox.ips.is_empty() => ordered(&sandbox.ips, input.host_ips),
        _ if input.memory.lifecycle > Lifecycle::Syncing => known_ips(input.previous),
        _ => Vec::new(),
    };
    (pod, host)
}

fn known_ips(status: &PodStatus) -> Vec<String> {
    let list: Vec<String> = status.pod_ips.iter().flatten().map(|ip| ip.ip.clone()).collect();
    if list.is_empty() { status.pod_ip.iter().cloned().collect() } else { list }
}

/// Addresses with one of the node's main family first.
fn ordered(ips: &[String], host_ips: &[IpAddr]) -> Vec<String> {
    let wants_v6 = host_ips.first().is_some_and(IpAddr::is_ipv6);
    let mut sorted = ips.to_vec();
    sorted.sort_by_key(|ip| ip.contains(':') != wants_v6);
    sorted
}

#[cfg(test)]
mod tests;
