//! A CSI driver that registers: which node this is to it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use orlop_agent_core::ports::RegisteredDriver;
use orlop_proto::csi::node_client::NodeClient;
use orlop_proto::csi::{NodeGetInfoRequest, NodeGetInfoResponse};

use crate::registration::{RegistrationError, connect, within};

/// How long the driver may take (kubelet `csiTimeout`).
const CALL_DEADLINE: Duration = Duration::from_secs(120);
/// Bytes of a node id (CSI specification, size limits).
const NODE_ID_BYTES_MAX: usize = 256;
/// Keys of a topology that are believed.
const TOPOLOGY_KEYS_MAX: usize = 32;

/// Why a driver's word on this node can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CsiError {
    /// The id.
    #[error("NodeGetInfo: node_id must have 1 to {NODE_ID_BYTES_MAX} bytes; it has {0}")]
    NodeId(usize),
    /// The topology.
    #[error("NodeGetInfo: accessible_topology has {0} keys; {TOPOLOGY_KEYS_MAX} at most are taken")]
    Topology(usize),
}

/// Asks a driver for its node.
pub(crate) async fn ask(name: String, socket: PathBuf) -> Result<RegisteredDriver, RegistrationError> {
    let mut node = NodeClient::new(connect(&socket).await?);
    let info = within("NodeGetInfo", CALL_DEADLINE, node.node_get_info(NodeGetInfoRequest {})).await?;
    Ok(driver(name, socket, info)?)
}

fn driver(name: String, socket: PathBuf, info: NodeGetInfoResponse) -> Result<RegisteredDriver, CsiError> {
    if info.node_id.is_empty() || info.node_id.len() > NODE_ID_BYTES_MAX {
        return Err(CsiError::NodeId(info.node_id.len()));
    }
    let topology: BTreeMap<String, String> =
        info.accessible_topology.map(|topology| topology.segments.into_iter().collect()).unwrap_or_default();
    if topology.len() > TOPOLOGY_KEYS_MAX {
        return Err(CsiError::Topology(topology.len()));
    }
    Ok(RegisteredDriver {
        name,
        socket,
        node_id: info.node_id,
        max_volumes: i32::try_from(info.max_volumes_per_node).ok().filter(|count| *count > 0),
        topology,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nodes_id_and_limits() {
        let info = |id: &str, most: i64| NodeGetInfoResponse {
            node_id: id.into(),
            max_volumes_per_node: most,
            ..NodeGetInfoResponse::default()
        };
        let ask = |info| driver("d".into(), "/s".into(), info);
        assert_eq!(ask(info("n", 0)).unwrap().max_volumes, None);
        assert_eq!(ask(info("n", 7)).unwrap().max_volumes, Some(7));
        assert_eq!(ask(info("n", i64::MAX)).unwrap().max_volumes, None);
        assert_eq!(ask(info("", 0)), Err(CsiError::NodeId(0)));
        assert_eq!(ask(info(&"n".repeat(300), 0)), Err(CsiError::NodeId(300)));
    }
}
