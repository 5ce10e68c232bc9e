//! Whose rights containers have.

use orlop_tests::case::{Case, container, image};
use serde_json::{Value, json};

/// What a container with this security context prints.
fn said(case: &Case<'_>, context: Value, script: &str) -> String {
    case.output_of("p", json!({"containers": [{"securityContext": context}]}), script)
}

/// Runs as the user that the pod names.
pub fn given_user(case: &Case<'_>) {
    assert_eq!(said(case, json!({"runAsUser": 65534}), "id -u"), "65534");
}

/// As root, too.
pub fn given_root(case: &Case<'_>) {
    assert_eq!(said(case, json!({"runAsUser": 0}), "id -u"), "0");
}

/// A user that is not root satisfies `runAsNonRoot`.
pub fn non_root_of_the_pod(case: &Case<'_>) {
    assert_eq!(said(case, json!({"runAsNonRoot": true, "runAsUser": 1234}), "id -u"), "1234");
}

fn is_refused(case: &Case<'_>, container_spec: Value, words: &str) {
    case.make_pod("p", json!({"restartPolicy": "Never", "containers": [container_spec]}));
    case.until_event("p", "Failed", words);
    let pod = case.until_pod("p", "it waits", |pod| {
        container(pod, "c")["state"]["waiting"]["reason"] == "CreateContainerConfigError"
    });
    assert!(container(&pod, "c")["state"]["waiting"]["message"].as_str().unwrap().contains(words), "{pod}");
}

/// Root does not.
pub fn root_of_the_pod_is_refused(case: &Case<'_>) {
    let context = json!({"runAsNonRoot": true, "runAsUser": 0});
    is_refused(case, json!({"securityContext": context}), "container's runAsUser breaks non-root policy");
}

/// The image's user does, when it is a number.
pub fn non_root_of_the_image(case: &Case<'_>) {
    let spec = json!({"containers": [{"image": image("nonroot"), "securityContext": {"runAsNonRoot": true}}]});
    assert_eq!(case.output_of("p", spec, "id -u"), "1000");
}

/// An image without a user runs as root, and so does not.
pub fn no_user_is_refused(case: &Case<'_>) {
    let context = json!({"runAsNonRoot": true});
    is_refused(case, json!({"securityContext": context}), "container has runAsNonRoot and image will run as root");
}

const WRITES: &str = "if touch /checkfile; then echo writable; else echo read-only; fi";

/// A root file system that can't be written.
pub fn read_only_root(case: &Case<'_>) {
    let told = said(case, json!({"readOnlyRootFilesystem": true}), WRITES);
    assert!(told.ends_with("read-only") && told.contains("Read-only file system"), "{told}");
}

/// And one that can.
pub fn writable_root(case: &Case<'_>) {
    assert_eq!(said(case, json!({"readOnlyRootFilesystem": false}), WRITES), "writable");
}

const LINK: &str = "ip link add br9 type bridge 2>&1 && ip link del br9 && echo may || echo may not";

/// Without privileges the network can't be changed.
pub fn unprivileged(case: &Case<'_>) {
    let told = said(case, json!({"privileged": false}), LINK);
    assert!(told.contains("Operation not permitted") && told.ends_with("may not"), "{told}");
}

/// With them it can.
pub fn privileged(case: &Case<'_>) {
    assert_eq!(said(case, json!({"privileged": true}), LINK), "may");
}

/// Beside a container that may change the network, one that may not.
pub fn privileged_beside_other(case: &Case<'_>) {
    let sleep = json!(["sleep", "1000"]);
    let one = json!({"name": "privileged", "command": sleep, "securityContext": {"privileged": true}});
    let other = json!({"name": "other", "command": sleep, "securityContext": {"privileged": false}});
    case.make_pod("p", json!({"containers": [one, other]}));
    case.until_ready("p");
    let may = |name: &str| case.say(&["exec", "p", "-c", name, "--", "sh", "-c", LINK]);
    assert_eq!(may("privileged"), "may");
    assert!(may("other").ends_with("may not"));
}

/// Runs a program whose file gives root's rights as another user.
fn effective_user(case: &Case<'_>, mut context: Value) -> String {
    context["runAsUser"] = 1000.into();
    let spec = json!({"containers": [{"image": image("setuid"), "securityContext": context}]});
    case.output_of("p", spec, "say-user")
}

/// It gets them when nothing is said.
pub fn escalation_by_default(case: &Case<'_>) {
    assert_eq!(effective_user(case, json!({})), "Effective uid: 0");
}

/// Not when it may not.
pub fn no_escalation(case: &Case<'_>) {
    assert_eq!(effective_user(case, json!({"allowPrivilegeEscalation": false})), "Effective uid: 1000");
}

/// And when it may.
pub fn escalation(case: &Case<'_>) {
    assert_eq!(effective_user(case, json!({"allowPrivilegeEscalation": true})), "Effective uid: 0");
}

/// Groups of a user that the image's file of groups has in one more (4321), with one that the pod adds.
fn groups(case: &Case<'_>, mut context: Value) -> Vec<String> {
    for (field, number) in [("runAsUser", 1234), ("runAsGroup", 1235)] {
        context[field] = number.into();
    }
    context["supplementalGroups"] = json!([60_000]);
    let told = case.output_of("p", json!({"securityContext": context, "containers": [{}]}), "id -G");
    let mut groups: Vec<String> = told.split(' ').map(str::to_string).collect();
    groups.sort();
    let pod = case.pod("p");
    let shown = &container(&pod, "c")["user"]["linux"];
    assert_eq!((&shown["uid"], &shown["gid"]), (&json!(1234), &json!(1235)));
    let mut of_status: Vec<String> =
        shown["supplementalGroups"].as_array().into_iter().flatten().map(Value::to_string).collect();
    of_status.sort();
    assert_eq!(of_status, groups, "the status tells the same");
    groups
}

/// The pod's groups come to those of the image.
pub fn groups_by_default(case: &Case<'_>) {
    assert_eq!(groups(case, json!({})), ["1235", "4321", "60000"]);
}

/// The same when it is asked for.
pub fn groups_merged(case: &Case<'_>) {
    assert_eq!(groups(case, json!({"supplementalGroupsPolicy": "Merge"})), ["1235", "4321", "60000"]);
}

/// Those of the image don't count.
pub fn groups_strict(case: &Case<'_>) {
    assert_eq!(groups(case, json!({"supplementalGroupsPolicy": "Strict"})), ["1235", "60000"]);
}
