//! Volumes and the plugins that serve them.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use orlop_agent_api::csi_node::CsiNodeDriver;
use orlop_agent_core::ports::{MountedVolume, PortFuture, VolumeError, Volumes};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Storage, running.
pub(crate) struct Storage {
    pub(crate) volumes: Arc<dyn Volumes>,
    pub(crate) drivers: watch::Receiver<Vec<CsiNodeDriver>>,
}

/// Starts volumes and plugins.
pub(crate) fn start_storage(cancel: &CancellationToken) -> Storage {
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
