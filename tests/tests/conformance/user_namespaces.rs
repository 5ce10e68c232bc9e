//! Pods with users of their own.

use orlop_tests::case::{Case, container};
use serde_json::{Value, json};

/// Prints the mapping of users inside.
const MAP: &str = "cat /proc/self/uid_map";

/// Ends a script that runs with the machine's users.
const MAPPED: &str = "grep -q ' 65536$' /proc/self/uid_map || exit 9";

/// The first id outside and the number of ids, of a container's map.
fn mapping(map: &str) -> (u64, u64, u64) {
    let numbers: Vec<u64> = map.split_whitespace().map(|word| word.parse().expect("a number")).collect();
    assert_eq!(numbers.len(), 3, "one line: {map}");
    (numbers[0], numbers[1], numbers[2])
}

/// Ids inside are others outside, and no pod has those of another one.
pub fn own_users(case: &Case<'_>) {
    let spec = json!({"hostUsers": false});
    let one = mapping(&case.output_of("one", spec.clone(), MAP));
    assert_eq!((one.0, one.2), (0, 65_536));
    case.make_pod("runs", json!({"hostUsers": false, "containers": [{"command": ["sleep", "1000"]}]}));
    case.until_ready("runs");
    let runs = mapping(&case.exec("runs", MAP));
    let third = mapping(&case.output_of("two", spec, MAP));
    assert!(runs.1 != third.1 && runs.1 != 0, "{runs:?} {third:?}");
}

/// Ids outside are those that pods may have, in whole ranges.
pub fn within_the_range(case: &Case<'_>) {
    let (_, outside, length) = mapping(&case.output_of("p", json!({"hostUsers": false}), MAP));
    assert!(outside >= 65_536 && outside % 65_536 == 0 && length == 65_536, "{outside} {length}");
    let last = outside + length;
    assert!(last <= 65_536 * (110 + 1 + 1024), "{last} is beyond what the node hands out");
}

/// With the machine's users nothing is mapped.
pub fn host_users(case: &Case<'_>) {
    let map = case.output_of("p", json!({"hostUsers": true}), MAP);
    assert_eq!(mapping(&map), mapping(&std::fs::read_to_string("/proc/self/uid_map").unwrap()));
}

/// Files of all kinds of volumes belong to root inside.
pub fn volumes(case: &Case<'_>) {
    case.make("configmaps", &json!({"metadata": {"name": "map"}, "data": {"key": "m"}}));
    case.make("secrets", &json!({"metadata": {"name": "secret"}, "stringData": {"key": "s"}}));
    let name = json!([{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]);
    let sources = json!([{"configMap": {"name": "map", "items": [{"key": "key", "path": "of-map"}]}},
        {"downwardAPI": {"items": name}}]);
    let volumes = json!([
        {"name": "config", "configMap": {"name": "map", "defaultMode": 0o600}},
        {"name": "secret", "secret": {"secretName": "secret", "defaultMode": 0o600}},
        {"name": "down", "downwardAPI": {"items": name, "defaultMode": 0o600}},
        {"name": "projected", "projected": {"sources": sources, "defaultMode": 0o600}},
        {"name": "empty", "emptyDir": {}},
    ]);
    let names = ["config", "secret", "down", "projected", "empty"];
    let mounts: Vec<Value> =
        names.iter().map(|name| json!({"name": name, "mountPath": format!("/v/{name}")})).collect();
    let spec = json!({"hostUsers": false, "volumes": volumes, "containers": [{"volumeMounts": mounts}]});
    let script = "echo word > /v/empty/file; for file in /v/config/key /v/secret/key /v/down/name /v/projected/of-map \
                  /v/projected/name /v/empty/file; do echo $(stat -L -c %u:%g:%a $file) $(cat $file); done";
    let told = case.output_of("p", spec, &format!("{MAPPED}; {script}"));
    assert_eq!(told, "0:0:600 m\n0:0:600 s\n0:0:600 p\n0:0:600 m\n0:0:600 p\n0:0:644 word");
}

/// The group of files is a group inside.
pub fn fs_group(case: &Case<'_>) {
    case.make("configmaps", &json!({"metadata": {"name": "map"}, "data": {"key": "m"}}));
    let spec = json!({
        "hostUsers": false, "securityContext": {"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 2000},
        "volumes": [{"name": "config", "configMap": {"name": "map", "defaultMode": 0o640}}, {"name": "empty", "emptyDir": {}}],
        "containers": [{"volumeMounts": [{"name": "config", "mountPath": "/config"}, {"name": "empty", "mountPath": "/empty"}]}],
    });
    let script = "stat -L -c %g /config/key; cat /config/key; echo; echo w > /empty/f && stat -c %g /empty; id -G";
    let told = case.output_of("p", spec, &format!("{MAPPED}; {script}"));
    assert_eq!(told, "2000\nm\n2000\n1000 2000");
}

/// The node counts such pods, and those that failed to start.
pub fn metrics(case: &Case<'_>) {
    let path = format!("/api/v1/nodes/{}/proxy/metrics", case.cluster.node_name);
    let count = |name: &str| {
        let (code, text) = case.cluster.api.send("GET", &path, None).unwrap();
        assert_eq!(code, 200, "{text}");
        let text = text.as_str().expect("a text").to_string();
        let line = text.lines().find(|line| line.split([' ', '{']).next() == Some(name)).map(str::to_string);
        let line = line.unwrap_or_else(|| panic!("{name} is not told"));
        line.rsplit(' ').next().unwrap().parse::<f64>().expect("a number")
    };
    let before = count("kubelet_started_user_namespaced_pods_total");
    assert!(count("kubelet_started_user_namespaced_pods_errors_total") >= 0.0);
    let _ = case.output_of("p", json!({"hostUsers": false}), "true");
    assert!(count("kubelet_started_user_namespaced_pods_total") > before);
}

/// In a namespace of restricted pods, one that runs as root inside is let in, since it is nobody outside.
pub fn restricted_standard(case: &Case<'_>) {
    let labels = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}});
    case.cluster.api.must("PATCH", &format!("/api/v1/namespaces/{}", case.namespace), Some(&labels));
    let context = json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"}});
    let spec = json!({"hostUsers": false, "containers": [{"securityContext": context, "command": ["sleep", "1000"]}]});
    case.make_pod("p", spec);
    let pod = case.until_ready("p");
    assert_eq!(case.exec("p", &format!("{MAPPED}; id -u")), "0");
    assert_eq!(container(&pod, "c")["restartCount"], 0);
}
