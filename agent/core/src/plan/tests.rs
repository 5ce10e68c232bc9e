//! Tables of what is planned in which state.

use serde_json::json;

use crate::facts::{ContainerFact, ObservedPod};
use crate::lifecycle::Lifecycle;
use crate::memory::{ImageState, ProbeKill, StepState};
use crate::plan::Action;
use crate::probe::ProbeKind;
use crate::world::World;

#[test]
fn a_simple_pod_starts_with_everything_that_can_go_side_by_side() {
    let mut world = World::new(json!({"containers": [{"name": "a"}, {"name": "b"}]}));
    assert_eq!(world.pass(), ["volumes", "sandbox 0", "image a", "image b"]);
    assert_eq!(world.pass(), ["start a 0"]);
    assert_eq!(world.pass(), ["start b 0"]);
    assert_eq!(world.pass(), [""; 0]);
    assert_eq!((world.phase(), world.states().as_str()), ("Running", "a:Running b:Running"));
}

#[test]
fn nothing_starts_before_volumes_sandbox_and_image_are_there() {
    let mut world = World::new(json!({"containers": [{"name": "a"}, {"name": "b"}]}));
    world.memory.volumes = StepState::Running;
    assert_eq!(world.settle(), ["sandbox 0", "image a", "image b"]);
    world.memory.volumes = StepState::Done;
    world.memory.container_mut("a").image = ImageState::Pulling;
    assert!(world.plan().actions.is_empty(), "b waits for a, which comes before it");
    world.memory.container_mut("a").image = ImageState::Failed {
        reason: "ErrImagePull".into(),
        message: "no".into(),
        retry_at: world.now + jiff::SignedDuration::from_secs(10),
    };
    assert_eq!(world.settle(), ["start b 0"]);
    assert_eq!(world.states(), "a:ErrImagePull b:Running");
    assert_eq!(world.phase(), "Pending");
    world.wait(10);
    assert_eq!(world.settle(), ["image a", "start a 0"]);
}

#[test]
fn nothing_wakes_for_a_stop_that_is_under_way() {
    for lifecycle in Lifecycle::ALL {
        let mut world = World::new(json!({"containers": [{"name": "a"}]}));
        world.settle();
        if lifecycle > Lifecycle::Terminating {
            world.exit("a", 0);
        }
        world.memory.lifecycle = lifecycle;
        world.memory.deleted = true;
        world.memory.teardown = StepState::Done;
        for id in ["a0", "s0"] {
            world.memory.stop_failures.insert(id.into(), world.now);
            world.memory.stopping.insert(id.into());
            world.memory.removing.insert(id.into());
        }
        world.wait(1);
        let plan = world.plan();
        assert!(plan.wake_at.is_none_or(|at| at > world.now), "{lifecycle:?} {plan:?}");
    }
}

#[test]
fn a_removal_that_failed_waits_for_its_turn() {
    let mut world = World::new(json!({"containers": [{"name": "a"}]}));
    world.settle();
    world.exit("a", 1);
    world.settle();
    world.exit("a", 1);
    let later = world.now + jiff::SignedDuration::from_secs(2);
    world.memory.stop_failures.insert("a0".into(), later);
    assert!(world.plan().actions.iter().all(|action| !matches!(action, Action::RemoveContainer { .. })));
    world.wait(2);
    assert_eq!(world.pass()[0], "back-off a");
    assert!(world.observed.containers.iter().all(|container| container.id != "a0"), "removed when its time has come");
}

#[test]
fn a_container_that_is_being_started_keeps_the_sandbox_within_the_grace() {
    let mut world = World::new(json!({"containers": [{"name": "a"}]}));
    world.settle();
    world.observed.containers.clear();
    world.memory.container_mut("a").starting = true;
    world.memory.lifecycle = Lifecycle::Terminating;
    world.memory.stop_by = Some(world.now + jiff::SignedDuration::from_secs(10));
    assert_eq!(world.pass(), [""; 0]);
    assert_eq!(world.plan().wake_at, world.memory.stop_by);
    world.wait(10);
    assert_eq!(world.pass(), ["stop sandbox s0"]);
}

#[test]
fn a_pod_with_a_failed_making_is_looked_at_before_it_counts_as_stopped() {
    let mut world = World::new(json!({"containers": [{"name": "a"}]}));
    world.memory.lifecycle = Lifecycle::Terminating;
    world.memory.look = StepState::Idle;
    world.memory.sandbox = StepState::Running;
    assert_eq!(world.pass(), [""; 0], "something is still being made");
    world.memory.sandbox = StepState::Idle;
    assert_eq!(world.pass(), ["look"]);
    assert_eq!(world.pass(), ["stopped"]);
}

