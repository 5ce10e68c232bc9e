//! A node and its API: the embedded one, or etcd, kube-apiserver, kube-controller-manager and kube-scheduler.

use std::path::Path;
use std::process::Command;

use orlop_apiserver::pki::{Client, Pki, PkiOptions};
use orlop_tests::place::{foreign, programs};
use orlop_tests::world::{Daemon, World, read, run, until};
use serde_json::Value;

/// Name of the node.
pub const NODE: &str = "node-1";
/// Address of the machine in its world, where a real API server is.
const ADDRESS: &str = "192.168.77.1";
/// Address of the `kubernetes` Service of the real API server.
const SERVICE: &str = "10.200.0.1";

/// A node with its API. The daemons end with it.
pub struct Node {
    daemons: Vec<Daemon>,
    pub world: World,
}

impl Node {
    /// `orlop up`.
    pub fn embedded() -> Node {
        let world = World::new();
        std::fs::create_dir(world.root.join("manifests")).unwrap();
        let mut command = world.orlop();
        command.args(["up", "--node-name", NODE]);
        let daemon = Daemon::start(command, world.folder().join("up.log"));
        until("the node is ready", || daemon.log().contains("the node is ready").then_some(()));
        world.load_image();
        Node { daemons: vec![daemon], world }
    }

    /// The control plane of Kubernetes and `orlop node`.
    pub fn real() -> Node {
        let world = World::new();
        std::fs::create_dir(world.root.join("manifests")).unwrap();
        for line in
            ["link add machine0 type bridge", &format!("addr add {ADDRESS}/24 dev machine0"), "link set machine0 up"]
        {
            run(world.command("ip").args(line.split(' ')));
        }
        // In the place of kube-proxy: the Service of the API leads to the API.
        let lead = format!("ip daddr {SERVICE} tcp dport 443 dnat to {ADDRESS}:6443");
        let chain = |name, hook| format!("chain {name} {{\n type nat hook {hook} priority -90;\n {lead}\n}}\n");
        let nat =
            format!("table ip services {{\n{}{}}}\n", chain("entering", "prerouting"), chain("leaving", "output"));
        let rules = world.folder().join("rules.nft");
        std::fs::write(&rules, nat).unwrap();
        run(world.command("nft").arg("-f").arg(&rules));
        let options = PkiOptions {
            node_name: NODE.into(),
            api_names: vec![ADDRESS.into(), SERVICE.into()],
            kubelet_names: vec![ADDRESS.into()],
        };
        let pki = Pki::ensure(&world.root.join("state/pki"), &options).unwrap();
        for (client, file) in [
            (Client::Admin, "admin.kubeconfig"),
            (Client::Node, "node.kubeconfig"),
            (Client::ControllerManager, "manager.kubeconfig"),
            (Client::Scheduler, "scheduler.kubeconfig"),
        ] {
            let kubeconfig = pki.kubeconfig(client, "https://127.0.0.1:6443").unwrap();
            kubeconfig.write(&world.root.join("state").join(file)).unwrap();
        }
        let mut daemons = control_plane(&world, &pki);
        daemons.push(start_node(&world, &pki));
        let ready = || {
            let nodes = world.kubectl().args(["get", "nodes", "--no-headers"]).output().unwrap();
            String::from_utf8_lossy(&nodes.stdout).contains(" Ready ").then_some(())
        };
        until("the node is ready", ready);
        let account = || {
            let found = world.kubectl().args(["get", "serviceaccount", "default"]).output().unwrap();
            found.status.success().then_some(())
        };
        until("the default account is there", account);
        world.load_image();
        Node { daemons, world }
    }

    /// Applies a manifest.
    pub fn apply(&self, manifest: &str) {
        let file = self.world.folder().join("manifest.yaml");
        std::fs::write(&file, manifest).unwrap();
        run(self.world.kubectl().arg("apply").arg("-f").arg(&file));
    }

    /// kubectl, to its success.
    pub fn kubectl(&self, line: &str) -> String {
        read(self.world.kubectl().args(line.split(' ')))
    }

    /// Waits until a pod is ready.
    pub fn wait_ready(&self, pod: &str) {
        let waited =
            self.world.kubectl().args(["wait", "--for=condition=Ready", "--timeout=60s", pod]).output().unwrap();
        if !waited.status.success() {
            let story = self.world.kubectl().args(["describe", pod]).output().unwrap();
            panic!("{pod} is not ready:\n{}", String::from_utf8_lossy(&story.stdout));
        }
    }

    /// A pod as JSON.
    pub fn pod(&self, name: &str) -> Value {
        serde_json::from_str(&read(self.world.kubectl().args(["get", "pod", name, "-o", "json"]))).unwrap()
    }

