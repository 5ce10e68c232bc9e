//! A CSI driver that registers: which node this is to it.

use std::path::PathBuf;

use orlop_agent_core::ports::RegisteredDriver;
use orlop_proto::csi::NodeGetInfoRequest;
use orlop_proto::csi::node_client::NodeClient;

use crate::register::connect;

/// Bytes of a node id (CSI specification, size limits).
const NODE_ID_BYTES_MAX: usize = 256;

/// Asks a driver for its node.
pub(crate) async fn ask(name: String, socket: PathBuf) -> Result<RegisteredDriver, String> {
    let mut node = NodeClient::new(connect(&socket).await?);
    let info = node.node_get_info(NodeGetInfoRequest {}).await;
    let info = info.map_err(|status| format!("NodeGetInfo: {}", status.message()))?.into_inner();
    if info.node_id.is_empty() || info.node_id.len() > NODE_ID_BYTES_MAX {
        return Err(format!("NodeGetInfo: node_id has to be 1 to {NODE_ID_BYTES_MAX} bytes"));
    }
    let topology = info.accessible_topology.map(|topology| topology.segments.into_iter().collect());
    Ok(RegisteredDriver {
        name,
        socket,
        node_id: info.node_id,
        max_volumes: i32::try_from(info.max_volumes_per_node).ok().filter(|count| *count > 0),
        topology: topology.unwrap_or_default(),
    })
}
