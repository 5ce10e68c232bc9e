//! The images of a node: pulled, imported, listed, held by containers, removed.

mod artifact;
mod flight;
mod layers;
mod manifest;
mod pins;
mod policy;
mod pull;
mod resolve;
mod usage;
mod verify;

use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};

use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use crate::digest::Digest;
use crate::document::ContainerDefaults;
use crate::error::ImageError;
use crate::registry::RegistriesConfig;
use crate::store::Store;
use crate::unpack::UnpackLimits;

pub use flight::Pull;
pub(crate) use layers::complete_layer;
pub use usage::ImageUsage;

/// Layers fetched and unpacked at the same time, over all pulls. More than one pull's share, so that a registry that
/// stalls doesn't hold up the images of others.
const LAYERS_AT_ONCE_MAX: usize = 24;

/// How images are kept and where they come from.
#[derive(Clone, Debug)]
pub struct ImageConfig {
    /// State directory of the CRI server; images live in `image/` below it.
    pub state_dir: PathBuf,
    /// Registries.
    pub registries: RegistriesConfig,
    /// Layers of one pull that are fetched and unpacked at the same time.
    pub parallel_layers: usize,
    /// Bounds of a layer.
    pub limits: UnpackLimits,
    /// Images that garbage collection must not take: references, or patterns such as `registry.k8s.io/pause:*`.
    pub pinned: Vec<String>,
    /// What a name without a registry means to a pull.
    pub short_names: ShortNames,
    /// Folder of programs that are asked before an image is pulled; a missing one asks nobody.
    pub verifier_dir: Option<PathBuf>,
    /// Most programs in it.
    pub verifiers_max: usize,
    /// How long each of them may take, in seconds.
    pub verifier_timeout_seconds: u64,
}

/// What a name without a registry, as `busybox`, means to a pull. What is there already is found by such a name either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ShortNames {
    /// An error: whoever wrote it may have meant another registry.
    #[default]
    #[serde(rename = "refuse")]
    Refuse,
    /// `docker.io/library/busybox`, as containerd takes it.
    #[serde(rename = "docker.io")]
    DockerHub,
}

impl ImageConfig {
    /// Defaults below a state directory.
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        Self {
            state_dir: state_dir.into(),
            registries: RegistriesConfig::default(),
            parallel_layers: 3,
            limits: UnpackLimits::default(),
            pinned: Vec::new(),
            short_names: ShortNames::default(),
            verifier_dir: None,
            verifiers_max: 10,
            verifier_timeout_seconds: 10,
        }
    }
}

/// An image that is complete on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRecord {
    /// Digest of the configuration, `sha256:<hex>`: the one id that all of CRI uses. An artifact's is that of its manifest.
    pub id: String,
    /// `registry/repository:tag`, sorted.
    pub repo_tags: Vec<String>,
    /// `registry/repository@digest`, sorted.
    pub repo_digests: Vec<String>,
    /// Size in bytes as the registry counts it (compressed).
    pub size_bytes: u64,
    /// How to run it, as the image says. Hostile input.
    pub config: ContainerDefaults,
    /// CPU architecture in Go's words.
    pub architecture: String,
    /// Directories to stack, topmost first. Never empty.
    pub lower_dirs: Vec<PathBuf>,
    /// Chain id of the topmost layer; none for an image without layers.
    pub chain_id: Option<String>,
    /// Digest of the platform's manifest, where the image came with one.
    pub manifest_digest: Option<String>,
    /// Not to be collected.
    pub pinned: bool,
    /// What an artifact says it is; none for an image. The files of an artifact lie in its only directory, under the names
    /// that it gives them. No container can be made of it.
    pub artifact_type: Option<String>,
}

impl ImageRecord {
    /// The folder with the files of an artifact, to be mounted read-only; none for an image, which is stacked of many.
    pub fn artifact_folder(&self) -> Option<&Path> {
        self.artifact_type.as_ref().and(self.lower_dirs.first()).map(PathBuf::as_path)
    }
}

/// What images take on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FsInfo {
    /// A directory on the file system of the images.
    pub mountpoint: PathBuf,
    /// Bytes used by layers and documents.
    pub used_bytes: u64,
    /// Inodes used by layers.
    pub inodes_used: u64,
}

