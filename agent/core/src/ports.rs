//! The ports of the agent: what the rim implements and the pod workers call. Rim crates know these traits and not
//! one another; `agent/daemon` joins them.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::IpAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    ConfigMap, PersistentVolume, PersistentVolumeClaim, Pod, PodStatus, Secret, Service, Taint,
};
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::metrics::Metrics;

/// A boxed future, so that ports can be trait objects.
pub type PortFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Why a port could not do what was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PortError {
    /// The object does not exist. Told in the kubelet's words, which users and tools look for.
    #[error("{} {:?} not found", kind.to_ascii_lowercase(), name.rsplit('/').next().unwrap_or_default())]
    NotFound {
        /// Kind of the object, as in manifests.
        kind: &'static str,
        /// `namespace/name`, or the name alone.
        name: String,
    },
    /// The other side can't be reached just now; trying again makes sense.
    #[error("{what}: {message}")]
    Unavailable {
        /// What was asked.
        what: String,
        /// Why it failed.
        message: String,
    },
    /// The request can't succeed as it stands.
    #[error("{what}: {message}")]
    Invalid {
        /// What was asked.
        what: String,
        /// Why it failed.
        message: String,
    },
}

/// Objects of the API that a pod refers to; implemented by `agent/api`.
pub trait Objects: Send + Sync {
    /// A ConfigMap by namespace and name.
    fn config_map<'a>(&'a self, namespace: &'a str, name: &'a str)
    -> PortFuture<'a, Result<Arc<ConfigMap>, PortError>>;
    /// A Secret by namespace and name.
    fn secret<'a>(&'a self, namespace: &'a str, name: &'a str) -> PortFuture<'a, Result<Arc<Secret>, PortError>>;
    /// A claim by namespace and name.
    fn claim<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> PortFuture<'a, Result<Arc<PersistentVolumeClaim>, PortError>>;
    /// A volume by name.
    fn volume<'a>(&'a self, name: &'a str) -> PortFuture<'a, Result<Arc<PersistentVolume>, PortError>>;
    /// A CSIDriver by name; `NotFound` means the defaults of the API.
    fn csi_driver<'a>(&'a self, name: &'a str) -> PortFuture<'a, Result<Arc<CSIDriver>, PortError>>;
    /// A VolumeAttachment by name.
    fn volume_attachment<'a>(&'a self, name: &'a str) -> PortFuture<'a, Result<Arc<VolumeAttachment>, PortError>> {
        Box::pin(std::future::ready(Err(PortError::NotFound { kind: "VolumeAttachment", name: name.to_owned() })))
    }
    /// A RuntimeClass by name.
    fn runtime_class<'a>(&'a self, name: &'a str) -> PortFuture<'a, Result<Arc<RuntimeClass>, PortError>>;
    /// The services of a namespace, and `default/kubernetes`, for service environment variables.
    fn services<'a>(&'a self, namespace: &'a str) -> PortFuture<'a, Result<Vec<Arc<Service>>, PortError>>;
    /// A service-account token bound to the pod (TokenRequest); cached and refreshed at 80 % of its life.
    fn token<'a>(
        &'a self,
        pod: &'a Pod,
        audience: &'a str,
        expiration_seconds: i64,
    ) -> PortFuture<'a, Result<String, PortError>>;
    /// Called with `namespace/name` whenever a ConfigMap or Secret that was asked for changes.
    fn changes(&self) -> Box<dyn ObjectChanges>;
}

/// A stream of changes of objects that pods mount.
pub trait ObjectChanges: Send {
    /// The next change: kind (`ConfigMap` or `Secret`), namespace and name. Never ends while the port lives.
    fn next(&mut self) -> PortFuture<'_, (String, String, String)>;
}

/// A volume of a pod that is there to be mounted into containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountedVolume {
    /// Path on the host.
    pub host_path: PathBuf,
    /// The volume itself is read-only.
    pub read_only: bool,
    /// An image volume: the runtime mounts it, the host path is unused.
    pub image: Option<String>,
}

