//! Where an instance keeps its state, and the names and ports that set it apart from its neighbours.
//!
//! Without `--root` the paths are those that users of a kubelet know. With `--root DIR` everything lies below that
//! folder, and what the machine shares (bridge, subnet, cgroup, ports) is derived from it and recorded in
//! `instance.json`, so that several instances live side by side.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Port of the API server of the instance without `--root`.
const API_PORT: u16 = 6443;
/// Port of the kubelet API (kubelet's `KubeletPort`).
const KUBELET_PORT: u16 = 10250;
/// Port of the kubelet's health check (kubelet's `KubeletHealthzPort`).
const HEALTHZ_PORT: u16 = 10248;

/// All paths of an instance.
#[derive(Clone, Debug)]
pub struct Layout {
    /// State that outlives a boot.
    pub state: PathBuf,
    /// Sockets and what dies with the boot.
    pub run: PathBuf,
    /// The kubelet's root directory.
    pub kubelet: PathBuf,
    /// Pod logs.
    pub pod_logs: PathBuf,
    /// CNI configuration lists.
    pub cni_conf: PathBuf,
    /// CNI plugins.
    pub cni_bin: PathBuf,
    /// The CNI result cache.
    pub cni_cache: PathBuf,
    /// Data of the host-local plugin.
    pub cni_networks: PathBuf,
    /// Manifests of static pods.
    pub manifests: PathBuf,
    /// Configuration files of ours.
    pub configuration: PathBuf,
    /// The folder given by `--root`, if any.
    pub root: Option<PathBuf>,
}

impl Layout {
    /// The layout for `--root`, or the machine's one.
    ///
    /// # Errors
    /// When the folder can't be made or resolved.
    pub fn new(root: Option<&Path>) -> Result<Layout> {
        let Some(root) = root else {
            return Ok(Layout {
                state: "/var/lib/orlop".into(),
                run: "/run/orlop".into(),
                kubelet: "/var/lib/kubelet".into(),
                pod_logs: "/var/log/pods".into(),
                cni_conf: "/etc/cni/net.d".into(),
                cni_bin: "/opt/cni/bin".into(),
                cni_cache: "/var/lib/cni".into(),
                cni_networks: "/var/lib/cni/networks".into(),
                manifests: "/etc/kubernetes/manifests".into(),
                configuration: "/etc/orlop".into(),
                root: None,
            });
        };
        std::fs::create_dir_all(root).with_context(|| format!("make the folder {}", root.display()))?;
        let root = root.canonicalize().with_context(|| format!("resolve the folder {}", root.display()))?;
        Ok(Layout {
            state: root.join("state"),
            run: root.join("run"),
            kubelet: root.join("kubelet"),
            pod_logs: root.join("log/pods"),
            cni_conf: root.join("cni/net.d"),
            cni_bin: root.join("cni/bin"),
            cni_cache: root.join("cni/cache"),
            cni_networks: root.join("cni/networks"),
            manifests: root.join("manifests"),
            configuration: root.join("etc"),
            root: Some(root),
        })
    }

    /// Socket of the CRI server.
    pub fn cri_socket(&self) -> PathBuf {
        self.run.join("cri/cri.sock")
    }

    /// Socket of the CSI driver.
    pub fn csi_socket(&self) -> PathBuf {
        self.kubelet.join("plugins").join(orlop_csi::DRIVER_NAME).join("csi.sock")
    }

    /// The file that names the process of `orlop up`.
    pub fn pid_file(&self) -> PathBuf {
        self.run.join("orlop.pid")
    }

    /// What `orlop up --detach` writes its log to.
    pub fn log_file(&self) -> PathBuf {
        self.state.join("orlop.log")
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.state.join("admin.kubeconfig")
    }

    /// The node's kubeconfig.
    pub fn node_kubeconfig(&self) -> PathBuf {
        self.state.join("node.kubeconfig")
    }

    /// Keys and certificates.
    pub fn pki(&self) -> PathBuf {
        self.state.join("pki")
    }
}

/// What the machine's instances must not share, chosen once and kept in `instance.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Instance {
    /// Version of this record; 1.
    pub version: u32,
    /// Name of the network and suffix of other names.
    pub name: String,
    /// The pod bridge.
    pub bridge: String,
    /// The pods' subnet.
    pub subnet: ipnetwork::Ipv4Network,
    /// Port of the API server.
    pub api_port: u16,
    /// Port of the kubelet API.
    pub kubelet_port: u16,
    /// Port of the kubelet's health check.
    pub healthz_port: u16,
    /// Prefix of the cgroups, empty or with a leading slash.
    pub cgroup_root: String,
}

impl Instance {
    /// Reads the record, or chooses and writes one.
    ///
    /// # Errors
    /// When the record is damaged (the message tells what to do) or can't be written.
    pub fn load_or_choose(layout: &Layout) -> Result<Instance> {
        if let Some(instance) = Instance::load(layout)? {
            return Ok(instance);
        }
        let file = layout.state.join("instance.json");
        // Several daemons of an instance may start at once: the choice of the first one holds for all.
        std::fs::create_dir_all(&layout.state)
            .with_context(|| format!("make the folder {}", layout.state.display()))?;
        let lock = std::fs::File::create(layout.state.join("instance.lock")).context("make instance.lock")?;
        lock.lock().context("lock instance.lock")?;
        if !file.exists() {
            write_atomically(&file, &serde_json::to_vec_pretty(&Instance::choose(layout)?)?)?;
        }
        drop(lock);
        Instance::load_or_choose(layout)
    }

