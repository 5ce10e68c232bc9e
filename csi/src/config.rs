//! What the driver is told at start.

use std::collections::BTreeMap;
use std::path::PathBuf;

use orlop_proto::csi::Topology;
use sha2::{Digest, Sha256};

/// Name of the driver unless told otherwise.
pub const DRIVER_NAME: &str = "local.csi.orlop.dev";
/// Longest value of a label (Kubernetes `LabelValueMaxLength`).
const LABEL_VALUE_MAX: usize = 63;

/// Settings of one driver. Paths are explicit: several drivers can live in one machine, even in one process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CsiConfig {
    /// Socket of the driver (`<kubelet root>/plugins/<driver>/csi.sock`).
    pub socket: PathBuf,
    /// Where plugins register (`<kubelet root>/plugins_registry`).
    pub registration_dir: PathBuf,
    /// The kubelet's root; nothing is ever mounted outside of it.
    pub kubelet_root: PathBuf,
    /// Where volumes are kept.
    pub data_dir: PathBuf,
    /// How the driver calls this node: the node's name.
    pub node_id: String,
    /// Name of the driver.
    pub driver_name: String,
}

impl CsiConfig {
    /// The kubelet's usual places below its root.
    pub fn new(
        kubelet_root: impl Into<PathBuf>,
        data_dir: impl Into<PathBuf>,
        node_id: impl Into<String>,
    ) -> CsiConfig {
        let kubelet_root = kubelet_root.into();
        CsiConfig {
            socket: kubelet_root.join("plugins").join(DRIVER_NAME).join("csi.sock"),
            registration_dir: kubelet_root.join("plugins_registry"),
            kubelet_root,
            data_dir: data_dir.into(),
            node_id: node_id.into(),
            driver_name: DRIVER_NAME.to_owned(),
        }
    }

    /// The registration socket.
    pub fn registration_socket(&self) -> PathBuf {
        self.registration_dir.join(format!("{}-reg.sock", self.driver_name))
    }

    /// Where the driver's volumes can be reached from: this node.
    pub(crate) fn topology(&self) -> Topology {
        let key = format!("topology.{}/node", self.driver_name);
        Topology { segments: [(key, label_value(&self.node_id))].into_iter().collect() }
    }

    /// Whether a requirement of a topology is met by this node. Keys of others are not ours to judge.
    pub(crate) fn is_here(&self, wanted: &Topology) -> bool {
        let own: BTreeMap<_, _> = self.topology().segments.into_iter().collect();
        wanted.segments.iter().all(|(key, value)| own.get(key).is_none_or(|mine| mine == value))
    }
}

/// The node's id as the value of a label; a hash where it can't be one.
fn label_value(id: &str) -> String {
    let edge = |letter: Option<char>| letter.is_some_and(|letter| letter.is_ascii_alphanumeric());
    let inner = id.chars().all(|letter| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_' | '.'));
    if id.len() <= LABEL_VALUE_MAX && inner && edge(id.chars().next()) && edge(id.chars().last()) {
        return id.to_owned();
    }
    let mut hash = hex::encode(Sha256::digest(id));
    hash.truncate(LABEL_VALUE_MAX);
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_ids_become_label_values() {
        for (id, same) in [("node-1", true), ("a.b.c", true), ("", false), ("-x", false), ("a b", false)] {
            assert_eq!(label_value(id) == id, same, "{id:?}");
        }
        assert_eq!(label_value(&"n".repeat(200)).len(), LABEL_VALUE_MAX);
    }

    #[test]
    fn other_nodes_are_not_here() {
        let config = CsiConfig::new("/k", "/d", "one");
        let asked = |key: &str, value: &str| Topology { segments: [(key.to_owned(), value.to_owned())].into() };
        assert!(config.is_here(&config.topology()));
        assert!(!config.is_here(&asked("topology.local.csi.orlop.dev/node", "two")));
        assert!(config.is_here(&asked("zone", "z")));
        assert_eq!(config.socket, PathBuf::from("/k/plugins/local.csi.orlop.dev/csi.sock"));
    }
}
