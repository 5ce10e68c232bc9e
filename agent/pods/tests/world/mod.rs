//! A node in memory for tests of the pod manager: a runtime that obeys and can be made to fail or hang, and ports that
//! keep what they are told.
#![allow(dead_code, reason = "each test program uses a part")]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Pod, PodStatus, Secret, Service};
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::api::storage::v1::CSIDriver;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use orlop_agent_core::ports::*;
use orlop_agent_pods::{PodHandle, PodManager, PodPorts, PodsConfig};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub mod runtime;
use runtime::FakeRuntime;

#[derive(Default)]
pub struct Ports {
    pub events: Mutex<Vec<String>>,
    pub statuses: Mutex<Vec<StatusUpdate>>,
    pub config_maps: Mutex<BTreeMap<String, Arc<ConfigMap>>>,
    pub secrets: Mutex<BTreeMap<String, Arc<Secret>>>,
    pub changes: Mutex<Option<tokio::sync::mpsc::UnboundedReceiver<(String, String, String)>>>,
    pub torn_down: Mutex<Vec<String>>,
    pub volumes_on_disk: Mutex<Vec<String>>,
    pub fail_volumes: Mutex<Option<String>>,
    pub allocatable: Mutex<BTreeMap<String, Quantity>>,
    pub mirrors: Mutex<Vec<String>>,
    pub handler: Mutex<HandlerFeatures>,
    pub network_problem: Mutex<Option<String>>,
    /// Why the node takes no pods.
    pub refusal: Mutex<Option<(String, String)>>,
    pub changed: tokio::sync::Notify,
}

fn missing<T>(kind: &'static str, name: &str) -> Result<T, PortError> {
    Err(PortError::NotFound { kind, name: name.to_owned() })
}

/// An image volume; others take no part here.
fn image(volume: &k8s_openapi::api::core::v1::Volume) -> Option<(String, MountedVolume)> {
    let image = volume.image.as_ref()?.reference.clone();
    Some((volume.name.clone(), MountedVolume { host_path: "".into(), read_only: true, image }))
}

struct Changes(Option<tokio::sync::mpsc::UnboundedReceiver<(String, String, String)>>);

impl ObjectChanges for Changes {
    fn next(&mut self) -> PortFuture<'_, (String, String, String)> {
        Box::pin(async move {
            match &mut self.0 {
                Some(receiver) => match receiver.recv().await {
                    Some(change) => change,
                    None => std::future::pending().await,
                },
                None => std::future::pending().await,
            }
        })
    }
}

impl Objects for Ports {
    fn config_map<'a>(
        &'a self,
        _namespace: &'a str,
        name: &'a str,
    ) -> PortFuture<'a, Result<Arc<ConfigMap>, PortError>> {
        let found = self.config_maps.lock().unwrap().get(name).cloned();
        Box::pin(async move { found.map_or_else(|| missing("ConfigMap", name), Ok) })
    }
    fn secret<'a>(&'a self, _namespace: &'a str, name: &'a str) -> PortFuture<'a, Result<Arc<Secret>, PortError>> {
        let found = self.secrets.lock().unwrap().get(name).cloned();
        Box::pin(async move { found.map_or_else(|| missing("Secret", name), Ok) })
    }
    fn claim<'a>(
        &'a self,
        _namespace: &'a str,
        name: &'a str,
    ) -> PortFuture<'a, Result<Arc<PersistentVolumeClaim>, PortError>> {
        Box::pin(async move { missing("PersistentVolumeClaim", name) })
    }
    fn volume<'a>(&'a self, name: &'a str) -> PortFuture<'a, Result<Arc<PersistentVolume>, PortError>> {
        Box::pin(async move { missing("PersistentVolume", name) })
    }
    fn csi_driver<'a>(&'a self, name: &'a str) -> PortFuture<'a, Result<Arc<CSIDriver>, PortError>> {
        Box::pin(async move { missing("CSIDriver", name) })
    }
    fn runtime_class<'a>(&'a self, name: &'a str) -> PortFuture<'a, Result<Arc<RuntimeClass>, PortError>> {
        Box::pin(async move { missing("RuntimeClass", name) })
    }
    fn services<'a>(&'a self, _namespace: &'a str) -> PortFuture<'a, Result<Vec<Arc<Service>>, PortError>> {
        Box::pin(async { Ok(Vec::new()) })
    }
    fn token<'a>(
        &'a self,
        _pod: &'a Pod,
        _audience: &'a str,
        _expiration_seconds: i64,
    ) -> PortFuture<'a, Result<String, PortError>> {
        Box::pin(async { missing("ServiceAccount", "default") })
    }
    fn changes(&self) -> Box<dyn ObjectChanges> {
        Box::new(Changes(self.changes.lock().unwrap().take()))
    }
}

