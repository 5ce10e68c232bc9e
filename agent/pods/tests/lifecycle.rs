//! Pods from their first day to their last, on a node in memory.

mod world;

use std::time::Instant;

use serde_json::json;
use world::{World, pod};

#[tokio::test]
async fn a_pod_starts_runs_and_is_deleted_without_a_trace() {
    let world = World::new();
    let begun = Instant::now();
    world.apply(pod("u1", json!({"containers": [{"name": "a", "image": "x:1"}, {"name": "b", "image": "y:1"}]})));
    world.until("ready", |world| world.ready("u1")).await;
    assert!(begun.elapsed().as_millis() < 1500, "{:?}", begun.elapsed());
    assert_eq!(world.phase("u1"), "Running");
    assert_eq!(world.status("u1").pod_ip.as_deref(), Some("10.0.0.2"));
    for event in
        ["Pulling: Pulling image \"y:1\"", "Pulled: Container image \"x:1\" already present", "Created: ", "Started: "]
    {
        assert!(world.has_event(event), "{event}");
    }
    let hosts = std::fs::read_to_string(world.folder.path().join("kubelet/pods/u1/etc-hosts")).unwrap();
    assert!(hosts.contains("10.0.0.2\tpod-u1\n"), "{hosts}");
    world.delete("u1", 5);
    world.until("finished", |world| world.finished("u1")).await;
    world.forget("u1");
    let gone = |world: &World| {
        let folder = world.folder.path().join("kubelet/pods/u1");
        world.runtime.is_empty() && !folder.exists() && world.view.pods().is_empty()
    };
    world.until("all removed", gone).await;
    assert!(world.has_event("Killing: Stopping container a"));
    assert_eq!(world.ports.torn_down.lock().unwrap().as_slice(), ["u1"]);
}

#[tokio::test]
async fn a_job_succeeds_and_its_container_stays_for_its_log() {
    let world = World::new();
    world.apply(pod("u1", json!({"restartPolicy": "Never", "containers": [{"name": "a", "image": "x:1"}]})));
    world.until("running", |world| world.ready("u1")).await;
    let log = world.folder.path().join("kubelet/pods/u1/containers/a/00000000");
    std::fs::write(log, "all done").unwrap();
    world.runtime.exit("u1", "a", 0);
    world.until("succeeded", |world| world.phase("u1") == "Succeeded").await;
    world
        .until("sandbox stopped", |world| {
            world.runtime.count("stop_sandbox") == 1 && !world.ports.torn_down.lock().unwrap().is_empty()
        })
        .await;
    let status = world.status("u1").container_statuses.unwrap().remove(0);
    let end = status.state.unwrap().terminated.unwrap();
    assert_eq!((end.reason.as_deref(), end.message.as_deref()), (Some("Completed"), Some("all done")));
    assert_eq!(world.runtime.count("remove_container"), 0);
    assert!(world.view.container("ns", "pod-u1", None, "a", false).await.is_ok());
}

#[tokio::test]
async fn a_crashing_container_is_restarted_at_once_and_then_backs_off() {
    let world = World::new();
    world.apply(pod("u1", json!({"containers": [{"name": "a", "image": "x:1"}]})));
    world.until("running", |world| world.ready("u1")).await;
    world.runtime.exit("u1", "a", 1);
    world.until("restarted", |world| world.runtime.count("start_container") == 2 && world.ready("u1")).await;
    world.runtime.exit("u1", "a", 1);
    world.until("backing off", |world| world.waiting("u1") == "CrashLoopBackOff").await;
    assert!(world.has_event("BackOff: Back-off restarting failed container a in pod pod-u1_ns(u1)"));
    assert_eq!(world.status("u1").container_statuses.unwrap()[0].restart_count, 1);
    assert!(
        world
            .view
            .container("ns", "pod-u1", None, "a", true)
            .await
            .is_err_and(|error| error.to_string().contains("previous terminated"))
            || world.runtime.running("u1").is_empty()
    );
}

#[tokio::test]
async fn a_lost_sandbox_is_replaced() {
    let world = World::new();
    world.apply(pod("u1", json!({"containers": [{"name": "a", "image": "x:1"}]})));
    world.until("running", |world| world.ready("u1")).await;
    world.runtime.kill_sandbox("u1");
    world.until("again", |world| world.runtime.count("run_sandbox") == 2 && world.ready("u1")).await;
    assert!(world.status("u1").container_statuses.unwrap()[0].restart_count == 1);
}

