//! The status of a node from what is known of it. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeFeatures, NodeRuntimeHandler,
    NodeRuntimeHandlerFeatures, NodeStatus, NodeSwapStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::facts::{ImageFact, StatusFacts};

/// Names reported per image (kubelet's MaxNamesPerImageInNodeStatus).
const IMAGE_NAMES_MAX: usize = 5;
/// Resources without which a node is of no use.
const NEEDED_RESOURCES: [&str; 4] = ["cpu", "memory", "pods", "ephemeral-storage"];

/// What of newer versions' features the agent does, as the scheduler asks for it of nodes whose pods need it (Kubernetes'
/// `declaredFeatures`), sorted.
const DECLARED_FEATURES: [&str; 1] = ["RestartAllContainersOnContainerExits"];

/// The conditions that the agent writes.
pub(crate) const OWN_CONDITIONS: [&str; 4] = ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"];

/// The status to report: `old` with all that the agent owns renewed. Conditions of others, attached volumes and
/// extended resources that somebody else has set stay. A condition's transition time moves only with its status.
pub fn node_status(facts: &StatusFacts, old: &NodeStatus, now: Timestamp) -> NodeStatus {
    let mut status = old.clone();
    status.addresses = Some(addresses(facts));
    status.capacity = Some(resources(&facts.inputs.capacity, old.capacity.as_ref()));
    status.allocatable = Some(resources(&facts.inputs.allocatable, old.allocatable.as_ref()));
    status.daemon_endpoints =
        Some(NodeDaemonEndpoints { kubelet_endpoint: Some(DaemonEndpoint { port: facts.kubelet_port }) });
    status.node_info = Some(node_info(facts));
    status.images = Some(images(&facts.images, facts.images_max)).filter(|images| !images.is_empty());
    status.volumes_in_use = Some(facts.inputs.volumes_in_use.clone()).filter(|volumes| !volumes.is_empty());
    status.runtime_handlers = Some(runtime_handlers(facts)).filter(|handlers| !handlers.is_empty());
    status.features = Some(NodeFeatures { supplemental_groups_policy: Some(facts.runtime.supplemental_groups_policy) });
    status.declared_features = Some(DECLARED_FEATURES.map(str::to_owned).into());
    status.conditions = Some(conditions(facts, old, now));
    status
}

fn addresses(facts: &StatusFacts) -> Vec<NodeAddress> {
    let internal = facts.addresses.iter().map(|ip| ("InternalIP", ip.to_string()));
    internal
        .chain([("Hostname", facts.hostname.clone())])
        .map(|(kind, address)| NodeAddress { type_: kind.to_owned(), address })
        .collect()
}

/// Our resources, and those extended ones (with a domain) that others have set.
fn resources(
    ours: &BTreeMap<String, Quantity>,
    old: Option<&BTreeMap<String, Quantity>>,
) -> BTreeMap<String, Quantity> {
    let mut all = ours.clone();
    for (name, quantity) in old.into_iter().flatten().filter(|(name, _)| name.contains('/')) {
        all.entry(name.clone()).or_insert_with(|| quantity.clone());
    }
    all
}

fn node_info(facts: &StatusFacts) -> NodeSystemInfo {
    let (system, runtime) = (&facts.system, &facts.runtime);
    NodeSystemInfo {
        architecture: system.architecture.clone(),
        boot_id: system.boot_id.clone(),
        container_runtime_version: format!("{}://{}", runtime.name, runtime.version),
        kernel_version: system.kernel_version.clone(),
        kube_proxy_version: String::new(),
        kubelet_version: facts.kubelet_version.clone(),
        machine_id: system.machine_id.clone(),
        operating_system: "linux".to_owned(),
        os_image: system.os_image.clone(),
        // The API server refuses a node with no swap that says so.
        swap: system.swap_bytes.filter(|bytes| *bytes > 0).map(|bytes| NodeSwapStatus { capacity: Some(bytes) }),
        system_uuid: system.system_uuid.clone(),
    }
}

