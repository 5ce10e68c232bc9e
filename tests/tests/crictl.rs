//! Each verb of `crictl` against `orlop cri`: a pod from its first day to its last, and nothing left behind.

use std::io::Write;
use std::process::Stdio;

use orlop_tests::case::image;
use orlop_tests::cri::{files, inspect, start};
use orlop_tests::images;
use orlop_tests::world::{Daemon, World, read, refuse, run, until};
use serde_json::{Value, json};

#[test]
fn a_pod_from_first_to_last() {
    let (world, _daemon) = start();
    let before = world.count();
    assert!(read(world.crictl().arg("info")).contains("\"type\": \"NetworkReady\""));
    assert!(read(world.crictl().arg("version")).contains("orlop"));
    let images = read(world.crictl().args(["images"]));
    assert!(images.contains("localhost/test"), "{images}");
    assert!(inspect(&world, "inspecti", "localhost/test:1")["status"]["id"].as_str().unwrap().starts_with("sha256:"));

    let (pod, container) = files(&world, "life", &["/hello"], json!({}));
    let sandbox = read(world.crictl().args(["runp", &pod]));
    let id = read(world.crictl().args(["create", &sandbox, &container, &pod]));
    assert_eq!(inspect(&world, "inspect", &id)["status"]["state"], "CONTAINER_CREATED");
    run(world.crictl().args(["start", &id]));
    assert!(read(world.crictl().arg("pods")).contains("life"));
    assert!(read(world.crictl().arg("ps")).contains("Running"));
    let status = inspect(&world, "inspectp", &sandbox);
    let ip = status["status"]["network"]["ip"].as_str().unwrap().to_string();
    let page = until("the page", || {
        let output = world.command("curl").args(["-s", &format!("http://{ip}:8080/")]).output().unwrap();
        (!output.stdout.is_empty()).then(|| String::from_utf8(output.stdout).unwrap())
    });
    assert!(page.contains("Hello from Orlop"), "{page}");

    assert_eq!(read(world.crictl().args(["exec", "-s", &id, "echo", "sync"])), "sync");
    assert_eq!(read(world.crictl().args(["exec", &id, "echo", "stream"])), "stream");
    assert_eq!(read(world.crictl().args(["exec", "--transport", "websocket", &id, "echo", "socket"])), "socket");
    let failed = world.crictl().args(["exec", &id, "sh", "-c", "exit 7"]).output().unwrap();
    assert!(!failed.status.success());
    let missing = refuse(world.crictl().args(["exec", "-s", &id, "/no/such/program"]));
    assert!(missing.contains("/no/such/program"), "{missing}");
    assert!(read(world.crictl().args(["logs", &id])).contains("hello listens on port 8080"));

    forward(&world, &sandbox);

    run(world.crictl().args(["stop", "-t", "10", &id]));
    let stopped = inspect(&world, "inspect", &id);
    assert_eq!((&stopped["status"]["state"], &stopped["status"]["exitCode"]), (&json!("CONTAINER_EXITED"), &json!(0)));
    run(world.crictl().args(["rm", &id]));
    run(world.crictl().args(["stopp", &sandbox]));
    assert!(read(world.crictl().arg("pods")).contains("NotReady"));
    run(world.crictl().args(["rmp", &sandbox]));
    assert!(!read(world.crictl().arg("pods")).contains("life"));
    assert_eq!(world.count(), before, "something was left behind");
    run(world.crictl().args(["rmi", "localhost/test:1"]));
    assert!(!read(world.crictl().arg("images")).contains("localhost/test"));
}

/// A port of the pod on this machine, by `crictl port-forward`.
fn forward(world: &World, sandbox: &str) {
    let log = world.folder().join("forward.log");
    let mut command = world.crictl();
    command.args(["port-forward", sandbox, "18099:8080"]);
    let forward = Daemon::start(command, log);
    until("the port is forwarded", || forward.log().contains("Forwarding from").then_some(()));
    let page = read(world.command("curl").args(["-s", "--max-time", "10", "http://127.0.0.1:18099/"]));
    assert!(page.contains("Hello from Orlop"), "{page}");
}

