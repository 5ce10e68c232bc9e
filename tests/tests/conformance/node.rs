//! The node's own share: logs, hosts files, leases, what it refuses.

use std::time::Instant;

use orlop_tests::case::{Case, condition, container};
use orlop_tests::world::until;
use serde_json::{Value, json};

use crate::shape::{second_of, seconds};

/// What a command prints is the container's log.
pub fn output_is_log(case: &Case<'_>) {
    let log = case.output_of("p", json!({}), "echo Hello World; echo and an error >&2");
    assert_eq!(log.lines().collect::<std::collections::BTreeSet<_>>(), ["Hello World", "and an error"].into());
}

fn failing(case: &Case<'_>) {
    case.make_pod("p", json!({"containers": [{"command": ["false"]}]}));
}

/// A command that always fails has a reason to show.
pub fn failure_has_reason(case: &Case<'_>) {
    failing(case);
    let pod = case.until_pod("p", "it has failed", |pod| {
        let now = container(pod, "c");
        !now["state"]["terminated"].is_null() || !now["lastState"]["terminated"].is_null()
    });
    let now = container(&pod, "c");
    let ended = [&now["state"], &now["lastState"]].into_iter().find(|state| !state["terminated"].is_null()).unwrap();
    let ended = &ended["terminated"];
    assert_eq!((&ended["reason"], &ended["exitCode"]), (&json!("Error"), &json!(1)));
    assert!(ended["containerID"].as_str().is_some_and(|id| id.contains("://")), "{ended}");
    assert!(second_of(&ended["startedAt"]) <= second_of(&ended["finishedAt"]));
}

/// It can be deleted all the same, while it waits to be tried again.
pub fn failure_can_be_deleted(case: &Case<'_>) {
    failing(case);
    case.until_pod("p", "it waits", |pod| container(pod, "c")["state"]["waiting"]["reason"] == "CrashLoopBackOff");
    let began = Instant::now();
    case.cluster.api.must("DELETE", &case.path("pods", "p"), None);
    case.until_gone("p");
    assert!(seconds(began) < 8.0, "it took {:.1} s", seconds(began));
}

fn aliases() -> Value {
    json!([{"ip": "123.45.67.89", "hostnames": ["foo.test", "bar.test"]}, {"ip": "fd00::5", "hostnames": ["six.test"]}])
}

fn assert_aliases(hosts: &str) {
    let words = |line: &str| line.split_whitespace().map(str::to_string).collect::<Vec<_>>();
    let lines: Vec<Vec<String>> = hosts.lines().map(words).collect();
    for line in ["123.45.67.89 foo.test bar.test", "fd00::5 six.test"] {
        assert!(lines.contains(&words(line)), "{line} is missing:\n{hosts}");
    }
}

/// Names that a pod gives to addresses stand in its hosts file.
pub fn host_aliases(case: &Case<'_>) {
    let hosts = case.output_of("p", json!({"hostAliases": aliases()}), "cat /etc/hosts");
    assert_aliases(&hosts);
    assert!(hosts.starts_with("# Kubernetes-managed hosts file.\n"), "{hosts}");
}

/// On the machine's network as well, below what the machine's own file says.
pub fn host_aliases_on_host_network(case: &Case<'_>) {
    let hosts = case.output_of("p", json!({"hostAliases": aliases(), "hostNetwork": true}), "cat /etc/hosts");
    assert_aliases(&hosts);
    let own = std::fs::read_to_string("/etc/hosts").unwrap();
    assert!(hosts.contains(own.trim()), "{hosts}\nis without\n{own}");
}

/// A read-only container can't write into its root.
pub fn read_only_root(case: &Case<'_>) {
    let spec = json!({"containers": [{"securityContext": {"readOnlyRootFilesystem": true}}]});
    let log = case.output_of("p", spec, "touch /file && exit 1; cat /proc/self/mounts | grep ' / '; ls /file || true");
    assert!(log.contains("Read-only file system") && log.contains("No such file"), "{log}");
}

/// Pods get a hosts file from the node, unless they mount one or are on the machine's network.
pub fn hosts_file(case: &Case<'_>) {
    let mark = "# Kubernetes-managed hosts file.";
    let sleep = json!(["sleep", "1000"]);
    let own = json!([{"name": "own", "mountPath": "/etc/hosts", "subPath": "hosts"}]);
    case.make("configmaps", &json!({"metadata": {"name": "own"}, "data": {"hosts": "127.0.0.1 localhost own\n"}}));
    case.make_pod(
        "p",
        json!({
            "volumes": [{"name": "own", "configMap": {"name": "own"}}],
            "containers": [{"name": "one", "command": sleep}, {"name": "two", "command": sleep},
                {"name": "mounts", "command": sleep, "volumeMounts": own}],
        }),
    );
    let on_host = json!({"hostNetwork": true, "containers": [{"name": "one", "command": sleep}]});
    case.make_pod("host", on_host);
    let pod = case.until_ready("p");
    case.until_ready("host");
    let read = |pod: &str, name: &str| case.say(&["exec", pod, "-c", name, "--", "cat", "/etc/hosts"]);
    let ip = pod["status"]["podIP"].as_str().unwrap();
    for name in ["one", "two"] {
        let hosts = read("p", name);
        let own = hosts.lines().any(|line| line.split_whitespace().collect::<Vec<_>>() == [ip, "p"]);
        assert!(hosts.starts_with(mark) && own, "{name}: {hosts}");
    }
    assert_eq!(read("p", "mounts"), "127.0.0.1 localhost own");
    let machine = std::fs::read_to_string("/etc/hosts").unwrap();
    let hosts = read("host", "one");
    assert!(!hosts.lines().any(|line| line == mark) && hosts.contains(machine.trim()), "{hosts}");
    // Both containers see one file.
    let _ = case.say(&["exec", "p", "-c", "one", "--", "sh", "-c", "echo 10.9.8.7 late >> /etc/hosts"]);
    assert!(read("p", "two").contains("10.9.8.7 late"));
}

