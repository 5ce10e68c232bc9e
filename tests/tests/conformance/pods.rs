//! Pods as objects and as what runs: their life, their status, their end.

use std::time::Instant;

use orlop_tests::case::{Case, condition, container, image};
use orlop_tests::world::until;
use serde_json::{Value, json};

use crate::shape::{event_count, seconds, watched};
use crate::socket::Socket;

/// A container that ends at once when it is asked to.
const POLITE: &str = "trap 'exit 0' TERM; while :; do sleep 0.1; done";

fn polite() -> Value {
    json!({"command": ["sh", "-c", POLITE]})
}

/// A pod with labels.
fn labelled(name: &str, labels: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels},
        "spec": {"terminationGracePeriodSeconds": 20, "containers": [
            {"name": "c", "image": image("busybox"), "command": ["sh", "-c", POLITE]}]}})
}

/// Names of the pods that a label selector finds.
fn selected(case: &Case<'_>, selector: &str) -> Vec<String> {
    let list = case.cluster.api.get(&format!("{}?labelSelector={selector}", case.path("pods", "")));
    let items = list["items"].as_array().cloned().unwrap_or_default();
    items.iter().map(|pod| pod["metadata"]["name"].as_str().unwrap().to_string()).collect()
}

/// A running pod tells the address of its node.
pub fn host_ip(case: &Case<'_>) {
    case.make_pod("p", json!({"containers": [polite()]}));
    let pod = case.until_ready("p");
    let node = case.cluster.api.get(&format!("/api/v1/nodes/{}", case.cluster.node_name));
    let addresses = node["status"]["addresses"].as_array().unwrap();
    let own = addresses.iter().find(|address| address["type"] == "InternalIP").unwrap();
    assert_eq!(pod["status"]["hostIP"], own["address"]);
    assert_eq!(pod["status"]["hostIPs"][0]["ip"], own["address"]);
}

/// A pod is made, found, watched, deleted with grace, and gone.
pub fn life(case: &Case<'_>) {
    let before = case.cluster.api.get(&case.path("pods", ""))["metadata"]["resourceVersion"].clone();
    assert!(selected(case, "time=now").is_empty());
    case.make("pods", &labelled("p", json!({"time": "now"})));
    assert_eq!(selected(case, "time=now"), ["p"]);
    case.until_ready("p");
    let deleted = case.cluster.api.must("DELETE", &case.path("pods", "p"), None);
    assert!(deleted["metadata"]["deletionTimestamp"].is_string(), "{deleted}");
    assert_eq!(deleted["metadata"]["deletionGracePeriodSeconds"], 20);
    case.until_gone("p");
    let events = watched(case, "pods", before.as_str().unwrap());
    let kinds: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!((kinds.first(), kinds.last()), (Some(&"ADDED"), Some(&"DELETED")), "{kinds:?}");
    let marked = |event: &&Value| event["object"]["metadata"]["deletionTimestamp"].is_string();
    assert!(events.iter().filter(marked).any(|event| event["type"] == "MODIFIED"), "{kinds:?}");
    assert!(selected(case, "time=now").is_empty());
}

/// A label may change while the pod runs.
pub fn update(case: &Case<'_>) {
    case.make("pods", &labelled("p", json!({"time": "before"})));
    let mut pod = case.until_ready("p");
    let change = |pod: &mut Value| {
        pod["metadata"]["labels"]["time"] = "after".into();
        case.cluster.api.send("PUT", &case.path("pods", "p"), Some(pod)).unwrap().0
    };
    // The node may write its status in between.
    until("the pod is written", || {
        let code = change(&mut pod);
        assert!(code == 200 || code == 409, "{code}");
        pod = case.pod("p");
        (code == 200).then_some(())
    });
    assert_eq!(selected(case, "time=after"), ["p"]);
    assert_eq!(container(&case.until_ready("p"), "c")["restartCount"], 0);
}

/// A deadline may be set while the pod runs.
pub fn active_deadline(case: &Case<'_>) {
    case.make_pod("p", json!({"containers": [polite()]}));
    case.until_ready("p");
    let change = json!({"spec": {"activeDeadlineSeconds": 3}});
    case.cluster.api.must("PATCH", &case.path("pods", "p"), Some(&change));
    let pod = case.until_ended("p");
    assert_eq!((&pod["status"]["phase"], &pod["status"]["reason"]), (&json!("Failed"), &json!("DeadlineExceeded")));
}

