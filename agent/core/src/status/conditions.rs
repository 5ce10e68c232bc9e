//! Conditions of a pod that the kubelet owns.

use k8s_openapi::api::core::v1::{ContainerStatus, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::admission::{PREEMPTED, PREEMPTED_CONDITION};
use crate::containers::{ContainerKind, host_network, init_containers};
use crate::lifecycle::Lifecycle;
use crate::memory::StepState;
use crate::restart::{may_restart_all, restart_all_source};
use crate::status::StatusInput;
use crate::status::instances::Statuses;

struct Finding {
    holds: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

impl Finding {
    fn yes() -> Finding {
        Finding { holds: true, reason: None, message: None }
    }

    fn no(reason: &'static str, message: Option<String>) -> Finding {
        Finding { holds: false, reason: Some(reason), message }
    }
}

/// The conditions, with the time of the last change kept from the status before.
pub(super) fn conditions(input: &StatusInput<'_>, phase: &str, statuses: &Statuses) -> Vec<PodCondition> {
    let containers_ready = containers_ready(input, phase, statuses);
    let mut findings = vec![
        ("PodReadyToStartContainers", Finding { holds: ready_to_start(input), reason: None, message: None }),
        ("Initialized", initialized(input, phase, statuses)),
        ("Ready", ready(input, &containers_ready)),
        ("ContainersReady", containers_ready),
        ("PodScheduled", Finding::yes()),
    ];
    if may_restart_all(input.pod) {
        findings.push(("AllContainersRestarting", restarting(input, phase)));
    }
    if let Some(verdict) = input.memory.verdict.as_ref().filter(|verdict| verdict.disruption) {
        let message = if verdict.reason == PREEMPTED { PREEMPTED_CONDITION } else { &verdict.message };
        findings.push((
            "DisruptionTarget",
            Finding { holds: true, reason: Some("TerminationByKubelet"), message: Some(message.to_owned()) },
        ));
    }
    let mut conditions: Vec<PodCondition> =
        findings.into_iter().map(|(kind, finding)| condition(input, kind, finding)).collect();
    // What others set (a controller's DisruptionTarget) stays.
    let known = input.previous.conditions.iter().flatten().filter(|known| known.type_ == "DisruptionTarget");
    for known in known {
        if conditions.iter().all(|condition| condition.type_ != known.type_) {
            conditions.push(known.clone());
        }
    }
    conditions
}

fn condition(input: &StatusInput<'_>, kind: &str, finding: Finding) -> PodCondition {
    let status = if finding.holds { "True" } else { "False" };
    let known = input.previous.conditions.iter().flatten().find(|known| known.type_ == kind);
    let since = known.filter(|known| known.status == status).and_then(|known| known.last_transition_time.clone());
    PodCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: finding.reason.map(str::to_owned),
        message: finding.message,
        last_probe_time: None,
        last_transition_time: Some(since.unwrap_or(Time(input.now))),
        observed_generation: input.pod.metadata.generation,
    }
}

fn ready_to_start(input: &StatusInput<'_>) -> bool {
    let networked = input
        .observed
        .sandbox()
        .is_some_and(|sandbox| sandbox.ready && (host_network(input.pod) || !sandbox.ips.is_empty()));
    let volumes = matches!(input.memory.volumes, StepState::Done)
        || input.observed.containers.iter().any(|container| container.running());
    networked && volumes && input.memory.lifecycle <= Lifecycle::Terminating
}

fn begun(status: &ContainerStatus) -> bool {
    status.container_id.is_some()
}

fn initialized(input: &StatusInput<'_>, phase: &str, statuses: &Statuses) -> Finding {
    let has_init = !statuses.init.is_empty();
    if has_init && phase == "Succeeded" {
        return Finding { holds: true, reason: Some("PodCompleted"), message: None };
    }
    if statuses.apps.iter().any(begun) {
        return Finding::yes();
    }
    let missing: Vec<&str> = init_containers(input.pod)
        .filter(|container| {
            let status = statuses.init.iter().find(|status| status.name == container.name());
            !status.is_some_and(|status| {
                if container.kind == ContainerKind::Sidecar { status.started == Some(true) } else { status.ready }
            })
        })
        .map(|container| {
            statuses
                .init
                .iter()
                .find(|status| status.name == container.name())
                .map_or("", |status| status.name.as_str())
        })
        .collect();
    // Init containers that run again because all do have been through once.
    let before = input.previous.conditions.iter().flatten().any(|c| c.type_ == "Initialized" && c.status == "True");
    if missing.is_empty() || (before && may_restart_all(input.pod)) {
        return Finding::yes();
    }
    Finding::no("ContainersNotInitialized", Some(format!("containers with incomplete status: [{}]", missing.join(" "))))
}

/// A rule has asked to start all containers anew, and not all have been cleared away yet.
fn restarting(input: &StatusInput<'_>, phase: &str) -> Finding {
    match phase {
        "Succeeded" => Finding::no("PodCompleted", None),
        "Failed" => Finding::no("PodFailed", None),
        _ if restart_all_source(input.pod, input.observed, input.memory).is_some() => Finding {
            holds: true,
            reason: Some("RestartAllContainersStarted"),
            message: Some("container exited with restart policy rule".to_owned()),
        },
        _ => Finding { holds: false, reason: None, message: None },
    }
}

fn containers_ready(input: &StatusInput<'_>, phase: &str, statuses: &Statuses) -> Finding {
    match phase {
        "Succeeded" => return Finding::no("PodCompleted", None),
        "Failed" => return Finding::no("PodFailed", None),
        _ => {}
    }
    let sidecars = init_containers(input.pod).filter(|container| container.kind == ContainerKind::Sidecar);
    let sidecar_names: Vec<String> = sidecars.map(|container| container.name().to_owned()).collect();
    let unready: Vec<&str> = statuses
        .init
        .iter()
        .filter(|status| sidecar_names.contains(&status.name))
        .chain(&statuses.apps)
        .filter(|status| !status.ready)
        .map(|status| status.name.as_str())
        .collect();
    if unready.is_empty() {
        return Finding::yes();
    }
    Finding::no("ContainersNotReady", Some(format!("containers with unready status: [{}]", unready.join(" "))))
}

/// Ready is ContainersReady and every readiness gate; gates are set by others on the API object.
fn ready(input: &StatusInput<'_>, containers: &Finding) -> Finding {
    if !containers.holds {
        return Finding { holds: false, reason: containers.reason, message: containers.message.clone() };
    }
    let gates = input.pod.spec.as_ref().and_then(|spec| spec.readiness_gates.as_ref());
    let set = input.pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let mut complaints = Vec::new();
    for gate in gates.into_iter().flatten() {
        match set.into_iter().flatten().find(|condition| condition.type_ == gate.condition_type) {
            None => complaints.push(format!(
                "corresponding condition of pod readiness gate \"{}\" does not exist.",
                gate.condition_type
            )),
            Some(condition) if condition.status != "True" => {
                complaints.push(format!(
                    "the status of pod readiness gate \"{}\" is not \"True\", but {}",
                    gate.condition_type, condition.status
                ));
            }
            Some(_) => {}
        }
    }
    if complaints.is_empty() {
        Finding::yes()
    } else {
        Finding::no("ReadinessGatesNotReady", Some(complaints.join(", ")))
    }
}
