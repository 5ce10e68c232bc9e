//! Bad input and broken surroundings: each is told by name, leaves nothing half made and disturbs nobody else.

use std::time::Duration;

use orlop_tests::case::{Case, condition, container, image};
use orlop_tests::cluster::{Backend, Cluster};
use orlop_tests::world::{refuse, run, until};
use orlop_tests::{faulty_registry, world};
use serde_json::{Value, json};

fn sleeper() -> Value {
    json!({"containers": [{"command": ["sleep", "1000"]}]})
}

/// Images that are not there, are called wrongly, or whose registry refuses, is busy, breaks, cuts or lies.
pub fn images_that_can_not_be_had(case: &Case<'_>) {
    faulty_registry::start(&case.cluster.world);
    case.make_pod("fine", sleeper());
    let at = |name: &str| format!("localhost:{}/faulty/{name}:1", faulty_registry::PORT);
    let faults = [
        ("absent", image("no-such-image"), "ErrImagePull", "localhost:5000/no-such-image:1"),
        ("denied", at("denied"), "ErrImagePull", "401"),
        ("busy", at("busy"), "ErrImagePull", "429"),
        ("broken", at("broken"), "ErrImagePull", "500"),
        ("cut", at("cut"), "ErrImagePull", "faulty/cut"),
        ("other", at("other"), "ErrImagePull", "sha256:"),
        ("garbage", at("garbage"), "ErrImagePull", "manifest"),
        ("nowhere", "localhost:1/x:1".to_string(), "ErrImagePull", "localhost:1"),
        ("named", "Not An Image".to_string(), "InvalidImageName", "Not An Image"),
    ];
    for (name, image, _, _) in &faults {
        case.make_pod(name, json!({"containers": [{"image": image, "imagePullPolicy": "Always"}]}));
    }
    for (name, image, reason, words) in &faults {
        let pod = case.until_pod(name, "told", |pod| {
            let said = container(pod, "c")["state"]["waiting"]["reason"].as_str().unwrap_or_default();
            said == *reason || said == "ImagePullBackOff"
        });
        assert_eq!(pod["status"]["phase"], "Pending");
        let event = if *reason == "InvalidImageName" { "InspectFailed" } else { "Failed" };
        let message = case.until_event(name, event, words);
        assert!(message.contains(image.as_str()), "{name}: {message}");
    }
    case.until_pod("absent", "in back-off", |pod| {
        container(pod, "c")["state"]["waiting"]["reason"] == "ImagePullBackOff"
    });
    case.until_ready("fine");
    let never = json!({"containers": [{"image": image("never-there"), "imagePullPolicy": "Never"}]});
    case.make_pod("never", never);
    case.until_pod("never", "told", |pod| container(pod, "c")["state"]["waiting"]["reason"] == "ErrImageNeverPull");
}

/// A command that isn't in the image, can't be executed, or a working folder that is a file.
pub fn commands_that_can_not_run(case: &Case<'_>) {
    let spec = |container: Value| json!({"restartPolicy": "Never", "containers": [container]});
    case.make_pod("missing", spec(json!({"command": ["/no/such/program"]})));
    case.make_pod("text", spec(json!({"command": ["/etc/passwd"]})));
    case.make_pod("folder", spec(json!({"command": ["true"], "workingDir": "/etc/passwd"})));
    let pod = case
        .until_pod("folder", "told", |pod| container(pod, "c")["state"]["waiting"]["reason"] == "CreateContainerError");
    let message = container(&pod, "c")["state"]["waiting"]["message"].as_str().unwrap();
    assert!(message.contains("working folder \"/etc/passwd\""), "{message}");
    for (name, words) in [("missing", "/no/such/program"), ("text", "/etc/passwd")] {
        let pod = case.until_ended(name);
        let status = container(&pod, "c");
        let ended = &status["state"]["terminated"];
        assert_eq!((&pod["status"]["phase"], &ended["reason"]), (&json!("Failed"), &json!("StartError")), "{status}");
        assert_eq!(ended["exitCode"], 128);
        assert!(ended["message"].as_str().unwrap().contains(words), "{ended}");
        let _ = case.until_event(name, "Failed", words);
    }
}