    /// Reads the record; none when there is none yet.
    ///
    /// # Errors
    /// When the record is damaged (the message tells what to do) or can't be read.
    pub fn load(layout: &Layout) -> Result<Option<Instance>> {
        let file = layout.state.join("instance.json");
        match std::fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).with_context(|| {
                format!(
                    "{} is damaged; move it away to have a new one made (pods then get new addresses)",
                    file.display()
                )
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {}", file.display())),
        }
    }

    /// Ports of the API and of the kubelet: those of the record, or the fixed ones; none while an instance with a folder
    /// of its own has not chosen.
    ///
    /// # Errors
    /// As [`Instance::load`].
    pub fn ports(layout: &Layout) -> Result<Option<(u16, u16)>> {
        Ok(match Instance::load(layout)? {
            Some(instance) => Some((instance.api_port, instance.kubelet_port)),
            None => layout.root.is_none().then_some((API_PORT, KUBELET_PORT)),
        })
    }

    /// The fixed names without `--root`; names, a free subnet and free ports derived from the folder with it.
    fn choose(layout: &Layout) -> Result<Instance> {
        let Some(root) = &layout.root else {
            return Ok(Instance {
                version: 1,
                name: "orlop".into(),
                bridge: "orlop0".into(),
                subnet: subnet(88),
                api_port: API_PORT,
                kubelet_port: KUBELET_PORT,
                healthz_port: HEALTHZ_PORT,
                cgroup_root: String::new(),
            });
        };
        let digest = Sha256::digest(root.as_os_str().as_encoded_bytes());
        let suffix = hex::encode(&digest[..3]);
        let taken = addresses_in_use()?;
        // 10.89.0.0/16 to 10.127.0.0/16: apart from the default instance and from what clusters use most.
        let subnet = (0..39u8)
            .map(|step| subnet(89 + (digest[3] % 39 + step) % 39))
            .find(|candidate| !taken.iter().any(|address| candidate.contains(*address)))
            .context("every subnet from 10.89.0.0/16 to 10.127.0.0/16 is in use on this machine; remove an instance")?;
        Ok(Instance {
            version: 1,
            name: format!("orlop-{suffix}"),
            bridge: format!("orlop-{suffix}"),
            subnet,
            api_port: free_port()?,
            kubelet_port: free_port()?,
            healthz_port: free_port()?,
            cgroup_root: format!("/orlop-{suffix}"),
        })
    }

    /// Address of the bridge: the pods' gateway.
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.subnet.network()) + 1)
    }

    /// The configuration list of the pods' network.
    pub fn conflist(&self, layout: &Layout) -> serde_json::Value {
        serde_json::json!({
            "cniVersion": "1.1.0",
            "name": self.name,
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": self.bridge,
                    "isGateway": true,
                    "ipMasq": true,
                    "ipMasqBackend": "nftables",
                    "hairpinMode": true,
                    "ipam": {
                        "type": "host-local",
                        "dataDir": layout.cni_networks,
                        "ranges": [[{"subnet": self.subnet}]],
                        "routes": [{"dst": "0.0.0.0/0"}]
                    }
                },
                {"type": "portmap", "backend": "nftables", "capabilities": {"portMappings": true}}
            ]
        })
    }
}

/// `10.<second>.0.0/16`.
fn subnet(second: u8) -> ipnetwork::Ipv4Network {
    ipnetwork::Ipv4Network::new_checked(Ipv4Addr::new(10, second, 0, 0), 16).expect("16 is a prefix length")
}

/// Every IPv4 address of the machine, in this network namespace.
fn addresses_in_use() -> Result<Vec<Ipv4Addr>> {
    let interfaces = nix::ifaddrs::getifaddrs().context("list the machine's addresses")?;
    Ok(interfaces
        .filter_map(|interface| interface.address.and_then(|address| address.as_sockaddr_in().map(|v4| v4.ip())))
        .collect())
}

/// A port that nobody listens on at the moment.
fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).context("find a free port")?;
    Ok(listener.local_addr()?.port())
}

/// Writes a file and the folders above it: it is there whole or not at all, even over a power loss.
///
/// # Errors
/// When the file or its folder can't be written.
pub fn write_atomically(file: &Path, bytes: &[u8]) -> Result<()> {
    let folder = file.parent().context("a file below a folder")?;
    std::fs::create_dir_all(folder).with_context(|| format!("make the folder {}", folder.display()))?;
    let replaced = orlop_kernel::file::replace(file, bytes, 0o644, orlop_kernel::file::Outlives::Power);
    replaced.with_context(|| format!("write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_keeps_its_names() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(Some(folder.path())).unwrap();
        let first = Instance::load_or_choose(&layout).unwrap();
        assert_eq!(first, Instance::load_or_choose(&layout).unwrap());
        assert!(first.bridge.len() <= 15, "a link name has at most 15 characters");
        assert!(first.subnet.contains(first.gateway()));
    }

    #[test]
    fn a_damaged_record_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(Some(folder.path())).unwrap();
        write_atomically(&layout.state.join("instance.json"), b"{").unwrap();
        let error = format!("{:#}", Instance::load_or_choose(&layout).unwrap_err());
        assert!(error.contains("instance.json is damaged"), "{error}");
    }

    #[test]
    fn two_roots_differ() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let one = Instance::load_or_choose(&Layout::new(Some(one.path())).unwrap()).unwrap();
        let two = Instance::load_or_choose(&Layout::new(Some(two.path())).unwrap()).unwrap();
        assert_ne!((one.bridge, one.cgroup_root), (two.bridge, two.cgroup_root));
    }
}
