//! The node's daemon, killed again and again while pods start, write and end.

use std::time::Duration;

use orlop_tests::case::{Case, container};
use orlop_tests::cluster::{Backend, Cluster};
use orlop_tests::world::until;
use rand::Rng;
use serde_json::{Value, json};

/// How often the daemon is killed.
const KILLS: usize = 20;
/// Lines that a short pod writes.
const LINES: usize = 40;

/// Writes numbered lines until it is told to end.
const WRITES: &str = "trap 'exit 0' TERM; i=0; while :; do echo line $i; i=$((i+1)); sleep 0.02; done";

/// An object, asked for until somebody answers: the API may be down just now.
fn insist(case: &Case<'_>, method: &str, path: &str, body: Option<&Value>) -> Value {
    until(&format!("{method} {path}"), || {
        let (code, value) = case.cluster.api.send(method, path, body).ok()?;
        // What a killed API has done already is as good as done.
        (matches!(code, 200..300 | 404) || (code == 409 && method == "POST")).then_some(value)
    })
}

fn pod(name: &str, policy: &str, script: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"restartPolicy": policy, "terminationGracePeriodSeconds": 2, "containers": [
            {"name": "c", "image": orlop_tests::case::image("busybox"), "command": ["sh", "-c", script]}]},
    })
}

/// The numbers of the lines in a pod's log, as they lie on disk.
fn numbers(case: &Case<'_>, pod: &Value) -> Vec<usize> {
    let folder = format!(
        "log/pods/{}_{}_{}/c",
        case.namespace,
        pod["metadata"]["name"].as_str().unwrap(),
        pod["metadata"]["uid"].as_str().unwrap()
    );
    let folder = case.cluster.world.root.join(folder);
    let files: Vec<_> = std::fs::read_dir(&folder).unwrap().flatten().collect();
    assert_eq!(files.len(), 1, "one instance, one log: {files:?}");
    let text = std::fs::read_to_string(files[0].path()).unwrap();
    // A line that is being written has no end yet.
    let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
    whole.lines().map(|line| line.rsplit(' ').next().unwrap().parse().expect("a number")).collect()
}

/// No container is started again, no line lost or doubled, no end missed, nothing left.
pub fn the_node_is_killed(backend: Backend) {
    let cluster = Cluster::start(backend);
    let case = Case::start(&cluster, "killed");
    for name in ["stays-a", "stays-b"] {
        case.make("pods", &pod(name, "Always", WRITES));
        case.until_ready(name);
    }
    let ids = |name: &str| container(&case.pod(name), "c")["containerID"].clone();
    let stays = ["stays-a", "stays-b"].map(|name| (name, ids(name)));
    let mut random = rand::rng();
    let short = format!("i=0; while [ $i -lt {LINES} ]; do echo line $i; i=$((i+1)); sleep 0.02; done");
    for round in 0..KILLS {
        // Something is always coming, something ending by itself, something told to end.
        insist(&case, "POST", &case.path("pods", ""), Some(&pod(&format!("short-{round}"), "Never", &short)));
        insist(&case, "POST", &case.path("pods", ""), Some(&pod(&format!("told-{round}"), "Always", WRITES)));
        if round > 1 {
            insist(&case, "DELETE", &case.path("pods", &format!("told-{}", round - 2)), None);
        }
        std::thread::sleep(Duration::from_millis(random.random_range(0..400)));
        cluster.kill_node();
        if round % 4 == 3 {
            // Containers end while nobody looks.
            std::thread::sleep(Duration::from_millis(random.random_range(0..1500)));
        }
        cluster.start_node();
    }
    until("the API answers", || {
        cluster.api.send("GET", "/readyz", None).ok().filter(|(code, _)| *code == 200).map(drop)
    });
    for round in 0..KILLS {
        let name = format!("short-{round}");
        let ended = case.until_ended(&name);
        let status = container(&ended, "c");
        assert_eq!((&ended["status"]["phase"], &status["restartCount"]), (&json!("Succeeded"), &json!(0)), "{status}");
        assert_eq!(numbers(&case, &ended), (0..LINES).collect::<Vec<_>>(), "{name}");
    }
    for (name, id) in stays {
        let pod = case.until_ready(name);
        assert_eq!((&container(&pod, "c")["containerID"], &container(&pod, "c")["restartCount"]), (&id, &json!(0)));
        let lines = numbers(&case, &pod);
        assert!(lines.len() > 200 && lines.iter().enumerate().all(|(place, line)| place == *line), "{name}: {lines:?}");
    }
    for round in 0..KILLS - 2 {
        case.until_gone(&format!("told-{round}"));
    }
    case.end();
    cluster.assert_nothing_left_within(Duration::from_secs(100));
}
