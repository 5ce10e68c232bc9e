//! What the node in memory counts of its pods.

mod world;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use orlop_agent_core::ports::PodSet;
use serde_json::json;
use world::{World, pod};

/// The value of a series, named as the text has it; 0 where it is not there.
fn value(world: &World, series: &str) -> f64 {
    let text = world.view.metrics().text(|_| true);
    let found = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    found.map_or(0.0, |value| value.parse().unwrap())
}

fn expect(world: &World, expected: &[(&str, f64)]) {
    for (series, want) in expected {
        let got = value(world, series);
        assert_eq!(got, *want, "{series} in\n{}", world.view.metrics().text(|_| true));
    }
}

#[tokio::test]
async fn starts_ends_and_pulls_are_counted() {
    let world = World::new();
    world.apply(pod(
        "u1",
        json!({"restartPolicy": "Never", "initContainers": [{"name": "i", "image": "x:1"}],
        "containers": [{"name": "a", "image": "y:1"}]}),
    ));
    world.until("init runs", |world| world.runtime.running("u1").len() == 1).await;
    world.runtime.exit("u1", "i", 0);
    world.until("running", |world| world.ready("u1")).await;
    expect(
        &world,
        &[
            ("kubelet_running_pods", 1.0),
            ("kubelet_running_containers{container_state=\"running\"}", 1.0),
            ("kubelet_running_containers{container_state=\"exited\"}", 1.0),
            ("kubelet_desired_pods{static=\"\"}", 1.0),
            ("kubelet_active_pods{static=\"\"}", 1.0),
            ("kubelet_active_pods{static=\"true\"}", 0.0),
        ],
    );
    world.runtime.exit("u1", "a", 139);
    world.until("failed", |world| world.phase("u1") == "Failed").await;
    world.until("ended", |world| world.runtime.count("stop_sandbox") == 1).await;
    expect(
        &world,
        &[
            ("kubelet_started_pods_total", 1.0),
            ("kubelet_started_pods_errors_total", 0.0),
            ("kubelet_run_podsandbox_duration_seconds_count{runtime_handler=\"\"}", 1.0),
            ("kubelet_started_containers_total{container_type=\"init_container\"}", 1.0),
            ("kubelet_started_containers_total{container_type=\"container\"}", 1.0),
            (
                "kubelet_terminated_containers_total{container_type=\"init_container\",exit_code=\"0\",reason=\"Completed\"}",
                1.0,
            ),
            (
                "kubelet_terminated_containers_total{container_type=\"container\",exit_code=\"139\",reason=\"Error\"}",
                1.0,
            ),
            ("kubelet_started_user_namespaced_pods_total", 0.0),
        ],
    );
    let text = world.view.metrics().text(|_| true);
    assert!(text.contains("kubelet_image_pull_duration_seconds_count{image_size_in_bytes=\""), "{text}");
}

#[tokio::test]
async fn pods_with_a_user_namespace_are_counted_and_so_is_what_fails() {
    let world = World::new();
    let spec = json!({"hostUsers": false, "containers": [{"name": "a", "image": "x:1"}]});
    world.apply(pod("u1", spec));
    world.until("refused", |world| world.has_event("FailedCreatePodSandBox")).await;
    let (started, errors) =
        ("kubelet_started_user_namespaced_pods_total", "kubelet_started_user_namespaced_pods_errors_total");
    assert!(value(&world, started) >= 1.0 && value(&world, errors) >= 1.0);
    world.ports.handler.lock().unwrap().user_namespaces = true;
    world.until("ready", |world| world.ready("u1")).await;
    assert_eq!(value(&world, started), value(&world, errors) + 1.0);
    assert_eq!(value(&world, started), value(&world, "kubelet_started_pods_total"));
}

#[tokio::test]
async fn refusals_and_preemptions_are_counted() {
    let world = World::new();
    world.ports.allocatable.lock().unwrap().insert("cpu".into(), Quantity("1".into()));
    let asks = |cpu: &str| json!([{"name": "a", "image": "x:1", "resources": {"requests": {"cpu": cpu}}}]);
    world.apply(pod("first", json!({"containers": asks("1"), "terminationGracePeriodSeconds": 1})));
    world.until("it runs", |world| world.ready("first")).await;
    world.apply(pod("second", json!({"containers": asks("1")})));
    world.until("it is refused", |world| world.phase("second") == "Failed").await;
    world.apply(pod("critical", json!({"containers": asks("1"), "priority": 2_000_000_000})));
    world.until("the critical one runs", |world| world.ready("critical")).await;
    expect(
        &world,
        &[
            ("kubelet_admission_rejections_total{reason=\"OutOfcpu\"}", 1.0),
            ("kubelet_preemptions{preemption_signal=\"cpu\"}", 1.0),
        ],
    );
}

