//! What the CRI server is told at its start.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use orlop_container::protocol::RuntimeProgram;
use orlop_image::ImageConfig;
use orlop_kernel::cgroup::unit::Driver;
use orlop_network::NetworkConfig;

use crate::traces::TracingConfig;

/// Where the server keeps things and what it runs.
#[derive(Clone, Debug)]
pub struct CriConfig {
    /// State that outlives a boot: `image/`, `containers/<id>/{upper,work}`, `meta/`.
    pub state_dir: PathBuf,
    /// What ends with a boot: `sandboxes/<id>/`, `netns/<id>`, `image.sock`.
    pub run_dir: PathBuf,
    /// The socket of the two CRI services.
    pub socket: PathBuf,
    /// The shim program, one process per pod.
    pub shim_program: PathBuf,
    /// The pause program, one process per pod.
    pub pause_program: PathBuf,
    /// Who makes the cgroups of pods and containers.
    pub cgroup_driver: Driver,
    /// The pods' network.
    pub network: NetworkConfig,
    /// Address of the streaming server; keep it on loopback.
    pub streaming: SocketAddr,
    /// Images and registries.
    pub images: ImageConfig,
    /// Folders of CDI files; a later one goes before an earlier one.
    pub cdi_dirs: Vec<PathBuf>,
    /// Programs that make containers in the place of the built-in runtime, by the name of their runtime handler.
    pub runtimes: BTreeMap<String, RuntimeProgram>,
    /// Where `/metrics` is served; nowhere when absent.
    pub metrics: Option<SocketAddr>,
    /// Where traces go; nowhere when absent.
    pub tracing: Option<TracingConfig>,
}

impl CriConfig {
    /// The sandbox's folder.
    pub(crate) fn sandbox_folder(&self, id: &str) -> PathBuf {
        self.run_dir.join("sandboxes").join(id)
    }

    /// The file of the sandbox's network namespace.
    pub(crate) fn netns(&self, id: &str) -> PathBuf {
        self.run_dir.join("netns").join(id)
    }

    /// Folder of a container's writable layer.
    pub(crate) fn container_folder(&self, id: &str) -> PathBuf {
        self.state_dir.join("containers").join(id)
    }
}
