//! Containers of a pod with one another: init, sidecars, hooks, and how they end.

use std::time::Instant;

use orlop_tests::case::{Case, condition, container};
use serde_json::json;

/// Init containers run one after the other, sidecars start before what follows them, apps come last.
pub fn init_and_sidecars(case: &Case<'_>) {
    let say = |word: &str| format!("echo {word} >> /shared/order");
    let mount = json!([{"name": "shared", "mountPath": "/shared"}]);
    case.make_pod(
        "ordered",
        json!({
            "restartPolicy": "Never",
            "volumes": [{"name": "shared", "emptyDir": {}}],
            "initContainers": [
                {"name": "first", "command": ["sh", "-c", say("first")], "volumeMounts": mount},
                {"name": "side", "restartPolicy": "Always", "volumeMounts": mount,
                 "command": ["sh", "-c", "echo side >> /shared/order; trap 'echo side ends; exit 0' TERM; while :; do sleep 0.1; done"],
                 "startupProbe": {"exec": {"command": ["grep", "side", "/shared/order"]}, "periodSeconds": 1}},
                {"name": "second", "command": ["sh", "-c", say("second")], "volumeMounts": mount},
            ],
            "containers": [{"name": "app", "command": ["sh", "-c", "cat /shared/order; sleep 1"], "volumeMounts": mount}],
        }),
    );
    let pod = case.until_pod("ordered", "its app runs", |pod| !container(pod, "app")["state"]["running"].is_null());
    assert_eq!(condition(&pod, "Initialized"), "True");
    assert_eq!(container(&pod, "first")["state"]["terminated"]["reason"], "Completed");
    assert_eq!(container(&pod, "side")["ready"], true);
    let pod = case.until_ended("ordered");
    assert_eq!(pod["status"]["phase"], "Succeeded", "{}", pod["status"]);
    assert_eq!(case.log("ordered", "app"), "first\nside\nsecond");
    assert_eq!(case.log("ordered", "side"), "side ends");
}

/// A failed init container keeps the apps from starting and says so; with restarts it is tried again.
pub fn init_fails(case: &Case<'_>) {
    let spec = |policy: &str, script: &str| {
        json!({
            "restartPolicy": policy,
            "initContainers": [{"name": "first", "command": ["sh", "-c", script]}],
            "containers": [{"name": "app", "command": ["true"]}],
        })
    };
    case.make_pod("never", spec("Never", "exit 7"));
    let pod = case.until_ended("never");
    assert_eq!((&pod["status"]["phase"], condition(&pod, "Initialized")), (&json!("Failed"), "False"));
    assert_eq!(container(&pod, "first")["state"]["terminated"]["exitCode"], 7);
    assert_eq!(container(&pod, "app")["state"]["waiting"]["reason"], "PodInitializing");
    case.make_pod("again", spec("Always", "exit 1"));
    let pod = case.until_pod("again", "tried again", |pod| container(pod, "first")["restartCount"] == 1);
    assert_eq!(pod["status"]["phase"], "Pending");
    let table = case.say(&["get", "pod", "again"]);
    assert!(table.contains("Init:"), "{table}");
}

