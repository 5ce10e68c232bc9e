//! The port to the container runtime: what pod workers ask of it, in the agent's own terms. `agent/runtime` says it in CRI.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use crate::dns::DnsSpec;
use crate::facts::ObservedPod;
use crate::images::RegistryAuth;
use crate::ports::{PortFuture, StreamOptions};
use crate::resources::LinuxResources;
use crate::security::{ContainerSecurity, ImageUser, SandboxSecurity};

/// What went wrong in the runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuntimeFailure {
    /// The thing does not exist.
    NotFound,
    /// No answer within the deadline.
    Deadline,
    /// The runtime can't be reached.
    Unavailable,
    /// The runtime does not have this call.
    Unimplemented,
    /// Anything else.
    Other,
}

/// Why the runtime could not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct RuntimeError {
    /// What went wrong.
    pub failure: RuntimeFailure,
    /// The runtime's words, as the kubelet shows them (`rpc error: code = ... desc = ...`).
    pub message: String,
}

/// A port of a pod on the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortMapping {
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// Port in the pod.
    pub container_port: i32,
    /// Port on the node.
    pub host_port: i32,
    /// Address of the node; empty for all.
    pub host_ip: String,
}

/// A sandbox to be made.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SandboxSpec {
    /// Name of the pod.
    pub name: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// Uid of the pod.
    pub uid: String,
    /// How many sandboxes the pod had before.
    pub attempt: u32,
    /// Host name.
    pub hostname: String,
    /// Directory of the pod's logs.
    pub log_directory: String,
    /// resolv.conf; none leaves the runtime's default.
    pub dns: Option<DnsSpec>,
    /// Ports on the node.
    pub ports: Vec<PortMapping>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// Cgroup under which the runtime makes those of the containers.
    pub cgroup_parent: String,
    /// Sysctls.
    pub sysctls: BTreeMap<String, String>,
    /// Security.
    pub security: SandboxSecurity,
    /// What the pod's containers ask for in sum.
    pub resources: LinuxResources,
    /// What the RuntimeClass adds.
    pub overhead: LinuxResources,
    /// Handler of the RuntimeClass; empty for the default.
    pub runtime_handler: String,
}

/// How mounts travel between node and container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Propagation {
    /// Not at all.
    #[default]
    Private,
    /// From the node into the container.
    HostToContainer,
    /// Both ways.
    Bidirectional,
}

/// A mount of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountSpec {
    /// Path in the container.
    pub container_path: String,
    /// Path on the node.
    pub host_path: String,
    /// It can't be written.
    pub read_only: bool,
    /// Nor can anything mounted below.
    pub recursive_read_only: bool,
    /// It is to be relabelled for SELinux.
    pub selinux_relabel: bool,
    /// Propagation.
    pub propagation: Propagation,
    /// An image to mount in place of a path.
    pub image: Option<String>,
    /// Path within the image.
    pub image_sub_path: String,
}

/// A device of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceSpec {
    /// Path in the container.
    pub container_path: String,
    /// Path on the node.
    pub host_path: String,
    /// `r`, `w`, `m`.
    pub permissions: String,
}

/// A container to be made.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ContainerSpec {
    /// Name in the pod.
    pub name: String,
    /// How many instances came before.
    pub attempt: u32,
    /// Image by the reference that the runtime gave for it.
    pub image: String,
    /// Image as the pod names it.
    pub user_image: String,
    /// Entry point.
    pub command: Vec<String>,
    /// Its arguments.
    pub args: Vec<String>,
    /// Working directory; empty for the image's.
    pub working_dir: String,
    /// Environment.
    pub env: Vec<(String, String)>,
    /// Mounts.
    pub mounts: Vec<MountSpec>,
    /// Devices.
    pub devices: Vec<DeviceSpec>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// Log file, below the pod's log directory.
    pub log_path: String,
    /// It reads standard input.
    pub stdin: bool,
    /// Standard input ends with the first client.
    pub stdin_once: bool,
    /// It has a terminal.
    pub tty: bool,
    /// Signal to stop it with (`SIGTERM`); none for the image's.
    pub stop_signal: Option<String>,
    /// Resources.
    pub resources: LinuxResources,
    /// Security.
    pub security: ContainerSecurity,
}

/// An image of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageFact {
    /// Its id: the digest of its configuration.
    pub id: String,
    /// References by digest.
    pub repo_digests: Vec<String>,
    /// References by tag.
    pub repo_tags: Vec<String>,
    /// Size in bytes.
    pub size: u64,
    /// Its user.
    pub user: ImageUser,
}

