//! Daemons that are killed while pods start, write and stop.

use std::process::Command;

use orlop_apiserver::pki::{Client, Pki, PkiOptions};
use orlop_tests::world::{Daemon, World, read, run, until};
use rand::Rng;
use rand::seq::IndexedRandom;
use serde_json::Value;

/// How often each daemon is killed.
const KILLS: usize = 20;
/// The daemons, each a process of its own.
const DAEMONS: [&str; 4] = ["api", "cri", "csi", "agent"];

fn start(world: &World, name: &str) -> Daemon {
    let mut command: Command = world.orlop();
    command.arg(name);
    match name {
        "api" => {
            command.args(["--node-name", "node-1"]);
        }
        "csi" => {
            command.args(["--node-id", "node-1"]);
        }
        "agent" => {
            let pki = world.root.join("state/pki");
            command.args(["--hostname-override", "node-1", "--node-ip", "127.0.0.1"]);
            command.arg("--kubeconfig").arg(world.root.join("state/node.kubeconfig"));
            command.arg("--tls-cert-file").arg(pki.join("kubelet.crt"));
            command.arg("--tls-private-key-file").arg(pki.join("kubelet.key"));
            command.arg("--client-ca-file").arg(pki.join("ca.crt"));
        }
        _ => {}
    }
    Daemon::start(command, world.folder().join(format!("{name}.log")))
}

fn pod(name: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: localhost/test:1
    command: [sh, -c, 'trap exit TERM; i=0; while :; do echo line $i; i=$((i+1)); sleep 0.01; done']
"
    )
}

/// kubectl, again and again: the API may be down just now.
fn insist(world: &World, arguments: &[&str]) -> String {
    until(&format!("kubectl {}", arguments.join(" ")), || {
        let output = world.kubectl().args(arguments).output().unwrap();
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    })
}

/// The test.
pub fn runs() {
    let world = World::new();
    let before = world.count();
    let options = PkiOptions { node_name: "node-1".into(), api_names: vec![], kubelet_names: vec![] };
    let pki = Pki::ensure(&world.root.join("state/pki"), &options).unwrap();
    let _ = pki.client(Client::Admin);
    let mut daemons: Vec<Daemon> = vec![start(&world, "api")];
    until("the API is ready", || daemons[0].log().contains("the API is ready").then_some(()));
    daemons.extend(DAEMONS[1..].iter().map(|name| start(&world, name)));
    until("the runtime answers", || world.crictl().arg("version").output().unwrap().status.success().then_some(()));
    world.load_image();
    let apply = |name: &str| {
        let file = world.folder().join(format!("{name}.yaml"));
        std::fs::write(&file, pod(name)).unwrap();
        insist(&world, &["apply", "-f", file.to_str().unwrap()]);
    };
    for name in ["stays-a", "stays-b"] {
        apply(name);
        insist(&world, &["wait", "--for=condition=Ready", "--timeout=20s", &format!("pod/{name}")]);
    }
    let mut random = rand::rng();
    let mut left: Vec<usize> = (0..DAEMONS.len()).flat_map(|daemon| [daemon; KILLS]).collect();
    let mut round = 0;
    while !left.is_empty() {
        let daemon = *left.choose(&mut random).unwrap();
        left.swap_remove(left.iter().position(|other| *other == daemon).unwrap());
        // Something is always starting and something stopping.
        let (comes, goes) = (format!("comes-{round}"), format!("comes-{}", round.max(2) - 2));
        if round % 4 == 0 {
            apply(&comes);
        }
        if round % 4 == 2 {
            insist(&world, &["delete", "pod", &goes, "--wait=false", "--ignore-not-found"]);
        }
        std::thread::sleep(std::time::Duration::from_millis(random.random_range(0..150)));
        daemons[daemon].kill();
        daemons[daemon] = start(&world, DAEMONS[daemon]);
        round += 1;
    }
    for name in ["stays-a", "stays-b"] {
        let pod: Value = serde_json::from_str(&insist(&world, &["get", "pod", name, "-o", "json"])).unwrap();
        assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0, "{}", pod["status"]);
        until("it is ready", || {
            let pod: Value = serde_json::from_str(&insist(&world, &["get", "pod", name, "-o", "json"])).unwrap();
            (pod["status"]["containerStatuses"][0]["ready"] == true).then_some(())
        });
    }
    check_logs(&world);
    insist(&world, &["delete", "pods", "--all", "--grace-period=1"]);
    // What a killed agent left half taken down goes with the collection that runs once a minute.
    let end = std::time::Instant::now() + std::time::Duration::from_secs(100);
    while world.count() != before && std::time::Instant::now() < end {
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert_eq!(world.count(), before, "something was left behind");
    drop(daemons);
    run(world.orlop().arg("down"));
}

/// Every line is there, once, in order.
fn check_logs(world: &World) {
    let mut seen = 0;
    for pod in std::fs::read_dir(world.root.join("log/pods")).unwrap().flatten() {
        if !pod.file_name().to_string_lossy().contains("stays-") {
            continue;
        }
        let files: Vec<_> = std::fs::read_dir(pod.path().join("c")).unwrap().flatten().collect();
        assert_eq!(files.len(), 1, "one instance, one log");
        let text = read(Command::new("cat").arg(files[0].path()));
        let mut lines: Vec<&str> = text.lines().collect();
        // The last one may be half written: it is being written.
        lines.pop();
        for (number, line) in lines.iter().enumerate() {
            assert!(line.ends_with(&format!(" line {number}")), "line {number} is {line:?}");
        }
        assert!(lines.len() > 100, "it wrote all the time");
        seen += 1;
    }
    assert_eq!(seen, 2);
}