/// Why a pod's volumes are not there yet.
#[derive(Clone, Debug, thiserror::Error)]
pub enum VolumeError {
    /// A volume can't be set up; the message names it, as the kubelet's `FailedMount` event does.
    #[error("MountVolume.SetUp failed for volume \"{volume}\" : {message}")]
    SetUp {
        /// Name of the volume in the pod.
        volume: String,
        /// The cause.
        message: String,
    },
    /// A volume's device can't be staged by its driver.
    #[error("MountVolume.MountDevice failed for volume \"{volume}\" : {message}")]
    MountDevice {
        /// Name of the volume.
        volume: String,
        /// The cause.
        message: String,
    },
    /// A volume is not attached to this node.
    #[error("MountVolume.WaitForAttach failed for volume \"{volume}\" : {message}")]
    WaitForAttach {
        /// Name of the volume.
        volume: String,
        /// The cause.
        message: String,
    },
    /// Volumes are not ready to be mounted: a claim without a volume, or an operation that takes too long.
    #[error(
        "Unable to attach or mount volumes: unmounted volumes=[{volumes}], failed to process volumes=[{volumes}]: {message}"
    )]
    Waiting {
        /// Names of the volumes in the pod, with spaces between.
        volumes: String,
        /// What they wait for.
        message: String,
    },
    /// A volume can't be taken down; it is tried again.
    #[error("UnmountVolume.TearDown failed for volume \"{volume}\" : {message}")]
    TearDown {
        /// Name of the volume in the pod.
        volume: String,
        /// The cause.
        message: String,
    },
}

/// The volumes of pods; implemented by `agent/volumes`.
pub trait Volumes: Send + Sync {
    /// Makes every volume that the pod's containers mount available, or tells why one is not. Idempotent; called on each pass
    /// until it succeeds, and again when an object changed (contents of configMap, secret, downward API and
    /// projected volumes are then renewed).
    fn set_up<'a>(&'a self, pod: &'a Arc<Pod>) -> PortFuture<'a, Result<BTreeMap<String, MountedVolume>, VolumeError>>;
    /// Takes down all volumes of a pod whose containers are gone, by what is on disk. Idempotent.
    fn tear_down<'a>(&'a self, pod_uid: &'a str) -> PortFuture<'a, Result<(), VolumeError>>;
    /// Uids of pods that have a volume on disk.
    fn pods_on_disk(&self) -> Vec<String>;
}

/// Severity of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventType {
    /// Something expected.
    Normal,
    /// Something to look at.
    Warning,
}

/// What an event is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ObjectRef {
    /// Kind: `Pod` or `Node`.
    pub kind: String,
    /// Namespace; empty for a node.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Uid.
    pub uid: String,
    /// `spec.containers{name}` and the like.
    pub field_path: Option<String>,
}

/// Events of the node; implemented by `agent/api`. Never blocks: repeated events are counted, surplus is dropped.
pub trait Events: Send + Sync {
    /// Records one event.
    fn record(&self, object: ObjectRef, event_type: EventType, reason: &str, message: &str);
}

/// A container of a pod, as the kubelet port finds it.
#[derive(Clone, Debug)]
pub struct ContainerRef {
    /// CRI id.
    pub id: String,
    /// The CRI log file.
    pub log_path: PathBuf,
    /// Whether it runs.
    pub running: bool,
    /// Whether it was made with a terminal.
    pub tty: bool,
    /// Whether it reads stdin.
    pub stdin: bool,
}

/// What streams an exec or attach asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamOptions {
    /// Standard input.
    pub stdin: bool,
    /// Standard output.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
    /// A terminal.
    pub tty: bool,
}

/// Why the kubelet port can't serve a request.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NodeViewError {
    /// 404.
    #[error("{0}")]
    NotFound(String),
    /// 400.
    #[error("{0}")]
    BadRequest(String),
    /// 500.
    #[error("{0}")]
    Internal(String),
}