/// Output of a command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecOutput {
    /// Exit code.
    pub exit_code: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
}

/// The runtime's state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuntimeStatus {
    /// Nothing, or why containers can't be run (`reason:... message:...`).
    pub runtime: Option<String>,
    /// Nothing, or why the network is not ready.
    pub network: Option<String>,
    /// Handlers by name: can mount read-only recursively, knows user namespaces.
    pub handlers: BTreeMap<String, (bool, bool)>,
    /// It knows the policy of supplemental groups.
    pub supplemental_groups_policy: bool,
}

/// News of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuntimeEvent {
    /// Something of a pod changed; what is not named may be as before.
    Changed(ObservedPod),
    /// The container or sandbox with this id is gone.
    Gone(String),
    /// News may have been lost (the stream was cut): ask anew.
    Lost,
    /// The runtime has no such stream: ask often.
    Unsupported,
}

/// The stream of news. It reconnects by itself.
pub trait RuntimeEvents: Send {
    /// The next piece of news.
    fn next(&mut self) -> PortFuture<'_, RuntimeEvent>;
}

type Answer<'a, T> = PortFuture<'a, Result<T, RuntimeError>>;

/// The runtime. Every call has a deadline of its own, but for `pull_image`, which is cancelled by dropping it.
pub trait Runtime: Send + Sync {
    /// Its name, as in container ids.
    fn name(&self) -> String;
    /// Its state.
    fn status(&self) -> Answer<'_, RuntimeStatus>;
    /// Makes and starts a sandbox; returns its id.
    fn run_sandbox<'a>(&'a self, spec: &'a SandboxSpec) -> Answer<'a, String>;
    /// Stops a sandbox and all in it. One that is gone is stopped.
    fn stop_sandbox<'a>(&'a self, id: &'a str) -> Answer<'a, ()>;
    /// Removes a sandbox and all in it. One that is gone is removed.
    fn remove_sandbox<'a>(&'a self, id: &'a str) -> Answer<'a, ()>;
    /// Makes a container; returns its id.
    fn create_container<'a>(
        &'a self,
        sandbox_id: &'a str,
        spec: &'a ContainerSpec,
        sandbox: &'a SandboxSpec,
    ) -> Answer<'a, String>;
    /// Starts a container.
    fn start_container<'a>(&'a self, id: &'a str) -> Answer<'a, ()>;
    /// Stops a container, killing it after `grace_seconds`. One that is gone is stopped.
    fn stop_container<'a>(&'a self, id: &'a str, grace_seconds: i64) -> Answer<'a, ()>;
    /// Removes a container. One that is gone is removed.
    fn remove_container<'a>(&'a self, id: &'a str) -> Answer<'a, ()>;
    /// Runs a command; zero `timeout` is none. The command is killed at its timeout, which is `Deadline`.
    fn exec_sync<'a>(&'a self, id: &'a str, command: &'a [String], timeout: Duration) -> Answer<'a, ExecOutput>;
    /// URL of a streaming exec.
    fn exec_url<'a>(&'a self, id: &'a str, command: Vec<String>, options: StreamOptions) -> Answer<'a, String>;
    /// URL of a streaming attach.
    fn attach_url<'a>(&'a self, id: &'a str, options: StreamOptions) -> Answer<'a, String>;
    /// URL of a streaming port forward.
    fn port_forward_url<'a>(&'a self, sandbox_id: &'a str, ports: Vec<i32>) -> Answer<'a, String>;
    /// The image of that name, if it is there.
    fn image<'a>(&'a self, image: &'a str, runtime_handler: &'a str) -> Answer<'a, Option<ImageFact>>;
    /// Pulls an image; returns the reference to make containers with.
    fn pull_image<'a>(
        &'a self,
        image: &'a str,
        auth: Option<&'a RegistryAuth>,
        sandbox: Option<&'a SandboxSpec>,
    ) -> Answer<'a, String>;
    /// All that the runtime has of one pod.
    fn pod<'a>(&'a self, uid: &'a str) -> Answer<'a, ObservedPod>;
    /// All pods, and the time that the list was begun.
    fn pods(&self) -> Answer<'_, (Timestamp, Vec<ObservedPod>)>;
    /// One container, as it is now, or none.
    fn container<'a>(&'a self, id: &'a str) -> Answer<'a, Option<ObservedPod>>;
    /// The stream of news.
    fn events(&self) -> Box<dyn RuntimeEvents>;
    /// Tells a container's log writer that its file was moved away.
    fn reopen_log<'a>(&'a self, id: &'a str) -> Answer<'a, ()>;
}
