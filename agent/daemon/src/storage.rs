//! Volumes and the plugins that serve them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use orlop_agent_api::csi_node::CsiNodeDriver;
use orlop_agent_core::ports::{Events, MountedVolume, NodeFacts, Objects, PortFuture, VolumeError, Volumes};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// What storage is made of.
pub(crate) struct StorageParts {
    pub(crate) node_name: String,
    pub(crate) kubelet_root: PathBuf,
    pub(crate) plugin_registry: PathBuf,
    pub(crate) objects: Arc<dyn Objects>,
    pub(crate) events: Arc<dyn Events>,
    pub(crate) node: Arc<dyn NodeFacts>,
}

/// Storage, running.
pub(crate) struct Storage {
    pub(crate) volumes: Arc<dyn Volumes>,
    pub(crate) drivers: watch::Receiver<Vec<CsiNodeDriver>>,
}

/// Starts volumes and plugins.
pub(crate) fn start_storage(parts: StorageParts, _tasks: &mut JoinSet<()>, cancel: &CancellationToken) -> Storage {
    let (sender, drivers) = watch::channel(Vec::new());
    let token = cancel.clone();
    tokio::spawn(async move {
        token.cancelled().await;
        drop(sender);
    });
    Storage { volumes: Arc::new(NoVolumes), drivers }
}

struct NoVolumes;

impl Volumes for NoVolumes {
    fn set_up<'a>(&'a self, pod: &'a Arc<Pod>) -> PortFuture<'a, Result<BTreeMap<String, MountedVolume>, VolumeError>> {
        let first = pod.spec.as_ref().and_then(|spec| spec.volumes.as_ref()).and_then(|volumes| volumes.first());
        let result = match first {
            Some(volume) => {
                Err(VolumeError::SetUp { volume: volume.name.clone(), message: "this agent has no volumes".into() })
            }
            None => Ok(BTreeMap::new()),
        };
        Box::pin(std::future::ready(result))
    }

    fn tear_down<'a>(&'a self, _: &'a str) -> PortFuture<'a, Result<(), VolumeError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn pods_on_disk(&self) -> Vec<String> {
        Vec::new()
    }
}
