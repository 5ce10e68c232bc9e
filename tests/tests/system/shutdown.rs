//! The machine goes down: pods end in groups by their priority, the API hears of it, nothing begins anew.

use std::path::PathBuf;

use orlop_tests::case::{Case, condition, container};
use orlop_tests::cluster::{Backend, Cluster, Setup};
use orlop_tests::logind::{self, Logind};
use orlop_tests::world::{World, until};
use serde_json::{Value, json};

/// Why a pod has ended, and why it was refused.
const ENDED: &str = "Pod was terminated in response to imminent node shutdown.";
const REFUSED: &str = "Pod was rejected: Pod was rejected as the node is shutting down.";

/// Ends when it is told to, and says so by its exit code.
const OBEYS: &str = "trap 'exit 7' TERM; while :; do sleep 0.1; done";
/// Takes no notice of the signal.
const STUBBORN: &str = "trap '' TERM; while :; do sleep 0.1; done";

fn spec(script: &str, class: &str, grace: i64) -> Value {
    let mut spec = json!({
        "terminationGracePeriodSeconds": grace, "containers": [{"command": ["sh", "-c", script]}],
    });
    if !class.is_empty() {
        spec["priorityClassName"] = class.into();
    }
    spec
}

/// The condition Ready of the node: its status, reason and message.
fn readiness(cluster: &Cluster) -> [String; 3] {
    let node = cluster.api.get(&format!("/api/v1/nodes/{}", cluster.node_name));
    let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let ready = conditions.into_iter().find(|one| one["type"] == "Ready").unwrap_or_default();
    ["status", "reason", "message"].map(|field| ready[field].as_str().unwrap_or_default().to_string())
}

fn until_going_down(cluster: &Cluster) {
    let want = ["False", "KubeletNotReady", "node is shutting down"];
    until("the node says that it goes down", || (readiness(cluster) == want).then_some(()));
}

fn until_up(cluster: &Cluster) {
    until("the node is ready again", || (readiness(cluster)[0] == "True").then_some(()));
}

/// Makes a pod for this node, past the scheduler, and waits until it is refused.
fn refuse(case: &Case<'_>, name: &str) {
    let mut pod = spec(OBEYS, "system-node-critical", 1);
    pod["nodeName"] = case.cluster.node_name.clone().into();
    pod["tolerations"] = json!([{"operator": "Exists"}]);
    case.make_pod(name, pod);
    let pod = case.until_ended(name);
    let status = &pod["status"];
    assert_eq!((&status["phase"], &status["reason"]), (&json!("Failed"), &json!("NodeShutdown")), "{status}");
    assert_eq!(status["message"], REFUSED, "{status}");
}

/// Waits until a pod has ended and its sandbox is gone.
fn until_over(case: &Case<'_>, name: &str) -> Value {
    case.until_pod(name, "over", |pod| {
        let ended = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
        ended && condition(pod, "PodReadyToStartContainers") == "False"
    })
}

/// Sees that the shutdown has ended a pod; the exit code of its container.
fn assert_ended(pod: &Value) -> i64 {
    let status = &pod["status"];
    assert_eq!((&status["phase"], &status["reason"]), (&json!("Failed"), &json!("Terminated")), "{status}");
    assert_eq!(status["message"], ENDED, "{status}");
    let conditions = status["conditions"].as_array().unwrap();
    let target = conditions.iter().find(|one| one["type"] == "DisruptionTarget").expect("DisruptionTarget");
    assert_eq!((&target["status"], &target["reason"]), (&json!("True"), &json!("TerminationByKubelet")), "{target}");
    assert_eq!(target["message"], ENDED, "{target}");
    assert_eq!((condition(pod, "Ready"), condition(pod, "PodReadyToStartContainers")), ("False", "False"));
    container(pod, "c")["state"]["terminated"]["exitCode"].as_i64().expect("an exit code")
}

fn end_time(pod: &Value) -> String {
    container(pod, "c")["state"]["terminated"]["finishedAt"].as_str().unwrap().to_string()
}

