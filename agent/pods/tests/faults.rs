//! Things that fail or hang: each hurts its own pod only.

mod world;

use std::collections::BTreeMap;
use std::sync::Arc;

use orlop_agent_core::ports::PodSet;
use serde_json::json;
use world::runtime::FakeRuntime;
use world::{World, pod};

fn simple() -> serde_json::Value {
    json!({"containers": [{"name": "a", "image": "x:1"}]})
}

#[tokio::test]
async fn what_hangs_in_one_pod_leaves_the_others_alone() {
    let world = World::new();
    world.runtime.hang("pull_image slow:1");
    world.runtime.hang("exec stuck");
    world.runtime.hang("run_sandbox u3");
    world.apply(pod("u1", json!({"containers": [{"name": "a", "image": "slow:1"}]})));
    world.apply(pod("u2", json!({"containers": [{"name": "a", "image": "x:1", "lifecycle": {"postStart": {"exec": {"command": ["stuck"]}}}}]})));
    world.apply(pod("u3", simple()));
    world
        .until("all three hang", |world| {
            ["pull_image slow", "exec stuck", "run_sandbox u3"].iter().all(|call| world.runtime.count(call) == 1)
        })
        .await;
    world.apply(pod("u4", simple()));
    world.until("the fourth runs", |world| world.ready("u4")).await;
    for uid in ["u1", "u2", "u3"] {
        world.delete(uid, 1);
    }
    for uid in ["u1", "u2", "u3"] {
        world.until("the hanging pods can be deleted", |world| world.finished(uid)).await;
    }
}

#[tokio::test]
async fn a_pull_that_fails_is_told_and_tried_again() {
    let world = World::new();
    world.runtime.fail("pull_image bad:1", "rpc error: code = NotFound desc = no such image");
    world.apply(pod("u1", json!({"containers": [{"name": "a", "image": "bad:1"}]})));
    world.until("the error shows", |world| world.waiting("u1") == "ErrImagePull").await;
    world.until("then the back-off", |world| world.waiting("u1") == "ImagePullBackOff").await;
    assert!(world.has_event("Failed: Failed to pull image \"bad:1\": rpc error: code = NotFound desc = no such image"));
    assert!(world.has_event("BackOff: Back-off pulling image \"bad:1\""));
    assert_eq!(world.runtime.count("pull_image"), 1);
}

#[tokio::test]
async fn images_that_can_not_be() {
    let world = World::new();
    world.apply(pod("u1", json!({"containers": [{"name": "a", "image": "Bad Name"}]})));
    world.apply(pod("u2", json!({"containers": [{"name": "a", "image": "absent:1", "imagePullPolicy": "Never"}]})));
    world
        .until("told", |world| world.waiting("u1") == "InvalidImageName" && world.waiting("u2") == "ErrImageNeverPull")
        .await;
}

#[tokio::test]
async fn a_missing_config_map_is_told_and_its_coming_starts_the_container() {
    let world = World::new();
    world.apply(pod(
        "u1",
        json!({"containers": [{"name": "a", "image": "x:1", "envFrom": [{"configMapRef": {"name": "cm"}}]}]}),
    ));
    world.until("told", |world| world.waiting("u1") == "CreateContainerConfigError").await;
    assert!(world.has_event("Failed: Error: configmap \"cm\" not found"));
    world.ports.config_maps.lock().unwrap().insert("cm".into(), Arc::default());
    world.changes.send(("ConfigMap".into(), "ns".into(), "cm".into())).unwrap();
    world.until("started", |world| world.ready("u1")).await;
}

#[tokio::test]
async fn a_sandbox_that_fails_is_made_again() {
    let world = World::new();
    world.runtime.fail("run_sandbox", "plugin bridge failed");
    world.apply(pod("u1", simple()));
    world
        .until("told", |world| {
            world.has_event("FailedCreatePodSandBox: Failed to create pod sandbox: plugin bridge failed")
        })
        .await;
    world.runtime.heal("run_sandbox");
    world.until("made", |world| world.ready("u1")).await;
}

#[tokio::test]
async fn volumes_that_fail_hold_back_containers() {
    let world = World::new();
    *world.ports.fail_volumes.lock().unwrap() = Some("no such disk".into());
    world.apply(pod("u1", simple()));
    world
        .until("told", |world| world.has_event("FailedMount: MountVolume.SetUp failed for volume \"v\" : no such disk"))
        .await;
    assert_eq!(world.runtime.count("create_container"), 0);
    *world.ports.fail_volumes.lock().unwrap() = None;
    world.until("started", |world| world.ready("u1")).await;
}

#[tokio::test]
async fn a_container_that_runs_is_not_made_again_for_want_of_its_status() {
    let world = World::new();
    world.runtime.hide_news();
    world.runtime.fail("container", "no status just now");
    world.apply(pod("u1", simple()));
    world.until("told to run", |world| world.phase("u1") == "Running").await;
    world.runtime.heal("container");
    world.forget("u1");
    world.until("ended", |world| world.runtime.count("stop_container") == 1).await;
    assert_eq!((world.runtime.count("create_container"), world.runtime.count("remove_container")), (1, 0));
}

