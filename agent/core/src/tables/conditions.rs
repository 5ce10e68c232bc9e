//! The conditions: sandbox × volumes × init container × app container × the pod's life; and readiness gates.

use serde_json::{Value, json};

use super::{Come, compare, render};
use crate::lifecycle::Lifecycle;
use crate::memory::StepState;
use crate::probe::{ProbeKind, ProbeState, probe_timing};
use crate::world::World;

const KINDS: [&str; 4] = ["PodReadyToStartContainers", "Initialized", "ContainersReady", "Ready"];

/// An app container as the conditions see it.
#[derive(Clone, Copy, Debug)]
enum App {
    Waits,
    /// It runs, and its readiness probe passes or not.
    Runs(bool),
    Ended(i32),
}

#[test]
fn conditions() {
    let mut rows = Vec::new();
    for life in [Lifecycle::Syncing, Lifecycle::Terminating, Lifecycle::Terminated] {
        for sandbox in ["none", "dead", "no address", "ready"] {
            for volumes in [false, true] {
                for init in [None, Some(Come::Nothing), Some(Come::Runs), Some(Come::Ended(0)), Some(Come::Ended(1))] {
                    for app in [App::Waits, App::Runs(false), App::Runs(true), App::Ended(0), App::Ended(1)] {
                        rows.push(row(life, sandbox, volumes, init, app));
                    }
                }
            }
        }
    }
    let head = ["life", "sandbox", "volumes", "init", "app", "phase", KINDS[0], KINDS[1], KINDS[2], KINDS[3]];
    compare("conditions.txt", &render(&head, &rows));
}

fn row(life: Lifecycle, sandbox: &str, volumes: bool, init: Option<Come>, app: App) -> Vec<String> {
    let world = world(life, sandbox, volumes, init, app, Value::Null);
    let app = match app {
        App::Waits => "-".to_owned(),
        App::Runs(passing) => if passing { "ready" } else { "runs" }.to_owned(),
        App::Ended(code) => format!("ended {code}"),
    };
    let volumes = if volumes { "up" } else { "-" };
    let mut row = vec![
        format!("{life:?}"),
        sandbox.to_owned(),
        volumes.to_owned(),
        init.map_or("none".into(), Come::text),
        app,
        world.phase().to_owned(),
    ];
    row.extend(KINDS.map(|kind| world.condition(kind)));
    row
}

fn world(life: Lifecycle, sandbox: &str, volumes: bool, init: Option<Come>, app: App, gates: Value) -> World {
    let inits = init.map(|_| json!([{"name": "i"}]));
    let mut world = World::new(json!({"restartPolicy": "Never", "initContainers": inits, "readinessGates": gates,
        "containers": [{"name": "a", "readinessProbe": {"tcpSocket": {"port": 1}}}]}));
    if sandbox != "none" {
        world.make_sandbox();
        world.observed.sandboxes[0].ready = sandbox != "dead";
        if sandbox == "no address" {
            world.observed.sandboxes[0].ips.clear();
        }
    }
    world.memory.volumes = if volumes { StepState::Done } else { StepState::Idle };
    if let Some(come) = init {
        come.happen(&mut world, "i");
    }
    match app {
        App::Waits => {}
        App::Runs(passing) => {
            Come::Runs.happen(&mut world, "a");
            let timing = probe_timing(&Default::default());
            let probe = ProbeState::new(ProbeKind::Readiness, "a0", world.now, &timing, Some(passing), world.now);
            world.memory.container_mut("a").probes.insert(ProbeKind::Readiness, probe);
        }
        App::Ended(code) => Come::Ended(code).happen(&mut world, "a"),
    }
    world.memory.lifecycle = life;
    world.publish();
    world
}

#[test]
fn gates() {
    let mut rows = Vec::new();
    for passing in [false, true] {
        for first in [None, Some("False"), Some("True"), Some("Unknown")] {
            for second in [None, Some("False"), Some("True"), Some("Unknown")] {
                let gates = json!([{"conditionType": "one"}, {"conditionType": "two"}]);
                let mut world = world(Lifecycle::Syncing, "ready", true, None, App::Runs(passing), gates);
                let set: Vec<Value> = [("one", first), ("two", second)]
                    .into_iter()
                    .filter_map(|(kind, status)| Some(json!({"type": kind, "status": status?})))
                    .collect();
                world.pod.status = Some(serde_json::from_value(json!({"conditions": set})).unwrap());
                world.publish();
                let ready =
                    world.status.conditions.iter().flatten().find(|condition| condition.type_ == "Ready").unwrap();
                rows.push(vec![
                    if passing { "ready" } else { "runs" }.to_owned(),
                    first.unwrap_or("-").to_owned(),
                    second.unwrap_or("-").to_owned(),
                    world.condition("Ready"),
                    ready.message.clone().unwrap_or_default(),
                ]);
            }
        }
    }
    compare("readiness-gates.txt", &render(&["container", "one", "two", "Ready", "message"], &rows));
}