impl Volumes for Ports {
    fn set_up<'a>(&'a self, pod: &'a Arc<Pod>) -> PortFuture<'a, Result<BTreeMap<String, MountedVolume>, VolumeError>> {
        let failure = self.fail_volumes.lock().unwrap().clone();
        Box::pin(async move {
            match failure {
                Some(message) => Err(VolumeError::SetUp { volume: "v".into(), message }),
                None => Ok(pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()).filter_map(image).collect()),
            }
        })
    }
    fn tear_down<'a>(&'a self, pod_uid: &'a str) -> PortFuture<'a, Result<(), VolumeError>> {
        self.torn_down.lock().unwrap().push(pod_uid.to_owned());
        self.volumes_on_disk.lock().unwrap().retain(|uid| uid != pod_uid);
        self.changed.notify_one();
        Box::pin(async { Ok(()) })
    }
    fn pods_on_disk(&self) -> Vec<String> {
        self.volumes_on_disk.lock().unwrap().clone()
    }
}

impl Events for Ports {
    fn record(&self, object: ObjectRef, _event_type: EventType, reason: &str, message: &str) {
        self.events.lock().unwrap().push(format!("{} {reason}: {message}", object.name));
        self.changed.notify_one();
    }
}

impl StatusSink for Ports {
    fn publish(&self, update: StatusUpdate) {
        self.statuses.lock().unwrap().push(update);
        self.changed.notify_one();
    }
}

impl MirrorPods for Ports {
    fn create<'a>(&'a self, pod: &'a Pod) -> PortFuture<'a, Result<(), PortError>> {
        self.mirrors.lock().unwrap().push(format!("create {}", pod.metadata.name.as_deref().unwrap_or_default()));
        self.changed.notify_one();
        Box::pin(async { Ok(()) })
    }
    fn delete<'a>(
        &'a self,
        _namespace: &'a str,
        name: &'a str,
        _uid: &'a str,
    ) -> PortFuture<'a, Result<(), PortError>> {
        self.mirrors.lock().unwrap().push(format!("delete {name}"));
        self.changed.notify_one();
        Box::pin(async { Ok(()) })
    }
}

impl PodCgroups for Ports {
    fn ensure<'a>(
        &'a self,
        pod_uid: &'a str,
        _qos_class: &'a str,
        _limits: &'a PodCgroupLimits,
    ) -> PortFuture<'a, Result<String, PortError>> {
        Box::pin(async move { Ok(format!("/kubepods/pod{pod_uid}")) })
    }
    fn remove<'a>(&'a self, _pod_uid: &'a str) -> PortFuture<'a, Result<(), PortError>> {
        Box::pin(async { Ok(()) })
    }
    fn pods_on_disk(&self) -> Vec<String> {
        Vec::new()
    }
}

impl NodeFacts for Ports {
    fn host_ips(&self) -> Vec<IpAddr> {
        vec!["10.9.9.9".parse().unwrap()]
    }
    fn allocatable(&self) -> BTreeMap<String, Quantity> {
        self.allocatable.lock().unwrap().clone()
    }
    fn capacity(&self) -> BTreeMap<String, Quantity> {
        BTreeMap::new()
    }
    fn labels(&self) -> BTreeMap<String, String> {
        BTreeMap::new()
    }
    fn refusal(&self, _pod: &Pod) -> Option<(String, String)> {
        self.refusal.lock().unwrap().clone()
    }
    fn handler(&self, _name: &str) -> HandlerFeatures {
        *self.handler.lock().unwrap()
    }
    fn network_problem(&self) -> Option<String> {
        self.network_problem.lock().unwrap().clone()
    }
}

/// The node.
pub struct World {
    pub ports: Arc<Ports>,
    pub runtime: Arc<FakeRuntime>,
    pub api: watch::Sender<Arc<PodSet>>,
    pub changes: tokio::sync::mpsc::UnboundedSender<(String, String, String)>,
    pub view: Arc<dyn NodeView>,
    pub handle: PodHandle,
    pub folder: tempfile::TempDir,
    pub cancel: CancellationToken,
    task: Option<tokio::task::JoinHandle<()>>,
}

pub const WAIT: Duration = Duration::from_secs(20);

impl World {
    pub fn new() -> World {
        World::with(
            FakeRuntime::new(),
            tempfile::tempdir().unwrap(),
            PodSet { synced: true, pods: BTreeMap::new() },
            None,
        )
    }

    /// A node on a runtime and a disk that may have been used before.
    pub fn with(
        runtime: Arc<FakeRuntime>,
        folder: tempfile::TempDir,
        set: PodSet,
        static_folder: Option<std::path::PathBuf>,
    ) -> World {
        World::after(runtime, folder, set, static_folder, BTreeMap::new())
    }

