//! Pods at the door of the node: refused, let in, or let in once others have made room.

mod world;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::json;
use world::{World, pod};

#[tokio::test]
async fn a_critical_pod_waits_until_the_pods_that_make_room_have_ended() {
    let world = World::new();
    world.ports.allocatable.lock().unwrap().insert("cpu".into(), Quantity("2".into()));
    let asks = |cpu: &str| json!([{"name": "a", "image": "x:1", "resources": {"requests": {"cpu": cpu}}}]);
    world.apply(pod("small", json!({"containers": asks("500m"), "terminationGracePeriodSeconds": 1})));
    world.apply(pod("large", json!({"containers": asks("1500m")})));
    world.until("both run", |world| world.ready("small") && world.ready("large")).await;
    // It takes no notice of the signal, so it ends when its grace does.
    world.runtime.set_stubborn("a");
    world.apply(pod("critical", json!({"containers": asks("500m"), "priority": 2_000_000_000})));
    world.until("the small one was told to end", |world| world.has_event("pod-small Preempting: Preempted")).await;
    assert_eq!(world.runtime.running("critical"), Vec::<String>::new());
    world.until("the critical one runs", |world| world.ready("critical")).await;
    let status = world.status("small");
    assert_eq!((status.phase.as_deref(), status.reason.as_deref()), (Some("Failed"), Some("Preempting")));
    assert_eq!(status.message.as_deref(), Some("Preempted in order to admit critical pod"));
    let target = status.conditions.into_iter().flatten().find(|c| c.type_ == "DisruptionTarget").unwrap();
    assert_eq!(target.message.as_deref(), Some("Pod was preempted by Kubelet to accommodate a critical pod."));
    assert!(world.runtime.running("small").is_empty() && world.ready("large"));
}

#[tokio::test]
async fn a_pod_with_its_own_users_gets_a_range_of_ids_and_gives_it_back() {
    let world = World::new();
    let spec = json!({"hostUsers": false, "containers": [{"name": "a", "image": "x:1"}]});
    world.apply(pod("u1", spec));
    world.until("refused", |world| world.has_event("FailedCreatePodSandBox: Failed to create pod sandbox")).await;
    assert!(world.has_event("can't set `spec.hostUsers: false`, runtime does not support user namespaces"));
    world.ports.handler.lock().unwrap().user_namespaces = true;
    world.until("ready", |world| world.ready("u1")).await;
    let mapping = world.runtime.last_sandbox().security.namespaces.user.unwrap();
    assert_eq!((mapping.host_id, mapping.container_id, mapping.length), (65_536, 0, 65_536));
    assert_eq!(world.runtime.last_container().security.namespaces.user, Some(mapping));
    let file = world.folder.path().join("kubelet/pods/u1/userns");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), mapping.to_file());
    world.delete("u1", 1);
    world.until("finished", |world| world.finished("u1")).await;
    assert!(!file.exists());
}