#[test]
fn init_containers_run_one_after_the_other_and_sidecars_stay() {
    let mut world = World::new(json!({
        "initContainers": [{"name": "i1"}, {"name": "s", "restartPolicy": "Always"}, {"name": "i2"}],
        "containers": [{"name": "a"}]
    }));
    assert_eq!(world.settle(), ["volumes", "sandbox 0", "image i1", "start i1 0"]);
    assert_eq!(
        (world.phase(), world.states().as_str()),
        ("Pending", "i1:Running s:PodInitializing i2:PodInitializing a:PodInitializing")
    );
    world.exit("i1", 0);
    assert_eq!(world.pass(), ["image s"]);
    assert_eq!(world.pass(), ["start s 0"]);
    world.publish();
    assert_eq!(world.settle(), ["image i2", "start i2 0"]);
    world.exit("s", 1);
    assert_eq!(world.settle(), ["image s", "start s 1"]);
    world.exit("i2", 0);
    assert_eq!(world.settle(), ["image a", "start a 0"]);
    assert_eq!(
        (world.phase(), world.states().as_str()),
        ("Running", "i1:Completed(0) s:Running i2:Completed(0) a:Running")
    );
    assert_eq!(world.condition("Initialized"), "True");
}

#[test]
fn a_sidecar_with_a_startup_probe_holds_back_what_follows() {
    let mut world = World::new(json!({
        "initContainers": [{"name": "s", "restartPolicy": "Always", "startupProbe": {"exec": {"command": ["x"]}}}],
        "containers": [{"name": "a"}]
    }));
    world.settle();
    assert_eq!(world.states(), "s:Running a:PodInitializing");
    let timing = crate::probe::probe_timing(&Default::default());
    let probe = crate::probe::ProbeState::new(ProbeKind::Startup, "s0", world.now, &timing, Some(true), world.now);
    world.memory.container_mut("s").probes.insert(ProbeKind::Startup, probe);
    assert_eq!(world.settle(), ["image a", "start a 0"]);
}

#[test]
fn a_failed_init_container_is_tried_again_or_ends_the_pod() {
    let spec = |policy: &str| json!({"restartPolicy": policy, "initContainers": [{"name": "i"}], "containers": [{"name": "a"}]});
    let mut world = World::new(spec("Always"));
    world.settle();
    world.exit("i", 1);
    assert_eq!(world.settle(), ["image i", "start i 1"]);
    world.exit("i", 1);
    assert_eq!(world.pass(), ["remove i0", "back-off i"].map(str::to_owned).into_iter().rev().collect::<Vec<_>>());
    assert_eq!(world.states(), "i:CrashLoopBackOff a:PodInitializing");
    let mut world = World::new(spec("Never"));
    world.settle();
    world.exit("i", 1);
    assert_eq!(world.pass(), ["stop"]);
    assert_eq!((world.phase(), world.states().as_str()), ("Failed", "i:Error(1) a:PodInitializing"));
}

#[test]
fn restarts_back_off() {
    let mut world = World::new(json!({"containers": [{"name": "a"}]}));
    world.settle();
    let mut waits = Vec::new();
    for _ in 0..6 {
        world.exit("a", 1);
        world.settle();
        let start = world.now;
        while !world.observed.latest("a").unwrap().running() {
            world.now = world.plan().wake_at.expect("a time to wake");
            world.settle();
        }
        waits.push(world.now.duration_since(start).as_secs());
    }
    assert_eq!(waits, [0, 10, 20, 40, 80, 160]);
    assert_eq!(world.status.container_statuses.as_ref().unwrap()[0].restart_count, 6);
    assert_eq!(world.observed.containers.len(), 2, "one dead instance is kept");
}

#[test]
fn another_image_is_not_held_back_by_failures_of_the_one_before() {
    let mut world = World::new(json!({"containers": [{"name": "a", "image": "old"}]}));
    world.settle();
    world.exit("a", 1);
    world.settle();
    world.exit("a", 1);
    assert_eq!(world.settle(), ["back-off a", "remove a0"]);
    world.pod.spec.as_mut().unwrap().containers[0].image = Some("new".into());
    assert_eq!(world.settle(), ["image a", "start a 2"]);
    world.exit("a", 1);
    assert_eq!(world.settle(), ["image a", "remove a1", "start a 3"], "its back-off begins anew");
}

