//! Pods whose user or profile would undo what their specification promises: cases 10, 22, 23.

use orlop_tests::case::{Case, container};
use orlop_tests::cluster::{Backend, Cluster};
use orlop_tests::hostile_image::HostileImages;
use orlop_tests::invariant::Invariant;
use orlop_tests::world::{read, until};
use serde_json::{Value, json};

/// A node with images, and a case on it.
pub fn with_node(namespace: &str, images: impl FnOnce(&mut HostileImages), test: impl FnOnce(&Case<'_>)) {
    let invariant = Invariant::take(None);
    let cluster = Cluster::start(Backend::Embedded);
    let mut hostile = HostileImages::new();
    images(&mut hostile);
    hostile.load(&cluster.world);
    let case = Case::start(&cluster, namespace);
    test(&case);
    case.end();
    cluster.assert_nothing_left();
    let log = std::fs::read_to_string(cluster.node_log()).unwrap();
    assert!(!log.contains("panicked"), "{log}");
    invariant.check();
}

/// Why a container waits, and the message.
fn waits(pod: &Value) -> Option<(String, String)> {
    let waiting = &container(pod, "c")["state"]["waiting"];
    let reason = waiting["reason"].as_str().filter(|reason| reason.ends_with("Error"))?;
    Some((reason.into(), waiting["message"].as_str().unwrap_or_default().into()))
}

#[test]
fn case_10_users_that_are_root_by_another_name() {
    let users = ["4294967296", "2147483648", "-1", "0x0", "0", "root", "1000:0", " 0", "+0", "00", "-0", ""];
    let images = |images: &mut HostileImages| {
        let trap = users.map(|user| format!("{user}:x:0:0::/:/bin/sh\n")).concat();
        std::fs::write(images.root().join("etc/passwd"), format!("root:x:0:0:root:/root:/bin/sh\n{trap}")).unwrap();
        for (number, user) in users.iter().enumerate() {
            let config = json!({"User": user, "Env": ["PATH=/bin"], "Cmd": ["sh", "-c", "id -u; sleep 1000"]});
            images.add(&format!("localhost/user-{number}:1"), &config);
        }
    };
    with_node("case-10", images, |case| {
        for number in 0..users.len() {
            let container = json!({"image": format!("localhost/user-{number}:1"), "imagePullPolicy": "Never"});
            let strict = json!({"securityContext": {"runAsNonRoot": true}, "containers": [container]});
            case.make_pod(&format!("strict-{number}"), strict);
            case.make_pod(&format!("plain-{number}"), json!({"containers": [container]}));
        }
        for (number, user) in users.iter().enumerate() {
            let name = format!("strict-{number}");
            let pod = case.until_pod(&name, "decided", |pod| {
                waits(pod).is_some() || container(pod, "c")["state"]["running"].is_object()
            });
            match waits(&pod) {
                Some((reason, message)) => {
                    assert_eq!(reason, "CreateContainerConfigError", "{user:?}: {message}");
                    assert!(message.contains("runAsNonRoot") || message.contains("non-root"), "{user:?}: {message}");
                }
                None => {
                    until("it has said who it is", || (!case.log(&name, "c").is_empty()).then_some(()));
                    assert_ne!(case.log(&name, "c"), "0", "{user:?}");
                    assert!(["1000:0", "2147483648"].contains(user), "{user:?} runs");
                }
            }
            // Without the promise: a number that is none is no name either.
            let name = format!("plain-{number}");
            let pod = case.until_pod(&name, "decided", |pod| {
                waits(pod).is_some() || container(pod, "c")["state"]["running"].is_object()
            });
            let refused = ["4294967296", "-1", "+0", "-0"].contains(user);
            assert_eq!(waits(&pod).is_some(), refused, "{user:?}: {}", pod["status"]);
        }
    });
}

#[test]
fn case_22_a_localhost_profile_without_a_name() {
    let images = |images: &mut HostileImages| images.add("localhost/plain:1", &json!({"Env": ["PATH=/bin"]}));
    with_node("case-22", images, |case| {
        let pod = |name: &str, profile: Value| {
            json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": case.namespace},
                "spec": {"terminationGracePeriodSeconds": 1, "containers": [{
                    "name": "c", "image": "localhost/plain:1", "imagePullPolicy": "Never",
                    "command": ["sh", "-c", "grep Seccomp: /proc/self/status; sleep 1000"],
                    "securityContext": {"seccompProfile": profile},
                }]},
            })
        };
        let profiles = [
            json!({"type": "Localhost"}),
            json!({"type": "Localhost", "localhostProfile": ""}),
            json!({"type": "Localhost", "localhostProfile": "../../etc/passwd"}),
            json!({"type": "Localhost", "localhostProfile": "/etc/passwd"}),
            json!({"type": "Other"}),
        ];
        for (number, profile) in profiles.iter().enumerate() {
            let body = pod(&format!("refused-{number}"), profile.clone());
            let (code, answer) = case.cluster.api.send("POST", &case.path("pods", ""), Some(&body)).unwrap();
            assert_eq!(code, 422, "{profile}: {answer}");
        }
        let missing = json!({"type": "Localhost", "localhostProfile": "not-there.json"});
        case.make("pods", &pod("missing", missing));
        let seen = case.until_pod("missing", "refused", |pod| waits(pod).is_some());
        let (_, message) = waits(&seen).unwrap();
        assert!(message.contains("seccomp") && message.contains("not-there.json"), "{message}");
        // A file on the node is asked by nobody but the agent.
        for (number, profile) in profiles.iter().enumerate() {
            let file = case.cluster.manifests().join(format!("static-{number}.json"));
            std::fs::write(file, pod(&format!("static-{number}"), profile.clone()).to_string()).unwrap();
        }
        std::fs::write(
            case.cluster.manifests().join("good.json"),
            pod("good", json!({"type": "RuntimeDefault"})).to_string(),
        )
        .unwrap();
        let world = &case.cluster.world;
        let running = || read(world.crictl().args(["ps", "--output", "json"]));
        until("the good one runs", || running().contains("good").then_some(()));
        until("the others have been tried", || {
            let log = std::fs::read_to_string(case.cluster.node_log()).unwrap();
            (0..profiles.len()).all(|number| log.contains(&format!("static-{number}"))).then_some(())
        });
        let running = running();
        for (number, profile) in profiles.iter().enumerate() {
            assert!(!running.contains(&format!("static-{number}")), "{profile} runs: {running}");
        }
        for entry in std::fs::read_dir(case.cluster.manifests()).unwrap().flatten() {
            std::fs::remove_file(entry.path()).unwrap();
        }
        until("the static pods are gone", || {
            (read(world.crictl().args(["pods", "-q"])).lines().count() <= 1).then_some(())
        });
    });
}