#[tokio::test]
async fn probes_are_counted_until_their_pod_is_gone() {
    let world = World::new();
    world.runtime.set_exec("check", 1);
    world.apply(pod(
        "u1",
        json!({"terminationGracePeriodSeconds": 1, "containers": [{"name": "a", "image": "x:1",
        "readinessProbe": {"exec": {"command": ["check"]}, "periodSeconds": 1},
        "livenessProbe": {"exec": {"command": ["fine"]}, "periodSeconds": 1}}]}),
    ));
    let series = |kind: &str, result: &str| {
        format!(
            "prober_probe_total{{probe_type=\"{kind}\",result=\"{result}\",container=\"a\",pod=\"pod-u1\",namespace=\"ns\",pod_uid=\"u1\"}}"
        )
    };
    let (failed, passed) = (series("Readiness", "failed"), series("Liveness", "successful"));
    world.until("both were made", |world| value(world, &failed) >= 1.0 && value(world, &passed) >= 1.0).await;
    let took =
        "prober_probe_duration_seconds_count{probe_type=\"Liveness\",container=\"a\",pod=\"pod-u1\",namespace=\"ns\"}";
    assert!(value(&world, took) >= 1.0);
    world.delete("u1", 1);
    world.until("finished", |world| world.finished("u1")).await;
    world.forget("u1");
    world.until("forgotten", |world| !world.view.metrics().text(|_| true).contains("pod-u1")).await;
}

#[tokio::test]
async fn the_start_and_the_end_of_a_pod_are_timed() {
    let world = World::new();
    let mut made = pod("u1", json!({"containers": [{"name": "a", "image": "y:1"}, {"name": "b", "image": "x:1"}]}));
    let before = jiff::Timestamp::now() - jiff::SignedDuration::from_secs(7);
    made.metadata.creation_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(before));
    world.apply(made.clone());
    world.until("running", |world| world.ready("u1")).await;
    let working = |life: &str| format!("kubelet_working_pods{{lifecycle=\"{life}\",config=\"desired\",static=\"\"}}");
    let rounds = |work: &str| format!("kubelet_pod_worker_duration_seconds_count{{operation_type=\"{work}\"}}");
    world.until("the first round is over", |world| value(world, &rounds("create")) == 1.0).await;
    expect(
        &world,
        &[
            ("kubelet_pod_worker_start_duration_seconds_count", 1.0),
            ("kubelet_containers_per_pod_count_sum", 2.0),
            ("kubelet_pod_start_duration_seconds_count", 1.0),
            ("kubelet_pod_start_total_duration_seconds_count", 0.0),
            (&working("sync"), 1.0),
        ],
    );
    // The API shows what the node has told it, and later something else besides.
    for label in ["first", "second"] {
        made.status = Some(world.status("u1"));
        made.metadata.labels = Some([("seen".to_owned(), label.to_owned())].into());
        world.apply(made.clone());
        world.until("shown", |world| value(world, "kubelet_pod_start_total_duration_seconds_count") == 1.0).await;
    }
    let (total, own) = ("kubelet_pod_start_total_duration_seconds_sum", "kubelet_pod_start_sli_duration_seconds_sum");
    assert!(value(&world, total) >= 7.0 && value(&world, own) >= 7.0 && value(&world, own) < value(&world, total));
    world.delete("u1", 1);
    world.until("finished", |world| world.finished("u1")).await;
    expect(
        &world,
        &[
            (&working("sync"), 0.0),
            (&working("terminated"), 1.0),
            (&rounds("kill"), 1.0),
            (&rounds("terminated"), 1.0),
            (&rounds("create"), 1.0),
            ("kubelet_pod_start_duration_seconds_count", 1.0),
            ("kubelet_pod_start_total_duration_seconds_count", 1.0),
        ],
    );
    world.forget("u1");
    world.until("forgotten", |world| value(world, &working("terminated")) == 0.0).await;
    assert!(value(&world, "kubelet_pleg_relist_duration_seconds_count") >= 1.0);
    assert!(value(&world, "kubelet_pleg_last_seen_seconds") > 0.0);
}

#[tokio::test]
async fn a_pod_that_ran_before_the_agent_did_is_not_started_again() {
    let world = World::new();
    let mut made = pod("u1", json!({"containers": [{"name": "a", "image": "x:1"}]}));
    world.apply(made.clone());
    world.until("running", |world| world.ready("u1")).await;
    made.status = Some(world.status("u1"));
    let (runtime, set) = (world.runtime.clone(), PodSet { synced: true, pods: [("u1".into(), made.into())].into() });
    let world = World::with(runtime, world.end().await, set, None);
    world.until("taken over", |world| world.ready("u1")).await;
    world.forget("u1");
    world.until("ended", |world| world.runtime.count("remove_sandbox") >= 1).await;
    expect(
        &world,
        &[
            ("kubelet_pod_worker_start_duration_seconds_count", 0.0),
            ("kubelet_pod_start_duration_seconds_count", 0.0),
            ("kubelet_pod_start_total_duration_seconds_count", 0.0),
            ("kubelet_desired_pods{static=\"\"}", 0.0),
        ],
    );
}