#[test]
fn policies_end_pods() {
    for (policy, code, phase, lifecycle) in [
        ("Never", 0, "Succeeded", Lifecycle::Terminating),
        ("Never", 1, "Failed", Lifecycle::Terminating),
        ("OnFailure", 0, "Succeeded", Lifecycle::Terminating),
        ("OnFailure", 1, "Running", Lifecycle::Syncing),
        ("Always", 0, "Running", Lifecycle::Syncing),
    ] {
        let mut world = World::new(json!({"restartPolicy": policy, "containers": [{"name": "a"}]}));
        world.settle();
        world.exit("a", code);
        world.pass();
        assert_eq!((world.phase(), world.memory.lifecycle), (phase, lifecycle), "{policy} {code}");
    }
}

#[test]
fn a_lost_sandbox_is_replaced_and_init_containers_run_again() {
    let mut world = World::new(json!({"initContainers": [{"name": "i"}], "containers": [{"name": "a"}]}));
    world.settle();
    world.exit("i", 0);
    world.settle();
    world.observed.sandboxes[0].ready = false;
    assert_eq!(world.pass()[0], "stop sandbox s0");
    assert_eq!(world.settle(), ["sandbox 1", "start i 1"]);
    world.exit("i", 0);
    let done = world.settle();
    assert!(done.contains(&"start a 1".to_owned()), "{done:?}");
    assert_eq!(world.phase(), "Running");
}

#[test]
fn a_container_that_starts_late_in_an_old_sandbox_is_stopped_before_the_next_starts() {
    let mut world = World::new(json!({"containers": [{"name": "a"}]}));
    world.settle();
    world.exit("a", 1);
    world.observed.sandboxes[0].ready = false;
    assert_eq!(world.pass()[0], "sandbox 1");
    world.observed.containers[0].fact = crate::facts::ContainerFact::Running;
    assert_eq!(world.pass(), ["stop sandbox s0"]);
    assert_eq!(world.settle(), ["start a 1"]);
}

#[test]
fn a_finished_pod_gets_no_new_sandbox() {
    let mut world = World::new(json!({"restartPolicy": "Never", "containers": [{"name": "a"}]}));
    world.settle();
    world.exit("a", 0);
    world.observed.sandboxes[0].ready = false;
    assert_eq!(world.pass(), ["stop"]);
}

#[test]
fn changed_definitions_and_failed_probes_kill() {
    let mut world =
        World::new(json!({"restartPolicy": "Never", "containers": [{"name": "a", "image": "x:1"}, {"name": "b"}]}));
    world.settle();
    world.pod.spec.as_mut().unwrap().containers[0].image = Some("x:2".into());
    assert_eq!(world.pass(), ["stop a Changed 30s"]);
    assert_eq!(world.settle(), ["image a", "start a 1"]);
    let mut world = World::new(json!({"terminationGracePeriodSeconds": 7, "containers": [{"name": "a"}]}));
    world.settle();
    world.memory.container_mut("a").kill =
        Some(ProbeKill { container_id: "a0".into(), kind: ProbeKind::Liveness, grace_seconds: None });
    assert_eq!(world.settle(), ["stop a Liveness 7s", "image a", "start a 1"]);
}

#[test]
fn deadlines_end_pods() {
    let mut world = World::new(json!({"activeDeadlineSeconds": 5, "containers": [{"name": "a"}]}));
    world.settle();
    assert_eq!(world.plan().wake_at, Some(world.now + jiff::SignedDuration::from_secs(5)));
    world.wait(5);
    assert_eq!(world.settle(), ["stop", "stop a PodEnds 30s", "stop sandbox s0", "stopped", "tear down"]);
    assert_eq!((world.phase(), world.status.reason.as_deref()), ("Failed", Some("DeadlineExceeded")));
}

#[test]
fn a_deleted_pod_stops_in_order_and_is_forgotten() {
    let mut world = World::new(json!({
        "initContainers": [{"name": "s1", "restartPolicy": "Always"}, {"name": "s2", "restartPolicy": "Always"}],
        "containers": [{"name": "a"}]
    }));
    world.settle();
    world.memory.deleted = true;
    world.memory.lifecycle = Lifecycle::Terminating;
    world.memory.stop_by = Some(world.now + jiff::SignedDuration::from_secs(9));
    let done = world.settle();
    assert_eq!(
        done,
        [
            "stop s2 PodEnds 9s after a0",
            "stop s1 PodEnds 9s after s20,a0",
            "stop a PodEnds 9s",
            "stop sandbox s0",
            "stopped",
            "tear down",
            "remove sandbox s0"
        ]
    );
    assert_eq!(world.memory.lifecycle, Lifecycle::Finished);
    assert!(world.observed.is_empty());
}

#[test]
fn an_interrupted_creation_is_made_again_with_the_same_number() {
    let mut world = World::new(json!({"containers": [{"name": "a"}]}));
    world.settle();
    world.observed.containers[0].fact = crate::facts::ContainerFact::Created;
    let done = world.settle();
    assert_eq!(done[..1], ["image a"]);
    assert_eq!(world.observed.latest("a").unwrap().attempt, 0);
}

