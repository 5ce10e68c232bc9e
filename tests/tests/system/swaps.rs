//! Each contract is a foreign one, so each side can be somebody else's.

use orlop_tests::api::Api;
use orlop_tests::containerd::{Containerd, upstream_network, upstream_plugins};
use orlop_tests::control_plane::NODE;
use orlop_tests::images;
use orlop_tests::world::{Daemon, World, read, run, until};
use serde_json::{Value, json};

/// Where a node is that only this machine speaks to.
const LOOPBACK: &str = "127.0.0.1";

/// The daemons of a node, each a process of its own, with one of them swapped.
struct Parts {
    _daemons: Vec<Daemon>,
    api: Api,
    world: World,
}

impl Parts {
    /// Starts the API, the CSI driver and the agent of `orlop` on a runtime that listens on `endpoint`. The node has the
    /// address that pods reach it by, once there is a first one.
    fn start(world: World, runtime: Daemon, endpoint: &str, node_ip: &str) -> Parts {
        let storage = images::storage();
        let registry = images::registry(&world, &storage);
        let mut command = world.orlop();
        command.args(["api", "--node-name", NODE]);
        if node_ip != LOOPBACK {
            // The kubelet's certificate names it.
            command.args(["--advertise", node_ip]);
        }
        let api = Daemon::start(command, world.folder().join("api.log"));
        until("the API is ready", || api.log().contains("the API is ready").then_some(()));
        let mut command = world.orlop();
        command.args(["csi", "--node-id", NODE]);
        let csi = Daemon::start(command, world.folder().join("csi.log"));
        let mut command = world.orlop();
        let pki = world.root.join("state/pki");
        command.args(["agent", "--hostname-override", NODE, "--node-ip", node_ip]);
        command.args(["--container-runtime-endpoint", endpoint]);
        command.arg("--kubeconfig").arg(world.root.join("state/node.kubeconfig"));
        command.arg("--tls-cert-file").arg(pki.join("kubelet.crt"));
        command.arg("--tls-private-key-file").arg(pki.join("kubelet.key"));
        command.arg("--client-ca-file").arg(pki.join("ca.crt"));
        let agent = Daemon::start(command, world.folder().join("agent.log"));
        let socket = world.folder().join("api.sock");
        let mut proxy = world.kubectl();
        proxy.arg("proxy").arg("--unix-socket").arg(&socket);
        let proxy = Daemon::start(proxy, world.folder().join("proxy.log"));
        let parts = Parts { _daemons: vec![proxy, agent, csi, api, runtime, registry], api: Api::new(&socket), world };
        let ready = format!("/api/v1/nodes/{NODE}");
        until("the node is ready", || {
            let (_, node) = parts.api.send("GET", &ready, None).ok()?;
            (orlop_tests::case::condition(&node, "Ready") == "True").then_some(())
        });
        parts
    }

