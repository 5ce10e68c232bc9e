//! Tables of the status that follows from what was seen.

use k8s_openapi::api::core::v1::PodStatus;
use serde_json::json;

use crate::containers::ContainerKind;
use crate::lifecycle::Lifecycle;
use crate::memory::{ImageState, Verdict};
use crate::status::ended_since;
use crate::world::World;

#[test]
fn a_pod_that_waits_tells_for_what() {
    let mut world = World::new(json!({"containers": [{"name": "a", "image": "x"}]}));
    world.publish();
    assert_eq!((world.phase(), world.states().as_str()), ("Pending", "a:ContainerCreating"));
    assert_eq!(world.condition("Ready"), "False ContainersNotReady");
    assert_eq!(world.condition("PodReadyToStartContainers"), "False");
    assert_eq!(world.condition("Initialized"), "True");
    world.memory.container_mut("a").image = ImageState::Failed {
        reason: "ImagePullBackOff".into(),
        message: "Back-off pulling image \"x\"".into(),
        retry_at: world.now,
    };
    world.publish();
    assert_eq!(world.states(), "a:ImagePullBackOff");
}

#[test]
fn readiness_follows_the_probe_and_the_gates() {
    let mut world = World::new(json!({
        "readinessGates": [{"conditionType": "example.com/up"}],
        "containers": [{"name": "a", "readinessProbe": {"tcpSocket": {"port": 1}}}]
    }));
    world.settle();
    assert_eq!(world.condition("ContainersReady"), "False ContainersNotReady");
    let timing = crate::probe::probe_timing(&Default::default());
    let probe = crate::probe::ProbeState::new(
        crate::probe::ProbeKind::Readiness,
        "a0",
        world.now,
        &timing,
        Some(true),
        world.now,
    );
    world.memory.container_mut("a").probes.insert(crate::probe::ProbeKind::Readiness, probe);
    world.publish();
    assert_eq!(world.condition("ContainersReady"), "True");
    assert_eq!(world.condition("Ready"), "False ReadinessGatesNotReady");
    world.pod.status =
        Some(serde_json::from_value(json!({"conditions": [{"type": "example.com/up", "status": "True"}]})).unwrap());
    world.publish();
    assert_eq!(world.condition("Ready"), "True");
}

#[test]
fn transition_times_change_with_the_status_only() {
    let mut world = World::new(json!({"containers": [{"name": "a"}]}));
    world.settle();
    let since = |world: &World, kind: &str| {
        world
            .status
            .conditions
            .iter()
            .flatten()
            .find(|condition| condition.type_ == kind)
            .unwrap()
            .last_transition_time
            .clone()
            .unwrap()
            .0
    };
    let ready = since(&world, "Ready");
    world.wait(10);
    world.publish();
    assert_eq!(since(&world, "Ready"), ready);
    world.exit("a", 0);
    world.wait(1);
    world.publish();
    assert_eq!(since(&world, "Ready"), world.now);
    assert_eq!(since(&world, "PodScheduled"), ready);
}

#[test]
fn addresses_and_ids() {
    let mut world = World::new(json!({"containers": [{"name": "a"}]}));
    world.settle();
    assert_eq!((world.status.pod_ip.as_deref(), world.status.host_ip.as_deref()), (Some("10.0.0.5"), Some("10.9.9.9")));
    let container = &world.status.container_statuses.as_ref().unwrap()[0];
    assert_eq!(
        (container.container_id.as_deref(), container.started, container.ready),
        (Some("orlop://a0"), Some(true), true)
    );
    assert_eq!(world.status.qos_class.as_deref(), Some("BestEffort"));
}

#[test]
fn a_terminal_phase_sticks() {
    let mut world = World::new(json!({"restartPolicy": "Never", "containers": [{"name": "a"}]}));
    world.status = serde_json::from_value(json!({"phase": "Failed", "reason": "Evicted", "message": "low"})).unwrap();
    world.publish();
    assert_eq!(
        (world.phase(), world.status.reason.as_deref(), world.status.message.as_deref()),
        ("Failed", Some("Evicted"), Some("low"))
    );
}

#[test]
fn a_verdict_with_disruption_sets_its_condition() {
    let mut world = World::new(json!({"containers": [{"name": "a"}]}));
    world.settle();
    world.memory.verdict =
        Some(Verdict { phase: Some("Failed"), reason: "Evicted".into(), message: "low".into(), disruption: true });
    world.publish();
    assert_eq!(world.condition("DisruptionTarget"), "True TerminationByKubelet");
    assert_eq!(world.condition("Ready"), "False PodFailed");
}

