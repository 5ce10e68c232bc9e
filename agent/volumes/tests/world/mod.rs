//! A node for tests of volumes: objects in memory, a real kernel in a mount namespace of its own.
#![allow(dead_code, reason = "each test program uses a part")]

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Pod, Secret, Service};
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use orlop_agent_core::ports::*;
use orlop_agent_volumes::{PodVolumes, VolumesConfig};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub mod driver;

pub const DEADLINE: Duration = Duration::from_secs(20);

/// Objects of the API by kind and name.
#[derive(Default)]
pub struct Objects(Mutex<HashMap<(&'static str, String), Value>>);

impl Objects {
    pub fn put(&self, kind: &'static str, name: &str, value: Value) {
        self.0.lock().unwrap().insert((kind, name.to_owned()), value);
    }

    pub fn remove(&self, kind: &'static str, name: &str) {
        self.0.lock().unwrap().remove(&(kind, name.to_owned()));
    }

    fn get<'a, T: DeserializeOwned + Send + Sync + 'a>(
        &self,
        kind: &'static str,
        name: &str,
    ) -> PortFuture<'a, Result<Arc<T>, PortError>> {
        let found = self.0.lock().unwrap().get(&(kind, name.to_owned())).cloned();
        let result = match found {
            Some(value) => Ok(Arc::new(serde_json::from_value(value).unwrap())),
            None => Err(PortError::NotFound { kind, name: name.to_owned() }),
        };
        Box::pin(std::future::ready(result))
    }
}

impl orlop_agent_core::ports::Objects for Objects {
    fn config_map<'a>(&'a self, _: &'a str, name: &'a str) -> PortFuture<'a, Result<Arc<ConfigMap>, PortError>> {
        self.get("ConfigMap", name)
    }

    fn secret<'a>(&'a self, _: &'a str, name: &'a str) -> PortFuture<'a, Result<Arc<Secret>, PortError>> {
        self.get("Secret", name)
    }

    fn claim<'a>(&'a self, _: &'a str, name: &'a str) -> PortFuture<'a, Result<Arc<PersistentVolumeClaim>, PortError>> {
        self.get("PersistentVolumeClaim", name)
    }

    fn volume<'a>(&'a self, name: &'a str) -> PortFuture<'a, Result<Arc<PersistentVolume>, PortError>> {
        self.get("PersistentVolume", name)
    }

    fn csi_driver<'a>(&'a self, name: &'a str) -> PortFuture<'a, Result<Arc<CSIDriver>, PortError>> {
        self.get("CSIDriver", name)
    }

    fn volume_attachment<'a>(&'a self, name: &'a str) -> PortFuture<'a, Result<Arc<VolumeAttachment>, PortError>> {
        self.get("VolumeAttachment", name)
    }

    fn runtime_class<'a>(&'a self, name: &'a str) -> PortFuture<'a, Result<Arc<RuntimeClass>, PortError>> {
        self.get("RuntimeClass", name)
    }

    fn services<'a>(&'a self, _: &'a str) -> PortFuture<'a, Result<Vec<Arc<Service>>, PortError>> {
        Box::pin(std::future::ready(Ok(Vec::new())))
    }

    fn token<'a>(&'a self, pod: &'a Pod, audience: &'a str, _: i64) -> PortFuture<'a, Result<String, PortError>> {
        let round = self.0.lock().unwrap().get(&("Token", String::new())).cloned().unwrap_or(json!(0));
        let name = pod.metadata.name.clone().unwrap_or_default();
        Box::pin(std::future::ready(Ok(format!("token of {name} for {audience:?}, {round}"))))
    }

    fn changes(&self) -> Box<dyn ObjectChanges> {
        unreachable!("the pod manager listens, not the volumes")
    }
}

struct Node;

impl NodeFacts for Node {
    fn host_ips(&self) -> Vec<IpAddr> {
        Vec::new()
    }

    fn allocatable(&self) -> BTreeMap<String, Quantity> {
        BTreeMap::new()
    }

    fn capacity(&self) -> BTreeMap<String, Quantity> {
        BTreeMap::new()
    }

    fn labels(&self) -> BTreeMap<String, String> {
        BTreeMap::from([("topology.local.csi.orlop.dev/node".to_owned(), "node-1".to_owned())])
    }

    fn refusal(&self, _: &Pod) -> Option<(String, String)> {
        None
    }
}

/// A node.
pub struct World {
    place: tempfile::TempDir,
    pub objects: Arc<Objects>,
    pub drivers: watch::Sender<Vec<RegisteredDriver>>,
    pub volumes: Arc<PodVolumes>,
    pub cancel: CancellationToken,
}

impl World {
    pub fn new() -> World {
        let place = tempfile::tempdir().unwrap();
        let objects = Arc::new(Objects::default());
        let drivers = watch::Sender::new(Vec::new());
        let cancel = CancellationToken::new();
        let volumes = start(&place.path().join("kubelet"), &objects, &drivers, &cancel);
        World { place, objects, drivers, volumes, cancel }
    }

