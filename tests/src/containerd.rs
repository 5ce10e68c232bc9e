//! containerd as the foreign runtime: its configuration, everything it keeps in one folder, and its start in a world.

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::place::{cache, foreign};
use crate::world::{Daemon, World, until};

/// containerd in a world.
pub struct Containerd {
    /// Everything that it keeps lies here; has to be there.
    pub folder: PathBuf,
    /// The image of its sandboxes.
    pub pause: String,
    /// Folder of the CNI configuration lists.
    pub networks: PathBuf,
    /// Folder of the CNI plugins.
    pub plugins: PathBuf,
    /// Folder of registries and their mirrors.
    pub registries: Option<PathBuf>,
}

impl Containerd {
    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.folder.join("c.sock")
    }

    /// Starts it and waits until it listens.
    ///
    /// # Panics
    /// When a program is missing or it does not listen in time.
    #[must_use]
    pub fn start(&self, world: &World) -> Daemon {
        let file = self.folder.join("config.toml");
        std::fs::write(&file, self.config()).expect("write containerd's configuration");
        // It finds its shim on the PATH, and has to work in a folder that is empty.
        let work = self.folder.join("work");
        std::fs::create_dir_all(&work).expect("make containerd's working folder");
        let _ = foreign("containerd-shim-runc-v2");
        let path = format!("PATH={}:/usr/sbin:/usr/bin:/sbin:/bin", cache().join("bin").display());
        let mut command = world.command("env");
        command.arg("-C").arg(work).arg(path).arg(foreign("containerd")).arg("--config").arg(&file);
        command.arg("--log-level=warn");
        let daemon = Daemon::start(command, world.folder().join("containerd.log"));
        let socket = self.socket();
        until("containerd listens", || socket.exists().then_some(()));
        daemon
    }

    /// The text of its configuration. Snapshotters that this kernel may lack are off.
    fn config(&self) -> String {
        let registries = self.registries.as_ref().map_or_else(String::new, |folder| {
            format!("[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = '{}'\n", folder.display())
        });
        format!(
            "version = 4
root = '{root}/root'
state = '{root}/state'
disabled_plugins = ['io.containerd.snapshotter.v1.blockfile', 'io.containerd.snapshotter.v1.btrfs', \
'io.containerd.snapshotter.v1.devmapper', 'io.containerd.snapshotter.v1.erofs', 'io.containerd.snapshotter.v1.zfs']
[plugins.'io.containerd.server.v1.grpc']
address = '{socket}'
[plugins.'io.containerd.server.v1.ttrpc']
address = '{socket}.ttrpc'
[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = '{pause}'
{registries}[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = 'io.containerd.runc.v2'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
BinaryName = '{runc}'
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ['{plugins}']
conf_dir = '{networks}'
",
            root = self.folder.display(),
            socket = self.socket().display(),
            pause = self.pause,
            runc = foreign("runc").display(),
            plugins = self.plugins.display(),
            networks = self.networks.display(),
        )
    }
}

/// The upstream plugins.
///
/// # Panics
/// With what to do, when they are not there.
#[must_use]
pub fn upstream_plugins() -> PathBuf {
    let plugins = cache().join("cni");
    assert!(plugins.join("bridge").is_file(), "the CNI plugins are not built: run `cargo xtask foreign cni`");
    plugins
}

/// A network like ours for the upstream plugins, with all it keeps in a folder; the folder of its configuration.
///
/// # Panics
/// When it can't be written.
#[must_use]
pub fn upstream_network(folder: &Path, bridge: &str, subnet: &str) -> PathBuf {
    let networks = folder.join("net.d");
    std::fs::create_dir_all(&networks).expect("make the folder of the network configuration");
    let list = json!({
        "cniVersion": "1.1.0", "name": bridge,
        "plugins": [
            {"type": "bridge", "bridge": bridge, "isGateway": true, "ipMasq": true, "ipMasqBackend": "nftables",
             "hairpinMode": true,
             "ipam": {"type": "host-local", "dataDir": folder.join("leases"),
                      "ranges": [[{"subnet": subnet}]], "routes": [{"dst": "0.0.0.0/0"}]}},
            {"type": "portmap", "backend": "nftables", "capabilities": {"portMappings": true}},
        ],
    });
    std::fs::write(networks.join("10-test.conflist"), list.to_string()).expect("write the network configuration");
    networks
}