#[test]
fn phases_of_a_deleted_pod() {
    for (code, phase) in [(0, "Succeeded"), (143, "Failed")] {
        let mut world = World::new(json!({"containers": [{"name": "a"}]}));
        world.settle();
        world.exit("a", code);
        world.memory.deleted = true;
        world.memory.lifecycle = Lifecycle::Terminated;
        world.publish();
        assert_eq!(world.phase(), phase);
    }
    let mut world = World::new(json!({"containers": [{"name": "a"}]}));
    world.memory.lifecycle = Lifecycle::Terminated;
    world.publish();
    assert_eq!(world.phase(), "Failed", "deleted before it began");
}

#[test]
fn a_pod_has_not_ended_while_a_container_is_started_anew() {
    let world = || {
        let mut world = World::new(json!({"restartPolicy": "Never", "containers": [{"name": "a"}],
            "initContainers": [{"name": "s", "restartPolicy": "Always"}]}));
        world.settle();
        world.exit("a", 0);
        world
    };
    let mut ended = world();
    ended.exit("s", 0);
    ended.publish();
    assert_eq!(ended.phase(), "Succeeded");
    for (what, prepare) in [
        (
            "its definition changed",
            (|world| world.memory.restart_regardless.extend(["a0".to_owned()])) as fn(&mut World),
        ),
        ("it is being started", |world| world.memory.container_mut("a").starting = true),
        ("a sidecar is being started", |world| world.memory.container_mut("s").starting = true),
    ] {
        let mut world = world();
        world.exit("s", 0);
        prepare(&mut world);
        world.publish();
        assert_eq!(world.phase(), "Running", "{what}");
    }
}

#[test]
fn the_restart_count_never_falls() {
    let mut world = World::new(json!({"containers": [{"name": "a"}]}));
    world.settle();
    world.exit("a", 1);
    let sandbox = world.observed.sandboxes[0].id.clone();
    world.run("a", 1, &sandbox);
    world.observed.containers[0].fact = crate::facts::ContainerFact::Created;
    world.publish();
    let count = |world: &World| world.status.container_statuses.as_ref().unwrap()[0].restart_count;
    assert_eq!(count(&world), 1);
    world.observed.remove_container("a1");
    world.publish();
    assert_eq!(count(&world), 1, "the instance that was never started is gone again");
}

#[test]
fn a_crash_loop_shows_the_last_end() {
    let mut world = World::new(json!({"containers": [{"name": "a"}]}));
    world.settle();
    for _ in 0..2 {
        world.exit("a", 3);
        world.settle();
    }
    let container = &world.status.container_statuses.as_ref().unwrap()[0];
    let waiting = container.state.as_ref().unwrap().waiting.as_ref().unwrap();
    assert_eq!(waiting.reason.as_deref(), Some("CrashLoopBackOff"));
    assert_eq!(waiting.message.as_deref(), Some("back-off 10s restarting failed container=a pod=web_ns(u1)"));
    assert_eq!(container.last_state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 3);
    assert_eq!((container.restart_count, world.phase()), (1, "Running"));
}

#[test]
fn the_signal_that_ends_a_container_is_shown_where_the_pod_names_it() {
    for (lifecycle, shown) in [(json!({"stopSignal": "SIGUSR1"}), Some("SIGUSR1")), (json!({}), None)] {
        let mut world = World::new(json!({"containers": [{"name": "a", "lifecycle": lifecycle}]}));
        world.settle();
        world.publish();
        let statuses = world.status.container_statuses.clone().unwrap_or_default();
        assert_eq!(statuses[0].stop_signal.as_deref(), shown);
    }
}

#[test]
fn each_end_of_an_instance_is_told_once() {
    let ended = |id: &str, code: i32| json!({"terminated": {"containerID": id, "exitCode": code, "reason": "Error"}});
    let running = json!({"running": {}});
    let of = |init: serde_json::Value, last: serde_json::Value, state: serde_json::Value| -> PodStatus {
        serde_json::from_value(json!({
            "initContainerStatuses": [{"name": "i", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": init}],
            "containerStatuses": [
                {"name": "a", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state, "lastState": last}],
        }))
        .unwrap()
    };
    let none = json!({});
    let steps = [
        of(running.clone(), none.clone(), none.clone()),
        of(ended("i0", 0), none.clone(), running.clone()),
        of(ended("i0", 0), none.clone(), ended("a0", 3)),
        // It waits for its back-off, runs again and ends; the second instance was never seen to run.
        of(ended("i0", 0), ended("a0", 3), json!({"waiting": {}})),
        of(ended("i0", 0), ended("a1", 4), ended("a2", 5)),
        of(ended("i0", 0), ended("a1", 4), ended("a2", 5)),
    ];
    let told: Vec<Vec<(ContainerKind, i32)>> = steps
        .windows(2)
        .map(|pair| ended_since(&pair[0], &pair[1]).into_iter().map(|end| (end.kind, end.exit_code)).collect())
        .collect();
    let (init, app) = (ContainerKind::Init, ContainerKind::App);
    assert_eq!(told, [vec![(init, 0)], vec![(app, 3)], vec![], vec![(app, 4), (app, 5)], vec![]]);
}
