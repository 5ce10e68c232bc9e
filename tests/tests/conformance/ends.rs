//! Ends of containers: their codes, and the messages that they leave.

use orlop_tests::case::{Case, container};
use serde_json::{Value, json};

/// Sees a pod of this policy end in a phase without a second run.
fn assert_end(case: &Case<'_>, name: &str, policy: &str, script: &str, phase: &str) {
    case.make_pod(name, json!({"restartPolicy": policy, "containers": [{"command": ["sh", "-c", script]}]}));
    let pod = case.until_ended(name);
    let now = container(&pod, "c");
    assert_eq!(
        (&pod["status"]["phase"], &now["restartCount"], &now["ready"]),
        (&json!(phase), &json!(0), &json!(false))
    );
    assert!(!now["state"]["terminated"].is_null(), "{now}");
}

/// By policy: a container that fails, that succeeds the second time, that runs on.
pub fn restart_policies(case: &Case<'_>) {
    assert_end(case, "never", "Never", "exit 1", "Failed");
    assert_end(case, "fine", "OnFailure", "exit 0", "Succeeded");
    let counted = "echo run >> /work/runs; [ $(wc -l < /work/runs) -ge 2 ]";
    for (name, policy, then, phase) in
        [("on-failure", "OnFailure", "", "Succeeded"), ("always", "Always", "&& exec sleep 1000", "Running")]
    {
        let script = format!("{counted} {then}");
        let spec = json!({"restartPolicy": policy, "volumes": [{"name": "work", "emptyDir": {}}],
            "containers": [{"command": ["sh", "-c", script], "volumeMounts": [{"name": "work", "mountPath": "/work"}]}]});
        case.make_pod(name, spec);
        let pod = case.until_pod(name, "its second run is as it should", |pod| {
            pod["status"]["phase"] == phase
                && container(pod, "c")["restartCount"] == 1
                && (phase == "Succeeded" || container(pod, "c")["ready"] == true)
        });
        let now = container(&pod, "c");
        assert_eq!(now["lastState"]["terminated"]["exitCode"], 1, "{now}");
        let state = if phase == "Succeeded" { "terminated" } else { "running" };
        assert!(!now["state"][state].is_null(), "{now}");
    }
}

/// The message of a container that has ended.
fn message(case: &Case<'_>, fields: Value, phase: &str) -> Value {
    let mut container_spec = json!({"name": "c"});
    for (name, value) in fields.as_object().unwrap() {
        container_spec[name] = value.clone();
    }
    case.make_pod("p", json!({"restartPolicy": "Never", "containers": [container_spec]}));
    let pod = case.until_ended("p");
    assert_eq!(pod["status"]["phase"], phase, "{}", pod["status"]);
    container(&pod, "c")["state"]["terminated"]["message"].clone()
}

fn shell(script: &str) -> Value {
    json!(["sh", "-c", script])
}

/// From the file that the container names.
pub fn message_at_path(case: &Case<'_>) {
    let spec = json!({"command": shell("printf DONE > /dev/other-log"), "terminationMessagePath": "/dev/other-log",
        "securityContext": {"runAsUser": 0}});
    assert_eq!(message(case, spec, "Succeeded"), "DONE");
}

/// Whoever writes it.
pub fn message_of_other_user(case: &Case<'_>) {
    let spec = json!({"command": shell("printf DONE > /dev/other-log"), "terminationMessagePath": "/dev/other-log",
        "securityContext": {"runAsUser": 1000}});
    assert_eq!(message(case, spec, "Succeeded"), "DONE");
}

/// From the log, of a container that failed and left no message.
pub fn message_of_log(case: &Case<'_>) {
    let spec = json!({"command": shell("printf DONE; exit 1"), "terminationMessagePolicy": "FallbackToLogsOnError"});
    assert_eq!(message(case, spec, "Failed"), "DONE");
}

/// Not of one that succeeded.
pub fn no_message_of_success(case: &Case<'_>) {
    let spec = json!({"command": shell("echo DONE"), "terminationMessagePolicy": "FallbackToLogsOnError"});
    assert_eq!(message(case, spec, "Succeeded"), Value::Null);
}

/// The file goes before the log.
pub fn message_of_file_first(case: &Case<'_>) {
    let spec = json!({"command": shell("printf OK > /dev/termination-log; echo DONE"),
        "terminationMessagePolicy": "FallbackToLogsOnError"});
    assert_eq!(message(case, spec, "Succeeded"), "OK");
}
