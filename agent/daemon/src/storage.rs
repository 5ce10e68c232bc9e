//! Volumes and the plugins that serve them.

use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use orlop_agent_api::csi_node::CsiNodeDriver;
use orlop_agent_core::ports::{NodeFacts, Objects, RegisteredDriver, Volumes};
use orlop_agent_plugins::watch_plugins;
use orlop_agent_volumes::{PodVolumes, VolumesConfig};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What storage is made of.
pub(crate) struct StorageParts {
    pub(crate) node_name: String,
    pub(crate) kubelet_root: PathBuf,
    pub(crate) plugin_registry: PathBuf,
    pub(crate) allocatable: std::collections::BTreeMap<String, Quantity>,
    pub(crate) objects: Arc<dyn Objects>,
    pub(crate) node: Arc<dyn NodeFacts>,
}

/// Storage, running.
pub(crate) struct Storage {
    pub(crate) volumes: Arc<dyn Volumes>,
    pub(crate) drivers: watch::Receiver<Vec<CsiNodeDriver>>,
}

/// Starts volumes and plugins.
pub(crate) fn start_storage(parts: StorageParts, cancel: &CancellationToken) -> std::io::Result<Storage> {
    let registered = watch_plugins(&parts.plugin_registry, cancel.clone())?;
    let drivers = follow_drivers(registered.clone());
    let config = VolumesConfig {
        allocatable: parts.allocatable,
        ..VolumesConfig::new(parts.kubelet_root, parts.node_name, parts.objects, parts.node, registered)
    };
    Ok(Storage { volumes: PodVolumes::start(config, cancel.clone()), drivers })
}

/// The same drivers as the CSINode object shows them, until either end is gone.
fn follow_drivers(mut registered: watch::Receiver<Vec<RegisteredDriver>>) -> watch::Receiver<Vec<CsiNodeDriver>> {
    let all = |list: &[RegisteredDriver]| list.iter().map(to_csi_node).collect::<Vec<_>>();
    let (sender, receiver) = watch::channel(all(&registered.borrow_and_update()));
    tokio::spawn(async move {
        loop {
            tokio::select! {
                changed = registered.changed() => if changed.is_err() { return },
                () = sender.closed() => return,
            }
            let list = all(&registered.borrow_and_update());
            sender.send_replace(list);
        }
    });
    receiver
}

fn to_csi_node(driver: &RegisteredDriver) -> CsiNodeDriver {
    CsiNodeDriver {
        name: driver.name.clone(),
        node_id: driver.node_id.clone(),
        max_volumes: driver.max_volumes,
        topology: driver.topology.clone(),
    }
}
