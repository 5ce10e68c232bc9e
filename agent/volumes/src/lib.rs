//! Volumes of pods: what each kind needs, contents that change as a whole, take-down by what is on disk.
//!
//! ```text
//!  pod ──> kinds (what is asked) ──┬─> contents ──> atomic_writer      configMap, secret, downwardAPI, projected
//!                                  ├─> folders                         emptyDir, hostPath
//!                                  └─> csi ──> stage, publish          claims, inline volumes
//!  pods/<uid>/volumes/kubernetes.io~<kind>/<name> is the truth for tear_down and after a restart
//! ```

mod atomic_writer;
mod contents;
mod csi;
mod folders;
mod ownership;
mod refresh;
mod set_up;
mod tear_down;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use orlop_agent_core::containers;
use orlop_agent_core::ports::{MountedVolume, Objects, PortFuture, RegisteredDriver, VolumeError, Volumes};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What volumes are made of.
#[derive(Clone)]
pub struct VolumesConfig {
    /// The kubelet's root directory.
    pub kubelet_root: PathBuf,
    /// Name of the node.
    pub node_name: String,
    /// What the node can give, for `resourceFieldRef` without a limit.
    pub allocatable: BTreeMap<String, Quantity>,
    /// Objects of the API.
    pub objects: Arc<dyn Objects>,
    /// CSI drivers that have registered.
    pub drivers: watch::Receiver<Vec<RegisteredDriver>>,
}

/// The volumes of all pods of a node.
pub struct PodVolumes {
    config: VolumesConfig,
    /// One thing at a time is done to a pod's volumes.
    locks: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    refresh: refresh::Refresh,
}

impl PodVolumes {
    /// Volumes below the kubelet's root; a task renews tokens until cancelled.
    #[must_use]
    pub fn start(config: VolumesConfig, cancel: CancellationToken) -> Arc<PodVolumes> {
        let (refresh, due) = refresh::Refresh::new();
        let volumes = Arc::new(PodVolumes { config, locks: Mutex::default(), refresh });
        tokio::spawn(refresh::run(Arc::downgrade(&volumes), due, cancel));
        volumes
    }

    fn lock(&self, uid: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        locks.entry(uid.to_owned()).or_default().clone()
    }

    /// `pods/<uid>/volumes`.
    fn folder(&self, uid: &str) -> PathBuf {
        self.config.kubelet_root.join("pods").join(uid).join("volumes")
    }
}

impl Volumes for PodVolumes {
    fn set_up<'a>(&'a self, pod: &'a Arc<Pod>) -> PortFuture<'a, Result<BTreeMap<String, MountedVolume>, VolumeError>> {
        Box::pin(async move {
            let lock = self.lock(containers::uid(pod));
            let _one = lock.lock().await;
            set_up::set_up(self, pod).await
        })
    }

    fn tear_down<'a>(&'a self, pod_uid: &'a str) -> PortFuture<'a, Result<(), VolumeError>> {
        Box::pin(async move {
            let lock = self.lock(pod_uid);
            let one = lock.lock().await;
            self.refresh.forget(pod_uid);
            tear_down::tear_down(&self.config, pod_uid, &self.folder(pod_uid)).await?;
            drop(one);
            self.locks.lock().unwrap_or_else(PoisonError::into_inner).remove(pod_uid);
            Ok(())
        })
    }

    fn pods_on_disk(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.config.kubelet_root.join("pods")) else { return vec![] };
        let has_volumes = |path: &Path| {
            let kinds = std::fs::read_dir(path.join("volumes")).into_iter().flatten().flatten();
            kinds.flat_map(|kind| std::fs::read_dir(kind.path()).into_iter().flatten()).next().is_some()
        };
        let with_volumes = entries.flatten().filter(|entry| has_volumes(&entry.path()));
        with_volumes.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }
}

/// Folder of a volume of a kind, below `pods/<uid>/volumes`.
fn volume_folder(volumes: &Path, kind: &str, name: &str) -> PathBuf {
    volumes.join(format!("kubernetes.io~{kind}")).join(name)
}

/// Does file work on a thread that may block.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())?
}
