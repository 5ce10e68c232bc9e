//! Every kind of volume, as containers see it.

use orlop_tests::case::{Case, container};
use serde_json::{Value, json};

/// A pod that sleeps with volumes mounted below `/v/<name>`.
fn sleeper(volumes: Value, extra: Value) -> Value {
    let mounts: Vec<Value> = volumes
        .as_array()
        .unwrap()
        .iter()
        .map(|volume| json!({"name": volume["name"], "mountPath": format!("/v/{}", volume["name"].as_str().unwrap())}))
        .collect();
    let mut spec = json!({"volumes": volumes, "containers": [{"command": ["sleep", "1000"], "volumeMounts": mounts}]});
    for (key, value) in extra.as_object().unwrap() {
        spec[key] = value.clone();
    }
    spec
}

/// emptyDir on disk and in memory: shared by containers, kept over a restart, bounded, gone with the pod.
pub fn empty_dir(case: &Case<'_>) {
    let volumes = json!([{"name": "disk", "emptyDir": {}}, {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "4Mi"}}]);
    let mut spec = sleeper(volumes, json!({}));
    let mut second = spec["containers"][0].clone();
    second["name"] = "second".into();
    spec["containers"][0]["name"] = "c".into();
    spec["containers"].as_array_mut().unwrap().push(second);
    case.make_pod("shares", spec);
    case.until_ready("shares");
    let run = |container: &str, script: &str| case.say(&["exec", "shares", "-c", container, "--", "sh", "-c", script]);
    let _ = run("c", "echo kept > /v/disk/file; chmod 600 /v/disk/file");
    assert_eq!(run("second", "cat /v/disk/file; stat -c %a /v/disk"), "kept\n777");
    assert!(run("c", "grep ' /v/memory ' /proc/mounts").contains("tmpfs"));
    assert!(run("c", "df -k /v/memory | tail -1").contains("4096"));
    let full =
        case.refused(&["exec", "shares", "-c", "c", "--", "dd", "if=/dev/zero", "of=/v/memory/x", "bs=1M", "count=8"]);
    assert!(full.contains("No space left"), "{full}");
    let _ = case.kubectl(&["exec", "shares", "-c", "c", "--", "kill", "-9", "1"]).output();
    let uid = case.pod("shares")["metadata"]["uid"].as_str().unwrap().to_string();
    let _ = case.say(&["delete", "pod", "shares"]);
    let folder = case.cluster.world.root.join("kubelet/pods").join(uid);
    orlop_tests::world::until("the pod's folder is gone", || (!folder.exists()).then_some(()));
}

/// hostPath by its types, read-only mounts, sub-paths.
pub fn host_path(case: &Case<'_>) {
    let folder = case.cluster.world.folder().join(&case.namespace);
    std::fs::create_dir_all(folder.join("sub")).unwrap();
    std::fs::write(folder.join("file"), "from the node").unwrap();
    let path = folder.display().to_string();
    let volumes = json!([
        {"name": "dir", "hostPath": {"path": path, "type": "Directory"}},
        {"name": "new", "hostPath": {"path": format!("{path}/made"), "type": "DirectoryOrCreate"}},
        {"name": "file", "hostPath": {"path": format!("{path}/file"), "type": "File"}},
    ]);
    let mut spec = sleeper(volumes, json!({}));
    let mounts = spec["containers"][0]["volumeMounts"].as_array_mut().unwrap();
    mounts[2]["readOnly"] = true.into();
    mounts.push(json!({"name": "dir", "mountPath": "/sub", "subPath": "sub"}));
    mounts.push(json!({"name": "dir", "mountPath": "/by-name", "subPathExpr": "of-$(WHO)"}));
    spec["containers"][0]["env"] = json!([{"name": "WHO", "value": "me"}]);
    case.make_pod("host", spec);
    case.until_ready("host");
    assert_eq!(case.exec("host", "cat /v/dir/file; echo; cat /v/file"), "from the node\nfrom the node");
    let refused = case.refused(&["exec", "host", "--", "sh", "-c", "echo x > /v/file"]);
    assert!(refused.contains("Read-only"), "{refused}");
    let _ = case.exec("host", "echo one > /v/new/one; echo two > /sub/two; echo three > /by-name/three");
    for (place, text) in [("made/one", "one\n"), ("sub/two", "two\n"), ("of-me/three", "three\n")] {
        assert_eq!(std::fs::read_to_string(folder.join(place)).unwrap(), text);
    }
    let wrong = json!([{"name": "no", "hostPath": {"path": format!("{path}/file"), "type": "Directory"}}]);
    case.make_pod("wrong", sleeper(wrong, json!({})));
    let message = case.until_event("wrong", "FailedMount", "hostPath type check failed");
    assert!(message.contains("/file is not a directory"), "{message}");
}

