//! Whether a container that has ended is started again.

use k8s_openapi::api::core::v1::{Container, Pod};

use crate::containers::{ContainerKind, app_containers, init_containers, restart_policy};
use crate::facts::{ObservedContainer, ObservedPod};
use crate::memory::PodMemory;

/// What follows the end of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartDecision {
    /// It stays ended.
    Stay,
    /// It is started again.
    Restart,
    /// A rule asks to start the whole pod again, from its first init container, in the same sandbox.
    RestartAll,
}

/// The decision for a container that ended with `exit_code`. A kill after a failed probe ignores the rules on exit codes.
pub fn decide_restart(
    pod: &Pod,
    kind: ContainerKind,
    container: &Container,
    exit_code: i32,
    killed_by_probe: bool,
) -> RestartDecision {
    if kind == ContainerKind::Ephemeral {
        return RestartDecision::Stay;
    }
    if !killed_by_probe {
        for rule in container.restart_policy_rules.iter().flatten() {
            let Some(codes) = &rule.exit_codes else { continue };
            let listed = codes.values.iter().flatten().any(|code| *code == exit_code);
            if listed == (codes.operator == "In") {
                match rule.action.as_str() {
                    "Restart" => return RestartDecision::Restart,
                    "RestartAllContainers" => return RestartDecision::RestartAll,
                    _ => {}
                }
            }
        }
    }
    let policy = container.restart_policy.as_deref().unwrap_or_else(|| restart_policy(pod));
    let again = match (policy, kind) {
        (_, ContainerKind::Sidecar) => true,
        ("Never", _) => false,
        ("OnFailure", _) | (_, ContainerKind::Init) => exit_code != 0,
        _ => true,
    };
    if again { RestartDecision::Restart } else { RestartDecision::Stay }
}

/// The instance whose end asks to start the whole pod again, as long as it is there.
pub(crate) fn restart_all_source<'a>(
    pod: &Pod,
    observed: &'a ObservedPod,
    memory: &PodMemory,
) -> Option<&'a ObservedContainer> {
    let sandbox = observed.sandbox()?;
    init_containers(pod).chain(app_containers(pod)).find_map(|container| {
        let instance = observed.latest_in(&sandbox.id, container.name()).filter(|instance| instance.exited())?;
        let by_probe = memory.killed_by_probe.contains(&instance.id);
        let decision = decide_restart(pod, container.kind, &container.container, instance.exit_code, by_probe);
        (decision == RestartDecision::RestartAll).then_some(instance)
    })
}

/// Whether some container has a rule that starts the whole pod again.
pub(crate) fn may_restart_all(pod: &Pod) -> bool {
    init_containers(pod).chain(app_containers(pod)).any(|container| {
        container.container.restart_policy_rules.iter().flatten().any(|rule| rule.action == "RestartAllContainers")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use RestartDecision::{Restart, RestartAll, Stay};

    #[test]
    fn policies_and_rules() {
        let rules = serde_json::json!([
            {"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [88]}},
            {"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}
        ]);
        let plain = serde_json::json!({"name": "c"});
        let ruled = serde_json::json!({"name": "c", "restartPolicy": "Never", "restartPolicyRules": rules});
        let on_failure = serde_json::json!({"name": "c", "restartPolicy": "OnFailure"});
        for (policy, kind, container, code, probe, want) in [
            ("Always", ContainerKind::App, &plain, 0, false, Restart),
            ("Always", ContainerKind::Init, &plain, 0, false, Stay),
            ("Always", ContainerKind::Init, &plain, 1, false, Restart),
            ("OnFailure", ContainerKind::App, &plain, 0, false, Stay),
            ("OnFailure", ContainerKind::App, &plain, 1, false, Restart),
            ("Never", ContainerKind::App, &plain, 1, false, Stay),
            ("Never", ContainerKind::Init, &plain, 1, false, Stay),
            ("Never", ContainerKind::Sidecar, &plain, 0, false, Restart),
            ("Never", ContainerKind::Sidecar, &ruled, 1, false, Restart),
            ("Never", ContainerKind::Sidecar, &ruled, 88, false, RestartAll),
            ("Always", ContainerKind::Ephemeral, &plain, 1, false, Stay),
            ("Always", ContainerKind::App, &ruled, 1, false, Stay),
            ("Always", ContainerKind::App, &ruled, 42, false, Restart),
            ("Always", ContainerKind::App, &ruled, 42, true, Stay),
            ("Always", ContainerKind::App, &ruled, 88, false, RestartAll),
            ("Never", ContainerKind::App, &on_failure, 3, false, Restart),
        ] {
            let pod: Pod =
                serde_json::from_value(serde_json::json!({"spec": {"containers": [], "restartPolicy": policy}}))
                    .unwrap();
            let container: Container = serde_json::from_value(container.clone()).unwrap();
            assert_eq!(decide_restart(&pod, kind, &container, code, probe), want, "{policy} {kind:?} {code} {probe}");
        }
    }
}