/// The largest images first, with a few names each.
fn images(images: &[ImageFact], images_max: i32) -> Vec<ContainerImage> {
    let mut sorted: Vec<&ImageFact> = images.iter().collect();
    sorted.sort_by(|a, b| b.size_bytes.cmp(&a.size_bytes).then_with(|| a.names.cmp(&b.names)));
    let count = usize::try_from(images_max).unwrap_or(usize::MAX);
    let entry = |image: &ImageFact| ContainerImage {
        names: Some(image.names.iter().take(IMAGE_NAMES_MAX).cloned().collect()),
        size_bytes: Some(image.size_bytes),
    };
    sorted.into_iter().take(count).map(entry).collect()
}

fn runtime_handlers(facts: &StatusFacts) -> Vec<NodeRuntimeHandler> {
    let mut handlers = facts.runtime.handlers.clone();
    handlers.sort_by(|a, b| a.name.cmp(&b.name));
    let entry = |handler: crate::facts::RuntimeHandlerFact| NodeRuntimeHandler {
        name: Some(handler.name),
        features: Some(NodeRuntimeHandlerFeatures {
            recursive_read_only_mounts: Some(handler.recursive_read_only_mounts),
            user_namespaces: Some(handler.user_namespaces),
        }),
    };
    handlers.into_iter().map(entry).collect()
}

/// Type, status, reason and message.
type ConditionFact = (&'static str, bool, &'static str, String);

fn conditions(facts: &StatusFacts, old: &NodeStatus, now: Timestamp) -> Vec<NodeCondition> {
    let mut all = old.conditions.clone().unwrap_or_default();
    for (kind, holds, reason, message) in condition_facts(facts) {
        let status = if holds { "True" } else { "False" };
        let known = all.iter().position(|condition| condition.type_ == kind);
        let since = known
            .map(|index| &all[index])
            .filter(|condition| condition.status == status)
            .and_then(|condition| condition.last_transition_time.clone());
        let condition = NodeCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_heartbeat_time: Some(Time(now)),
            last_transition_time: Some(since.unwrap_or(Time(now))),
        };
        match known {
            Some(index) => all[index] = condition,
            None => all.push(condition),
        }
    }
    all
}

fn condition_facts(facts: &StatusFacts) -> [ConditionFact; 4] {
    let pressures = facts.inputs.pressures;
    let pressure = |kind, short: bool, bad: (&'static str, &str), good: (&'static str, &str)| {
        let (reason, message) = if short { bad } else { good };
        (kind, short, reason, format!("kubelet has {message}"))
    };
    let problems = ready_problems(facts);
    let ready = match problems.as_slice() {
        [] => ("Ready", true, "KubeletReady", "kubelet is posting ready status".to_owned()),
        [only] => ("Ready", false, "KubeletNotReady", only.clone()),
        many => ("Ready", false, "KubeletNotReady", format!("[{}]", many.join(", "))),
    };
    [
        pressure(
            "MemoryPressure",
            pressures.memory,
            ("KubeletHasInsufficientMemory", "insufficient memory available"),
            ("KubeletHasSufficientMemory", "sufficient memory available"),
        ),
        pressure(
            "DiskPressure",
            pressures.disk,
            ("KubeletHasDiskPressure", "disk pressure"),
            ("KubeletHasNoDiskPressure", "no disk pressure"),
        ),
        pressure(
            "PIDPressure",
            pressures.pid,
            ("KubeletHasInsufficientPID", "insufficient PID available"),
            ("KubeletHasSufficientPID", "sufficient PID available"),
        ),
        ready,
    ]
}

