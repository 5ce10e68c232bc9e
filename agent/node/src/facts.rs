//! What a node's status is made of.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use orlop_agent_core::ports::PortFuture;

use crate::machine::SystemFacts;

/// Shortages on the node, found by eviction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressures {
    /// Memory is short.
    pub memory: bool,
    /// Disk space or inodes are short.
    pub disk: bool,
    /// Process ids are short.
    pub pid: bool,
}

/// What other parts of the agent tell of the node; a value that is replaced on each change.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeInputs {
    /// What the machine has, by resource name.
    pub capacity: BTreeMap<String, Quantity>,
    /// What pods may have.
    pub allocatable: BTreeMap<String, Quantity>,
    /// Shortages.
    pub pressures: Pressures,
    /// Why the node is not ready, apart from the runtime (`CSINode is not yet initialized`).
    pub problems: Vec<String>,
    /// Volumes that are mounted or about to be, by their unique names.
    pub volumes_in_use: Vec<String>,
    /// The machine is being shut down: no new pods, not ready.
    pub shutting_down: bool,
}

/// A handler that a RuntimeClass can name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuntimeHandlerFact {
    /// Name; empty is the default handler.
    pub name: String,
    /// It can make read-only mounts that hold for everything below.
    pub recursive_read_only_mounts: bool,
    /// It can run pods in a user namespace.
    pub user_namespaces: bool,
}

/// What the runtime says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuntimeState {
    /// Name, as in `containerd`.
    pub name: String,
    /// Version of the runtime.
    pub version: String,
    /// Why `RuntimeReady` is false: `reason:… message:…`; none while it is true.
    pub runtime_problem: Option<String>,
    /// Why `NetworkReady` is false; none while it is true.
    pub network_problem: Option<String>,
    /// Handlers.
    pub handlers: Vec<RuntimeHandlerFact>,
    /// It knows `supplementalGroupsPolicy`.
    pub supplemental_groups_policy: bool,
}

/// An image on the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageFact {
    /// Digests and tags, digests first.
    pub names: Vec<String>,
    /// Size in bytes.
    pub size_bytes: i64,
}

/// Questions to the runtime; joined in `agent/daemon`. Implementations bound their own time.
pub trait RuntimeProbe: Send + Sync {
    /// Version and conditions of the runtime, or why it does not answer.
    fn state(&self) -> PortFuture<'_, Result<RuntimeState, String>>;
    /// Images on the node.
    fn images(&self) -> PortFuture<'_, Result<Vec<ImageFact>, String>>;
}

/// Everything that a status is computed from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StatusFacts {
    /// Name of the machine, for the `Hostname` address.
    pub hostname: String,
    /// Addresses, the main one first.
    pub addresses: Vec<IpAddr>,
    /// Port of the kubelet's server.
    pub kubelet_port: i32,
    /// Version of the agent, as nodes report it (`v1.36.3`).
    pub kubelet_version: String,
    /// What the kernel says.
    pub system: SystemFacts,
    /// The runtime as it last answered.
    pub runtime: RuntimeState,
    /// Why the runtime is not usable, apart from what it says itself.
    pub runtime_problem: Option<String>,
    /// Images on the node.
    pub images: Vec<ImageFact>,
    /// How many images to report; negative for all (`nodeStatusMaxImages`).
    pub images_max: i32,
    /// What other parts tell.
    pub inputs: NodeInputs,
}
