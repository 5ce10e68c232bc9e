//! Init containers before the others, and what their failures do.

use orlop_tests::case::{Case, condition, container};
use serde_json::{Value, json};

/// Two init containers and one that follows them.
fn pod(policy: &str, first: &str, app: &str) -> Value {
    json!({
        "restartPolicy": policy,
        "initContainers": [{"name": "one", "command": ["sh", "-c", first]}, {"name": "two", "command": ["true"]}],
        "containers": [{"command": ["sh", "-c", app]}],
    })
}

/// Both init containers have ended well, the first one first.
fn assert_both_done(pod: &Value) {
    let ended = ["one", "two"].map(|name| container(pod, name)["state"]["terminated"].clone());
    for end in &ended {
        assert_eq!((&end["exitCode"], &end["reason"]), (&json!(0), &json!("Completed")), "{end}");
    }
    let second = |value: &Value| crate::shape::second_of(value);
    assert!(second(&ended[0]["finishedAt"]) <= second(&ended[1]["startedAt"]), "{ended:?}");
    assert_eq!(condition(pod, "Initialized"), "True");
    for name in ["one", "two"] {
        assert_eq!(container(pod, name)["restartCount"], 0);
    }
}

/// In a pod that runs once.
pub fn of_pod_that_ends(case: &Case<'_>) {
    case.make_pod("p", pod("Never", "true", "true"));
    let pod = case.until_ended("p");
    assert_eq!(pod["status"]["phase"], "Succeeded");
    assert_both_done(&pod);
}

/// In a pod that runs on.
pub fn of_pod_that_runs(case: &Case<'_>) {
    case.make_pod("p", pod("Always", "true", "exec sleep 1000"));
    assert_both_done(&case.until_ready("p"));
}

/// One that fails is tried again, and nothing that follows it is started.
pub fn failure_is_tried_again(case: &Case<'_>) {
    case.make_pod("p", pod("Always", "false", "true"));
    let pod = case.until_pod("p", "the first failed three times", |pod| {
        assert!(
            container(pod, "two")["state"]["running"].is_null() && container(pod, "c")["state"]["running"].is_null()
        );
        container(pod, "one")["restartCount"].as_u64() >= Some(3)
    });
    assert_eq!((&pod["status"]["phase"], condition(&pod, "Initialized")), (&json!("Pending"), "False"));
    assert_eq!(container(&pod, "two")["state"]["waiting"]["reason"], "PodInitializing");
    assert_eq!(container(&pod, "c")["state"]["waiting"]["reason"], "PodInitializing");
    let conditions = pod["status"]["conditions"].as_array().unwrap();
    let told = conditions.iter().find(|one| one["type"] == "Initialized").unwrap();
    assert_eq!(told["reason"], "ContainersNotInitialized");
    assert!(told["message"].as_str().unwrap().contains("containers with incomplete status: [one two]"), "{told}");
}

/// One that fails in a pod that runs once fails the pod.
pub fn failure_ends_pod(case: &Case<'_>) {
    case.make_pod("p", pod("Never", "exit 3", "true"));
    let pod = case.until_ended("p");
    assert_eq!((&pod["status"]["phase"], condition(&pod, "Initialized")), (&json!("Failed"), "False"));
    assert_eq!(container(&pod, "one")["state"]["terminated"]["exitCode"], 3);
    for name in ["two", "c"] {
        assert_eq!(container(&pod, name)["state"]["waiting"]["reason"], "PodInitializing");
        assert_eq!(container(&pod, name)["restartCount"], 0);
    }
}