/// What the kubelet port sees of the pods; implemented by `agent/pods`.
pub trait NodeView: Send + Sync {
    /// Every pod of the node, with its current status.
    fn pods(&self) -> Vec<Arc<Pod>>;
    /// A container of a pod by name (app, init or ephemeral). `previous` asks for the instance before. The uid is checked where given.
    fn container<'a>(
        &'a self,
        namespace: &'a str,
        pod: &'a str,
        uid: Option<&'a str>,
        container: &'a str,
        previous: bool,
    ) -> PortFuture<'a, Result<ContainerRef, NodeViewError>>;
    /// URL of the runtime's streaming server for an exec.
    fn exec_url<'a>(
        &'a self,
        container_id: &'a str,
        command: Vec<String>,
        options: StreamOptions,
    ) -> PortFuture<'a, Result<String, NodeViewError>>;
    /// URL of the runtime's streaming server for an attach.
    fn attach_url<'a>(
        &'a self,
        container_id: &'a str,
        options: StreamOptions,
    ) -> PortFuture<'a, Result<String, NodeViewError>>;
    /// URL of the runtime's streaming server for forwarding ports of a pod.
    fn port_forward_url<'a>(
        &'a self,
        namespace: &'a str,
        pod: &'a str,
        uid: Option<&'a str>,
        ports: Vec<i32>,
    ) -> PortFuture<'a, Result<String, NodeViewError>>;
    /// Runs a command and returns its exit code and output (stdout, then stderr).
    fn run<'a>(
        &'a self,
        container_id: &'a str,
        command: Vec<String>,
    ) -> PortFuture<'a, Result<(i32, Vec<u8>), NodeViewError>>;
    /// Nothing, or why the agent is not healthy.
    fn health(&self) -> Result<(), String>;
    /// What the agent has counted, with pods and containers as they are now.
    fn metrics(&self) -> Arc<Metrics>;
}

/// Who makes a request to the kubelet port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// User name.
    pub name: String,
    /// Uid, where known.
    pub uid: String,
    /// Groups.
    pub groups: Vec<String>,
}

/// Authentication of tokens and authorisation of users, both asked of the API server; implemented by `agent/api`.
pub trait Access: Send + Sync {
    /// The user behind a bearer token (TokenReview), or none.
    fn authenticate<'a>(&'a self, token: &'a str) -> PortFuture<'a, Result<Option<User>, PortError>>;
    /// Whether the user may do `verb` on `nodes/<subresource>` of this node (SubjectAccessReview).
    fn authorize<'a>(
        &'a self,
        user: &'a User,
        verb: &'a str,
        subresource: &'a str,
    ) -> PortFuture<'a, Result<bool, PortError>>;
}

/// CSI drivers that have registered on this node; implemented by `agent/plugins`.
pub trait CsiDrivers: Send + Sync {
    /// Path of the driver's socket, or none while it is not registered.
    fn endpoint(&self, driver: &str) -> Option<PathBuf>;
}

/// Pods of this node as the API server has them: what `agent/api` delivers through a `tokio::sync::watch` channel of
/// `Arc<PodSet>` and `agent/pods` merges with the static pods. Mirror pods are in it like any other.
#[derive(Clone, Debug, Default)]
pub struct PodSet {
    /// The first list is complete. While it isn't, nothing that runs is taken for an orphan.
    pub synced: bool,
    /// The pods by uid.
    pub pods: BTreeMap<String, Arc<Pod>>,
}

/// Mirror pods: the API's picture of static pods; implemented by `agent/api`.
pub trait MirrorPods: Send + Sync {
    /// Creates the mirror pod. The caller has set the annotation `kubernetes.io/config.mirror`, the node name and all
    /// else but the owner reference to the Node, which the implementation adds. The pod already being there is success.
    fn create<'a>(&'a self, pod: &'a Pod) -> PortFuture<'a, Result<(), PortError>>;
    /// Deletes the mirror pod at once (grace 0) if it still has that uid; its absence is success.
    fn delete<'a>(&'a self, namespace: &'a str, name: &'a str, uid: &'a str) -> PortFuture<'a, Result<(), PortError>>;
}

