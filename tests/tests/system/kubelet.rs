//! A Go kubelet on our runtime: the application of several parts as static pods.

use std::path::{Path, PathBuf};

use orlop_tests::images;
use orlop_tests::kubelet::{self, OwnCgroup, Settings};
use orlop_tests::world::{Daemon, World, read, run, until};
use serde_json::{Value, json};

/// The Go kubelet runs the application: init container, sidecar, probes, host ports, volumes, logs; restarts what ends,
/// and takes its pods up again after its own death and the runtime's.
pub fn kubelet_on_our_runtime() {
    let (_settings, cgroup) = (Settings::keep(), OwnCgroup::make());
    let world = World::new();
    let storage = images::storage();
    let _registry = images::registry(&world, &storage);
    let mut runtime = start_runtime(&world);
    let before = world.count();
    let mut kubelet = start_kubelet(&world, &cgroup);
    let manifests = world.folder().join("manifests");
    write_application(&world, &manifests);

    let page = || {
        let mut curl = world.command("curl");
        let output =
            curl.args(["--silent", "--fail", "--max-time", "5", "http://127.0.0.1:18000/visit"]).output().unwrap();
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    };
    let first = until("the application serves its page", page);
    assert!(first.starts_with("visit 1 of backend"), "{first}");
    let of = |name: &str| read(world.crictl().args(["ps", "--quiet", "--name", &format!("^{name}$")]));
    until("the sidecar has shipped the log", || {
        let shipper = of("ship-log");
        (!shipper.is_empty() && read(world.crictl().args(["logs", &shipper])).contains("visit 1 of")).then_some(())
    });

    // A container that is killed is started again, the others go on.
    let (store, program) = (of("redis"), of("app"));
    run(world.crictl().args(["stop", "--timeout", "0", &program]));
    until("the program is restarted", || Some(of("app")).filter(|id| !id.is_empty() && *id != program));
    until("it counts on", || page().filter(|page| page.starts_with("visit 2 of")));
    assert_eq!(of("redis"), store);

    // Both daemons go and come back: nobody notices.
    kubelet.kill();
    runtime.kill();
    let containers = |world: &World| read(world.crictl().args(["ps", "--quiet", "--no-trunc"]));
    runtime = start_runtime(&world);
    let running = containers(&world);
    assert_eq!(running.lines().count(), 4, "{running}");
    drop(kubelet);
    kubelet = start_kubelet(&world, &cgroup);
    until("the kubelet has its pods again", || {
        let mut pods = world.command("curl");
        let answer = pods.args(["--silent", "--insecure", "https://127.0.0.1:10355/pods"]).output().unwrap();
        let pods: Value = serde_json::from_slice(&answer.stdout).ok()?;
        let items = pods["items"].as_array()?;
        let ready = |pod: &&Value| orlop_tests::case::condition(pod, "Ready") == "True";
        (items.iter().filter(ready).count() == 3).then_some(())
    });
    assert_eq!(containers(&world), running, "a container was restarted");
    until("the count goes on", || page().filter(|page| page.starts_with("visit 3 of")));

    for entry in std::fs::read_dir(&manifests).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    until("the pods are gone", || read(world.crictl().args(["pods", "--quiet"])).is_empty().then_some(()));
    drop(kubelet);
    assert_eq!(world.count(), before, "something was left behind");
    drop(runtime);
}

fn start_runtime(world: &World) -> Daemon {
    let mut command = world.orlop();
    command.arg("cri");
    let runtime = Daemon::start(command, world.folder().join("cri.log"));
    until("the runtime answers", || world.crictl().arg("info").output().unwrap().status.success().then_some(()));
    runtime
}

fn start_kubelet(world: &World, cgroup: &OwnCgroup) -> Daemon {
    let manifests = world.folder().join("manifests");
    std::fs::create_dir_all(&manifests).unwrap();
    let more = json!({
        "staticPodPath": manifests,
        "fileCheckFrequency": "1s",
        "address": "127.0.0.1",
        "port": 10355,
        "enableDebuggingHandlers": true,
    });
    kubelet::start(world, &world.socket(), cgroup, more, &["--hostname-override", "node"])
}

/// The shipped manifests as static pods, which can't name objects of an API: ConfigMaps become folders, Secrets values,
/// the claim a folder, and the node's address that of the pods' bridge.
fn write_application(world: &World, manifests: &Path) {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/examples/app");
    let mut pods = Vec::new();
    for name in ["configuration.yaml", "redis.yaml", "backend.yaml", "front.yaml"] {
        let text = std::fs::read_to_string(shipped.join(name)).unwrap();
        for document in text.split("\n---\n") {
            let object: Value = serde_saphyr::from_str(document).unwrap();
            match object["kind"].as_str().unwrap() {
                "ConfigMap" => write_data(&data(world, &object), &object["data"]),
                "Pod" => pods.push(object),
                _ => {}
            }
        }
    }
    let store = world.folder().join("store");
    std::fs::create_dir_all(&store).unwrap();
    std::os::unix::fs::chown(&store, Some(999), Some(999)).unwrap();
    let gateway = world.gateway();
    for mut pod in pods {
        let name = pod["metadata"]["name"].as_str().unwrap().to_string();
        for volume in pod["spec"]["volumes"].as_array_mut().unwrap() {
            let folder = if !volume["configMap"].is_null() {
                world.folder().join("config").join(volume["configMap"]["name"].as_str().unwrap())
            } else if !volume["persistentVolumeClaim"].is_null() {
                store.clone()
            } else {
                continue;
            };
            *volume = json!({"name": volume["name"], "hostPath": {"path": folder}});
        }
        for list in ["initContainers", "containers"] {
            let containers = pod["spec"][list].as_array_mut().into_iter().flatten();
            for env in containers.flat_map(|container| container["env"].as_array_mut()).flatten() {
                if !env["valueFrom"]["secretKeyRef"].is_null() {
                    *env = json!({"name": env["name"], "value": "correct-horse"});
                } else if env["valueFrom"]["fieldRef"]["fieldPath"] == "status.hostIP" {
                    *env = json!({"name": env["name"], "value": gateway});
                }
            }
        }
        // The name that the kubelet gives static pods ends with the node's.
        let draft = world.folder().join("draft.json");
        std::fs::write(&draft, pod.to_string()).unwrap();
        std::fs::rename(draft, manifests.join(format!("{name}.json"))).unwrap();
    }
}

fn data(world: &World, object: &Value) -> PathBuf {
    world.folder().join("config").join(object["metadata"]["name"].as_str().unwrap())
}

fn write_data(folder: &Path, data: &Value) {
    std::fs::create_dir_all(folder).unwrap();
    for (name, text) in data.as_object().unwrap() {
        std::fs::write(folder.join(name), text.as_str().unwrap()).unwrap();
    }
}