/// postStart runs before the container counts as running, preStop before its end; a failed postStart ends it.
pub fn hooks(case: &Case<'_>) {
    let mount = json!([{"name": "told", "mountPath": "/told"}]);
    case.make_pod(
        "hooked",
        json!({
            "terminationGracePeriodSeconds": 20,
            "volumes": [{"name": "told", "emptyDir": {}}],
            "containers": [
                {"name": "c", "volumeMounts": mount,
                 "command": ["sh", "-c", "trap 'echo term >> /told/all; cat /told/all; exit 0' TERM; while :; do sleep 0.1; done"],
                 "lifecycle": {
                    "postStart": {"exec": {"command": ["sh", "-c", "echo started >> /told/all"]}},
                    "preStop": {"exec": {"command": ["sh", "-c", "echo stopping >> /told/all"]}}}},
                {"name": "witness", "volumeMounts": mount,
                 "command": ["sh", "-c", "until grep -q term /told/all 2>/dev/null; do sleep 0.1; done; cat /told/all"]},
            ],
        }),
    );
    case.until_ready("hooked");
    assert_eq!(case.say(&["exec", "hooked", "-c", "c", "--", "cat", "/told/all"]), "started");
    let mut follow = case.kubectl(&["logs", "-f", "hooked", "-c", "witness"]);
    let follow = follow.stdout(std::process::Stdio::piped()).spawn().unwrap();
    assert!(case.say(&["delete", "pod", "hooked"]).contains("deleted"));
    let log = String::from_utf8_lossy(&follow.wait_with_output().unwrap().stdout).into_owned();
    assert_eq!(log, "started\nstopping\nterm\n");

    let failing = json!({"command": ["sleep", "1000"], "lifecycle": {"postStart": {"exec": {"command": ["false"]}}}});
    case.make_pod("fails", json!({"containers": [failing]}));
    case.until_event("fails", "FailedPostStartHook", "");
    case.until_pod("fails", "restarted", |pod| container(pod, "c")["restartCount"].as_u64() >= Some(1));
}

/// A graceful deletion gives the time that was asked for and no more; a forced one does not wait.
pub fn deletion(case: &Case<'_>) {
    let stubborn = json!({"command": ["sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 0.1; done"]});
    let polite = json!({"command": ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done"]});
    case.make_pod("polite", json!({"terminationGracePeriodSeconds": 30, "containers": [polite]}));
    case.make_pod("deaf", json!({"terminationGracePeriodSeconds": 3, "containers": [stubborn]}));
    case.make_pod("forced", json!({"terminationGracePeriodSeconds": 300, "containers": [stubborn]}));
    for name in ["polite", "deaf", "forced"] {
        case.until_ready(name);
    }
    let began = Instant::now();
    assert!(case.say(&["delete", "pod", "polite"]).contains("deleted"));
    assert!(began.elapsed().as_secs() < 10, "it ended at once: {:?}", began.elapsed());
    let began = Instant::now();
    let _ = case.say(&["delete", "pod", "deaf", "--wait=false"]);
    let pod = case.pod("deaf");
    assert!(
        pod["metadata"]["deletionTimestamp"].is_string() && case.say(&["get", "pod", "deaf"]).contains("Terminating")
    );
    case.until_gone("deaf");
    let took = began.elapsed().as_secs();
    assert!((2..10).contains(&took), "killed after its time: {took} s");
    let began = Instant::now();
    let _ = case.say(&["delete", "pod", "forced", "--force", "--grace-period=0"]);
    assert!(began.elapsed().as_secs() < 5, "gone at once: {:?}", began.elapsed());
    case.until_event("polite", "Killing", "Stopping container c");
}

/// A pod past its time is failed and its containers end.
pub fn active_deadline(case: &Case<'_>) {
    case.make_pod("late", json!({"activeDeadlineSeconds": 2, "containers": [{"command": ["sleep", "1000"]}]}));
    let pod = case.until_ended("late");
    assert_eq!((&pod["status"]["phase"], &pod["status"]["reason"]), (&json!("Failed"), &json!("DeadlineExceeded")));
}

/// Containers of a pod may see each other's processes.
pub fn shared_processes(case: &Case<'_>) {
    case.make_pod(
        "shared",
        json!({
            "shareProcessNamespace": true,
            "containers": [{"name": "a", "command": ["sleep", "4321"]}, {"name": "b", "command": ["sleep", "1234"]}],
        }),
    );
    case.until_ready("shared");
    let seen = case.say(&["exec", "shared", "-c", "b", "--", "ps"]);
    assert!(seen.contains("sleep 4321") && seen.contains("pause"), "{seen}");
}