#[test]
fn attach_reads_and_writes_and_terminals_are_terminals() {
    let (world, _daemon) = start();
    let (pod, container) = files(&world, "talk", &["cat"], json!({"stdin": true, "stdin_once": true}));
    let id = read(world.crictl().args(["run", "--no-pull", &container, &pod]));
    until("it runs", || read(world.crictl().args(["ps", "-q"])).contains(&id[..13]).then_some(()));
    let mut attach = world.crictl();
    attach.args(["attach", "-i", &id]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut attach = attach.spawn().unwrap();
    attach.stdin.take().unwrap().write_all(b"over the wire\n").unwrap();
    let output = attach.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "over the wire\n");
    until("it ends with its input", || {
        (inspect(&world, "inspect", &id)["status"]["state"] == "CONTAINER_EXITED").then_some(())
    });

    let (pod, container) = files(&world, "screen", &["sleep", "600"], json!({}));
    let id = read(world.crictl().args(["run", "--no-pull", &container, &pod]));
    // `script` gives crictl a terminal, whose size has to arrive inside; it is sent right after the start.
    let inside =
        "i=0; until [ \"$(stty size)\" = \"33 99\" ] || [ $i = 200 ]; do i=$((i+1)); sleep 0.05; done; stty size";
    let line = format!("stty rows 33 cols 99; {} exec -it {id} sh -c '{inside}'", world.crictl_line());
    let seen = read(world.command("script").args(["-qec", &line, "/dev/null"]));
    assert!(seen.contains("33 99"), "{seen:?}");
    run(world.crictl().args(["rmp", "-f", "-a"]));
}

#[test]
fn wrong_requests_are_named_and_leave_nothing() {
    let (world, _daemon) = start();
    let before = world.count();
    let (pod, container) = files(&world, "bad", &["/no/such/program"], json!({}));
    let sandbox = read(world.crictl().args(["runp", &pod]));
    let taken = refuse(world.crictl().args(["runp", &pod]));
    assert!(taken.contains("bad_default_uid-bad_0"), "{taken}");
    let id = read(world.crictl().args(["create", &sandbox, &container, &pod]));
    let message = refuse(world.crictl().args(["start", &id]));
    assert!(message.contains("/no/such/program"), "{message}");
    let status = inspect(&world, "inspect", &id);
    assert_eq!((&status["status"]["reason"], &status["status"]["exitCode"]), (&json!("StartError"), &json!(128)));
    // SELinux options are looked at, and not applied.
    let options = |level: &str| json!({"metadata": {"name": level}, "linux": {"security_context": {"selinux_options": {"type": "no_such_t", "level": level}}}});
    let (_, labelled) = files(&world, "labelled", &["true"], options("s0:c1,c2"));
    run(world.crictl().args(["create", &sandbox, &labelled, &pod]));
    let (_, labelled) = files(&world, "mislabelled", &["true"], options("high"));
    let message = refuse(world.crictl().args(["create", &sandbox, &labelled, &pod]));
    assert!(message.contains("selinux_options.level") && message.contains("high"), "{message}");
    let (pod_two, two) = files(&world, "two", &["true"], json!({"image": {"image": "localhost/nothing:9"}}));
    let message = refuse(world.crictl().args(["create", &sandbox, &two, &pod_two]));
    assert!(message.contains("localhost/nothing:9"), "{message}");
    run(world.crictl().args(["rmp", "-f", &sandbox]));

    std::fs::rename(world.root.join("cni/bin/host-local"), world.root.join("cni/bin/away")).unwrap();
    let message = refuse(world.crictl().args(["runp", &pod]));
    assert!(message.contains("host-local") && message.contains("default/bad"), "{message}");
    std::fs::rename(world.root.join("cni/bin/away"), world.root.join("cni/bin/host-local")).unwrap();
    // Its network could not be taken down either: it stays to be seen, and goes once the plugin is back.
    assert!(read(world.crictl().args(["pods", "--state", "NotReady"])).contains("bad"));
    run(world.crictl().args(["rmp", "-f", "-a"]));
    assert_eq!(world.count(), before, "something was left behind");

    let second = refuse(world.orlop().arg("cri"));
    assert!(second.contains("another CRI server uses"), "{second}");
}

