//! Each contract is a foreign one, so each side can be somebody else's.

use std::process::Command;

use orlop_tests::api::Api;
use orlop_tests::control_plane::NODE;
use orlop_tests::images;
use orlop_tests::place::{cache, debian, foreign};
use orlop_tests::world::{Daemon, World, until};
use serde_json::{Value, json};

/// The daemons of a node, each a process of its own, with one of them swapped.
struct Parts {
    _daemons: Vec<Daemon>,
    api: Api,
    world: World,
}

impl Parts {
    /// Starts the API and the agent of `orlop` on a runtime that listens on `endpoint`.
    fn start(world: World, runtime: Daemon, endpoint: &str) -> Parts {
        let storage = images::storage();
        let registry = images::registry(&world, &storage);
        let mut command = world.orlop();
        command.args(["api", "--node-name", NODE]);
        let api = Daemon::start(command, world.folder().join("api.log"));
        until("the API is ready", || api.log().contains("the API is ready").then_some(()));
        let mut command = world.orlop();
        let pki = world.root.join("state/pki");
        command.args(["agent", "--hostname-override", NODE, "--node-ip", "127.0.0.1"]);
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
        let parts = Parts { _daemons: vec![proxy, agent, api, runtime, registry], api: Api::new(&socket), world };
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
}

/// The agent runs pods on containerd.
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
    let socket = folder.join("c.sock");
    let shown = |path: &std::path::Path| path.display().to_string();
    let config = format!(
        "version = 4\nroot = '{0}/root'\nstate = '{0}/state'\n\
         disabled_plugins = ['io.containerd.snapshotter.v1.blockfile', 'io.containerd.snapshotter.v1.btrfs', \
         'io.containerd.snapshotter.v1.devmapper', 'io.containerd.snapshotter.v1.erofs', 'io.containerd.snapshotter.v1.zfs']\n\
         [plugins.'io.containerd.server.v1.grpc']\naddress = '{1}'\n\
         [plugins.'io.containerd.server.v1.ttrpc']\naddress = '{1}.ttrpc'\n\
         [plugins.'io.containerd.cri.v1.runtime']\nrestrict_oom_score_adj = true\n\
         [plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = 'localhost:5000/pause:1'\n\
         [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]\nruntime_type = 'io.containerd.runc.v2'\n\
         [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]\nBinaryName = '{2}'\n\
         [plugins.'io.containerd.cri.v1.runtime'.cni]\nbin_dirs = ['{3}']\nconf_dir = '{4}'\n",
        shown(&folder),
        shown(&socket),
        shown(&debian("runc", "runc")),
        shown(&world.root.join("cni/bin")),
        shown(&world.root.join("cni/net.d")),
    );
    let file = folder.join("config.toml");
    std::fs::write(&file, config).unwrap();
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", shown(&cache().join("bin")));
    let mut command: Command = world.command("env");
    command.arg(format!("PATH={path}")).arg(foreign("containerd")).arg("--config").arg(&file);
    let runtime = Daemon::start(command, world.folder().join("containerd.log"));
    until("containerd listens", || socket.exists().then_some(()));
    let parts = Parts::start(world, runtime, &format!("unix://{}", shown(&socket)));
    let pod = parts.run_a_pod(true);
    let id = orlop_tests::case::container(&pod, "c")["containerID"].as_str().unwrap().to_string();
    assert!(id.starts_with("containerd://"), "{id}");
}

/// `orlop cri` calls the CNI plugins of others.
pub fn plugins_of_others() {
    let world = World::new();
    let plugins = cache().join("cni");
    assert!(plugins.join("bridge").is_file(), "the CNI plugins are not built: run `cargo xtask foreign cni`");
    let conf = world.folder().join("net.d");
    std::fs::create_dir_all(&conf).unwrap();
    let data = world.folder().join("leases").display().to_string();
    let list = json!({
        "cniVersion": "1.1.0", "name": "foreign",
        "plugins": [
            {"type": "bridge", "bridge": "foreign0", "isGateway": true, "ipMasq": true, "ipMasqBackend": "nftables", "hairpinMode": true,
             "ipam": {"type": "host-local", "dataDir": data, "ranges": [[{"subnet": "10.77.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
            {"type": "portmap", "backend": "nftables", "capabilities": {"portMappings": true}},
        ],
    });
    std::fs::write(conf.join("10-foreign.conflist"), list.to_string()).unwrap();
    let mut command = world.orlop();
    command.arg("cri").arg("--cni-conf-dir").arg(&conf).arg("--cni-bin-dir").arg(&plugins);
    let runtime = Daemon::start(command, world.folder().join("cri.log"));
    until("the socket is there", || world.socket().exists().then_some(()));
    let endpoint = format!("unix://{}", world.socket().display());
    let parts = Parts::start(world, runtime, &endpoint);
    let pod = parts.run_a_pod(true);
    assert!(pod["status"]["podIP"].as_str().unwrap().starts_with("10.77.0."), "{}", pod["status"]);
    until("the address is given back", || {
        let leases = std::fs::read_dir(parts.world.folder().join("leases/foreign")).unwrap().flatten();
        let names: Vec<_> = leases.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        (!names.iter().any(|name| name.starts_with("10."))).then_some(())
    });
}
