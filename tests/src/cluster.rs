//! A node with its API in a world of its own: the embedded API server or a real control plane, the same to a case.

use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::api::Api;
use crate::control_plane::{ControlPlane, NODE, NODE_IP};
use crate::images;
use crate::place::{foreign, programs};
use crate::provisioner::{DRIVER, Provisioner};
use crate::world::{Count, Daemon, World, run, until};

/// Who serves the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Backend {
    /// `orlop up`: the embedded API server.
    Embedded,
    /// kube-apiserver on etcd, and `orlop node`.
    Kubernetes,
}

impl Backend {
    /// Both.
    pub const ALL: [Backend; 2] = [Backend::Embedded, Backend::Kubernetes];

    /// Its name in the list of cases.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Backend::Embedded => "embedded",
            Backend::Kubernetes => "kubernetes",
        }
    }
}

/// Variables of an environment.
pub type Variables = Vec<(&'static str, String)>;

/// What a cluster is told beside the ordinary.
#[derive(Clone, Copy, Debug, Default)]
pub struct Setup {
    /// Fields of the agent's `KubeletConfiguration` in YAML, a line for each.
    pub kubelet: &'static str,
    /// Makes what else the node reads when it starts, and returns the flags that name it.
    pub flags: Option<fn(&World) -> Vec<String>>,
    /// Variables of its environment.
    pub environment: Option<fn(&World) -> Variables>,
    /// Gates that kube-apiserver opens, as `Name=true,…`; the embedded one has none.
    pub gates: &'static str,
    /// What is done to the node once it is ready, before what it holds is counted.
    pub then: Option<fn(&Cluster)>,
}

/// A running node and its API.
pub struct Cluster {
    /// Ended first, in this order: what uses the API, the node, the API.
    proxy: Mutex<Option<Daemon>>,
    node: Mutex<Option<Daemon>>,
    csi: Mutex<Option<Daemon>>,
    provisioner: Mutex<Option<Provisioner>>,
    plane: Option<ControlPlane>,
    registry: Mutex<Option<Daemon>>,
    setup: Setup,
    /// Who serves the API.
    pub backend: Backend,
    /// The administrator's kubeconfig.
    pub kubeconfig: PathBuf,
    /// Objects.
    pub api: Api,
    /// Name of the node.
    pub node_name: String,
    /// What there was before the first pod.
    pub before: Count,
    /// Where it all runs.
    pub world: World,
}

impl Cluster {
    /// Starts everything and returns when the node is ready.
    ///
    /// # Panics
    /// When something does not start.
    #[must_use]
    pub fn start(backend: Backend) -> Cluster {
        Cluster::start_with(backend, Setup::default())
    }

    /// The same with settings.
    ///
    /// # Panics
    /// When something does not start.
    #[must_use]
    pub fn start_with(backend: Backend, setup: Setup) -> Cluster {
        Cluster::start_in(backend, setup, |_| {})
    }

    /// The same in a world that is changed first.
    ///
    /// # Panics
    /// When something does not start.
    #[must_use]
    pub fn start_on(backend: Backend, prepare: impl FnOnce(&World)) -> Cluster {
        Cluster::start_in(backend, Setup::default(), prepare)
    }

    fn start_in(backend: Backend, setup: Setup, prepare: impl FnOnce(&World)) -> Cluster {
        let world = World::new();
        prepare(&world);
        let storage = images::storage();
        let registry = images::registry(&world, &storage);
        let plane = (backend == Backend::Kubernetes).then(|| ControlPlane::start(&world, setup.gates));
        let kubeconfig = match &plane {
            Some(plane) => plane.kubeconfig("admin"),
            None => world.root.join("state/admin.kubeconfig"),
        };
        let api = Api::new(&world.folder().join("api.sock"));
        let mut cluster = Cluster {
            proxy: Mutex::new(None),
            node: Mutex::new(None),
            csi: Mutex::new(None),
            provisioner: Mutex::new(None),
            plane,
            registry: Mutex::new(Some(registry)),
            setup,
            backend,
            kubeconfig,
            api,
            node_name: NODE.into(),
            before: world.count(),
            world,
        };
        cluster.start_node();
        until("the kubeconfig is there", || cluster.kubeconfig.exists().then_some(()));
        cluster.start_proxy();
        cluster.wait_ready();
        if let Some(then) = setup.then {
            then(&cluster);
        }
        cluster.before = cluster.world.count();
        cluster
    }

    /// `kubectl` as the administrator.
    #[must_use]
    pub fn kubectl(&self) -> Command {
        let mut command = self.world.command(foreign("kubectl"));
        command.env("KUBECONFIG", &self.kubeconfig).env("HOME", self.world.folder());
        command
    }

    /// Starts the node's daemon.
    ///
    /// # Panics
    /// When it can't be started.
    pub fn start_node(&self) {
        let mut command = self.world.orlop();
        match &self.plane {
            None => {
                command.args(["up", "--node-name", NODE]);
            }
            Some(plane) => {
                let (certificate, key) = plane.pki().kubelet_serving();
                command.args(["node", "--hostname-override", NODE, "--node-ip", NODE_IP]);
                command.arg("--kubeconfig").arg(plane.kubeconfig("node"));
                command.arg("--tls-cert-file").arg(certificate).arg("--tls-private-key-file").arg(key);
                command.arg("--client-ca-file").arg(plane.pki().ca_certificate());
                command.arg("--pod-manifest-path").arg(self.manifests());
            }
        }
        if !self.setup.kubelet.is_empty() {
            let file = self.world.folder().join("kubelet.yaml");
            let head = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
            std::fs::write(&file, format!("{head}{}", self.setup.kubelet)).unwrap();
            command.arg("--kubelet-config").arg(file);
        }
        if let Some(flags) = self.setup.flags {
            command.args(flags(&self.world));
        }
        if let Some(environment) = self.setup.environment {
            command.envs(environment(&self.world));
        }
        std::fs::create_dir_all(self.manifests()).unwrap();
        *self.node.lock().unwrap() = Some(Daemon::start(command, self.node_log()));
    }

    /// Ends the node's daemon as a power cut would.
    ///
    /// # Panics
    /// When it has ended by itself.
    pub fn kill_node(&self) {
        self.node.lock().unwrap().take().expect("a node").kill();
    }

    /// Sends the node's daemon a signal by its name (`PWR`).
    ///
    /// # Panics
    /// When it has ended.
    pub fn signal_node(&self, signal: &str) {
        let mut node = self.node.lock().unwrap();
        let node = node.as_mut().expect("a node");
        node.check();
        run(Command::new("kill").arg(format!("-{signal}")).arg(node.pid().to_string()));
    }

    /// Waits for the end of the node's daemon.
    ///
    /// # Panics
    /// When it goes on.
    pub fn node_end(&self) -> ExitStatus {
        let mut node = self.node.lock().unwrap().take().expect("a node");
        until("the node's daemon ends", || node.ended())
    }

    /// Waits until the API shows the node as ready.
    ///
    /// # Panics
    /// When it isn't in time.
    pub fn wait_ready(&self) {
        let path = format!("/api/v1/nodes/{}", self.node_name);
        until("the node is ready", || {
            let (code, node) = self.api.send("GET", &path, None).ok()?;
            let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let ready = conditions.iter().any(|one| one["type"] == "Ready" && one["status"] == "True");
            // The controller manager takes this away a moment after the node is ready.
            let tainted = node["spec"]["taints"].as_array().is_some_and(|taints| !taints.is_empty());
            (code == 200 && ready && !tainted).then_some(())
        });
    }

    /// Starts the CSI driver and makes its class, once, where `orlop up` doesn't.
    ///
    /// # Panics
    /// When it does not register.
    pub fn need_storage(&self) {
        let mut csi = self.csi.lock().unwrap();
        if csi.is_some() {
            return;
        }
        if self.backend == Backend::Embedded {
            // Part of `orlop up`.
            return;
        }
        self.make_storage_class();
        let mut command = self.world.orlop();
        command.args(["csi", "--node-id", NODE]);
        *csi = Some(Daemon::start(command, self.world.folder().join("csi.log")));
        let socket = self.world.root.join("kubelet/plugins").join(DRIVER).join("csi.sock");
        *self.provisioner.lock().unwrap() = Some(Provisioner::start(self.api.clone(), socket));
        let path = format!("/apis/storage.k8s.io/v1/csinodes/{}", self.node_name);
        until("the driver is registered", || {
            let drivers = self.api.find(&path)?["spec"]["drivers"].as_array().cloned()?;
            drivers.iter().any(|driver| driver["name"] == DRIVER).then_some(())
        });
    }

    /// What `orlop up` makes by itself.
    fn make_storage_class(&self) {
        let driver = json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", "metadata": {"name": DRIVER},
            "spec": {"attachRequired": false, "volumeLifecycleModes": ["Persistent"], "fsGroupPolicy": "File"},
        });
        self.api.must("POST", "/apis/storage.k8s.io/v1/csidrivers", Some(&driver));
        let class = json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
            "metadata": {"name": "local", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
            "provisioner": DRIVER, "reclaimPolicy": "Delete",
            "volumeBindingMode": "WaitForFirstConsumer",
        });
        self.api.must("POST", "/apis/storage.k8s.io/v1/storageclasses", Some(&class));
    }

    /// A certificate that this instance's authority signed, and its key.
    #[must_use]
    pub fn serving_pair(&self) -> (PathBuf, PathBuf) {
        let own = self.world.root.join("state/pki");
        let place = |name: &str| own.join(name);
        match &self.plane {
            Some(plane) => plane.pki().kubelet_serving(),
            None => (place("kubelet.crt"), place("kubelet.key")),
        }
    }

    /// Folder of static pods.
    #[must_use]
    pub fn manifests(&self) -> PathBuf {
        self.world.root.join("manifests")
    }

    /// The node daemon's log.
    #[must_use]
    pub fn node_log(&self) -> PathBuf {
        self.world.folder().join("node.log")
    }

    /// Makes the sample's image and loads it, as `cargo xtask up` does.
    ///
    /// # Panics
    /// When a command fails.
    pub fn load_hello(&self) {
        self.load_program("hello", &programs().join("orlop-hello"));
    }

    /// Makes an image of one static program, `/NAME`, and loads it as `localhost/NAME:1`.
    ///
    /// # Panics
    /// When a command fails.
    pub fn load_program(&self, name: &str, program: &std::path::Path) {
        let archive = self.world.folder().join(format!("{name}.tar"));
        let file = format!("{}:/{name}", program.display());
        let mut build = self.world.orlop();
        build.args(["image", "build", "--entrypoint", &format!("/{name}"), "--file", &file, "--output"]).arg(&archive);
        run(build.arg(format!("localhost/{name}:1")));
        run(self.world.orlop().args(["image", "load"]).arg(&archive));
        std::fs::remove_file(&archive).expect("remove the archive");
    }

    /// Waits until the node holds no more than before the first pod.
    ///
    /// # Panics
    /// When something is left.
    pub fn assert_nothing_left(&self) {
        self.assert_nothing_left_within(Duration::from_secs(30));
    }

    /// The same with a time.
    ///
    /// # Panics
    /// When something is left.
    pub fn assert_nothing_left_within(&self, time: Duration) {
        let end = Instant::now() + time;
        let mut now = self.world.count();
        while now != self.before && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(100));
            now = self.world.count();
        }
        assert_eq!(now, self.before, "something was left behind (now, before)");
    }

    /// The last lines of every daemon's log.
    #[must_use]
    pub fn logs(&self, lines: usize) -> String {
        let mut text = String::new();
        for entry in std::fs::read_dir(self.world.folder()).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|kind| kind == "log") {
                let log = std::fs::read(&path).unwrap_or_default();
                let log = String::from_utf8_lossy(&log);
                let all: Vec<&str> = log.lines().collect();
                let last = &all[all.len().saturating_sub(lines)..];
                text.push_str(&format!("--- {}\n{}\n", entry.file_name().to_string_lossy(), last.join("\n")));
            }
        }
        text
    }

    fn start_proxy(&self) {
        let mut command = self.kubectl();
        command.arg("proxy").arg("--unix-socket").arg(self.world.folder().join("api.sock"));
        command.args(["--reject-paths=^/nothing$", "--disable-filter=true"]);
        *self.proxy.lock().unwrap() = Some(Daemon::start(command, self.world.folder().join("proxy.log")));
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.provisioner.lock().unwrap().take();
        self.proxy.lock().unwrap().take();
        self.node.lock().unwrap().take();
        self.csi.lock().unwrap().take();
        self.registry.lock().unwrap().take();
    }
}