#[test]
fn a_killed_server_takes_its_pods_up_again() {
    let (world, mut daemon) = start();
    let before = world.count();
    let script = "i=0; while :; do echo line $i; i=$((i+1)); sleep 0.01; done";
    let (pod, container) = files(&world, "alive", &["sh", "-c", script], json!({}));
    let id = read(world.crictl().args(["run", "--no-pull", &container, &pod]));
    let pid = inspect(&world, "inspect", &id)["info"]["pid"].clone();
    let (pod, container) = files(&world, "ends", &["sh", "-c", "sleep 1; exit 3"], json!({}));
    let ends = read(world.crictl().args(["run", "--no-pull", &container, &pod]));
    for _ in 0..5 {
        daemon.kill();
        let mut command = world.orlop();
        command.arg("cri");
        daemon = Daemon::start(command, world.folder().join("cri.log"));
        until("it answers", || world.crictl().arg("version").output().unwrap().status.success().then_some(()));
        let seen = inspect(&world, "inspect", &id);
        assert_eq!((&seen["status"]["state"], &seen["info"]["pid"]), (&json!("CONTAINER_RUNNING"), &pid));
    }
    let code = until("the other has ended", || {
        let seen = inspect(&world, "inspect", &ends);
        (seen["status"]["state"] == "CONTAINER_EXITED").then(|| seen["status"]["exitCode"].clone())
    });
    assert_eq!(code, 3, "the exit code was kept by the shim");
    run(world.crictl().args(["stop", "-t", "0", &id]));
    let log = std::fs::read_to_string(world.folder().join("logs/alive.log")).unwrap();
    let numbers: Vec<usize> = log.lines().filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect();
    assert!(
        numbers.len() > 10 && numbers.iter().enumerate().all(|(place, number)| place == *number),
        "a line was lost"
    );
    run(world.crictl().args(["rmp", "-f", "-a"]));
    assert_eq!(world.count(), before, "something was left behind");
}

#[test]
fn images_are_pulled_by_tag_and_digest_and_removed() {
    let world = World::new();
    let _registry = images::registry(&world, &images::storage());
    let mut command = world.orlop();
    command.arg("cri");
    let _daemon = Daemon::start(command, world.folder().join("cri.log"));
    until("the socket is there", || world.socket().exists().then_some(()));
    let tag = image("busybox");
    let pulled = read(world.crictl().args(["pull", &tag]));
    assert!(pulled.contains("Image is up to date for sha256:"), "{pulled}");
    let status = inspect(&world, "inspecti", &tag)["status"].clone();
    assert_eq!(status["repoTags"], json!([tag]));
    let digest = status["repoDigests"][0].as_str().unwrap().to_string();
    let id = status["id"].as_str().unwrap().to_string();
    let list = read(world.crictl().args(["images", "--quiet", "--no-trunc"]));
    assert_eq!(list, id);
    run(world.crictl().args(["rmi", &tag]));
    assert_eq!(read(world.crictl().args(["images", "--quiet"])), "");
    run(world.crictl().args(["pull", &digest]));
    let status = inspect(&world, "inspecti", &digest)["status"].clone();
    assert_eq!((&status["id"], &status["repoTags"]), (&json!(id), &json!([])));
    assert_eq!(status["repoDigests"], json!([digest]));
    let said = refuse(world.crictl().args(["pull", &image("no-such-image")]));
    assert!(said.contains("localhost:5000/no-such-image:1"), "{said}");
    let other = format!("{}@sha256:{}", tag.trim_end_matches(":1"), "0".repeat(64));
    assert!(refuse(world.crictl().args(["pull", &other])).contains(&"0".repeat(64)));
    // A container of the pulled image, made and started in one step.
    let (pod, container) = files(&world, "pulled", &["sleep", "1000"], json!({"image": {"image": digest}}));
    let created = read(world.crictl().args(["run", &container, &pod]));
    assert_eq!(inspect(&world, "inspect", &created)["status"]["imageId"], json!(id));
    run(world.crictl().args(["rmp", "--force", "--all"]));
    run(world.crictl().args(["rmi", "--all"]));
    assert_eq!(read(world.crictl().args(["images", "--quiet"])), "");
}

