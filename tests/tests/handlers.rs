//! Pods whose containers are made by a runtime program: `runc`, `crun` and `orlop-runtime` behind handlers of `orlop cri`,
//! driven by crictl.

use std::path::{Path, PathBuf};

use orlop_tests::cri::{files, inspect, serve};
use orlop_tests::place::{debian, foreign};
use orlop_tests::world::{Daemon, World, read, refuse, run, until};
use serde_json::{Value, json};

/// The programs, by their handlers: Debian's, the newest, and our own.
fn programs() -> [(&'static str, PathBuf); 4] {
    let own = orlop_tests::place::programs().join("orlop-runtime");
    [("runc", debian("runc", "runc")), ("crun", debian("crun", "crun")), ("newest", foreign("runc")), ("own", own)]
}

/// A world whose configuration has a handler per program, and one whose program is missing.
fn start() -> (World, Daemon) {
    let world = World::new();
    // crun refuses to work where v2 has controllers beside v1. Nobody outside of this world loses anything.
    let mixed = Path::new("/sys/fs/cgroup/unified");
    if std::fs::read_to_string(mixed.join("cgroup.controllers")).is_ok_and(|text| !text.trim().is_empty()) {
        run(world.command("umount").arg(mixed));
    }
    let mut text = format!("version = 1\n[devices]\ncdi_dirs = [{:?}]\n", world.folder().join("cdi"));
    text.push_str("[runtimes.missing]\nprogram = \"/no/such/runtime\"\n");
    for (name, program) in programs() {
        text.push_str(&format!("[runtimes.{name}]\nprogram = {program:?}\n"));
    }
    std::fs::write(configuration(&world), text).unwrap();
    let daemon = serve(&world, &["--cri-config", &configuration(&world)]);
    world.load_image();
    (world, daemon)
}

fn configuration(world: &World) -> String {
    world.folder().join("cri.toml").display().to_string()
}

fn inspect_info(world: &World) -> Value {
    serde_json::from_str(&read(world.crictl().arg("info"))).unwrap()
}

fn run_pod(world: &World, handler: &str, pod: &str) -> String {
    read(world.crictl().args(["runp", "--runtime", handler, pod]))
}

/// What programs keep of containers.
fn kept(world: &World) -> Vec<PathBuf> {
    let entries = |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    entries(&world.root.join("run/cri/runtimes")).flat_map(|root| entries(&root).collect::<Vec<_>>()).collect()
}

#[test]
fn a_pod_of_each_program_from_first_to_last() {
    let (world, mut daemon) = start();
    let before = world.count();
    let info = inspect_info(&world)["runtimeHandlers"].to_string();
    for (name, _) in programs() {
        assert!(info.contains(&format!("\"name\":\"{name}\"")), "{info}");
    }
    assert!(!info.contains("missing"), "{info}");
    for (handler, _) in programs() {
        let script = "echo begin; echo wrong >&2; trap 'echo bye; exit 5' TERM; while true; do sleep 0.1; done";
        let (pod, container) = files(&world, &format!("life-{handler}"), &["sh", "-c", script], json!({}));
        let sandbox = run_pod(&world, handler, &pod);
        assert_eq!(inspect(&world, "inspectp", &sandbox)["status"]["runtimeHandler"], handler);
        let id = read(world.crictl().args(["create", &sandbox, &container, &pod]));
        assert_eq!(inspect(&world, "inspect", &id)["status"]["state"], "CONTAINER_CREATED");
        assert_eq!(kept(&world).len(), 1, "the program keeps the container");
        run(world.crictl().args(["start", &id]));
        until("it speaks", || {
            let logs = world.crictl().args(["logs", &id]).output().unwrap();
            let text = [logs.stdout, logs.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
            (text.contains("begin") && text.contains("wrong")).then_some(())
        });
        exec(&world, &id, handler);
        let told = read(world.crictl().args(["exec", "-s", &id, "hostname"]));
        assert_eq!(told, format!("life-{handler}"));
        // The server may end at any time; nothing of the pod does.
        daemon.kill();
        daemon = serve(&world, &["--cri-config", &configuration(&world)]);
        assert_eq!(inspect(&world, "inspectp", &sandbox)["status"]["runtimeHandler"], handler);
        exec(&world, &id, handler);
        run(world.crictl().args(["stop", "-t", "20", &id]));
        let stopped = inspect(&world, "inspect", &id);
        assert_eq!(
            (&stopped["status"]["state"], &stopped["status"]["exitCode"]),
            (&json!("CONTAINER_EXITED"), &json!(5))
        );
        assert!(read(world.crictl().args(["logs", &id])).contains("bye"));
        run(world.crictl().args(["rm", &id]));
        assert_eq!(kept(&world), Vec::<PathBuf>::new(), "{handler} has kept something");
        run(world.crictl().args(["rmp", "-f", &sandbox]));
    }
    assert_eq!(world.count(), before, "something was left behind");
}

fn exec(world: &World, id: &str, handler: &str) {
    assert_eq!(read(world.crictl().args(["exec", "-s", id, "echo", "sync"])), "sync", "{handler}");
    assert_eq!(read(world.crictl().args(["exec", id, "echo", "stream"])), "stream", "{handler}");
    let failed = world.crictl().args(["exec", "-s", id, "sh", "-c", "echo out; exit 7"]).output().unwrap();
    let words = String::from_utf8_lossy(&failed.stderr);
    assert!(words.contains("exited with 7"), "{handler}: {words}");
    let missing = refuse(world.crictl().args(["exec", "-s", id, "/no/such/program"]));
    assert!(missing.contains("/no/such/program"), "{handler}: {missing}");
    let line =
        format!("stty rows 33 cols 99; {} exec -it {id} sh -c 'echo seen-$((6*7)); stty size'", world.crictl_line());
    let seen = read(world.command("script").args(["-qec", &line, "/dev/null"]));
    assert!(seen.contains("seen-42"), "{handler}: {seen:?}");
}

#[test]
fn terminals_input_and_shared_memory_are_the_pods() {
    let (world, _daemon) = start();
    let before = world.count();
    for (handler, _) in programs() {
        let (pod, screen) = files(
            &world,
            &format!("screen-{handler}"),
            &["sh", "-c", "stty size && echo on a terminal"],
            json!({"tty": true}),
        );
        let sandbox = run_pod(&world, handler, &pod);
        let id = read(world.crictl().args(["create", &sandbox, &screen, &pod]));
        run(world.crictl().args(["start", &id]));
        until("it says so", || read(world.crictl().args(["logs", &id])).contains("on a terminal").then_some(()));
        let mut ids = Vec::new();
        for (name, script) in [("one", "echo shared > /dev/shm/x; sleep 600"), ("two", "sleep 600")] {
            let extra = json!({"metadata": {"name": name}, "log_path": "", "command": ["sh", "-c", script]});
            let (_, container) = files(&world, &format!("{name}-{handler}"), &[], extra);
            let id = read(world.crictl().args(["create", &sandbox, &container, &pod]));
            run(world.crictl().args(["start", &id]));
            ids.push(id);
        }
        let text = until("the memory is shared", || {
            let output = world.crictl().args(["exec", "-s", &ids[1], "cat", "/dev/shm/x"]).output().unwrap();
            output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
        });
        assert_eq!(text.trim(), "shared");
        run(world.crictl().args(["rmp", "-f", &sandbox]));
        assert_eq!(kept(&world), Vec::<PathBuf>::new(), "{handler} has kept something");
    }
    assert_eq!(world.count(), before, "something was left behind");
}

#[test]
fn user_namespaces_and_mounts_are_as_with_the_built_in_runtime() {
    let (world, _daemon) = start();
    let before = world.count();
    let folder = world.folder().join("volume");
    std::fs::create_dir_all(folder.join("below")).unwrap();
    std::fs::write(folder.join("text"), "of the machine").unwrap();
    run(world.command("mount").args(["-t", "tmpfs", "below"]).arg(folder.join("below")));
    let features = &inspect_info(&world)["runtimeHandlers"];
    let ids = json!([{"host_id": 200_000, "container_id": 0, "length": 65536}]);
    let namespaces = json!({"pid": 1, "userns_options": {"mode": 0, "uids": ids, "gids": ids}});
    for (handler, _) in programs() {
        let has = |feature: &str| {
            features.as_array().unwrap().iter().any(|one| one["name"] == handler && one["features"][feature] == true)
        };
        assert!(has("user_namespaces") && has("recursive_read_only_mounts"), "{handler}: {features}");
        let extra = json!({
            "mounts": [
                {"container_path": "/mapped", "host_path": folder, "uidMappings": ids, "gidMappings": ids},
                {"container_path": "/kept", "host_path": folder, "readonly": true, "recursive_read_only": true},
                {"container_path": "/image", "image": {"image": "localhost/test:1"}, "image_sub_path": "bin", "readonly": true},
            ],
            "linux": {"security_context": {"namespace_options": namespaces, "run_as_user": {"value": 1000}}},
        });
        let args = ["sh", "-c", "echo spoken > /dev/stdout; sleep 600"];
        let (pod, container) = files(&world, &format!("mapped-{handler}"), &args, extra);
        let mut config: Value = serde_json::from_slice(&std::fs::read(&pod).unwrap()).unwrap();
        config["linux"]["security_context"] = json!({"namespace_options": namespaces});
        std::fs::write(&pod, config.to_string()).unwrap();
        let sandbox = run_pod(&world, handler, &pod);
        let id = read(world.crictl().args(["create", &sandbox, &container, &pod]));
        run(world.crictl().args(["start", &id]));
        let said = |script: &str| read(world.crictl().args(["exec", "-s", &id, "sh", "-c", script]));
        assert_eq!(said("cat /proc/self/uid_map").split_whitespace().collect::<Vec<_>>(), ["0", "200000", "65536"]);
        assert_eq!(said("stat -c %u /mapped/text /kept/text / /bin; id -u"), "0\n65534\n0\n0\n1000", "{handler}");
        assert_eq!(
            said("cat /mapped/text; /image/echo; echo x > /dev/shm/x && stat -c %u /dev/shm/x"),
            "of the machine\n1000"
        );
        for place in ["/kept", "/kept/below", "/image"] {
            let refused = refuse(world.crictl().args(["exec", "-s", &id, "sh", "-c", &format!("echo x > {place}/x")]));
            assert!(refused.contains("exited with"), "{handler} {place}: {refused}");
            let words =
                world.crictl().args(["exec", &id, "sh", "-c", &format!("echo x > {place}/x")]).output().unwrap();
            let words = String::from_utf8_lossy(&words.stderr).to_string();
            assert!(words.contains("Read-only file system"), "{handler} {place}: {words}");
        }
        let status = inspect(&world, "inspect", &id);
        let pid = status["info"]["pid"].as_i64().unwrap();
        let owner = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert!(owner.lines().any(|line| line.starts_with("Uid:\t201000\t")), "{owner}");
        until("it speaks", || read(world.crictl().args(["logs", &id])).contains("spoken").then_some(()));
        run(world.crictl().args(["rmp", "-f", &sandbox]));
        assert_eq!(kept(&world), Vec::<PathBuf>::new(), "{handler} has kept something");
    }
    run(world.command("umount").arg(folder.join("below")));
    assert_eq!(world.count(), before, "something was left behind");
}

#[test]
fn what_can_not_be_made_is_said_and_leaves_nothing() {
    let (world, _daemon) = start();
    let before = world.count();
    let (pod, container) = files(&world, "bad", &["/no/such/program"], json!({}));
    let unknown = refuse(world.crictl().args(["runp", "--runtime", "youki", &pod]));
    assert!(unknown.contains("crun, missing, newest, own, runc, orlop"), "{unknown}");
    let missing = refuse(world.crictl().args(["runp", "--runtime", "missing", &pod]));
    assert!(missing.contains("/no/such/runtime"), "{missing}");
    for (handler, program) in programs() {
        let sandbox = run_pod(&world, handler, &pod);
        let said = refuse(world.crictl().args(["create", &sandbox, &container, &pod]));
        assert!(said.contains("/no/such/program") && said.contains(program.to_str().unwrap()), "{handler}: {said}");
        assert_eq!(kept(&world), Vec::<PathBuf>::new(), "{handler} has kept something");
        run(world.crictl().args(["rmp", "-f", &sandbox]));
    }
    assert_eq!(world.count(), before, "something was left behind");
}

#[test]
fn what_a_killed_shim_leaves_is_removed() {
    let (world, _daemon) = start();
    let before = world.count();
    for (handler, _) in programs() {
        let (pod, container) = files(&world, &format!("dead-{handler}"), &["sleep", "600"], json!({}));
        let sandbox = run_pod(&world, handler, &pod);
        let id = read(world.crictl().args(["create", &sandbox, &container, &pod]));
        run(world.crictl().args(["start", &id]));
        let shim = inspect(&world, "inspectp", &sandbox)["info"]["shimPid"].as_i64().unwrap();
        run(world.command("kill").args(["-9", &shim.to_string()]));
        until("the sandbox is not ready", || read(world.crictl().arg("pods")).contains("NotReady").then_some(()));
        run(world.crictl().args(["rmp", "-f", &sandbox]));
        assert_eq!(kept(&world), Vec::<PathBuf>::new(), "{handler} has kept something");
    }
    assert_eq!(world.count(), before, "something was left behind");
}

/// Writes a CDI file with a device that has a hook per point, which note what they are told below a folder.
fn describe_hooks(world: &World, name: &str, more: Value) -> PathBuf {
    let notes = world.folder().join(name);
    std::fs::create_dir_all(&notes).unwrap();
    std::fs::create_dir_all(world.folder().join("cdi")).unwrap();
    let points = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];
    let hook = |point: &&str| {
        let place = if *point == "startContainer" { "/dev/shm".into() } else { notes.display().to_string() };
        let script = format!("cat > {place}/{point}; echo {point} $A $SECRET >> {place}/order");
        json!({"hookName": point, "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["A=b"], "timeout": 20})
    };
    let hooks: Vec<Value> = points.iter().map(hook).collect();
    let edits = json!({"hooks": hooks, "additionalGids": [4711], "env": ["DEVICE=here"]});
    let broken = json!({"hooks": [{"hookName": "createRuntime", "path": "/bin/sh", "args": ["sh", "-c", "echo of the device >&2; exit 3"]}]});
    let devices = json!([
        {"name": "good", "containerEdits": edits},
        {"name": "broken", "containerEdits": broken},
        {"name": "other", "containerEdits": more},
    ]);
    let file = json!({"cdiVersion": "0.6.0", "kind": format!("orlop.test/{name}"), "devices": devices});
    std::fs::write(world.folder().join(format!("cdi/{name}.json")), file.to_string()).unwrap();
    notes
}

#[test]
fn hooks_of_devices_run_whatever_makes_the_container() {
    let (world, mut daemon) = start();
    let before = world.count();
    for handler in ["", "runc", "crun", "newest", "own"] {
        let name = format!("hooks{handler}");
        let notes = describe_hooks(&world, &name, json!({"netDevices": [{"name": "eth1"}]}));
        let order = || std::fs::read_to_string(notes.join("order")).unwrap_or_default();
        let extra = json!({
            "CDI_devices": [{"name": format!("orlop.test/{name}=good")}],
            "envs": [{"key": "SECRET", "value": "c2VjcmV0"}, {"key": "A", "value": "eA=="}],
        });
        let (pod, container) = files(&world, &name, &["sleep", "600"], extra);
        let sandbox = match handler {
            "" => read(world.crictl().args(["runp", &pod])),
            _ => run_pod(&world, handler, &pod),
        };
        let id = read(world.crictl().args(["create", &sandbox, &container, &pod]));
        // runc runs poststart's when the container is made.
        let early = order().replace("poststart b\n", "");
        let lines: Vec<&str> = early.lines().map(str::trim).collect();
        assert_eq!(lines, ["prestart b", "createRuntime b", "createContainer b"], "{handler}");
        // What is due at the end is due whoever serves then.
        daemon.kill();
        daemon = serve(&world, &["--cri-config", &configuration(&world)]);
        run(world.crictl().args(["start", &id]));
        assert!(order().contains("poststart b"), "{handler}: {}", order());
        let said = |script: &str| read(world.crictl().args(["exec", "-s", &id, "sh", "-c", script]));
        assert_eq!(
            said("cat /dev/shm/order; echo $DEVICE; id -G").split_whitespace().collect::<Vec<_>>().join(" "),
            "startContainer b here 0 4711",
            "{handler}"
        );
        let pid = inspect(&world, "inspect", &id)["info"]["pid"].as_i64();
        for point in ["createRuntime", "poststart"] {
            let state: Value = serde_json::from_slice(&std::fs::read(notes.join(point)).unwrap()).unwrap();
            assert_eq!((state["id"].as_str(), state["pid"].as_i64()), (Some(id.as_str()), pid), "{handler} {point}");
            let bundle = Path::new(state["bundle"].as_str().unwrap());
            assert!(bundle.join("config.json").exists(), "{handler}: {bundle:?}");
        }
        run(world.crictl().args(["rm", "-f", &id]));
        assert!(order().trim_end().ends_with("poststop b"), "{handler}: {}", order());
        for (device, words) in
            [("broken", ["createRuntime hook", "of the device"]), ("other", ["netDevices", "not there"])]
        {
            let extra =
                json!({"metadata": {"name": device}, "CDI_devices": [{"name": format!("orlop.test/{name}={device}")}]});
            let (_, container) = files(&world, &format!("{name}-{device}"), &["sleep", "600"], extra);
            let refused = refuse(world.crictl().args(["create", &sandbox, &container, &pod]));
            // Programs of others say it in their own words.
            let words = match (device, handler) {
                ("broken", "runc" | "newest") => ["hook", "of the device"],
                ("broken", "crun") => ["hook", "/bin/sh"],
                _ => words,
            };
            assert!(words.iter().all(|word| refused.contains(word)), "{handler}: {refused}");
        }
        run(world.crictl().args(["rmp", "-f", &sandbox]));
        assert_eq!(kept(&world), Vec::<PathBuf>::new(), "{handler} has kept something");
    }
    assert_eq!(world.count(), before, "something was left behind");
}