    /// A pod that serves a page, is ready by it, and ends.
    fn run_a_pod(&self, host_port: bool) -> Value {
        let path = "/api/v1/namespaces/default/pods";
        let mut port = json!({"containerPort": 8080});
        if host_port {
            port["hostPort"] = 18090.into();
        }
        let script = "echo started; mkdir /w; echo page > /w/x; exec httpd -f -p 8080 -h /w";
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "swapped"},
            "spec": {"terminationGracePeriodSeconds": 1, "containers": [{
                "name": "c", "image": orlop_tests::case::image("busybox"), "command": ["sh", "-c", script],
                "ports": [port], "readinessProbe": {"httpGet": {"path": "/x", "port": 8080}, "periodSeconds": 1}}]},
        });
        let account = "/api/v1/namespaces/default/serviceaccounts/default";
        until("the default account is there", || self.api.find(account).map(drop));
        self.api.must("POST", path, Some(&pod));
        let own = format!("{path}/swapped");
        let ready = until("the pod is ready", || {
            self.api.find(&own).filter(|pod| orlop_tests::case::condition(pod, "Ready") == "True")
        });
        let log = self.api.must("GET", &format!("{own}/log"), None);
        assert_eq!(log.as_str().map(str::trim), Some("started"));
        let url = if host_port {
            "http://127.0.0.1:18090/x".to_string()
        } else {
            format!("http://{}:8080/x", ready["status"]["podIP"].as_str().unwrap())
        };
        let mut curl = self.world.command("curl");
        let page = curl.args(["--silent", "--max-time", "5", &url]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&page.stdout), "page\n");
        self.api.must("DELETE", &own, None);
        until("the pod is gone", || self.api.find(&own).is_none().then_some(()));
        ready
    }

    /// The application of several parts, from the shipped manifests.
    fn run_the_application(&self) {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../config/examples/app");
        run(self.world.kubectl().args(["apply", "-f", folder]));
        let pods = ["pod/front", "pod/backend", "pod/redis"];
        run(self.world.kubectl().args(["wait", "--for=condition=Ready", "--timeout=60s"]).args(pods));
        for visit in 1..=2 {
            let mut curl = self.world.command("curl");
            let page = read(curl.args(["--silent", "--max-time", "5", "http://127.0.0.1:18000/visit"]));
            assert_eq!(page, format!("visit {visit} of backend"));
        }
        let shipped = || read(self.world.kubectl().args(["logs", "backend", "--container", "ship-log"]));
        until("the sidecar has shipped the log", || shipped().contains("visit 2 of backend").then_some(()));
        run(self.world.kubectl().args(["delete", "-f", folder]));
        until("the pods are gone", || {
            self.api.get("/api/v1/pods")["items"].as_array().is_some_and(Vec::is_empty).then_some(())
        });
    }
}

/// The agent runs a pod and the application on containerd.
pub fn agent_on_containerd() {
    let world = World::new();
    let folder = world.folder().join("containerd");
    std::fs::create_dir_all(&folder).unwrap();
    // The network's configuration and plugins are installed by `orlop cri`; it is not needed for more.
    let mut installs = world.orlop();
    installs.arg("cri");
    let installs = Daemon::start(installs, world.folder().join("cri.log"));
    until("the network is configured", || world.root.join("cni/net.d/10-orlop.conflist").exists().then_some(()));
    until("the socket is there", || world.socket().exists().then_some(()));
    drop(installs);
    let containerd = Containerd {
        folder,
        pause: "localhost:5000/pause:1".into(),
        networks: world.root.join("cni/net.d"),
        plugins: world.root.join("cni/bin"),
        registries: None,
    };
    let runtime = containerd.start(&world);
    // The node's address, which the bridge gets with the first pod, has to be there when the agent starts.
    let gateway = world.gateway();
    run(world.command("ip").args(["address", "add", &format!("{gateway}/32"), "dev", "lo"]));
    let parts = Parts::start(world, runtime, &format!("unix://{}", containerd.socket().display()), &gateway);
    let pod = parts.run_a_pod(true);
    let id = orlop_tests::case::container(&pod, "c")["containerID"].as_str().unwrap().to_string();
    assert!(id.starts_with("containerd://"), "{id}");
    parts.run_the_application();
}

/// `orlop cri` calls the CNI plugins of others.
pub fn plugins_of_others() {
    let world = World::new();
    let conf = upstream_network(world.folder(), "foreign0", "10.77.0.0/24");
    let mut command = world.orlop();
    command.arg("cri").arg("--cni-conf-dir").arg(&conf).arg("--cni-bin-dir").arg(upstream_plugins());
    let runtime = Daemon::start(command, world.folder().join("cri.log"));
    until("the socket is there", || world.socket().exists().then_some(()));
    let endpoint = format!("unix://{}", world.socket().display());
    let parts = Parts::start(world, runtime, &endpoint, LOOPBACK);
    let pod = parts.run_a_pod(true);
    assert!(pod["status"]["podIP"].as_str().unwrap().starts_with("10.77.0."), "{}", pod["status"]);
    until("the address is given back", || {
        let leases = std::fs::read_dir(parts.world.folder().join("leases/foreign0")).unwrap().flatten();
        let names: Vec<_> = leases.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        (!names.iter().any(|name| name.starts_with("10."))).then_some(())
    });
}
