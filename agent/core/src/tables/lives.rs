//! The life of a pod: each state × each event, with what is planned and the state after it.

use jiff::SignedDuration;
use serde_json::json;

use super::{Come, compare, render, words};
use crate::lifecycle::Lifecycle;
use crate::memory::{ImageState, ProbeKill, StepState};
use crate::probe::ProbeKind;
use crate::world::World;

/// Where a pod can be in its life.
const STATES: [&str; 9] = [
    "new",
    "sandbox made",
    "init runs",
    "runs",
    "work done",
    "Terminating",
    "Terminated",
    "Finished",
    "Finished, deleted",
];

/// What can happen to it.
const EVENTS: [&str; 22] = [
    "nothing",
    "its init container ends with 0",
    "its init container ends with 1",
    "its app container ends with 0",
    "its app container ends with 1",
    "its sidecar ends with 1",
    "the runtime forgets its containers",
    "its sandbox dies",
    "its sandbox is gone",
    "a second sandbox shows up",
    "its app container's definition changes",
    "a liveness probe fails",
    "a startup probe fails, with a grace of its own",
    "its deadline passes",
    "its volumes fail",
    "an image fails",
    "a start fails",
    "a sandbox fails",
    "a stop is under way",
    "a stop has failed",
    "something may have been made unseen",
    "teardown has failed",
];

#[test]
fn states_and_events() {
    let mut rows = Vec::new();
    for state in STATES {
        for event in EVENTS {
            let mut world = in_state(state);
            happen(&mut world, event);
            let words = words(&world);
            world.pass();
            let after = world.memory.lifecycle;
            rows.push(vec![state.to_owned(), event.to_owned(), words, format!("{after:?}"), world.phase().to_owned()]);
        }
    }
    compare("lives.txt", &render(&["state", "event", "planned", "then", "phase"], &rows));
}

/// A pod with an init container, a sidecar and an app container, on its way.
fn in_state(state: &str) -> World {
    let mut world = World::new(json!({"restartPolicy": "OnFailure", "activeDeadlineSeconds": 1000,
        "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}], "containers": [{"name": "a"}]}));
    world.publish();
    for name in ["i", "s", "a"] {
        world.memory.container_mut(name).image = ImageState::Ready("x".into());
    }
    if state == "new" {
        return world;
    }
    world.make_sandbox();
    let comes = match state {
        "sandbox made" => [Come::Nothing; 3],
        "init runs" => [Come::Runs, Come::Nothing, Come::Nothing],
        "runs" | "Terminating" => [Come::Ended(0), Come::Runs, Come::Runs],
        "work done" => [Come::Ended(0), Come::Runs, Come::Ended(0)],
        _ => [Come::Ended(0), Come::Ended(143), Come::Ended(0)],
    };
    for (name, come) in ["i", "s", "a"].into_iter().zip(comes) {
        come.happen(&mut world, name);
    }
    world.publish();
    world.memory.lifecycle = match state {
        "Terminating" => Lifecycle::Terminating,
        "Terminated" => Lifecycle::Terminated,
        "Finished" | "Finished, deleted" => Lifecycle::Finished,
        _ => Lifecycle::Syncing,
    };
    world.memory.deleted = state == "Finished, deleted";
    if world.memory.lifecycle > Lifecycle::Syncing {
        world.memory.stop_by = Some(world.now + SignedDuration::from_secs(30));
    }
    if world.memory.lifecycle > Lifecycle::Terminating {
        world.observed.sandboxes[0].ready = false;
    }
    world
}

fn happen(world: &mut World, event: &str) {
    let soon = world.now + SignedDuration::from_secs(5);
    let failed = StepState::Failed { failures: 1, retry_at: soon, message: "no".into() };
    let ids: Vec<String> = world.observed.containers.iter().map(|container| container.id.clone()).collect();
    let kill = |kind, grace_seconds| Some(ProbeKill { container_id: "a0".into(), kind, grace_seconds });
    match event {
        "its init container ends with 0" => end(world, "i", 0),
        "its init container ends with 1" => end(world, "i", 1),
        "its app container ends with 0" => end(world, "a", 0),
        "its app container ends with 1" => end(world, "a", 1),
        "its sidecar ends with 1" => end(world, "s", 1),
        "the runtime forgets its containers" => world.observed.containers.clear(),
        "its sandbox dies" => world.observed.sandboxes.iter_mut().for_each(|sandbox| sandbox.ready = false),
        "its sandbox is gone" => world.observed.sandboxes.clear(),
        "a second sandbox shows up" => {
            let mut second = in_state("sandbox made").observed.sandboxes.remove(0);
            (second.id, second.attempt) = ("s1".into(), 1);
            world.observed.sandboxes.insert(0, second);
        }
        "its app container's definition changes" => {
            world.pod.spec.as_mut().unwrap().containers[0].image = Some("x:2".into());
        }
        "a liveness probe fails" => world.memory.container_mut("a").kill = kill(ProbeKind::Liveness, None),
        "a startup probe fails, with a grace of its own" => {
            world.memory.container_mut("a").kill = kill(ProbeKind::Startup, Some(3));
        }
        "its deadline passes" => world.wait(1000),
        "its volumes fail" => world.memory.volumes = failed,
        "an image fails" => {
            let image = ImageState::Failed { reason: "ErrImagePull".into(), message: "no".into(), retry_at: soon };
            for name in ["i", "s", "a"] {
                world.memory.container_mut(name).image = image.clone();
            }
        }
        "a start fails" => {
            let failure = crate::memory::StartFailure {
                reason: "CreateContainerError".into(),
                message: "no".into(),
                retry_at: soon,
            };
            for name in ["i", "s", "a"] {
                world.memory.container_mut(name).failure = Some(failure.clone());
            }
        }
        "a sandbox fails" => world.memory.sandbox = failed,
        "a stop is under way" => world.memory.stopping.extend(ids.into_iter().chain(["s0".to_owned()])),
        "a stop has failed" => {
            let all = ids.into_iter().chain(["s0".to_owned()]);
            world.memory.stop_failures.extend(all.map(|id| (id, soon)));
        }
        "something may have been made unseen" => world.memory.look = StepState::Idle,
        "teardown has failed" => world.memory.teardown = failed,
        _ => {}
    }
}

fn end(world: &mut World, name: &str, code: i32) {
    if world.observed.containers.iter().any(|container| container.name == name && container.running()) {
        world.exit(name, code);
    }
}
