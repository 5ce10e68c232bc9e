//! The end of all pods because the machine goes down.

mod world;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use orlop_agent_core::ports::PodSet;
use orlop_agent_core::shutdown::{GroupPeriod, PodEnd, ShutdownPeriods};
use orlop_agent_pods::NextEnd;
use serde_json::{Value, json};
use world::runtime::FakeRuntime;
use world::{World, pod};

const MESSAGE: &str = "Pod was terminated in response to imminent node shutdown.";

fn periods(groups: &[(i32, u32)]) -> ShutdownPeriods {
    let group = |(priority, seconds): &(i32, u32)| GroupPeriod { priority: *priority, seconds: *seconds };
    ShutdownPeriods::by_priority(groups.iter().map(group).collect())
}

fn spec(container: &str, priority: i32) -> Value {
    json!({"priority": priority, "restartPolicy": "Always", "containers": [{"name": container, "image": "x:1"}]})
}

fn uids(group: &[PodEnd]) -> Vec<&str> {
    group.iter().map(|pod| pod.uid.as_str()).collect()
}

/// Phase, reason, message, and reason of the condition `DisruptionTarget`.
fn words(status: &PodStatus) -> [String; 4] {
    let target = status.conditions.iter().flatten().find(|condition| condition.type_ == "DisruptionTarget");
    let reason = target.filter(|target| target.status == "True").and_then(|target| target.reason.clone());
    [status.phase.clone(), status.reason.clone(), status.message.clone(), reason].map(Option::unwrap_or_default)
}

#[tokio::test]
async fn groups_end_in_order_and_what_has_succeeded_stays() {
    let world = World::new();
    world.apply(pod("low", spec("a", 0)));
    world.apply(pod("stubborn", spec("s", 5)));
    world.apply(pod("high", spec("b", 1000)));
    world.apply(pod("job", json!({"restartPolicy": "Never", "containers": [{"name": "j", "image": "x:1"}]})));
    for uid in ["low", "stubborn", "high", "job"] {
        world.until("ready", |world| world.ready(uid)).await;
    }
    world.runtime.exit("job", "j", 0);
    world.until("done", |world| world.phase("job") == "Succeeded" && !world.handle.holds("job")).await;
    world.runtime.set_stubborn("s");

    *world.ports.refusal.lock().unwrap() = Some(("NodeShutdown".into(), "no".into()));
    let mut shutdown = world.handle.begin_shutdown(&periods(&[(0, 3), (1000, 60)])).await;
    let begun = Instant::now();
    let NextEnd::Group(group) = shutdown.next().await else { panic!("no group") };
    assert_eq!(uids(&group), ["low", "stubborn"], "the job holds nothing");
    assert!(group.iter().all(|pod| pod.grace_seconds == 3), "{group:?}");
    assert!(shutdown.pod("job").is_some() && shutdown.pod("other").is_none());
    shutdown.end(&group);
    world.apply(pod("late", spec("l", 1000)));
    world.until("refused", |world| world.status("late").reason.as_deref() == Some("NodeShutdown")).await;
    assert_eq!(world.phase("late"), "Failed");

    let NextEnd::Group(group) = shutdown.next().await else { panic!("no second group") };
    assert_eq!(uids(&group), ["high"]);
    assert!(begun.elapsed() >= Duration::from_secs(2), "the stubborn pod has used its grace: {:?}", begun.elapsed());
    assert!(world.ready("high"), "it lived until then");
    shutdown.end(&group);
    assert_eq!(shutdown.next().await, NextEnd::Over(Vec::new()));
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "nobody waits for time that is not needed: {:?}",
        begun.elapsed()
    );
    for uid in ["low", "stubborn", "high"] {
        assert_eq!(words(&world.status(uid)), ["Failed", "Terminated", MESSAGE, "TerminationByKubelet"], "{uid}");
        assert!(world.runtime.running(uid).is_empty(), "{uid}");
    }
    assert_eq!(words(&world.status("job")), ["Succeeded", "", "", ""]);
}

#[tokio::test]
async fn a_shutdown_that_is_called_off_leaves_the_later_groups_alone() {
    let world = World::new();
    world.apply(pod("low", spec("a", 0)));
    world.apply(pod("high", spec("b", 1000)));
    for uid in ["low", "high"] {
        world.until("ready", |world| world.ready(uid)).await;
    }
    world.runtime.set_stubborn("a");
    let mut shutdown = world.handle.begin_shutdown(&periods(&[(0, 2), (1000, 60)])).await;
    let NextEnd::Group(group) = shutdown.next().await else { panic!("no group") };
    shutdown.end(&group);
    drop(shutdown);
    world.until("ended", |world| world.phase("low") == "Failed").await;
    assert_eq!(world.status("low").reason.as_deref(), Some("Terminated"));
    world.apply(pod("new", spec("c", 0)));
    world.until("ready", |world| world.ready("new")).await;
    assert!(world.ready("high") && world.runtime.count("start_container") == 3, "nothing was restarted");
}

#[tokio::test]
async fn what_does_not_end_is_named() {
    let world = World::new();
    world.apply(pod("stuck", spec("a", 0)));
    world.until("ready", |world| world.ready("stuck")).await;
    world.runtime.hang("stop_container");
    let mut shutdown = world.handle.begin_shutdown(&periods(&[(0, 0)])).await;
    let NextEnd::Group(group) = shutdown.next().await else { panic!("no group") };
    shutdown.end(&group);
    let NextEnd::Over(left) = shutdown.next().await else { panic!("not over") };
    assert_eq!(uids(&left), ["stuck"]);
    assert_eq!(left[0].name, "pod-stuck_ns(stuck)");
}

/// The API was never told of the end, and thinks that the pods run.
#[tokio::test]
async fn what_a_shutdown_ended_stays_ended_at_the_next_start() {
    let told = |uid: &str| -> Pod {
        let mut pod = pod(uid, spec("a", 0));
        pod.status.get_or_insert_default().phase = Some("Running".into());
        pod
    };
    let pods = ["ended", "other"].map(|uid| (uid.to_owned(), std::sync::Arc::new(told(uid))));
    let set = PodSet { synced: true, pods: pods.into() };
    let ended = BTreeMap::from([("ended".to_owned(), 7)]);
    let world = World::after(FakeRuntime::new(), tempfile::tempdir().unwrap(), set, None, ended);
    world.until("the other runs", |world| world.ready("other")).await;
    world.until("told", |world| world.phase("ended") == "Failed").await;
    assert_eq!(words(&world.status("ended")), ["Failed", "Terminated", MESSAGE, "TerminationByKubelet"]);
    assert_eq!(world.runtime.count("start_container"), 1, "{:?}", world.runtime.calls());
}