fn has_event(cluster: &Cluster, words: &str) -> bool {
    let events = cluster.api.get("/api/v1/namespaces/default/events");
    let mut all = events["items"].as_array().into_iter().flatten();
    all.any(|event| event["reason"] == "Shutdown" && event["message"].as_str().is_some_and(|text| text.contains(words)))
}

/// The two times that the metrics tell, in seconds.
fn times(cluster: &Cluster) -> [i64; 2] {
    let (_, metrics) = cluster
        .api
        .send("GET", &format!("/api/v1/nodes/{}/proxy/metrics", cluster.node_name), None)
        .expect("the node's metrics");
    let metrics = metrics.as_str().unwrap_or_default();
    ["start", "end"].map(|which| {
        let name = format!("\nkubelet_graceful_shutdown_{which}_time_seconds ");
        let (_, rest) = metrics.split_once(&name).unwrap_or_else(|| panic!("no {name} in {metrics}"));
        rest.lines().next().unwrap().parse().unwrap()
    })
}

fn make_class(cluster: &Cluster, name: &str, value: i64) {
    let class = json!({
        "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name}, "value": value,
    });
    cluster.api.must("POST", "/apis/scheduling.k8s.io/v1/priorityclasses", Some(&class));
}

/// By signal: called off at first, then carried out to the daemon's end, and what has ended stays so.
pub fn by_signal(backend: Backend) {
    const GROUPS: &str = "shutdownGracePeriodByPodPriority:\n\
        - {priority: 0, shutdownGracePeriodSeconds: 8}\n\
        - {priority: 1000, shutdownGracePeriodSeconds: 20}\n\
        - {priority: 2000000000, shutdownGracePeriodSeconds: 20}\n";
    let cluster = Cluster::start_with(backend, Setup { kubelet: GROUPS, ..Setup::default() });
    make_class(&cluster, "middle", 1000);
    let case = Case::start(&cluster, "shutdown");
    case.make_pod("early", spec(OBEYS, "", 30));
    case.make_pod("slow", spec(STUBBORN, "", 2));
    case.make_pod("spared", spec(OBEYS, "middle", 30));
    let spared = case.until_ready("spared");
    for name in ["early", "slow"] {
        case.until_ready(name);
    }
    assert_eq!(times(&cluster), [0, 0]);

    cluster.signal_node("PWR");
    until_going_down(&cluster);
    cluster.signal_node("USR1");
    until_up(&cluster);
    assert_eq!(assert_ended(&until_over(&case, "early")), 7);
    assert_eq!(assert_ended(&until_over(&case, "slow")), 137);
    until("both are told", || (has_event(&cluster, "event") && has_event(&cluster, "cancellation")).then_some(()));
    let [started, ended] = times(&cluster);
    assert!(started > 0 && ended >= started, "{started} {ended}");

    case.make_pod("usual", spec(OBEYS, "", 30));
    case.make_pod("stubborn", spec(STUBBORN, "", 30));
    case.make_pod("critical", spec(OBEYS, "system-node-critical", 30));
    case.make_pod("job", json!({"restartPolicy": "Never", "containers": [{"command": ["true"]}]}));
    for name in ["usual", "stubborn", "critical"] {
        case.until_ready(name);
    }
    assert_eq!(case.until_ended("job")["status"]["phase"], "Succeeded");
    let now = case.until_ready("spared");
    assert_eq!(container(&now, "c")["containerID"], container(&spared, "c")["containerID"]);

    cluster.signal_node("PWR");
    until_going_down(&cluster);
    assert_eq!(assert_ended(&until_over(&case, "usual")), 7);
    for name in ["spared", "critical"] {
        assert_eq!(condition(&case.pod(name), "Ready"), "True", "{name} ends after the stubborn one");
    }
    refuse(&case, "late");
    let status = cluster.node_end();
    assert!(status.success(), "{status}");
    let state = std::fs::read(cluster.world.root.join("kubelet/graceful_node_shutdown_state")).unwrap();
    let state: Value = serde_json::from_slice(&state).unwrap();
    assert!(state["startTime"].as_str() < state["endTime"].as_str(), "{state}");

    cluster.start_node();
    until("the API answers", || {
        cluster.api.send("GET", "/readyz", None).ok().filter(|(code, _)| *code == 200).map(drop)
    });
    cluster.wait_ready();
    case.make_pod("new", spec(OBEYS, "", 1));
    case.until_ready("new");
    let codes = ["usual", "stubborn", "spared", "critical", "early", "slow"].map(|name| assert_ended(&case.pod(name)));
    assert_eq!(codes, [7, 137, 7, 7, 7, 137]);
    let ends = ["usual", "stubborn", "spared", "critical"].map(|name| end_time(&case.pod(name)));
    assert!(ends.is_sorted(), "{ends:?}");
    let job = case.pod("job");
    assert_eq!((&job["status"]["phase"], &job["status"]["reason"]), (&json!("Succeeded"), &Value::Null));
    let log = std::fs::read_to_string(cluster.node_log()).unwrap();
    assert!(log.contains("all pods were told to end; the machine may go down"), "{log}");
    assert!(times(&cluster)[1] > ended, "the times are read at the start");
    case.end();
    cluster.assert_nothing_left();
}

