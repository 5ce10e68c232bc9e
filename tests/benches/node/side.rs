//! The two nodes that are compared, each of a real control plane in a world of its own.

use std::path::Path;

use orlop_tests::api::Api;
use orlop_tests::case::condition;
use orlop_tests::cluster::{Backend, Cluster};
use orlop_tests::containerd::{Containerd, upstream_network, upstream_plugins};
use orlop_tests::control_plane::{ControlPlane, NODE, NODE_IP};
use orlop_tests::images;
use orlop_tests::kubelet::{self, OwnCgroup, Settings};
use orlop_tests::peer::{PAUSE, push_pause};
use orlop_tests::world::{Daemon, World, until};
use serde_json::json;

/// A node of a cluster, and its API.
pub enum Side {
    /// `orlop node`.
    Orlop(Box<Cluster>),
    /// The kubelet on containerd.
    Peer(Box<Peer>),
}

/// The kubelet on containerd with runc and the upstream plugins. Fields end in this order.
pub struct Peer {
    _proxy: Daemon,
    _kubelet: Daemon,
    _containerd: Daemon,
    _plane: ControlPlane,
    _registries: [Daemon; 2],
    _world: World,
    _cgroup: OwnCgroup,
    _settings: Settings,
    api: Api,
}

impl Side {
    /// Ours.
    pub fn orlop() -> Side {
        Side::Orlop(Box::new(Cluster::start(Backend::Kubernetes)))
    }

    /// The peer.
    pub fn peer() -> Side {
        let (settings, cgroup) = (Settings::keep(), OwnCgroup::make());
        let world = World::new();
        let registries = [images::registry(&world, &images::storage()), push_pause(&world)];
        let plane = ControlPlane::start(&world, "");
        let folder = world.folder().join("containerd");
        std::fs::create_dir_all(&folder).expect("make containerd's folder");
        let containerd = Containerd {
            networks: upstream_network(&folder, "bench0", "10.66.0.0/16"),
            plugins: upstream_plugins(),
            pause: PAUSE.into(),
            registries: None,
            folder,
        };
        let runtime = containerd.start(&world);
        let kubelet = start_kubelet(&world, &plane, &containerd.socket(), &cgroup);
        let socket = world.folder().join("api.sock");
        let mut proxy = world.kubectl();
        proxy.env("KUBECONFIG", plane.kubeconfig("admin")).args(["proxy", "--disable-filter=true", "--unix-socket"]);
        let proxy = Daemon::start(
            {
                proxy.arg(&socket);
                proxy
            },
            world.folder().join("proxy.log"),
        );
        let api = Api::new(&socket);
        wait_ready(&api);
        Side::Peer(Box::new(Peer {
            _proxy: proxy,
            _kubelet: kubelet,
            _containerd: runtime,
            _plane: plane,
            _registries: registries,
            _world: world,
            _cgroup: cgroup,
            _settings: settings,
            api,
        }))
    }

    /// The way to its API.
    pub fn api(&self) -> &Api {
        match self {
            Side::Orlop(cluster) => &cluster.api,
            Side::Peer(peer) => &peer.api,
        }
    }

    /// For people.
    pub fn name(&self) -> &'static str {
        match self {
            Side::Orlop(_) => "orlop node",
            Side::Peer(_) => "kubelet + containerd + runc",
        }
    }
}

fn start_kubelet(world: &World, plane: &ControlPlane, runtime: &Path, cgroup: &OwnCgroup) -> Daemon {
    let (certificate, key) = plane.pki().kubelet_serving();
    let more = json!({
        "tlsCertFile": certificate,
        "tlsPrivateKeyFile": key,
        "address": NODE_IP,
        "clusterDomain": "cluster.local",
    });
    let kubeconfig = plane.kubeconfig("node").display().to_string();
    let flags = ["--kubeconfig", &kubeconfig, "--hostname-override", NODE, "--node-ip", NODE_IP];
    kubelet::start(world, runtime, cgroup, more, &flags)
}

fn wait_ready(api: &Api) {
    let (node, account) = (format!("/api/v1/nodes/{NODE}"), "/api/v1/namespaces/default/serviceaccounts/default");
    until("the node is ready", || {
        let (_, node) = api.send("GET", &node, None).ok()?;
        let tainted = node["spec"]["taints"].as_array().is_some_and(|taints| !taints.is_empty());
        (condition(&node, "Ready") == "True" && !tainted).then_some(())
    });
    until("the default account is there", || api.find(account).map(drop));
}