#[tokio::test]
async fn a_container_that_was_started_without_an_answer_is_not_removed() {
    let world = World::new();
    world.runtime.lose_answer("start_container", "no answer");
    world.runtime.hide_news();
    world.runtime.fail("container", "no status just now");
    world.apply(pod("u1", simple()));
    world.until("told", |world| world.has_event("Failed: Error: no answer")).await;
    world.runtime.heal("container");
    world.until("runs", |world| world.ready("u1")).await;
    assert_eq!((world.runtime.count("create_container"), world.runtime.count("remove_container")), (1, 0));
}

#[tokio::test]
async fn a_failed_hook_kills_and_restarts() {
    let world = World::new();
    world.runtime.set_exec("post", 3);
    world.apply(pod("u1", json!({"containers": [{"name": "a", "image": "x:1", "lifecycle": {"postStart": {"exec": {"command": ["post"]}}}}]})));
    world.until("told", |world| world.waiting("u1") == "PostStartHookError").await;
    assert!(world.has_event("FailedPostStartHook"));
    world.runtime.set_exec("post", 0);
    world.until("well again", |world| world.ready("u1")).await;
}

#[tokio::test]
async fn a_failing_liveness_probe_restarts_and_readiness_follows_its_probe() {
    let world = World::new();
    world.runtime.set_exec("ready", 1);
    world.apply(pod(
        "u1",
        json!({"containers": [{"name": "a", "image": "x:1",
        "livenessProbe": {"exec": {"command": ["alive"]}, "periodSeconds": 1, "failureThreshold": 1},
        "readinessProbe": {"exec": {"command": ["ready"]}, "periodSeconds": 1, "failureThreshold": 1}}]}),
    ));
    world
        .until("running, not ready", |world| {
            world.phase("u1") == "Running" && world.has_event("Unhealthy: Readiness probe failed: ")
        })
        .await;
    assert!(!world.ready("u1"));
    world.runtime.set_exec("ready", 0);
    world.until("ready", |world| world.ready("u1")).await;
    world.runtime.set_exec("alive", 1);
    world
        .until("killed", |world| world.has_event("Killing: Container a failed liveness probe, will be restarted"))
        .await;
    world.runtime.set_exec("alive", 0);
    world.until("restarted", |world| world.runtime.count("create_container a 1") == 1 && world.ready("u1")).await;
}

#[tokio::test]
async fn a_shorter_grace_is_heard_while_stopping() {
    let world = World::new();
    world.runtime.set_stubborn("u1-a");
    world
        .apply(pod("u1", json!({"terminationGracePeriodSeconds": 600, "containers": [{"name": "a", "image": "x:1"}]})));
    world.until("running", |world| world.ready("u1")).await;
    world.delete("u1", 600);
    world
        .until("stopping", |world| {
            world.runtime.calls().iter().any(|call| call.starts_with("stop_container") && call.ends_with(" 600"))
        })
        .await;
    world.forget("u1");
    world.until("killed soon", |world| world.runtime.is_empty()).await;
}

#[tokio::test]
async fn a_new_agent_takes_over_without_restarting_anything() {
    let world = World::new();
    world.runtime.set_exec("ready", 0);
    let spec = json!({"containers": [{"name": "a", "image": "x:1", "readinessProbe": {"exec": {"command": ["ready"]}, "periodSeconds": 1, "failureThreshold": 100}}]});
    world.apply(pod("u1", spec.clone()));
    world.apply(pod("u2", simple()));
    world.until("ready", |world| world.ready("u1") && world.ready("u2")).await;
    let mut seen = pod("u1", spec);
    seen.status = Some(world.status("u1"));
    let runtime: Arc<FakeRuntime> = world.runtime.clone();
    let folder = world.end().await;
    runtime.set_exec("ready", 1);
    let before = runtime.calls().len();
    // The second pod was deleted while no agent was there.
    let set = PodSet { synced: true, pods: BTreeMap::from([("u1".to_owned(), Arc::new(seen))]) };
    let world = World::with(runtime.clone(), folder, set, None);
    world
        .until("the orphan is gone", |world| {
            world.runtime.running("u2").is_empty() && !world.folder.path().join("kubelet/pods/u2").exists()
        })
        .await;
    world.until("probed", |world| world.has_event("Readiness probe failed")).await;
    assert!(world.ready("u1"), "what was ready stays so until its probe has failed often enough");
    let calls = &runtime.calls()[before..];
    assert!(!calls.iter().any(|call| call.contains("u1") && !call.starts_with("exec")), "{calls:?}");
    assert_eq!(runtime.running("u1").len(), 1);
}

#[tokio::test]
async fn nothing_is_ended_before_the_sources_have_spoken() {
    let world = World::new();
    world.apply(pod("u1", simple()));
    world.until("ready", |world| world.ready("u1")).await;
    let runtime = world.runtime.clone();
    let folder = world.end().await;
    let world = World::with(runtime, folder, PodSet::default(), None);
    world.until("listed", |world| world.view.health().is_ok()).await;
    assert_eq!(world.runtime.running("u1").len(), 1);
    world.api.send_modify(|set| *set = Arc::new(PodSet { synced: true, pods: BTreeMap::new() }));
    world.until("ended", |world| world.runtime.is_empty()).await;
}