#[test]
fn what_containers_use_is_told_and_limits_are_changed() {
    let (world, _daemon) = start();
    let before = world.count();
    let busy = ["sh", "-c", "echo text > /file; while true; do :; done"];
    let limits = json!({"linux": {
        "resources": {"memory_limit_in_bytes": 64 << 20, "cpu_period": 100_000, "cpu_quota": 20_000},
        "security_context": {"namespace_options": {"pid": 1}},
    }});
    let (pod, container) = files(&world, "busy", &busy, limits);
    let id = read(world.crictl().args(["run", "--no-pull", &container, &pod]));
    let sandbox = read(world.crictl().args(["pods", "--quiet"]));
    let as_json = |args: &[&str]| -> Value { serde_json::from_str(&read(world.crictl().args(args))).unwrap() };
    let number = |value: &Value| value["value"].as_str().unwrap_or_default().parse::<u64>().unwrap_or(0);

    let stats = until("it has used the processor", || {
        let stats = as_json(&["stats", "--output", "json", "--id", &id])["stats"][0].clone();
        (number(&stats["cpu"]["usageCoreNanoSeconds"]) > 10_000_000).then_some(stats)
    });
    assert_eq!(stats["attributes"]["metadata"]["name"], "c");
    let memory = &stats["memory"];
    let (working, available) = (number(&memory["workingSetBytes"]), number(&memory["availableBytes"]));
    assert!(working > 0 && working + available == 64 << 20, "{memory}");
    assert!(number(&stats["writableLayer"]["usedBytes"]) >= 4096, "{stats}");

    let pod_stats = as_json(&["statsp", "--output", "json", "--id", &sandbox])["stats"][0].clone();
    let linux = &pod_stats["linux"];
    assert!(number(&linux["cpu"]["usageCoreNanoSeconds"]) > 10_000_000, "{linux}");
    assert_eq!(linux["network"]["defaultInterface"]["name"], "eth0");
    assert!(number(&linux["process"]["processCount"]) >= 2, "{linux}");
    assert_eq!(linux["containers"][0]["attributes"]["id"], json!(id));

    let described = as_json(&["metricdescs"]);
    let described = described["descriptors"].as_array().unwrap();
    let metrics = as_json(&["metricsp"])["podMetrics"][0].clone();
    let container_metrics = metrics["containerMetrics"][0]["metrics"].as_array().unwrap();
    for metric in container_metrics.iter().chain(metrics["metrics"].as_array().unwrap()) {
        let keys =
            described.iter().find(|descriptor| descriptor["name"] == metric["name"]).unwrap()["labelKeys"].clone();
        assert_eq!(keys.as_array().unwrap().len(), metric["labelValues"].as_array().unwrap().len(), "{metric}");
    }
    for name in ["container_memory_working_set_bytes", "container_processes", "container_spec_memory_limit_bytes"] {
        assert!(
            container_metrics.iter().any(|metric| metric["name"] == name && number(&metric["value"]) > 0),
            "{name}"
        );
    }

    run(world.crictl().args(["update", "--memory", "33554432", "--cpu-quota", "10000", &id]));
    let resources = inspect(&world, "inspect", &id)["status"]["resources"]["linux"].clone();
    assert_eq!(resources["memoryLimitInBytes"], "33554432");
    assert_eq!((&resources["cpuQuota"], &resources["cpuPeriod"]), (&json!("10000"), &json!("100000")));
    let stats = as_json(&["stats", "--output", "json", "--id", &id])["stats"][0].clone();
    assert!(number(&stats["memory"]["availableBytes"]) < 32 << 20, "{stats}");
    let said = refuse(world.crictl().args(["update", "--cpuset-cpus", "4000", &id]));
    assert!(said.contains("cpuset.cpus") && said.contains("4000"), "{said}");
    assert_eq!(
        inspect(&world, "inspect", &id)["status"]["resources"]["linux"],
        resources,
        "a refused limit changes nothing"
    );
    run(world.crictl().args(["update-runtime-config", "--pod-cidr", "10.1.0.0/24"]));
    assert!(refuse(world.crictl().args(["update-runtime-config", "--pod-cidr", "10.1.0"])).contains("pod_cidr"));

    run(world.crictl().args(["rmp", "-f", "-a"]));
    assert_eq!(world.count(), before, "something was left behind");
}

