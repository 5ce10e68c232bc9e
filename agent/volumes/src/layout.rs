//! Where volumes are: the kubelet's paths below its root.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Folder of a kind of volumes in a pod: the plugin's name with `~` for `/`.
pub(crate) mod plugin {
    /// emptyDir.
    pub(crate) const EMPTY_DIR: &str = "kubernetes.io~empty-dir";
    /// configMap.
    pub(crate) const CONFIG_MAP: &str = "kubernetes.io~configmap";
    /// secret.
    pub(crate) const SECRET: &str = "kubernetes.io~secret";
    /// downwardAPI.
    pub(crate) const DOWNWARD_API: &str = "kubernetes.io~downward-api";
    /// projected.
    pub(crate) const PROJECTED: &str = "kubernetes.io~projected";
    /// Persistent volumes that are a path of the node.
    pub(crate) const LOCAL: &str = "kubernetes.io~local-volume";
    /// Volumes of CSI drivers.
    pub(crate) const CSI: &str = "kubernetes.io~csi";
}

/// A name that can't be part of a path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} {name:?} can't be the name of a folder")]
pub(crate) struct NameError {
    field: &'static str,
    name: String,
}

/// A name as a part of a path: never a way out.
pub(crate) fn check_name(field: &'static str, name: &str) -> Result<(), NameError> {
    let harmless = !name.is_empty() && name.len() <= 255 && !name.contains(['/', '\0']) && name != "." && name != "..";
    if harmless { Ok(()) } else { Err(NameError { field, name: name.chars().take(255).collect() }) }
}

/// The kubelet's root.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    root: PathBuf,
}

impl Layout {
    pub(crate) fn new(root: &Path) -> Layout {
        Layout { root: root.to_path_buf() }
    }

    /// `pods`.
    pub(crate) fn pods(&self) -> PathBuf {
        self.root.join("pods")
    }

    /// `pods/<uid>`.
    pub(crate) fn pod(&self, uid: &str) -> PathBuf {
        self.pods().join(uid)
    }

    /// `pods/<uid>/volumes`.
    pub(crate) fn volumes(&self, uid: &str) -> PathBuf {
        self.pod(uid).join("volumes")
    }

    /// `pods/<uid>/volumes/<plugin>/<name>`.
    pub(crate) fn volume(&self, uid: &str, plugin: &str, name: &str) -> PathBuf {
        self.volumes(uid).join(plugin).join(name)
    }

    /// Where the emptyDir plugin keeps its marks, `pods/<uid>/plugins/kubernetes.io~empty-dir`.
    pub(crate) fn marks(&self, uid: &str) -> PathBuf {
        self.pod(uid).join("plugins").join(plugin::EMPTY_DIR)
    }

    /// `plugins/kubernetes.io/csi`.
    pub(crate) fn stages(&self) -> PathBuf {
        self.root.join("plugins/kubernetes.io/csi")
    }

    /// Folder of a staged volume; the mount is `globalmount` in it.
    pub(crate) fn stage(&self, driver: &str, handle: &str) -> PathBuf {
        self.stages().join(driver).join(hex::encode(Sha256::digest(handle)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_no_way_out() {
        for name in ["", ".", "..", "a/b", "a\0", &"x".repeat(256)] {
            assert!(check_name("volume", name).is_err(), "{name:?}");
        }
        assert!(check_name("volume", "data-1.x").is_ok());
    }

    #[test]
    fn paths_are_the_kubelets() {
        let layout = Layout::new(Path::new("/k"));
        assert_eq!(layout.volume("u", plugin::CSI, "pv"), Path::new("/k/pods/u/volumes/kubernetes.io~csi/pv"));
        assert_eq!(
            layout.stage("d", "h"),
            Path::new(
                "/k/plugins/kubernetes.io/csi/d/aaa9402664f1a41f40ebbc52c9993eb66aeb366602958fdfaa283b71e64db123"
            )
        );
    }
}