/// The images of a node.
pub struct Images {
    store: Arc<Store>,
    limits: UnpackLimits,
    policy: RwLock<Arc<policy::Policy>>,
    permits: Semaphore,
    layer_locks: layers::LayerLocks,
    flights: flight::Flights,
}

impl Images {
    /// Opens the store, takes its lock, puts damaged records aside and removes what is unreferenced. Blocking.
    pub fn open(config: ImageConfig) -> Result<Self, ImageError> {
        let store = Store::open(&config.state_dir)?;
        let empty = store.root().join("empty");
        if !empty.is_dir() {
            std::fs::create_dir(&empty).map_err(ImageError::store("create", &empty))?;
        }
        // The root of containers of an image without layers.
        std::fs::set_permissions(&empty, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .map_err(ImageError::store("set mode of", &empty))?;
        Ok(Self {
            store: Arc::new(store),
            policy: RwLock::new(Arc::new(policy::Policy::new(&config)?)),
            limits: config.limits,
            permits: Semaphore::new(LAYERS_AT_ONCE_MAX),
            layer_locks: layers::LayerLocks::default(),
            flights: flight::Flights::default(),
        })
    }

    /// Directory of the store: `<state>/image`.
    pub fn root(&self) -> &Path {
        self.store.root()
    }

    /// Removes every name of an image, by name or id; unknown is fine. Layers that a container holds stay until it is
    /// released. Tells whether there was an image.
    pub async fn remove(&self, name: &str) -> Result<bool, ImageError> {
        let Some(record) = self.resolve(name)? else { return Ok(false) };
        let id = parse_id(&record.id)?;
        let store = Arc::clone(&self.store);
        blocking(move || store.remove_image(&id)).await
    }

    /// Keeps the layers of an image while a container stands on them. Survives restarts; idempotent.
    pub async fn hold(&self, container_id: &str, image_id: &str) -> Result<(), ImageError> {
        let id = parse_id(image_id)?;
        let (store, container_id) = (Arc::clone(&self.store), container_id.to_owned());
        blocking(move || store.lease(&container_id, id)).await?.ok_or_else(|| ImageError::NotFound(image_id.to_owned()))
    }

    /// Ends a container's hold. Idempotent.
    pub async fn release(&self, container_id: &str) -> Result<(), ImageError> {
        let (store, container_id) = (Arc::clone(&self.store), container_id.to_owned());
        blocking(move || store.release(&container_id)).await
    }

    /// Container ids that hold an image, for recovery to compare with the containers that exist.
    pub fn holders(&self) -> Vec<String> {
        self.store.index().leases.keys().cloned().collect()
    }

    /// What images take on disk, from the sizes measured when layers were unpacked.
    pub fn fs_info(&self) -> FsInfo {
        let index = self.store.index();
        let layers = index.layers.values();
        let (bytes, inodes) =
            layers.fold((0, 0), |(bytes, inodes), layer| (bytes + layer.disk_bytes, inodes + layer.inodes));
        FsInfo {
            mountpoint: self.store.root().to_path_buf(),
            used_bytes: bytes + index.blob_bytes,
            inodes_used: inodes,
        }
    }

    /// Loads every image of an archive: an OCI layout (directory or tar) or a `docker save` tar, also compressed. `names`
    /// replaces the names inside; it needs an archive of one image. Returns the image ids.
    pub async fn import(&self, path: &Path, names: Vec<String>) -> Result<Vec<String>, ImageError> {
        let (store, limits, path) = (Arc::clone(&self.store), self.limits, path.to_path_buf());
        blocking(move || crate::import::import(&store, &limits, &path, &names)).await
    }
}

/// Parses an image id: `sha256:<hex>` or the bare hex digits.
fn parse_id(id: &str) -> Result<Digest, ImageError> {
    let full = if id.starts_with("sha256:") { id.to_owned() } else { format!("sha256:{id}") };
    full.parse().map_err(|_| ImageError::NotFound(id.to_owned()))
}

/// Runs file work on a thread that may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| ImageError::Worker(error.to_string()))?
}
