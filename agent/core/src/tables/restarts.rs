//! What follows the end of a container: kind × policies × rule × exit code, and what is planned for each state.

use k8s_openapi::api::core::v1::{Container, Pod};
use serde_json::{Value, json};

use super::{Come, compare, render, words};
use crate::backoff::Backoff;
use crate::containers::ContainerKind;
use crate::memory::ImageState;
use crate::restart::{RestartDecision, decide_restart};
use crate::world::World;

const POLICIES: [&str; 3] = ["Always", "OnFailure", "Never"];

#[test]
fn decisions() {
    let kinds = [ContainerKind::Init, ContainerKind::Sidecar, ContainerKind::App, ContainerKind::Ephemeral];
    let mut rows = Vec::new();
    for kind in kinds {
        for policy in POLICIES {
            for own in [None, Some("Always"), Some("OnFailure"), Some("Never")] {
                for rule in ["-", "Restart In 42", "Restart NotIn 42", "RestartAllContainers In 42"] {
                    let mut row = vec![format!("{kind:?}"), policy.into(), own.unwrap_or("-").into(), rule.into()];
                    row.extend(decisions_of(kind, policy, own, rule));
                    rows.push(row);
                }
            }
        }
    }
    let head =
        ["kind", "pod's policy", "its own", "its rule", "0", "1", "42", "137", "42, by a probe", "137, by a probe"];
    compare("restart-decisions.txt", &render(&head, &rows));
}

fn decisions_of(kind: ContainerKind, policy: &str, own: Option<&str>, rule: &str) -> Vec<String> {
    let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [], "restartPolicy": policy}})).unwrap();
    let parts: Vec<&str> = rule.split(' ').collect();
    let rules = match parts.as_slice() {
        [action, operator, _] => json!([{"action": action, "exitCodes": {"operator": operator, "values": [42]}}]),
        _ => Value::Null,
    };
    let container: Container =
        serde_json::from_value(json!({"name": "c", "restartPolicy": own, "restartPolicyRules": rules})).unwrap();
    let ends = [(0, false), (1, false), (42, false), (137, false), (42, true), (137, true)];
    ends.map(|(code, by_probe)| {
        let decision = decide_restart(&pod, kind, &container, code, by_probe);
        let text = match decision {
            RestartDecision::Stay => "stay",
            RestartDecision::Restart => "again",
            RestartDecision::RestartAll => "all again",
        };
        text.to_owned()
    })
    .into()
}

#[test]
fn plans() {
    let comes = [
        Come::Nothing,
        Come::Made,
        Come::Unknown,
        Come::Runs,
        Come::Ended(0),
        Come::Ended(1),
        Come::Ended(42),
        Come::Ended(137),
    ];
    let mut rows = Vec::new();
    for part in ["init", "sidecar", "app", "app with a rule"] {
        for policy in POLICIES {
            for come in comes {
                let cells = ["none", "waits", "over"].map(|wait| planned(part, policy, come, wait));
                rows.push([vec![part.to_owned(), policy.into(), come.text()], cells.into()].concat());
            }
        }
    }
    let head = ["container", "policy", "c", "no back-off", "back-off of 40 s", "back-off over"];
    compare("restart-plans.txt", &render(&head, &rows));
}

/// What is planned for a container `c` beside another one, with the images at hand.
fn planned(part: &str, policy: &str, come: Come, wait: &str) -> String {
    let mut container = json!({"name": "c"});
    if part == "sidecar" {
        container["restartPolicy"] = "Always".into();
    }
    if part == "app with a rule" {
        container["restartPolicy"] = policy.into();
        container["restartPolicyRules"] =
            json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [42]}}]);
    }
    let spec = match part {
        "init" | "sidecar" => {
            json!({"restartPolicy": policy, "initContainers": [container], "containers": [{"name": "a"}]})
        }
        _ => json!({"restartPolicy": policy, "containers": [container, {"name": "a"}]}),
    };
    let mut world = World::new(spec);
    world.make_sandbox();
    world.publish();
    for name in ["c", "a"] {
        world.memory.container_mut(name).image = ImageState::Ready("x".into());
    }
    if part.starts_with("app") {
        Come::Runs.happen(&mut world, "a");
    }
    come.happen(&mut world, "c");
    if wait != "none" {
        let delay = jiff::SignedDuration::from_secs(40);
        world.memory.container_mut("c").crash_loop = Some(Backoff { delay, updated_at: world.now });
        world.wait(if wait == "over" { 40 } else { 10 });
    }
    words(&world)
}