/// Containers find the Services of their namespace in their environment.
pub fn services_as_variables(case: &Case<'_>) {
    let service = json!({"metadata": {"name": "fish-market"}, "spec": {"selector": {"a": "b"}, "ports": [
        {"name": "main", "port": 8765, "targetPort": 9376}]}});
    case.make("services", &service);
    let made = case.cluster.api.get(&case.path("services", "fish-market"));
    let ip = made["spec"]["clusterIP"].as_str().expect("the Service has an address");
    // The node hears of the Service some time after it is there: later pods know it.
    let mut number = 0;
    let log = until("a pod knows the Service", || {
        number += 1;
        let log = case.output_of(&format!("p{number}"), json!({}), "env");
        log.contains("FISH_MARKET").then_some(log)
    });
    for line in [
        format!("FISH_MARKET_SERVICE_HOST={ip}"),
        "FISH_MARKET_SERVICE_PORT=8765".into(),
        "FISH_MARKET_SERVICE_PORT_MAIN=8765".into(),
        format!("FISH_MARKET_PORT=tcp://{ip}:8765"),
        format!("FISH_MARKET_PORT_8765_TCP=tcp://{ip}:8765"),
        "FISH_MARKET_PORT_8765_TCP_PROTO=tcp".into(),
        "FISH_MARKET_PORT_8765_TCP_PORT=8765".into(),
        format!("FISH_MARKET_PORT_8765_TCP_ADDR={ip}"),
    ] {
        assert!(log.lines().any(|seen| seen == line), "{line} is missing:\n{log}");
    }
}

/// A command runs over a WebSocket: its output comes on channel 1, its status on channel 3.
pub fn exec_by_websocket(case: &Case<'_>) {
    case.make_pod("p", json!({"containers": [polite()]}));
    case.until_ready("p");
    for protocol in ["v4.channel.k8s.io", "v5.channel.k8s.io"] {
        let words = "command=sh&command=-c&command=echo%20out%3B%20echo%20err%20%3E%262";
        let path = format!("{}/exec?stdout=1&stderr=1&container=c&{words}", case.path("pods", "p"));
        let mut socket = Socket::open(case.cluster, &path, protocol);
        let mut channels: [Vec<u8>; 4] = Default::default();
        while let Some(message) = socket.message() {
            channels[usize::from(message[0])].extend(&message[1..]);
        }
        let text = |channel: usize| String::from_utf8_lossy(&channels[channel]).into_owned();
        assert_eq!((text(1).as_str(), text(2).as_str()), ("out\n", "err\n"), "{protocol}");
        assert!(text(3).contains("Success"), "{protocol}: {}", text(3));
    }
}

/// So does a log.
pub fn log_by_websocket(case: &Case<'_>) {
    let talk = json!({"command": ["sh", "-c", "echo container is alive; exec sleep 1000"]});
    case.make_pod("p", json!({"containers": [talk]}));
    case.until_ready("p");
    until("it has said its line", || (case.log("p", "") == "container is alive").then_some(()));
    let path = format!("{}/log?container=c", case.path("pods", "p"));
    let mut socket = Socket::open(case.cluster, &path, "binary.k8s.io");
    let mut all = Vec::new();
    while let Some(message) = socket.message() {
        all.extend(message);
    }
    assert_eq!(String::from_utf8_lossy(&all), "container is alive\n");
}

/// Waits until a container was restarted more than `after` times; how long that took, and how often it was.
fn next_restart(case: &Case<'_>, after: u64) -> (f64, u64) {
    let began = Instant::now();
    let pod = case.until_pod("p", "restarted", |pod| container(pod, "c")["restartCount"].as_u64() > Some(after));
    (seconds(began), container(&pod, "c")["restartCount"].as_u64().unwrap())
}

/// A pod that fails at once, again and again; it has been restarted `times` times.
fn failing(case: &Case<'_>, times: u64) {
    case.make_pod("p", json!({"containers": [{"command": ["false"]}]}));
    case.until_pod("p", "restarted", |pod| container(pod, "c")["restartCount"].as_u64() >= Some(times));
}

