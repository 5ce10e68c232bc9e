//! The life of a pod: phases, conditions, restarts, back-off.

use orlop_tests::case::{Case, condition, container};
use serde_json::json;

/// The sample that `cargo xtask up` applies.
pub fn the_sample_serves_its_page(case: &Case<'_>) {
    case.cluster.load_hello();
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../config/examples/hello.yaml");
    case.apply(&std::fs::read_to_string(manifest).unwrap());
    assert_eq!(case.say(&["wait", "--for=condition=Ready", "pod/hello", "--timeout=60s"]), "pod/hello condition met");
    let pod = case.pod("hello");
    let page = case.fetch(&format!("http://{}:8080/", pod["status"]["podIP"].as_str().unwrap())).expect("a page");
    assert!(page.contains("Hello from Orlop") && page.contains(&case.namespace), "{page}");
}

/// From Pending to Succeeded and Failed, and the conditions on the way.
pub fn phases_and_conditions(case: &Case<'_>) {
    let run = |script: &str| json!({"restartPolicy": "Never", "containers": [{"command": ["sh", "-c", script]}]});
    case.make_pod("good", run("exit 0"));
    case.make_pod("bad", run("echo why > /dev/termination-log; exit 3"));
    let good = case.until_ended("good");
    assert_eq!(good["status"]["phase"], "Succeeded");
    assert_eq!(container(&good, "c")["state"]["terminated"]["reason"], "Completed");
    let of = |pod, kind| condition(pod, kind).to_string();
    assert_eq!((of(&good, "PodScheduled"), of(&good, "Initialized")), ("True".into(), "True".into()));
    assert_eq!((of(&good, "Ready"), of(&good, "ContainersReady")), ("False".into(), "False".into()));
    let bad = case.until_ended("bad");
    assert_eq!(bad["status"]["phase"], "Failed");
    let ended = &container(&bad, "c")["state"]["terminated"];
    assert_eq!((&ended["reason"], &ended["exitCode"]), (&json!("Error"), &json!(3)));
    assert_eq!(ended["message"], "why\n");
    case.make_pod("runs", json!({"containers": [{"command": ["sleep", "1000"]}]}));
    let runs = case.until_ready("runs");
    assert_eq!(runs["status"]["phase"], "Running");
    assert_eq!(runs["status"]["qosClass"], "BestEffort");
    let ip = runs["status"]["podIP"].as_str().unwrap();
    assert_eq!(runs["status"]["podIPs"], json!([{"ip": ip}]));
    for kind in ["PodReadyToStartContainers", "Initialized", "ContainersReady", "PodScheduled"] {
        assert_eq!(condition(&runs, kind), "True", "{kind}");
    }
    assert!(container(&runs, "c")["imageID"].as_str().unwrap().contains("localhost:5000/busybox@sha256:"), "{runs}");
    case.make_pod("nowhere", json!({"nodeSelector": {"no": "such"}, "containers": [{}]}));
    case.until_pod("nowhere", "unschedulable", |pod| condition(pod, "PodScheduled") == "False");
}

/// Always, OnFailure and Never.
pub fn restart_policies(case: &Case<'_>) {
    let spec = |policy: &str, script: &str| json!({"restartPolicy": policy, "containers": [{"command": ["sh", "-c", script]}]});
    case.make_pod("always", spec("Always", "exit 0"));
    case.make_pod("fails", spec("OnFailure", "exit 1"));
    case.make_pod("once", spec("OnFailure", "exit 0"));
    case.make_pod("never", spec("Never", "exit 1"));
    let restarted = |name| case.until_pod(name, "restarted", |pod| container(pod, "c")["restartCount"] == 1);
    assert_eq!(container(&restarted("always"), "c")["lastState"]["terminated"]["exitCode"], 0);
    assert_eq!(container(&restarted("fails"), "c")["lastState"]["terminated"]["exitCode"], 1);
    assert_eq!(case.until_ended("once")["status"]["phase"], "Succeeded");
    let never = case.until_ended("never");
    assert_eq!((&never["status"]["phase"], &container(&never, "c")["restartCount"]), (&json!("Failed"), &json!(0)));
}

/// The second failure waits ten seconds, and says so.
pub fn crash_loops_back_off(case: &Case<'_>) {
    case.make_pod("crash", json!({"containers": [{"command": ["sh", "-c", "echo crashed; exit 1"]}]}));
    let pod = case.until_pod("crash", "in back-off", |pod| {
        container(pod, "c")["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    });
    assert_eq!(pod["status"]["phase"], "Running");
    let message = container(&pod, "c")["state"]["waiting"]["message"].as_str().unwrap().to_string();
    assert!(message.contains("back-off 10s restarting failed container=c"), "{message}");
    case.until_event("crash", "BackOff", "Back-off restarting failed container c");
    assert_eq!(case.say(&["logs", "--previous", "crash"]), "crashed");
    let pod = case.until_pod("crash", "started twice more", |pod| container(pod, "c")["restartCount"] == 2);
    let last = &container(&pod, "c")["lastState"]["terminated"];
    assert!(last["startedAt"].as_str() <= last["finishedAt"].as_str(), "{last}");
}
