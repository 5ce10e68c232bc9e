//! Ephemeral containers.

use orlop_tests::case::{Case, container, image};
use orlop_tests::world::until;
use serde_json::{Value, json};

fn debugger(name: &str) -> Value {
    json!({"name": name, "image": image("busybox"), "stdin": true, "tty": true, "command": ["sh", "-c",
        format!("echo {name} is here; exec sleep 1000")]})
}

/// Adds containers by a patch of the subresource.
fn add(case: &Case<'_>, containers: &[Value]) {
    let change = json!({"spec": {"ephemeralContainers": containers}}).to_string();
    let _ =
        case.say(&["patch", "pod", "p", "--subresource=ephemeralcontainers", "--type=strategic", "--patch", &change]);
}

fn make(case: &Case<'_>) {
    case.make_pod("p", json!({"containers": [{"command": ["sleep", "1000"]}]}));
    case.until_ready("p");
}

fn until_running(case: &Case<'_>, name: &str) {
    case.until_pod("p", "the container runs", |pod| !container(pod, name)["state"]["running"].is_null());
    until("its word is logged", || case.log("p", name).contains(&format!("{name} is here")).then_some(()));
}

/// One is started in a pod that runs.
pub fn start(case: &Case<'_>) {
    make(case);
    add(case, &[debugger("one")]);
    until_running(case, "one");
    let pod = case.pod("p");
    assert_eq!(pod["spec"]["ephemeralContainers"][0]["name"], "one");
    assert_eq!(container(&pod, "c")["restartCount"], 0);
}

/// A second one comes to the first, by a replacement of the list.
pub fn update(case: &Case<'_>) {
    make(case);
    add(case, &[debugger("one")]);
    until_running(case, "one");
    let path = format!("{}/ephemeralcontainers", case.path("pods", "p"));
    until("the list is replaced", || {
        let mut pod = case.cluster.api.get(&path);
        pod["spec"]["ephemeralContainers"].as_array_mut().unwrap().push(debugger("two"));
        let (code, told) = case.cluster.api.send("PUT", &path, Some(&pod)).unwrap();
        assert!(code == 200 || code == 409, "{code} {told}");
        (code == 200).then_some(())
    });
    until_running(case, "two");
    let pod = case.pod("p");
    assert_eq!(pod["spec"]["ephemeralContainers"].as_array().unwrap().len(), 2);
    for name in ["one", "c"] {
        assert!(!container(&pod, name)["state"]["running"].is_null(), "{name} runs on");
    }
}