/// Why the node is not ready, in the kubelet's words and order.
fn ready_problems(facts: &StatusFacts) -> Vec<String> {
    let mut problems = Vec::new();
    problems.extend(facts.runtime_problem.clone());
    if facts.runtime_problem.is_none() {
        if let Some(problem) = &facts.runtime.runtime_problem {
            problems.push(format!("container runtime status: RuntimeReady=false {problem}"));
        }
        if let Some(problem) = &facts.runtime.network_problem {
            problems.push(format!("container runtime network not ready: NetworkReady=false {problem}"));
        }
    }
    problems.extend(facts.inputs.problems.iter().cloned());
    if facts.inputs.shutting_down {
        problems.push("node is shutting down".to_owned());
    }
    let missing: Vec<&str> =
        NEEDED_RESOURCES.into_iter().filter(|name| !facts.inputs.capacity.contains_key(*name)).collect();
    if !missing.is_empty() {
        problems.push(format!("missing node capacity for resources: {}", missing.join(", ")));
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::{NodeInputs, Pressures, RuntimeHandlerFact};

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn facts() -> StatusFacts {
        let amounts = |cpu: &str| {
            [("cpu", cpu), ("memory", "1Gi"), ("pods", "110"), ("ephemeral-storage", "1Gi")]
                .map(|(name, value)| (name.to_owned(), Quantity(value.to_owned())))
                .into()
        };
        StatusFacts {
            hostname: "h".into(),
            addresses: vec!["10.0.0.1".parse().unwrap()],
            kubelet_port: 10250,
            images_max: 50,
            inputs: NodeInputs { capacity: amounts("2"), allocatable: amounts("1900m"), ..NodeInputs::default() },
            ..StatusFacts::default()
        }
    }

    fn condition<'a>(status: &'a NodeStatus, kind: &str) -> &'a NodeCondition {
        status.conditions.as_ref().unwrap().iter().find(|condition| condition.type_ == kind).unwrap()
    }

    #[test]
    fn ready_says_why_not() {
        type Change = fn(&mut StatusFacts);
        let cases: [(&str, Change, &str, &str); 7] = [
            ("all well", |_| {}, "True", "kubelet is posting ready status"),
            (
                "runtime away",
                |f| f.runtime_problem = Some("container runtime is down".into()),
                "False",
                "container runtime is down",
            ),
            (
                "no network",
                |f| f.runtime.network_problem = Some("reason:NetworkPluginNotReady message:no conf".into()),
                "False",
                "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:no conf",
            ),
            (
                "runtime away hides what it said before",
                |f| {
                    f.runtime_problem = Some("container runtime is down".into());
                    f.runtime.network_problem = Some("x".into());
                },
                "False",
                "container runtime is down",
            ),
            (
                "storage",
                |f| f.inputs.problems = vec!["CSINode is not yet initialized".into()],
                "False",
                "CSINode is not yet initialized",
            ),
            ("shutdown", |f| f.inputs.shutting_down = true, "False", "node is shutting down"),
            (
                "two at once",
                |f| {
                    f.inputs.shutting_down = true;
                    f.inputs.capacity.remove("cpu");
                },
                "False",
                "[node is shutting down, missing node capacity for resources: cpu]",
            ),
        ];
        for (what, change, status, message) in cases {
            let mut facts = facts();
            change(&mut facts);
            let got = node_status(&facts, &NodeStatus::default(), at("2026-01-01T00:00:00Z"));
            let ready = condition(&got, "Ready");
            assert_eq!((ready.status.as_str(), ready.message.as_deref()), (status, Some(message)), "{what}");
            let reason = if status == "True" { "KubeletReady" } else { "KubeletNotReady" };
            assert_eq!(ready.reason.as_deref(), Some(reason), "{what}");
        }
    }

    #[test]
    fn pressures_have_the_kubelets_reasons() {
        let mut facts = facts();
        for (pressures, kind, status, reason, message) in [
            (
                Pressures::default(),
                "MemoryPressure",
                "False",
                "KubeletHasSufficientMemory",
                "kubelet has sufficient memory available",
            ),
            (
                Pressures { memory: true, ..Default::default() },
                "MemoryPressure",
                "True",
                "KubeletHasInsufficientMemory",
                "kubelet has insufficient memory available",
            ),
            (Pressures::default(), "DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
            (
                Pressures { disk: true, ..Default::default() },
                "DiskPressure",
                "True",
                "KubeletHasDiskPressure",
                "kubelet has disk pressure",
            ),
            (
                Pressures::default(),
                "PIDPressure",
                "False",
                "KubeletHasSufficientPID",
                "kubelet has sufficient PID available",
            ),
            (
                Pressures { pid: true, ..Default::default() },
                "PIDPressure",
                "True",
                "KubeletHasInsufficientPID",
                "kubelet has insufficient PID available",
            ),
        ] {
            facts.inputs.pressures = pressures;
            let got = node_status(&facts, &NodeStatus::default(), at("2026-01-01T00:00:00Z"));
            let condition = condition(&got, kind);
            let words = (condition.status.as_str(), condition.reason.as_deref(), condition.message.as_deref());
            assert_eq!(words, (status, Some(reason), Some(message)), "{kind}");
        }
    }

    #[test]
    fn transition_times_move_with_the_status_and_foreign_parts_stay() {
        let foreign: NodeStatus = serde_json::from_value(serde_json::json!({
            "conditions": [{"type": "NetworkUnavailable", "status": "False"}],
            "capacity": {"example.com/gpu": "2", "cpu": "1"},
            "volumesAttached": [{"name": "v", "devicePath": "/dev/x"}],
        }))
        .unwrap();
        let first = node_status(&facts(), &foreign, at("2026-01-01T00:00:00Z"));
        assert_eq!(condition(&first, "NetworkUnavailable").status, "False");
        assert_eq!(first.capacity.as_ref().unwrap()["example.com/gpu"].0, "2");
        assert_eq!(first.capacity.as_ref().unwrap()["cpu"].0, "2", "ours win");
        assert_eq!(first.volumes_attached, foreign.volumes_attached);
        assert_eq!(first.declared_features.as_deref(), Some(&["RestartAllContainersOnContainerExits".to_owned()][..]));
        let later = node_status(&facts(), &first, at("2026-01-01T00:10:00Z"));
        assert_eq!(condition(&later, "Ready").last_transition_time, Some(Time(at("2026-01-01T00:00:00Z"))));
        assert_eq!(condition(&later, "Ready").last_heartbeat_time, Some(Time(at("2026-01-01T00:10:00Z"))));
        let mut broken = facts();
        broken.runtime_problem = Some("container runtime is down".into());
        let down = node_status(&broken, &later, at("2026-01-01T00:20:00Z"));
        assert_eq!(condition(&down, "Ready").last_transition_time, Some(Time(at("2026-01-01T00:20:00Z"))));
        assert_eq!(condition(&down, "DiskPressure").last_transition_time, Some(Time(at("2026-01-01T00:00:00Z"))));
    }

    #[test]
    fn images_and_handlers_are_sorted_and_bounded() {
        let mut facts = facts();
        let image =
            |name: &str, size| ImageFact { names: (0..9).map(|n| format!("{name}:{n}")).collect(), size_bytes: size };
        facts.images = vec![image("small", 1), image("big", 3), image("middle", 2)];
        facts.images_max = 2;
        facts.runtime.handlers =
            ["runc", ""].map(|name| RuntimeHandlerFact { name: name.into(), ..Default::default() }).into();
        let status = node_status(&facts, &NodeStatus::default(), at("2026-01-01T00:00:00Z"));
        let sizes: Vec<_> = status.images.as_ref().unwrap().iter().map(|image| image.size_bytes.unwrap()).collect();
        assert_eq!(sizes, [3, 2]);
        assert_eq!(status.images.unwrap()[0].names.as_ref().unwrap().len(), IMAGE_NAMES_MAX);
        assert_eq!(status.runtime_handlers.unwrap()[0].name.as_deref(), Some(""));
        facts.images_max = -1;
        assert_eq!(node_status(&facts, &NodeStatus::default(), Timestamp::UNIX_EPOCH).images.unwrap().len(), 3);
    }
}