#[tokio::test]
async fn init_containers_sidecars_and_hooks_go_in_order() {
    let world = World::new();
    world.apply(pod("u1", json!({
        "terminationGracePeriodSeconds": 10,
        "initContainers": [{"name": "i", "image": "x:1"}, {"name": "side", "image": "x:1", "restartPolicy": "Always"}],
        "containers": [
            {"name": "a", "image": "x:1", "lifecycle": {"postStart": {"exec": {"command": ["post"]}}, "preStop": {"exec": {"command": ["pre"]}}}},
            {"name": "b", "image": "x:1"}
        ]
    })));
    world.until("init runs", |world| world.runtime.running("u1").len() == 1).await;
    assert_eq!(world.phase("u1"), "Pending");
    world.runtime.exit("u1", "i", 0);
    world.until("ready", |world| world.ready("u1")).await;
    let calls = world.runtime.calls();
    let order: Vec<&str> = calls
        .iter()
        .filter(|call| call.starts_with("create_container") || call.starts_with("exec"))
        .map(String::as_str)
        .collect();
    assert_eq!(
        order,
        [
            "create_container i 0",
            "create_container side 0",
            "create_container a 0",
            "exec post",
            "create_container b 0"
        ]
    );
    world.delete("u1", 10);
    world.until("finished", |world| world.finished("u1")).await;
    let calls = world.runtime.calls();
    let at = |start: &str| {
        calls.iter().position(|call| call.starts_with(start)).unwrap_or_else(|| panic!("{start}: {calls:?}"))
    };
    assert!(at("exec pre") < at("stop_container u1-a"));
    assert!(
        at("stop_container u1-b") < at("stop_container u1-side")
            && at("stop_container u1-a") < at("stop_container u1-side")
    );
}

#[tokio::test]
async fn static_pods_run_and_get_mirrors() {
    let statics = tempfile::tempdir().unwrap();
    let text = "kind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: a, image: 'x:1'}]}\n";
    std::fs::write(statics.path().join("web.yaml"), text).unwrap();
    let set = orlop_agent_core::ports::PodSet { synced: true, ..Default::default() };
    let world = World::with(
        world::runtime::FakeRuntime::new(),
        tempfile::tempdir().unwrap(),
        set,
        Some(statics.path().to_path_buf()),
    );
    world.until("runs", |world| world.runtime.count("start_container") == 1).await;
    world
        .until("mirror made", |world| world.ports.mirrors.lock().unwrap().contains(&"create web-node".to_owned()))
        .await;
    let pods = world.view.pods();
    assert_eq!(pods.len(), 1);
    let mut mirror = orlop_agent_core::static_pods::mirror_pod(&pods[0]);
    mirror.metadata.uid = Some("m1".into());
    world.apply(mirror);
    world.until("status goes to the mirror", |world| world.phase("m1") == "Running").await;
    std::fs::remove_file(statics.path().join("web.yaml")).unwrap();
    world.until("ended", |world| world.runtime.is_empty()).await;
    world
        .until("mirror deleted", |world| world.ports.mirrors.lock().unwrap().contains(&"delete web-node".to_owned()))
        .await;
}

#[tokio::test]
async fn pods_that_do_not_fit_are_refused() {
    let world = World::new();
    world
        .ports
        .allocatable
        .lock()
        .unwrap()
        .insert("cpu".into(), k8s_openapi::apimachinery::pkg::api::resource::Quantity("1".into()));
    world.apply(pod(
        "u1",
        json!({"containers": [{"name": "a", "image": "x:1", "resources": {"requests": {"cpu": "2"}}}]}),
    ));
    world.until("refused", |world| world.phase("u1") == "Failed").await;
    let status = world.status("u1");
    assert_eq!(status.reason.as_deref(), Some("OutOfcpu"));
    assert!(
        status.message.unwrap().starts_with("Pod was rejected: Node didn't have enough resource: cpu, requested: 2000")
    );
    assert_eq!(world.runtime.count("run_sandbox"), 0);
}

