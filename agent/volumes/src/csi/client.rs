//! Calls of a driver's Node service, each with a deadline.

use std::path::Path;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use orlop_proto::csi::node_client::NodeClient;
use orlop_proto::csi::node_service_capability::Type;
use orlop_proto::csi::node_service_capability::rpc::Type as Rpc;
use orlop_proto::csi::{
    NodeGetCapabilitiesRequest, NodePublishVolumeRequest, NodeStageVolumeRequest, NodeUnpublishVolumeRequest,
    NodeUnstageVolumeRequest,
};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use crate::VolumesConfig;

/// How long a call may take (kubelet's `csiTimeout`).
const CALL_TIME: Duration = Duration::from_secs(120);

/// A driver that answers.
pub(super) struct NodeDriver {
    name: String,
    client: NodeClient<Channel>,
}

impl NodeDriver {
    /// Connects to a driver that has registered.
    pub(super) async fn connect(config: &VolumesConfig, name: &str) -> Result<NodeDriver, String> {
        let socket = {
            let drivers = config.drivers.borrow();
            let found = drivers.iter().find(|driver| driver.name == name).map(|driver| driver.socket.clone());
            found.ok_or_else(|| format!("driver name {name} not found in the list of registered CSI drivers"))?
        };
        let shown = socket.display().to_string();
        let connect = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move {
                // By a short path: sockets below a deep root have names that a connect doesn't take.
                let connected = tokio::task::spawn_blocking(move || orlop_kernel::socket::connect(&socket)).await?;
                Ok::<_, std::io::Error>(TokioIo::new(UnixStream::from_std(connected?.into())?))
            }
        });
        let endpoint = Endpoint::from_static("http://localhost").timeout(CALL_TIME).connect_timeout(CALL_TIME);
        let channel = endpoint.connect_with_connector(connect).await;
        let channel = channel.map_err(|error| format!("connect to CSI driver {name} at {shown}: {error}"))?;
        Ok(NodeDriver { name: name.to_owned(), client: NodeClient::new(channel) })
    }

    fn failed(&self, call: &str, status: &tonic::Status) -> String {
        format!("CSI driver {}: {call}: rpc error: code = {:?} desc = {}", self.name, status.code(), status.message())
    }

    /// Whether volumes are staged before they are published.
    pub(super) async fn stages(&self) -> Result<bool, String> {
        let answer = self.client.clone().node_get_capabilities(NodeGetCapabilitiesRequest {}).await;
        let answer = answer.map_err(|status| self.failed("NodeGetCapabilities", &status))?.into_inner();
        Ok(answer.capabilities.iter().any(|capability| {
            matches!(&capability.r#type, Some(Type::Rpc(rpc)) if rpc.r#type == Rpc::StageUnstageVolume as i32)
        }))
    }

    /// Stages a volume.
    pub(super) async fn stage(&self, request: NodeStageVolumeRequest) -> Result<(), String> {
        let done = self.client.clone().node_stage_volume(request).await;
        done.map(|_| ()).map_err(|status| self.failed("NodeStageVolume", &status))
    }

    /// Publishes a volume.
    pub(super) async fn publish(&self, request: NodePublishVolumeRequest) -> Result<(), String> {
        let done = self.client.clone().node_publish_volume(request).await;
        done.map(|_| ()).map_err(|status| self.failed("NodePublishVolume", &status))
    }

    /// Unpublishes a volume.
    pub(super) async fn unpublish(&self, handle: &str, target: &Path) -> Result<(), String> {
        let request =
            NodeUnpublishVolumeRequest { volume_id: handle.to_owned(), target_path: target.display().to_string() };
        let done = self.client.clone().node_unpublish_volume(request).await;
        done.map(|_| ()).map_err(|status| self.failed("NodeUnpublishVolume", &status))
    }

    /// Unstages a volume.
    pub(super) async fn unstage(&self, handle: &str, stage: &Path) -> Result<(), String> {
        let request =
            NodeUnstageVolumeRequest { volume_id: handle.to_owned(), staging_target_path: stage.display().to_string() };
        let done = self.client.clone().node_unstage_volume(request).await;
        done.map(|_| ()).map_err(|status| self.failed("NodeUnstageVolume", &status))
    }
}
