//! Kernel settings of pods.

use orlop_tests::case::{Case, container, image};
use serde_json::{Value, json};

fn with(sysctls: Value) -> Value {
    json!({"securityContext": {"sysctls": sysctls}})
}

/// A safe one is set.
pub fn safe(case: &Case<'_>) {
    let spec = with(json!([{"name": "kernel.shm_rmid_forced", "value": "1"}]));
    assert_eq!(case.output_of("p", spec, "cat /proc/sys/kernel/shm_rmid_forced"), "1");
}

/// With slashes in its name as well.
pub fn with_slashes(case: &Case<'_>) {
    let spec = with(json!([{"name": "kernel/shm_rmid_forced", "value": "1"}]));
    assert_eq!(case.output_of("p", spec, "cat /proc/sys/kernel/shm_rmid_forced"), "1");
}

/// Names that can't be names are refused by the API, each of them.
pub fn invalid(case: &Case<'_>) {
    let mut spec = with(json!([{"name": "foo-", "value": "bar"}, {"name": "kernel.shmmax", "value": "100000000"},
        {"name": "safe-and-unsafe", "value": "100000000"}, {"name": "bar..", "value": "42"}]));
    spec["containers"] = json!([{"name": "c", "image": image("busybox")}]);
    let pod = json!({"metadata": {"name": "p"}, "spec": spec});
    let (code, told) = case.cluster.api.send("POST", &case.path("pods", ""), Some(&pod)).unwrap();
    assert_eq!((code, &told["reason"]), (422, &json!("Invalid")), "{told}");
    let message = told["message"].as_str().unwrap();
    for (number, wrong) in [true, false, false, true].into_iter().enumerate() {
        let named = message.contains(&format!("spec.securityContext.sysctls[{number}].name"));
        assert_eq!(named, wrong, "{number}: {message}");
    }
}

/// One that the node does not allow keeps the pod from running.
pub fn not_allowed(case: &Case<'_>) {
    let mut spec = with(json!([{"name": "kernel.msgmax", "value": "10000000000"}]));
    spec["containers"] = json!([{"command": ["true"]}]);
    case.make_pod("p", spec);
    let pod = case.until_ended("p");
    assert_eq!((&pod["status"]["phase"], &pod["status"]["reason"]), (&json!("Failed"), &json!("SysctlForbidden")));
    assert!(container(&pod, "c")["state"]["running"].is_null());
}