    /// An agent that is killed, and the next one.
    pub fn restart(&mut self) {
        self.cancel.cancel();
        self.cancel = CancellationToken::new();
        self.volumes = start(&self.root(), &self.objects, &self.drivers, &self.cancel);
    }

    pub fn base(&self) -> &Path {
        self.place.path()
    }

    pub fn root(&self) -> PathBuf {
        self.place.path().join("kubelet")
    }

    pub fn register(&self, name: &str, socket: &Path) {
        self.drivers.send_modify(|list| {
            list.retain(|driver| driver.name != name);
            list.push(RegisteredDriver {
                name: name.into(),
                socket: socket.to_path_buf(),
                node_id: "node-1".into(),
                max_volumes: None,
                topology: BTreeMap::new(),
            });
        });
    }

    pub fn unregister(&self, name: &str) {
        self.drivers.send_modify(|list| list.retain(|driver| driver.name != name));
    }

    pub async fn set_up(&self, pod: &Arc<Pod>) -> Result<BTreeMap<String, MountedVolume>, String> {
        self.volumes.set_up(pod).await.map_err(|error| error.to_string())
    }

    pub async fn tear_down(&self, uid: &str) -> Result<(), String> {
        self.volumes.tear_down(uid).await.map_err(|error| error.to_string())
    }

    /// A claim bound to a volume of a driver.
    pub fn put_claim(&self, name: &str, driver: &str, handle: &str, mode: &str) {
        let spec = json!({
            "claimRef": {"uid": format!("claim-{name}")}, "accessModes": [mode],
            "csi": {"driver": driver, "volumeHandle": handle, "volumeAttributes": {"attribute": "1"}},
        });
        self.objects.put(
            "PersistentVolume",
            &format!("pv-{name}"),
            json!({"metadata": {"name": format!("pv-{name}")}, "spec": spec}),
        );
        let claim = json!({
            "metadata": {"name": name, "namespace": "n", "uid": format!("claim-{name}")},
            "spec": {"volumeName": format!("pv-{name}")}, "status": {"phase": "Bound"},
        });
        self.objects.put("PersistentVolumeClaim", name, claim);
    }

    /// What is left of a pod's volumes, and every mount of the node.
    pub fn left(&self, uid: &str) -> Vec<PathBuf> {
        let mut left = orlop_kernel::mount::mounts_below(&self.base().canonicalize().unwrap()).unwrap();
        let entries = std::fs::read_dir(self.root().join("pods").join(uid).join("volumes"));
        left.extend(entries.into_iter().flatten().flatten().map(|entry| entry.path()));
        left
    }
}

fn start(
    root: &Path,
    objects: &Arc<Objects>,
    drivers: &watch::Sender<Vec<RegisteredDriver>>,
    cancel: &CancellationToken,
) -> Arc<PodVolumes> {
    let mut config = VolumesConfig::new(root, "node-1", objects.clone(), Arc::new(Node), drivers.subscribe());
    config.call_deadline = Duration::from_millis(500);
    config.pod_deadline = Duration::from_millis(1500);
    config.patience = Duration::from_millis(300);
    config.allocatable = BTreeMap::from([("memory".to_owned(), Quantity("1Gi".into()))]);
    PodVolumes::start(config, cancel.clone())
}

/// A pod whose one container mounts all volumes.
pub fn pod(uid: &str, security: Value, volumes: Value) -> Arc<Pod> {
    let mounts: Vec<Value> = volumes
        .as_array()
        .unwrap()
        .iter()
        .map(|volume| json!({"name": volume["name"], "mountPath": format!("/{}", volume["name"].as_str().unwrap())}))
        .collect();
    let value = json!({
        "metadata": {"name": format!("pod-{uid}"), "namespace": "n", "uid": uid, "labels": {"app": "web"}},
        "spec": {
            "serviceAccountName": "robot", "securityContext": security, "volumes": volumes,
            "containers": [{"name": "c", "volumeMounts": mounts}],
        }
    });
    Arc::new(serde_json::from_value(value).unwrap())
}

/// A pod with one claim.
pub fn pod_of_claim(uid: &str, claim: &str) -> Arc<Pod> {
    pod(uid, json!({}), json!([{"name": "data", "persistentVolumeClaim": {"claimName": claim}}]))
}

/// Runs a test in a mount namespace of its own: all its threads are born in it.
pub fn in_own_mounts<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    assert!(rustix::process::geteuid().is_root(), "this test mounts: run it as root (cargo xtask test does)");
    let thread = std::thread::spawn(move || {
        use nix::mount::{MsFlags, mount};
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("unshare the mounts");
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("make / private");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(test());
        runtime.shutdown_background();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Waits for a condition.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < DEADLINE, "{what} did not come");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