/// Another image begins a back-off anew.
pub fn back_off_of_new_image(case: &Case<'_>) {
    failing(case, 1);
    let (took, count) = next_restart(case, 1);
    assert!(took > 7.0, "the second restart came after {took:.1} s");
    case.until_pod("p", "waits for the third", |pod| {
        container(pod, "c")["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    });
    case.until_event("p", "BackOff", "Back-off restarting failed container c in pod p");
    let change = json!([{"op": "replace", "path": "/spec/containers/0/image", "value": image("nonroot")}]);
    let began = Instant::now();
    let _ = case.say(&["patch", "pod", "p", "--type=json", "--patch", &change.to_string()]);
    next_restart(case, count);
    assert!(seconds(began) < 7.0, "the one of the new image came after {:.1} s", seconds(began));
}

/// A back-off grows no longer than the node allows: 12 s here.
pub fn back_off_is_capped(case: &Case<'_>) {
    failing(case, 1);
    let mut count = 1;
    let mut waits = Vec::new();
    for _ in 0..3 {
        let (took, now) = next_restart(case, count);
        count = now;
        waits.push(took);
    }
    assert!((8.0..14.0).contains(&waits[0]), "the first wait is 10 s: {waits:?}");
    assert!(waits[1..].iter().all(|wait| (10.0..17.0).contains(wait)), "the others are 12 s: {waits:?}");
}

/// A pod with gates is ready when the conditions of all of them say so, and no longer.
pub fn readiness_gates(case: &Case<'_>) {
    let gates = ["example.test/one", "example.test/two"];
    let gate = |name: &&str| json!({"conditionType": name});
    let list: Vec<Value> = gates.iter().map(gate).collect();
    case.make_pod("p", json!({"readinessGates": list, "containers": [polite()]}));
    let set = |name: &str, value: &str| {
        let change = json!({"status": {"conditions": [{"type": name, "status": value}]}});
        let change = change.to_string();
        let _ = case.say(&["patch", "pod", "p", "--subresource=status", "--type=strategic", "--patch", &change]);
    };
    let pod = case.until_pod("p", "its containers are ready", |pod| condition(pod, "ContainersReady") == "True");
    assert_eq!(condition(&pod, "Ready"), "False");
    set(gates[0], "True");
    case.until_pod("p", "one gate is open", |pod| {
        let conditions = pod["status"]["conditions"].as_array().unwrap();
        let ready = conditions.iter().find(|one| one["type"] == "Ready").unwrap();
        ready["status"] == "False"
            && ready["reason"] == "ReadinessGatesNotReady"
            && ready["message"].as_str().is_some_and(|text| text.contains(gates[1]) && !text.contains(gates[0]))
    });
    set(gates[1], "True");
    case.until_ready("p");
    set(gates[0], "False");
    case.until_pod("p", "a gate has closed", |pod| condition(pod, "Ready") == "False");
}

/// All pods of a label go at once.
pub fn delete_collection(case: &Case<'_>) {
    for name in ["one", "two", "three"] {
        case.make("pods", &labelled(name, json!({"kind": "many"})));
    }
    case.make("pods", &labelled("other", json!({"kind": "single"})));
    assert_eq!(selected(case, "kind=many").len(), 3);
    let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 1});
    let path = format!("{}?labelSelector=kind=many", case.path("pods", ""));
    case.cluster.api.must("DELETE", &path, Some(&options));
    until("they are gone", || selected(case, "kind=many").is_empty().then_some(()));
    assert_eq!(selected(case, "kind=single"), ["other"]);
}

/// Everything that is done to a pod over its life is seen by who watches it.
pub fn life_of_object_and_status(case: &Case<'_>) {
    case.make("pods", &labelled("p", json!({"stage": "made"})));
    let pod = case.until_ready("p");
    let from = pod["metadata"]["resourceVersion"].as_str().unwrap().to_string();
    let path = case.path("pods", "p");
    let change = json!({"metadata": {"labels": {"stage": "patched"}}, "spec": {
        "containers": [{"name": "c", "image": image("nonroot")}]}});
    let _ = case.say(&["patch", "pod", "p", "--type=strategic", "--patch", &change.to_string()]);
    case.until_pod("p", "its container runs the new image", |pod| {
        let now = container(pod, "c");
        now["restartCount"] == 1 && now["image"] == image("nonroot") && now["ready"] == true
    });
    let status = case.cluster.api.get(&format!("{path}/status"));
    assert_eq!((&status["kind"], &status["metadata"]["name"]), (&json!("Pod"), &json!("p")));
    until("a condition is written", || {
        let mut pod = case.cluster.api.get(&format!("{path}/status"));
        let own = json!({"type": "example.test/Seen", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        pod["status"]["conditions"].as_array_mut().unwrap().push(own);
        let (code, answer) = case.cluster.api.send("PUT", &format!("{path}/status"), Some(&pod)).unwrap();
        assert!(code == 200 || code == 409, "{code} {answer}");
        (code == 200).then_some(())
    });
    assert_eq!(condition(&case.pod("p"), "example.test/Seen"), "True");
    case.cluster.api.must("DELETE", &format!("{}?labelSelector=stage=patched", case.path("pods", "")), None);
    case.until_gone("p");
    let events = watched(case, "pods", &from);
    let saw = |what: &str, is: &dyn Fn(&Value) -> bool| {
        assert!(events.iter().any(is), "no event of {what} was watched");
    };
    saw("the label", &|event| event["object"]["metadata"]["labels"]["stage"] == "patched");
    saw("the condition", &|event| condition(&event["object"], "example.test/Seen") == "True");
    saw("the end", &|event| event["type"] == "DELETED");
}

/// A status may be patched, and the node leaves alone what is not its own.
pub fn patch_status(case: &Case<'_>) {
    case.make_pod("p", json!({"containers": [polite()]}));
    case.until_ready("p");
    let change = json!({"status": {"conditions": [{"type": "example.test/Patched", "status": "True"}], "message": "patched", "reason": "Test"}});
    let path = format!("{}/status", case.path("pods", "p"));
    let change = change.to_string();
    let told = case.say(&[
        "patch",
        "pod",
        "p",
        "--subresource=status",
        "--type=strategic",
        "--patch",
        &change,
        "--output=json",
    ]);
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!((&told["status"]["message"], &told["status"]["reason"]), (&json!("patched"), &json!("Test")));
    assert_eq!(condition(&case.cluster.api.get(&path), "example.test/Patched"), "True");
    assert_eq!(container(&case.pod("p"), "c")["restartCount"], 0);
    assert_eq!(event_count(case, "p", "Killing", ""), 0);
}