#[tokio::test]
async fn a_new_image_is_tried_without_the_back_off_of_the_old_one() {
    let world = World::new();
    let with_image = |image: &str| pod("u1", json!({"containers": [{"name": "a", "image": image}]}));
    world.apply(with_image("x:1"));
    world.until("running", |world| world.ready("u1")).await;
    for starts in 1..3 {
        world.until("started", |world| world.runtime.count("start_container") == starts && world.ready("u1")).await;
        world.runtime.exit("u1", "a", 1);
    }
    world.until("backing off", |world| world.waiting("u1") == "CrashLoopBackOff").await;
    let changed = Instant::now();
    world.apply(with_image("y:1"));
    world.until("the new image runs", |world| world.ready("u1")).await;
    assert!(changed.elapsed().as_secs() < 8, "{:?}", changed.elapsed());
    assert_eq!(world.runtime.last_container().user_image, "y:1");
}

#[tokio::test]
async fn pods_wait_for_the_network_unless_they_use_the_nodes() {
    let world = World::new();
    *world.ports.network_problem.lock().unwrap() = Some("container runtime network not ready".into());
    world.apply(pod("u1", json!({"containers": [{"name": "a", "image": "x:1"}]})));
    world.apply(pod("u2", json!({"hostNetwork": true, "containers": [{"name": "a", "image": "x:1"}]})));
    world.until("told", |world| world.has_event("pod-u1 NetworkNotReady: network is not ready: container")).await;
    world.until("the other's sandbox", |world| world.runtime.calls().contains(&"run_sandbox u2".into())).await;
    assert!(!world.runtime.calls().contains(&"run_sandbox u1".into()));
    *world.ports.network_problem.lock().unwrap() = None;
    world.until("ready", |world| world.ready("u1")).await;
}

#[tokio::test]
async fn images_that_are_mounted_are_pulled_and_named_by_their_reference() {
    let world = World::new();
    let spec = json!({
        "containers": [{"name": "a", "image": "x:1", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
        "volumes": [{"name": "v", "image": {"reference": "z:1", "pullPolicy": "IfNotPresent"}}]
    });
    world.apply(pod("u1", spec.clone()));
    world.until("ready", |world| world.ready("u1")).await;
    assert!(world.has_event("pod-u1 Pulled: Successfully pulled image \"z:1\""));
    let mount = world.runtime.last_container().mounts.into_iter().find(|mount| mount.container_path == "/v").unwrap();
    assert!(mount.image.is_some() && mount.read_only, "{mount:?}");
    let mut never = spec;
    never["volumes"][0]["image"] = json!({"reference": "other:1", "pullPolicy": "Never"});
    world.apply(pod("u2", never));
    world.until("refused", |world| world.waiting("u2") == "ErrImageNeverPull").await;
}

#[tokio::test]
async fn a_pod_past_its_deadline_says_so() {
    let world = World::new();
    world.apply(pod(
        "u1",
        json!({"activeDeadlineSeconds": 1, "terminationGracePeriodSeconds": 1, "containers": [{"name": "a", "image": "x:1"}]}),
    ));
    world.until("failed", |world| world.phase("u1") == "Failed").await;
    assert_eq!(world.status("u1").reason.as_deref(), Some("DeadlineExceeded"));
    assert!(world.has_event("DeadlineExceeded: Pod was active on the node longer than the specified deadline"));
}

#[tokio::test]
async fn a_static_pod_whose_file_is_put_back_while_it_ends_begins_anew() {
    let statics = tempfile::tempdir().unwrap();
    let file = statics.path().join("web.yaml");
    let text = "kind: Pod\nmetadata: {name: web}\nspec: {terminationGracePeriodSeconds: 1, containers: [{name: a, image: 'x:1'}]}\n";
    std::fs::write(&file, text).unwrap();
    let runtime = world::runtime::FakeRuntime::new();
    runtime.set_stubborn("a");
    let set = orlop_agent_core::ports::PodSet { synced: true, ..Default::default() };
    let folder = tempfile::tempdir().unwrap();
    let world = World::with(runtime, folder, set, Some(statics.path().to_path_buf()));
    world.until("runs", |world| world.runtime.count("start_container") == 1).await;
    std::fs::remove_file(&file).unwrap();
    world.until("ends", |world| world.has_event("Killing: Stopping container a")).await;
    std::fs::write(&file, text).unwrap();
    world.until("runs again", |world| world.runtime.count("start_container") == 2).await;
    let counted = world.view.metrics().text(|metric| metric.name == "kubelet_restarted_pods_total");
    assert!(counted.ends_with("{static=\"true\"} 1\n"), "{counted}");
}