/// configMap, secret, downwardAPI and projected: contents, modes, owners, and changes that arrive by themselves.
pub fn contents_of_the_api(case: &Case<'_>) {
    case.make(
        "configmaps",
        &json!({"metadata": {"name": "map"}, "data": {"a": "one", "b": "two"}, "binaryData": {"raw": "AAEC"}}),
    );
    case.make("secrets", &json!({"metadata": {"name": "secret"}, "stringData": {"word": "open"}}));
    let volumes = json!([
        {"name": "map", "configMap": {"name": "map"}},
        {"name": "some", "configMap": {"name": "map", "items": [{"key": "a", "path": "deep/er/a", "mode": 256}]}},
        {"name": "none", "configMap": {"name": "none", "optional": true}},
        {"name": "secret", "secret": {"secretName": "secret", "defaultMode": 288}},
        {"name": "down", "downwardAPI": {"items": [
            {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
            {"path": "cpu", "resourceFieldRef": {"containerName": "c", "resource": "limits.cpu", "divisor": "1m"}}]}},
        {"name": "all", "projected": {"sources": [
            {"configMap": {"name": "map", "items": [{"key": "b", "path": "b"}]}},
            {"secret": {"name": "secret"}},
            {"downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}},
            {"serviceAccountToken": {"path": "token", "audience": "vault", "expirationSeconds": 3600}}]}},
    ]);
    let mut spec = sleeper(
        volumes,
        json!({"securityContext": {"fsGroup": 2000, "runAsUser": 1000}, "terminationGracePeriodSeconds": 1}),
    );
    spec["containers"][0]["name"] = "c".into();
    spec["containers"][0]["image"] = orlop_tests::case::image("busybox").into();
    spec["containers"][0]["resources"] = json!({"limits": {"cpu": "300m"}});
    let pod =
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "reads", "labels": {"x": "y"}}, "spec": spec});
    case.make("pods", &pod);
    case.until_ready("reads");
    let script = "cd /v; cat map/a map/b; od -An -tx1 map/raw; cat some/deep/er/a; ls none | wc -l; cat secret/word; \
                  stat -Lc '%a %g' secret/word some/deep/er/a; cat down/labels; echo; cat down/cpu; echo; \
                  cat all/b all/word all/name; echo; cut -d. -f2 all/token";
    let told = case.exec("reads", script);
    let lines: Vec<&str> = told.lines().map(str::trim).collect();
    assert_eq!(&lines[..3], ["onetwo 00 01 02", "one0", "open440 2000"].map(str::trim), "{told}");
    assert_eq!(&lines[3..7], ["440 2000", "x=\"y\"", "300", "twoopenreads"], "{told}");
    let change = json!({"data": {"a": "changed", "b": null, "c": "new"}});
    case.cluster.api.must("PATCH", &case.path("configmaps", "map"), Some(&change));
    orlop_tests::world::until("the change has arrived", || {
        (case.exec("reads", "cat /v/map/a; ls /v/map | tr '\\n' ' '") == "changeda c raw").then_some(())
    });
    let waits = json!([{"name": "gone", "configMap": {"name": "later"}}]);
    case.make_pod("waits", sleeper(waits, json!({})));
    let message = case.until_event("waits", "FailedMount", "later");
    assert!(message.contains("not found"), "{message}");
    case.make("configmaps", &json!({"metadata": {"name": "later"}, "data": {"k": "v"}}));
    case.until_ready("waits");
    let status = case.pod("waits");
    assert_eq!(container(&status, "c")["restartCount"], 0);
}