    /// The same, after a shutdown that told these pods to end.
    pub fn after(
        runtime: Arc<FakeRuntime>,
        folder: tempfile::TempDir,
        set: PodSet,
        static_folder: Option<std::path::PathBuf>,
        shut_down_pods: BTreeMap<String, i64>,
    ) -> World {
        let ports = Arc::new(Ports::default());
        let (changes, receiver) = tokio::sync::mpsc::unbounded_channel();
        *ports.changes.lock().unwrap() = Some(receiver);
        let (api, api_receiver) = watch::channel(Arc::new(set));
        let mut config = PodsConfig::new("node");
        config.kubelet_root = folder.path().join("kubelet");
        config.pod_logs_root = folder.path().join("logs");
        config.static_pod_path = static_folder;
        config.log_rotation = None;
        config.shut_down_pods = shut_down_pods;
        let all = PodPorts {
            runtime: runtime.clone(),
            objects: ports.clone(),
            volumes: ports.clone(),
            events: ports.clone(),
            statuses: ports.clone(),
            mirrors: Some(ports.clone()),
            cgroups: ports.clone(),
            node: ports.clone(),
            metrics: Arc::default(),
        };
        let manager = PodManager::new(config, all, Some(api_receiver));
        let (view, handle) = (manager.node_view(), manager.handle());
        let cancel = CancellationToken::new();
        let task = tokio::spawn(manager.run(cancel.clone()));
        World { ports, runtime, api, changes, view, handle, folder, cancel, task: Some(task) }
    }

    /// Ends the agent; the runtime goes on. Returns the disk.
    pub async fn end(mut self) -> tempfile::TempDir {
        self.cancel.cancel();
        self.task.take().unwrap().await.unwrap();
        self.folder
    }

    pub fn apply(&self, pod: Pod) {
        self.api.send_modify(|set| {
            let mut new = (**set).clone();
            new.pods.insert(pod.metadata.uid.clone().unwrap(), Arc::new(pod));
            *set = Arc::new(new);
        });
    }

    pub fn forget(&self, uid: &str) {
        self.api.send_modify(|set| {
            let mut new = (**set).clone();
            new.pods.remove(uid);
            *set = Arc::new(new);
        });
    }

    /// Marks a pod as deleted, as a DELETE of the API does.
    pub fn delete(&self, uid: &str, grace_seconds: i64) {
        let mut pod = (*self.api.borrow().pods[uid]).clone();
        pod.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::now()));
        pod.metadata.deletion_grace_period_seconds = Some(grace_seconds);
        self.apply(pod);
    }

    /// Waits until something holds.
    pub async fn until(&self, what: &str, holds: impl Fn(&World) -> bool) {
        let wait = async {
            while !holds(self) {
                tokio::select! {
                    () = self.ports.changed.notified() => {}
                    () = self.runtime.changed.notified() => {}
                    () = tokio::time::sleep(Duration::from_millis(20)) => {}
                }
            }
        };
        if tokio::time::timeout(WAIT, wait).await.is_err() {
            panic!(
                "never: {what}\nevents: {:#?}\ncalls: {:#?}\nlast status: {:#?}",
                self.ports.events.lock().unwrap(),
                self.runtime.calls(),
                self.ports.statuses.lock().unwrap().last()
            );
        }
    }

    pub fn status(&self, uid: &str) -> PodStatus {
        self.ports
            .statuses
            .lock()
            .unwrap()
            .iter()
            .rev()
            .find(|update| update.uid == uid)
            .map(|update| update.status.clone())
            .unwrap_or_default()
    }

    pub fn finished(&self, uid: &str) -> bool {
        self.ports.statuses.lock().unwrap().iter().any(|update| update.uid == uid && update.finished)
    }

    pub fn phase(&self, uid: &str) -> String {
        self.status(uid).phase.unwrap_or_default()
    }

    pub fn ready(&self, uid: &str) -> bool {
        self.status(uid)
            .conditions
            .iter()
            .flatten()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True")
    }

    pub fn has_event(&self, text: &str) -> bool {
        self.ports.events.lock().unwrap().iter().any(|event| event.contains(text))
    }

    /// Reason of the waiting state of the first container.
    pub fn waiting(&self, uid: &str) -> String {
        let status = self.status(uid);
        let container = status.container_statuses.unwrap_or_default().into_iter().next().unwrap_or_default();
        container.state.and_then(|state| state.waiting).and_then(|waiting| waiting.reason).unwrap_or_default()
    }
}

/// A pod of the API.
pub fn pod(uid: &str, spec: serde_json::Value) -> Pod {
    serde_json::from_value(serde_json::json!({
        "metadata": {"name": format!("pod-{uid}"), "namespace": "ns", "uid": uid},
        "spec": spec,
        "status": {"phase": "Pending"}
    }))
    .unwrap()
}