/// A pod for another system is refused.
pub fn other_system(case: &Case<'_>) {
    case.make_pod("p", json!({"os": {"name": "windows"}, "containers": [{"command": ["true"]}]}));
    let pod = case.until_ended("p");
    assert_eq!((&pod["status"]["phase"], &pod["status"]["reason"]), (&json!("Failed"), &json!("PodOSNotSupported")));
    assert!(pod["status"]["message"].as_str().unwrap().contains("OS"), "{}", pod["status"]);
    assert!(container(&pod, "c")["state"]["running"].is_null());
}

/// Leases as objects: made, read, replaced, patched, listed, deleted one by one and all.
pub fn leases(case: &Case<'_>) {
    let api = &case.cluster.api;
    let path = format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases", case.namespace);
    let lease = |name: &str| {
        json!({"metadata": {"name": name, "labels": {"of": "test"}}, "spec": {
            "holderIdentity": "holder", "leaseDurationSeconds": 30, "acquireTime": "2026-01-01T00:00:00.123456Z",
            "renewTime": "2026-01-01T00:00:05.654321Z", "leaseTransitions": 0}})
    };
    let made = api.must("POST", &path, Some(&lease("one")));
    let own = format!("{path}/one");
    let mut read = api.get(&own);
    assert_eq!(read["spec"], made["spec"]);
    assert_eq!(read["spec"]["renewTime"], "2026-01-01T00:00:05.654321Z");
    read["spec"] = json!({"holderIdentity": "other", "leaseDurationSeconds": 42, "leaseTransitions": 1});
    api.must("PUT", &own, Some(&read));
    assert_eq!(api.get(&own)["spec"], read["spec"]);
    api.must("PATCH", &own, Some(&json!({"spec": {"holderIdentity": "third"}})));
    assert_eq!(api.get(&own)["spec"]["holderIdentity"], "third");
    assert_eq!(api.get(&own)["spec"]["leaseDurationSeconds"], 42);
    api.must("POST", &path, Some(&lease("two")));
    let all = api.get(&format!("{path}?labelSelector=of=test"));
    assert_eq!(all["items"].as_array().unwrap().len(), 2);
    api.must("DELETE", &format!("{path}?labelSelector=of=test"), None);
    assert!(api.get(&path)["items"].as_array().unwrap().is_empty());
    api.must("POST", &path, Some(&lease("three")));
    api.must("DELETE", &format!("{path}/three"), None);
    assert!(api.find(&format!("{path}/three")).is_none());
}

/// The node's own lease.
fn own_lease(case: &Case<'_>) -> Value {
    case.cluster
        .api
        .get(&format!("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{}", case.cluster.node_name))
}

/// The node has a lease and renews it.
pub fn lease_is_renewed(case: &Case<'_>) {
    let first = own_lease(case);
    assert_eq!(first["spec"]["holderIdentity"], case.cluster.node_name);
    assert_eq!(first["spec"]["leaseDurationSeconds"], 40);
    let time = |lease: &Value| lease["spec"]["renewTime"].as_str().unwrap().to_string();
    until("the lease is renewed", || (time(&own_lease(case)) > time(&first)).then_some(()));
}

/// It belongs to its node, and goes with it.
pub fn lease_has_owner(case: &Case<'_>) {
    let node = case.cluster.api.get(&format!("/api/v1/nodes/{}", case.cluster.node_name));
    let lease = own_lease(case);
    let owners = lease["metadata"]["ownerReferences"].as_array().unwrap();
    assert_eq!(owners.len(), 1);
    assert_eq!((&owners[0]["kind"], &owners[0]["name"]), (&json!("Node"), &json!(case.cluster.node_name)));
    assert_eq!(owners[0]["uid"], node["metadata"]["uid"]);
}

/// Heartbeats go into the lease: the status is not written while nothing changes.
pub fn status_is_written_seldom(case: &Case<'_>) {
    let path = format!("/api/v1/nodes/{}", case.cluster.node_name);
    let heartbeat = || {
        let node = case.cluster.api.get(&path);
        assert_eq!(condition(&node, "Ready"), "True");
        let conditions = node["status"]["conditions"].as_array().unwrap().clone();
        let ready = conditions.into_iter().find(|one| one["type"] == "Ready").unwrap();
        let mut rest = node["status"].clone();
        rest.as_object_mut().unwrap().remove("conditions");
        (second_of(&ready["lastHeartbeatTime"]), rest)
    };
    // A status that changes (images come and go with other cases) may be written at once; one that does not, after minutes.
    let mut last = heartbeat();
    let lease = own_lease(case)["spec"]["renewTime"].clone();
    let mut renewals = 0;
    let mut renewed = lease;
    until("three renewals without a status that says nothing new", || {
        let now = heartbeat();
        assert!(now.0 == last.0 || now.1 != last.1, "the status was written without a change");
        last = now;
        let lease = own_lease(case)["spec"]["renewTime"].clone();
        renewals += u32::from(lease != renewed);
        renewed = lease;
        (renewals >= 3).then_some(())
    });
}