/// One new status of a pod.
#[derive(Clone, Debug)]
pub struct StatusUpdate {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// Uid of the API object; for a static pod that of its mirror.
    pub uid: String,
    /// The whole status that the agent owns. Conditions of types that the agent does not own (readiness gates) are
    /// not in it: the implementation keeps those of the object.
    pub status: PodStatus,
    /// Everything of the pod is gone from the node. Where the object has a deletionTimestamp, the implementation
    /// deletes it with grace 0 and a uid precondition after writing the status; otherwise it only writes.
    pub finished: bool,
}

/// Where workers put new pod statuses; implemented by `agent/api`. Never blocks: keeps the newest update per uid,
/// writes it within milliseconds and tries again until written or the object is gone.
pub trait StatusSink: Send + Sync {
    /// Takes a new status.
    fn publish(&self, update: StatusUpdate);
    /// Waits until all that were taken are written; for ever, where the API can't be reached.
    fn settled(&self) -> PortFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// Limits of a pod as a whole, in the units of the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodCgroupLimits {
    /// cpu.shares (2..=262144).
    pub cpu_shares: u64,
    /// CFS quota in microseconds per `cpu_period_us`; none is unlimited.
    pub cpu_quota_us: Option<i64>,
    /// CFS period in microseconds.
    pub cpu_period_us: u64,
    /// Memory limit in bytes; none is unlimited.
    pub memory_bytes: Option<i64>,
    /// Huge-page limits in bytes by size (`2Mi`).
    pub hugepages: BTreeMap<String, i64>,
}

/// The cgroups of pods; implemented by `agent/resources`.
pub trait PodCgroups: Send + Sync {
    /// Makes the cgroup of a pod under its QoS class (`Guaranteed`, `Burstable`, `BestEffort`), or sets the limits
    /// of the one that is there. Returns the path to hand to the runtime as `cgroup_parent`.
    fn ensure<'a>(
        &'a self,
        pod_uid: &'a str,
        qos_class: &'a str,
        limits: &'a PodCgroupLimits,
    ) -> PortFuture<'a, Result<String, PortError>>;
    /// Kills what is left in the pod's cgroup and removes it; its absence is success.
    fn remove<'a>(&'a self, pod_uid: &'a str) -> PortFuture<'a, Result<(), PortError>>;
    /// Uids of pods that have a cgroup.
    fn pods_on_disk(&self) -> Vec<String>;
}

/// What pod workers need to know of the node; implemented by `agent/node`.
pub trait NodeFacts: Send + Sync {
    /// Addresses of the node, the main one first.
    fn host_ips(&self) -> Vec<IpAddr>;
    /// Allocatable resources by name.
    fn allocatable(&self) -> BTreeMap<String, Quantity>;
    /// Capacity by name.
    fn capacity(&self) -> BTreeMap<String, Quantity>;
    /// Labels of the Node object; empty while unknown.
    fn labels(&self) -> BTreeMap<String, String>;
    /// Why no new pod may be admitted (pressure, shutdown): reason and message.
    fn refusal(&self, pod: &Pod) -> Option<(String, String)>;
    /// Taints of the Node object; none while unknown.
    fn taints(&self) -> Vec<Taint> {
        Vec::new()
    }
    /// The runtime can leave out the groups that an image gives to its user (`supplementalGroupsPolicy: Strict`).
    fn strict_groups(&self) -> bool {
        false
    }
    /// What a handler of the runtime can do; empty is the default handler.
    fn handler(&self, _name: &str) -> HandlerFeatures {
        HandlerFeatures::default()
    }
    /// Why pods can't have a network just now, in the runtime's words.
    fn network_problem(&self) -> Option<String> {
        None
    }
}

/// What a handler of the runtime can do for a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HandlerFeatures {
    /// Read-only mounts can hold for everything below them.
    pub recursive_read_only: bool,
    /// Pods can have a user namespace.
    pub user_namespaces: bool,
}

/// A CSI driver that has registered on this node: found by `agent/plugins`, used by `agent/volumes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegisteredDriver {
    /// Its name.
    pub name: String,
    /// The socket of its services.
    pub socket: PathBuf,
    /// How it calls this node.
    pub node_id: String,
    /// How many volumes it can have here; none is no limit.
    pub max_volumes: Option<i32>,
    /// Where the node is, as labels.
    pub topology: BTreeMap<String, String>,
}
