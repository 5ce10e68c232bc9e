//! What volumes are made of.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use orlop_agent_core::ports::{NodeFacts, Objects, RegisteredDriver};
use tokio::sync::watch;

/// Settings and ports of the volumes of a node.
#[derive(Clone)]
pub struct VolumesConfig {
    /// The kubelet's root directory.
    pub kubelet_root: PathBuf,
    /// Name of the node.
    pub node_name: String,
    /// What the node can give, for `resourceFieldRef` without a limit and the size of memory volumes.
    pub allocatable: BTreeMap<String, Quantity>,
    /// Objects of the API.
    pub objects: Arc<dyn Objects>,
    /// Labels of the node.
    pub node: Arc<dyn NodeFacts>,
    /// CSI drivers that have registered.
    pub drivers: watch::Receiver<Vec<RegisteredDriver>>,
    /// How long one call of a driver may take (kubelet `csiTimeout`, 2 min).
    pub call_deadline: Duration,
    /// How long a caller waits for all volumes of a pod; a little less than the pod worker does (kubelet
    /// `podAttachAndMountTimeout`, 2 min 3 s), so that it gets our words.
    pub pod_deadline: Duration,
    /// How long a set-up waits for a claim to be bound or a driver to register before it says so.
    pub patience: Duration,
}

impl VolumesConfig {
    /// The kubelet's deadlines.
    pub fn new(
        kubelet_root: impl Into<PathBuf>,
        node_name: impl Into<String>,
        objects: Arc<dyn Objects>,
        node: Arc<dyn NodeFacts>,
        drivers: watch::Receiver<Vec<RegisteredDriver>>,
    ) -> VolumesConfig {
        VolumesConfig {
            kubelet_root: kubelet_root.into(),
            node_name: node_name.into(),
            allocatable: BTreeMap::new(),
            objects,
            node,
            drivers,
            call_deadline: Duration::from_secs(120),
            pod_deadline: Duration::from_secs(118),
            patience: Duration::from_secs(10),
        }
    }
}