#[test]
fn an_interrupted_creation_that_is_gone_is_made_again_with_the_same_number() {
    let mut world = World::new(json!({"containers": [{"name": "a"}]}));
    world.settle();
    world.observed.containers[0].fact = crate::facts::ContainerFact::Created;
    world.publish();
    world.observed.containers.clear();
    world.settle();
    assert_eq!(world.observed.latest("a").unwrap().attempt, 0);
}

#[test]
fn a_lost_runtime_counts_on_from_the_status() {
    let mut world = World::new(json!({"containers": [{"name": "a"}]}));
    world.settle();
    world.exit("a", 1);
    world.settle();
    world.observed = ObservedPod::default();
    world.publish();
    let done = world.settle();
    assert_eq!(done, ["sandbox 0", "image a", "start a 2"]);
}

#[test]
fn a_rule_may_restart_all() {
    let mut world = World::new(json!({
        "restartPolicy": "Never",
        "initContainers": [{"name": "i"}],
        "containers": [
            {"name": "a", "restartPolicy": "Never", "restartPolicyRules": [{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [88]}}]},
            {"name": "b"}
        ]
    }));
    world.settle();
    world.exit("i", 0);
    world.settle();
    assert_eq!(world.condition("AllContainersRestarting"), "False");
    world.exit("a", 88);
    assert_eq!(world.pass(), ["stop b RestartAll 0s"]);
    assert_eq!(world.condition("AllContainersRestarting"), "True RestartAllContainersStarted");
    assert_eq!(world.states(), "i:RestartingAllContainers a:RestartingAllContainers b:RestartingAllContainers");
    assert_eq!(world.settle(), ["remove i0", "remove b0", "remove a0", "image i", "start i 1"]);
    assert_eq!(world.condition("AllContainersRestarting"), "False");
    assert_eq!(world.condition("Initialized"), "True", "a pod that was initialized stays so");
    world.exit("i", 0);
    assert_eq!(world.settle(), ["image a", "image b", "start a 1", "start b 1"]);
    let last = |name: &str| {
        let statuses = world.status.container_statuses.iter().flatten();
        let status = statuses.into_iter().find(|status| status.name == name).unwrap();
        let end = status.last_state.clone().unwrap().terminated.unwrap();
        (end.reason.unwrap(), end.exit_code, status.restart_count)
    };
    assert_eq!(last("a"), ("Error".into(), 88, 1));
    assert_eq!(last("b"), ("RestartingAllContainers".into(), 137, 1));
}

#[test]
fn a_sidecar_may_restart_all_although_the_rest_would_stay_ended() {
    let mut world = World::new(json!({
        "restartPolicy": "Never",
        "initContainers": [
            {"name": "s", "restartPolicy": "Always", "restartPolicyRules": [{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [88]}}]}
        ],
        "containers": [{"name": "a"}]
    }));
    world.settle();
    world.exit("s", 88);
    assert_eq!(world.pass(), ["stop a RestartAll 0s"]);
    assert_eq!(world.phase(), "Running");
    assert_eq!(world.settle(), ["remove a0", "remove s0", "image s", "start s 1", "image a", "start a 1"]);
    assert_eq!((world.phase(), world.states().as_str()), ("Running", "s:Running a:Running"));
}

#[test]
fn a_restart_of_all_waits_for_starts() {
    let mut world = World::new(json!({
        "restartPolicy": "Never",
        "containers": [
            {"name": "a", "restartPolicy": "Never", "restartPolicyRules": [{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [88]}}]},
            {"name": "b"}
        ]
    }));
    world.settle();
    world.exit("a", 88);
    world.observed.containers.iter_mut().find(|container| container.name == "b").unwrap().fact = ContainerFact::Created;
    world.memory.container_mut("b").starting = true;
    assert_eq!(world.pass(), [""; 0], "it may run already");
    world.memory.container_mut("b").starting = false;
    assert_eq!(world.pass(), ["remove b0"]);
}

#[test]
fn ephemeral_containers_start_at_once_and_once() {
    let mut world = World::new(
        json!({"initContainers": [{"name": "i"}], "containers": [{"name": "a"}], "ephemeralContainers": [{"name": "e", "image": "x"}]}),
    );
    assert_eq!(world.settle(), ["volumes", "sandbox 0", "image e", "image i", "start e 0", "start i 0"]);
    world.exit("e", 1);
    assert_eq!(world.settle(), [""; 0]);
    assert_eq!(world.states(), "i:Running a:PodInitializing e:Error(1)");
}
