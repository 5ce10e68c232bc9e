//! Pods of a node, made, killed and deleted, and the moments at which a watcher sees what became of them.

use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use orlop_tests::api::Api;
use orlop_tests::case::{condition, image};
use orlop_tests::control_plane::NODE;
use serde_json::{Value, json};

/// How long a watcher waits for anything.
const LIMIT: Duration = Duration::from_secs(60);
const PATH: &str = "/api/v1/namespaces/default/pods";

/// The pods and a watch of them.
pub struct Pods<'a> {
    api: &'a Api,
    seen: Receiver<(Instant, Value)>,
}

impl<'a> Pods<'a> {
    /// Begins to watch.
    pub fn new(api: &'a Api) -> Pods<'a> {
        let (send, seen) = channel();
        let events = api.watch(PATH).expect("watch the pods");
        std::thread::spawn(move || events.into_iter().try_for_each(|event| send.send(event)));
        Pods { api, seen }
    }

    /// Makes a pod that is bound already; milliseconds until it is seen to be ready.
    pub fn up(&self, name: &str, restart: &str, token: bool) -> f64 {
        let script = format!(": {}; trap 'exit 0' TERM; sleep 100000 & wait", mark(name));
        let container = json!({"name": "c", "image": image("busybox"), "command": ["sh", "-c", script]});
        let began = self.make(
            name,
            json!({
                "restartPolicy": restart, "automountServiceAccountToken": token, "containers": [container],
            }),
        );
        self.until(name, began, ready)
    }

    /// Makes a pod by its specification, on the node; when it was asked for.
    pub fn make(&self, name: &str, mut spec: Value) -> Instant {
        spec["nodeName"] = NODE.into();
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec});
        let began = Instant::now();
        self.api.must("POST", PATH, Some(&pod));
        began
    }

    /// Milliseconds until a watcher sees the pod like this.
    pub fn until(&self, name: &str, began: Instant, is: impl Fn(&str, &Value) -> bool) -> f64 {
        loop {
            let (at, event) = match self.seen.recv_timeout(LIMIT) {
                Ok(seen) => seen,
                Err(RecvTimeoutError::Timeout) => panic!("nothing was seen of pod {name} in {LIMIT:?}"),
                Err(RecvTimeoutError::Disconnected) => panic!("the watch has ended"),
            };
            let (kind, pod) = (event["type"].as_str().unwrap_or_default(), &event["object"]);
            if pod["metadata"]["name"] == name && at >= began && is(kind, pod) {
                return (at - began).as_secs_f64() * 1e3;
            }
        }
    }

    /// Kills the container; milliseconds until the pod is seen to have failed.
    pub fn kill_and_fail(&self, name: &str) -> f64 {
        let began = kill(name);
        self.until(name, began, |_, pod| pod["status"]["phase"] == "Failed")
    }

    /// Kills the container; milliseconds until the pod is seen not to be ready, and ready again.
    pub fn kill_and_restart(&self, name: &str) -> (f64, f64) {
        let began = kill(name);
        let not_ready = self.until(name, began, |_, pod| condition(pod, "Ready") == "False");
        let restarted =
            |kind: &str, pod: &Value| ready(kind, pod) && pod["status"]["containerStatuses"][0]["restartCount"] == 1;
        (not_ready, self.until(name, began, restarted))
    }

    /// Deletes it; milliseconds until it is gone.
    pub fn delete(&self, name: &str) -> f64 {
        let began = Instant::now();
        self.api.must("DELETE", &format!("{PATH}/{name}"), None);
        self.until(name, began, |kind, _| kind == "DELETED")
    }
}

/// Whether an event shows a ready pod.
pub fn ready(_: &str, pod: &Value) -> bool {
    pod["status"]["phase"] == "Running" && condition(pod, "Ready") == "True"
}

fn mark(name: &str) -> String {
    format!("orlop-bench-node-{}-{name}", std::process::id())
}

/// Kills the pod's first process, found by the words of its script; when.
fn kill(name: &str) -> Instant {
    let mark = mark(name);
    let is_it = |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.starts_with(b"sh\0") && String::from_utf8_lossy(&line).contains(&mark)
    };
    let entries = std::fs::read_dir("/proc").expect("read /proc").flatten();
    let pids: Vec<i32> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_it).collect();
    let [pid] = pids[..] else { panic!("one process of pod {name} was to be found: {pids:?}") };
    let began = Instant::now();
    orlop_kernel::process::kill(pid, 9).expect("kill the container");
    began
}