/// A claim whose driver has not registered.
pub fn a_driver_that_is_gone(case: &Case<'_>) {
    let name = format!("{}-volume", case.namespace);
    let volume = json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": "1Mi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "gone",
            "persistentVolumeReclaimPolicy": "Retain",
            "claimRef": {"namespace": case.namespace, "name": "claim"},
            "csi": {"driver": "gone.example.com", "volumeHandle": "x"}},
    });
    case.cluster.api.must("POST", "/api/v1/persistentvolumes", Some(&volume));
    let claim = json!({
        "metadata": {"name": "claim"},
        "spec": {"storageClassName": "gone", "volumeName": name, "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Mi"}}},
    });
    case.make("persistentvolumeclaims", &claim);
    let driver = json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", "metadata": {"name": "gone.example.com"},
        "spec": {"attachRequired": false},
    });
    case.cluster.api.must("POST", "/apis/storage.k8s.io/v1/csidrivers", Some(&driver));
    let mut spec = sleeper();
    spec["volumes"] = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "claim"}}]);
    spec["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
    case.make_pod("waits", spec);
    let _ = case.until_event("waits", "FailedMount", "driver name gone.example.com not found");
    case.make_pod("fine", sleeper());
    case.until_ready("fine");
    let _ = case.say(&["delete", "pod", "waits"]);
    case.cluster.api.must("DELETE", "/apis/storage.k8s.io/v1/csidrivers/gone.example.com", None);
    case.cluster.api.must("DELETE", &format!("/api/v1/persistentvolumes/{name}"), None);
}