    /// Waits until something holds of a pod.
    pub fn wait_pod(&self, name: &str, what: &str, look: impl Fn(&Value) -> bool) -> Value {
        until(&format!("{name}: {what}"), || Some(self.pod(name)).filter(&look))
    }

    /// Whether an event with this reason and text was recorded.
    pub fn wait_event(&self, reason: &str, text: &str) {
        until(&format!("the event {reason} {text:?}"), || {
            let events = read(self.world.kubectl().args(["get", "events", "-o", "json"]));
            let events: Value = serde_json::from_str(&events).unwrap();
            let fits = |event: &Value| {
                event["reason"] == reason && event["message"].as_str().unwrap_or_default().contains(text)
            };
            events["items"].as_array().unwrap().iter().any(fits).then_some(())
        });
    }

    /// Runs a shell line in a pod.
    pub fn shell(&self, pod: &str, line: &str) -> String {
        read(self.world.kubectl().args(["exec", pod, "--", "sh", "-c", line]))
    }

    /// The last lines of every daemon.
    pub fn logs(&self) -> String {
        let mut text = String::new();
        for daemon in &self.daemons {
            let log = daemon.log();
            let last: Vec<&str> = log.lines().rev().filter(|line| !line.contains(" INFO ")).take(15).collect();
            text.push_str("---\n");
            last.iter().rev().for_each(|line| text.push_str(&format!("{}\n", &line[..line.len().min(400)])));
        }
        text
    }

    /// Removes every pod.
    pub fn remove_pods(&self) {
        run(self.world.kubectl().args(["delete", "pods", "--all", "--grace-period=1"]));
    }
}

fn control_plane(world: &World, pki: &Pki) -> Vec<Daemon> {
    let folder = world.folder().to_path_buf();
    let start = |name: &str, arguments: Vec<String>| {
        let mut command: Command = world.command(foreign(name));
        command.args(arguments);
        Daemon::start(command, folder.join(format!("{name}.log")))
    };
    let path = |path: &Path| path.display().to_string();
    let config = |file: &str| path(&world.root.join("state").join(file));
    let etcd = start("etcd", vec![format!("--data-dir={}", path(&folder.join("etcd"))), "--unsafe-no-fsync".into()]);
    let ((certificate, key), (kubelet, kubelet_key)) = (pki.api_serving(), pki.client(Client::ApiToKubelet));
    let (signer, checker) = pki.service_account_keys();
    let authority = path(&pki.ca_certificate());
    let api = start(
        "kube-apiserver",
        vec![
            "--etcd-servers=http://127.0.0.1:2379".into(),
            format!("--advertise-address={ADDRESS}"),
            format!("--service-cluster-ip-range={SERVICE}/24"),
            format!("--client-ca-file={authority}"),
            format!("--tls-cert-file={}", path(&certificate)),
            format!("--tls-private-key-file={}", path(&key)),
            format!("--kubelet-certificate-authority={authority}"),
            format!("--kubelet-client-certificate={}", path(&kubelet)),
            format!("--kubelet-client-key={}", path(&kubelet_key)),
            "--kubelet-preferred-address-types=InternalIP".into(),
            format!("--service-account-signing-key-file={}", path(&signer)),
            format!("--service-account-key-file={}", path(&checker)),
            "--service-account-issuer=https://kubernetes.default.svc".into(),
            "--authorization-mode=Node,RBAC".into(),
            "--enable-admission-plugins=NodeRestriction".into(),
        ],
    );
    until("kube-apiserver is ready", || {
        let ready = world.kubectl().args(["get", "--raw", "/readyz"]).output().unwrap();
        ready.status.success().then_some(())
    });
    let manager = start(
        "kube-controller-manager",
        vec![
            format!("--kubeconfig={}", config("manager.kubeconfig")),
            format!("--service-account-private-key-file={}", path(&signer)),
            format!("--root-ca-file={authority}"),
            "--use-service-account-credentials=true".into(),
            "--leader-elect=false".into(),
        ],
    );
    let scheduler = start(
        "kube-scheduler",
        vec![format!("--kubeconfig={}", config("scheduler.kubeconfig")), "--leader-elect=false".into()],
    );
    vec![scheduler, manager, api, etcd]
}

fn start_node(world: &World, pki: &Pki) -> Daemon {
    assert!(programs().join("orlop").is_file(), "orlop is not built: run `cargo xtask build`");
    let (certificate, key) = pki.kubelet_serving();
    let mut command = world.orlop();
    command.args(["node", "--hostname-override", NODE, "--node-ip", ADDRESS]);
    command.arg("--kubeconfig").arg(world.root.join("state/node.kubeconfig"));
    command.arg("--tls-cert-file").arg(certificate).arg("--tls-private-key-file").arg(key);
    command.arg("--client-ca-file").arg(pki.ca_certificate());
    Daemon::start(command, world.folder().join("node.log"))
}