#[test]
fn devices_of_the_machine_are_handed_on_by_name() {
    let (world, _daemon) = start();
    let script = "for d in /dev/orlop-null /dev/loop-control; do if ( : < $d ) 2>/dev/null; then echo $d opens; else echo $d refused; fi; done";
    let named =
        json!({"devices": [{"host_path": "/dev/null", "container_path": "/dev/orlop-null", "permissions": "r"}]});
    let (pod, container) = files(&world, "device", &["sleep", "1000"], named);
    let id = read(world.crictl().args(["run", "--no-pull", &container, &pod]));
    let said = read(world.crictl().args(["exec", "-s", &id, "sh", "-c", script]));
    assert_eq!(said, "/dev/orlop-null opens\n/dev/loop-control refused");
    let missing = json!({"metadata": {"name": "other"}, "devices": [{"host_path": "/dev/not-there", "container_path": "/dev/x", "permissions": "r"}]});
    let (_, container) = files(&world, "device", &["true"], missing);
    let sandbox = read(world.crictl().args(["pods", "--quiet"]));
    let said = refuse(world.crictl().args(["create", &sandbox, &container, &pod]));
    assert!(said.contains("/dev/not-there"), "{said}");
    run(world.crictl().args(["rmp", "-f", "-a"]));
}

#[test]
fn a_pod_in_a_user_namespace_and_an_image_as_a_volume() {
    let (world, _daemon) = start();
    let before = world.count();
    let ids = json!([{"host_id": 200_000, "container_id": 0, "length": 65536}]);
    let namespaces = json!({"pid": 1, "userns_options": {"mode": 0, "uids": ids, "gids": ids}});
    let extra = json!({
        "mounts": [{"container_path": "/image", "image": {"image": "localhost/test:1"}, "image_sub_path": "bin", "readonly": true}],
        "linux": {"security_context": {"namespace_options": namespaces}},
    });
    let (pod, container) = files(&world, "mapped", &["sleep", "1000"], extra);
    let mut config: Value = serde_json::from_slice(&std::fs::read(&pod).unwrap()).unwrap();
    config["linux"]["security_context"] = json!({"namespace_options": namespaces});
    std::fs::write(&pod, config.to_string()).unwrap();
    let id = read(world.crictl().args(["run", "--no-pull", &container, &pod]));
    let said = |script: &str| read(world.crictl().args(["exec", "-s", &id, "sh", "-c", script]));
    let map = said("cat /proc/self/uid_map");
    assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", "200000", "65536"]);
    assert_eq!(said("id -u; echo x > /etc/hosts && echo written"), "0\nwritten", "the pod's own files are its root's");
    assert!(said("/image/echo from the image").contains("from the image"), "a program of the volume runs");
    let refused = world.crictl().args(["exec", "-s", &id, "sh", "-c", "echo x > /image/x"]).output().unwrap();
    assert!(!refused.status.success(), "an image volume can't be written");
    let status = inspect(&world, "inspect", &id);
    let pid = status["info"]["pid"].as_i64().unwrap();
    let owner = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(owner.lines().any(|line| line.starts_with("Uid:\t200000\t")), "{owner}");
    let reference = status["status"]["mounts"][0]["image"]["imageRef"].as_str().unwrap_or_default();
    assert!(reference.starts_with("sha256:"), "{}", status["status"]["mounts"]);
    // The image is held by the volume as by a container.
    let sandbox = read(world.crictl().args(["pods", "--quiet"]));
    let missing = json!({
        "metadata": {"name": "missing"},
        "mounts": [{"container_path": "/i", "image": {"image": "localhost/test:1"}, "image_sub_path": "nope", "readonly": true}],
        "linux": {"security_context": {"namespace_options": namespaces}},
    });
    let (_, container) = files(&world, "mapped-missing", &["true"], missing);
    let words = refuse(world.crictl().args(["create", &sandbox, &container, &pod]));
    assert!(words.contains("nope"), "{words}");
    run(world.crictl().args(["rmp", "-f", "-a"]));
    assert_eq!(world.count(), before, "something was left behind");
    run(world.crictl().args(["rmi", "localhost/test:1"]));
}