#[test]
fn case_23_a_root_image_against_run_as_non_root() {
    let images = |images: &mut HostileImages| images.add("localhost/plain:1", &json!({"Env": ["PATH=/bin"]}));
    with_node("case-23", images, |case| {
        let script = json!(["sh", "-c", "id -u; sleep 1000"]);
        let spec = |image: &str| {
            json!({"containers": [{"image": image, "imagePullPolicy": "IfNotPresent", "command": script,
                "securityContext": {"runAsNonRoot": true}}]})
        };
        let never_ran = |name: &str| {
            let pod = case.until_pod(name, "refused", |pod| waits(pod).is_some());
            let (reason, message) = waits(&pod).unwrap();
            assert_eq!(reason, "CreateContainerConfigError", "{message}");
            assert!(message.contains("image will run as root"), "{message}");
            assert_eq!(container(&pod, "c")["restartCount"], 0, "{pod}");
            let made = read(case.cluster.world.crictl().args(["ps", "-a", "-q"]));
            assert_eq!(made, "", "a container was made");
        };
        // One whose image has to be pulled first, and one whose image is there.
        case.make_pod("pulled", spec(&orlop_tests::case::image("busybox")));
        case.make_pod("loaded", spec("localhost/plain:1"));
        for _ in 0..2 {
            never_ran("pulled");
            never_ran("loaded");
            case.cluster.kill_node();
            case.cluster.start_node();
            case.cluster.wait_ready();
        }
        case.make_pod("again", spec(&orlop_tests::case::image("busybox")));
        for name in ["pulled", "loaded", "again"] {
            never_ran(name);
        }
    });
}