/// A CNI plugin that is missing, or prints garbage: named in an event, and the pod starts once it is mended.
pub fn plugins_that_fail(backend: Backend) {
    let cluster = Cluster::start(backend);
    let case = Case::start(&cluster, "plugins");
    case.make_pod("before", sleeper());
    let before = case.until_ready("before");
    let bin = cluster.world.root.join("cni/bin");
    let (plugin, away) = (bin.join("bridge"), bin.join("bridge.away"));
    std::fs::rename(&plugin, &away).unwrap();
    case.make_pod("missing", sleeper());
    let _ = case.until_event("missing", "FailedCreatePodSandBox", "bridge");
    std::fs::write(&plugin, "#!/bin/sh\necho this is not JSON\nexit 3\n").unwrap();
    std::fs::set_permissions(&plugin, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    case.make_pod("garbage", sleeper());
    let message = case.until_event("garbage", "FailedCreatePodSandBox", "bridge");
    assert!(message.contains("not JSON"), "{message}");
    std::fs::rename(&away, &plugin).unwrap();
    case.until_ready("missing");
    case.until_ready("garbage");
    assert_eq!(container(&case.pod("before"), "c")["containerID"], container(&before, "c")["containerID"]);
    case.end();
    // What could not be taken down without the plugin goes with the collection that runs once a minute.
    cluster.assert_nothing_left_within(Duration::from_secs(100));
}

/// A CNI plugin that hangs is ended by its deadline and named; others go on meanwhile, and the pod starts once it is
/// mended.
pub fn a_plugin_that_hangs(backend: Backend) {
    let cluster = Cluster::start(backend);
    let case = Case::start(&cluster, "hangs");
    case.make_pod("before", sleeper());
    let before = case.until_ready("before");
    let bin = cluster.world.root.join("cni/bin");
    let (plugin, away) = (bin.join("bridge"), bin.join("bridge.away"));
    std::fs::rename(&plugin, &away).unwrap();
    std::fs::write(&plugin, "#!/bin/sh\nexec sleep 1000\n").unwrap();
    std::fs::set_permissions(&plugin, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    case.make_pod("stuck", sleeper());
    let own = json!({"hostNetwork": true, "containers": [{"command": ["sleep", "1000"]}]});
    case.make_pod("beside", own);
    case.until_ready("beside");
    assert_eq!(case.exec("before", "echo alive"), "alive");
    // 60 s for the addition and as long again for its undo.
    let message = case.until_event_within(Duration::from_secs(180), "stuck", "FailedCreatePodSandBox", "bridge");
    assert!(message.contains("60 s"), "{message}");
    std::fs::rename(&away, &plugin).unwrap();
    case.until_ready("stuck");
    assert_eq!(container(&case.pod("before"), "c")["containerID"], container(&before, "c")["containerID"]);
    case.end();
    cluster.assert_nothing_left_within(Duration::from_secs(100));
}

/// Another daemon on the same state is refused and told who has it.
pub fn a_second_instance_is_refused(backend: Backend) {
    let cluster = Cluster::start(backend);
    let mut second = cluster.world.orlop();
    match backend {
        Backend::Embedded => second.arg("up"),
        Backend::Kubernetes => second.args(["node", "--hostname-override", "node-2"]),
    };
    let said = refuse(&mut second);
    assert!(said.contains("runs already") || said.contains("another CRI server uses"), "{said}");
    cluster.wait_ready();
    // Garbage where the command line belongs is named too.
    let said = refuse(cluster.world.orlop().args(["node", "--node-ip", "not-an-address"]));
    assert!(said.contains("not-an-address"), "{said}");
    let case = Case::start(&cluster, "second");
    case.make_pod("fine", sleeper());
    case.until_ready("fine");
    case.end();
    cluster.assert_nothing_left();
}

/// Damage to one record costs that object and no other.
pub fn a_damaged_record_costs_one_object(backend: Backend) {
    let cluster = Cluster::start(backend);
    let case = Case::start(&cluster, "damage");
    case.make_pod("hit", sleeper());
    case.make_pod("spared", sleeper());
    let hit = case.until_ready("hit");
    let spared = case.until_ready("spared");
    let id =
        |pod: &Value| container(pod, "c")["containerID"].as_str().unwrap().trim_start_matches("orlop://").to_string();
    cluster.kill_node();
    let record = cluster.world.root.join(format!("state/cri/meta/containers/{}.json", id(&hit)));
    std::fs::write(&record, "{\"version\": 1, \"id\":").unwrap();
    cluster.start_node();
    until("the node answers again", || {
        let (code, _) = cluster.api.send("GET", "/healthz", None).ok()?;
        (code == 200).then_some(())
    });
    let log = || std::fs::read_to_string(cluster.node_log()).unwrap_or_default();
    until("the damage is told", || log().contains(&id(&hit)[..12]).then_some(()));
    case.until_pod("hit", "runs again", |pod| {
        condition(pod, "Ready") == "True"
            && container(pod, "c")["containerID"].as_str().is_some_and(|now| !now.contains(&id(&hit)))
    });
    assert_eq!(id(&case.pod("spared")), id(&spared));
    assert_eq!(container(&case.pod("spared"), "c")["restartCount"], 0);
    case.end();
    cluster.assert_nothing_left();
}

/// An image that doesn't fit is told as such and comes when there is room; what runs goes on meanwhile.
pub fn a_full_disk(backend: Backend) {
    let cluster = Cluster::start_on(backend, |world: &world::World| {
        let folder = world.root.join("state/cri");
        std::fs::create_dir_all(&folder).unwrap();
        run(world.command("mount").args(["-t", "tmpfs", "-o", "size=200m", "none"]).arg(&folder));
    });
    let case = Case::start(&cluster, "full");
    case.make_pod("small", sleeper());
    let before = case.until_ready("small");
    let filler = cluster.world.root.join("state/cri/filler");
    let of = format!("of={}", filler.display());
    run(cluster.world.command("dd").args(["if=/dev/zero", &of, "bs=1M", "count=160"]));
    case.make_pod("large", json!({"containers": [{"image": image("python"), "command": ["sleep", "1000"]}]}));
    let message = case.until_event("large", "Failed", "must stay free");
    assert!(message.contains("localhost:5000/python:1"), "{message}");
    case.make_pod("after", sleeper());
    case.until_ready("after");
    assert_eq!(container(&case.pod("small"), "c")["containerID"], container(&before, "c")["containerID"]);
    run(cluster.world.command("rm").arg(&filler));
    case.until_ready("large");
    case.end();
    cluster.assert_nothing_left();
}