fn start_logind(world: &World) -> Logind {
    Logind::start(world.folder(), &PathBuf::from("/nonexistent"))
}

/// By logind: the lock is held until the pods have ended and the API knows, the bus may go and come back, and a shutdown
/// that was called off leaves a node that works.
pub fn by_logind() {
    const PERIODS: &str = "shutdownGracePeriod: 30s\nshutdownGracePeriodCriticalPods: 10s\n";
    let environment: fn(&World) -> _ = |world| vec![("DBUS_SYSTEM_BUS_ADDRESS", logind::address(world.folder()))];
    let setup = Setup { kubelet: PERIODS, environment: Some(environment), ..Setup::default() };
    let cluster = Cluster::start_with(Backend::Embedded, setup);
    // The node tries again until there is a bus.
    let served = start_logind(&cluster.world);
    let want = [["shutdown", "orlop", "pods need time to end", "delay"].map(String::from)];
    until("the node holds a lock", || (served.locks() == want).then_some(()));
    let log = || std::fs::read_to_string(cluster.node_log()).unwrap();
    assert!(log().contains("set InhibitDelayMaxSec in logind.conf"), "{}", log());
    let case = Case::start(&cluster, "logind");
    case.make_pod("usual", spec(OBEYS, "", 30));
    case.make_pod("critical", spec(OBEYS, "system-cluster-critical", 30));
    for name in ["usual", "critical"] {
        case.until_ready(name);
    }

    drop(served);
    let served = start_logind(&cluster.world);
    until("the node holds a lock again", || (served.locks() == want).then_some(()));

    served.prepare(true);
    until_going_down(&cluster);
    until("the lock is given back", || served.locks().is_empty().then_some(()));
    for name in ["usual", "critical"] {
        assert_eq!(assert_ended(&case.pod(name)), 7, "the API knew before");
    }
    assert!(end_time(&case.pod("usual")) <= end_time(&case.pod("critical")));
    refuse(&case, "late");

    served.prepare(false);
    until_up(&cluster);
    until("the node holds a lock for the next time", || (served.locks() == want).then_some(()));
    case.make_pod("new", spec(OBEYS, "", 1));
    case.until_ready("new");
    for name in ["usual", "critical"] {
        assert_eq!(assert_ended(&case.pod(name)), 7, "nothing begins anew");
    }

    served.prepare(true);
    until_going_down(&cluster);
    served.restart();
    until_up(&cluster);
    until("the node holds a lock of the new logind", || (served.locks() == want).then_some(()));
    case.end();
    cluster.assert_nothing_left();
}
