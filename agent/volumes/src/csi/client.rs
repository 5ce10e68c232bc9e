//! Calls of a driver's Node service, each with a deadline.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use orlop_proto::csi::node_client::NodeClient;
use orlop_proto::csi::{
    NodeGetCapabilitiesRequest, NodePublishVolumeRequest, NodeStageVolumeRequest, NodeUnpublishVolumeRequest,
    NodeUnstageVolumeRequest,
};
use tokio::net::UnixStream;
use tokio::time::timeout;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use crate::config::VolumesConfig;
use crate::csi::rules::NodeAbilities;

/// How long a driver's socket may take to answer a connect.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// Why a driver could not be called, or what it said.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum CallError {
    /// No such driver.
    #[error("driver name {0} not found in the list of registered CSI drivers")]
    Unknown(String),
    /// It does not answer.
    #[error("CSI driver {driver} at {socket} can't be reached: {message}")]
    Connect { driver: String, socket: PathBuf, message: String },
    /// It said no.
    #[error("{call}: rpc error: code = {code:?} desc = {message}")]
    Refused { call: &'static str, code: Code, message: String },
    /// It said nothing.
    #[error("{call}: rpc error: code = DeadlineExceeded desc = the driver has not answered within {seconds} s")]
    Silent { call: &'static str, seconds: u64 },
}

impl CallError {
    /// Whether the driver has certainly done nothing and is not about to (kubelet `isFinalError`).
    pub(super) fn is_final(&self) -> bool {
        match self {
            CallError::Unknown(_) | CallError::Connect { .. } => true,
            CallError::Silent { .. } => false,
            CallError::Refused { code, .. } => !matches!(
                code,
                Code::Cancelled
                    | Code::DeadlineExceeded
                    | Code::Unavailable
                    | Code::ResourceExhausted
                    | Code::Aborted
                    | Code::Unknown
            ),
        }
    }
}

/// A driver that answers.
#[derive(Clone)]
pub(super) struct NodeDriver {
    client: NodeClient<Channel>,
    deadline: Duration,
}

impl NodeDriver {
    /// Connects to a driver that has registered, and waits a little for one that has not: after a start of the agent
    /// drivers register within moments.
    pub(super) async fn connect(config: &VolumesConfig, name: &str) -> Result<NodeDriver, CallError> {
        let mut drivers = config.drivers.clone();
        let found = drivers.wait_for(|list| list.iter().any(|driver| driver.name == name));
        let socket = match timeout(config.patience, found).await {
            Ok(Ok(list)) => list.iter().find(|driver| driver.name == name).map(|driver| driver.socket.clone()),
            _ => None,
        };
        let socket = socket.ok_or_else(|| CallError::Unknown(name.to_owned()))?;
        let failed = |message: String| CallError::Connect { driver: name.to_owned(), socket: socket.clone(), message };
        let path = socket.clone();
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move {
                // By a short path: sockets below a deep root have names that a connect doesn't take.
                let connected = tokio::task::spawn_blocking(move || orlop_kernel::socket::connect(&path)).await?;
                Ok::<_, std::io::Error>(TokioIo::new(UnixStream::from_std(connected?.into())?))
            }
        });
        let endpoint = Endpoint::from_static("http://localhost");
        let channel = timeout(CONNECT_DEADLINE, endpoint.connect_with_connector(connector))
            .await
            .map_err(|_| failed("it hangs".to_owned()))?;
        let channel = channel.map_err(|error| {
            failed(std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string))
        })?;
        Ok(NodeDriver { client: NodeClient::new(channel), deadline: config.call_deadline })
    }

    async fn call<T>(
        &self,
        call: &'static str,
        work: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T, CallError> {
        match timeout(self.deadline, work).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => {
                Err(CallError::Refused { call, code: status.code(), message: status.message().to_owned() })
            }
            Err(_) => Err(CallError::Silent { call, seconds: self.deadline.as_secs() }),
        }
    }

    /// What the driver can do on a node.
    pub(super) async fn abilities(&self) -> Result<NodeAbilities, CallError> {
        let mut client = self.client.clone();
        let answer =
            self.call("NodeGetCapabilities", client.node_get_capabilities(NodeGetCapabilitiesRequest {})).await?;
        Ok(NodeAbilities::of(&answer.capabilities))
    }

    /// Stages a volume.
    pub(super) async fn stage(&self, request: NodeStageVolumeRequest) -> Result<(), CallError> {
        self.call("NodeStageVolume", self.client.clone().node_stage_volume(request)).await.map(drop)
    }

    /// Publishes a volume.
    pub(super) async fn publish(&self, request: NodePublishVolumeRequest) -> Result<(), CallError> {
        self.call("NodePublishVolume", self.client.clone().node_publish_volume(request)).await.map(drop)
    }

    /// Unpublishes a volume; one that the driver does not know any more is not published.
    pub(super) async fn unpublish(&self, handle: &str, target: &Path) -> Result<(), CallError> {
        let request =
            NodeUnpublishVolumeRequest { volume_id: handle.to_owned(), target_path: target.display().to_string() };
        known(self.call("NodeUnpublishVolume", self.client.clone().node_unpublish_volume(request)).await.map(drop))
    }

    /// Unstages a volume; one that the driver does not know any more is not staged.
    pub(super) async fn unstage(&self, handle: &str, stage: &Path) -> Result<(), CallError> {
        let request =
            NodeUnstageVolumeRequest { volume_id: handle.to_owned(), staging_target_path: stage.display().to_string() };
        known(self.call("NodeUnstageVolume", self.client.clone().node_unstage_volume(request)).await.map(drop))
    }
}

/// An undo of what isn't there has succeeded.
fn known(result: Result<(), CallError>) -> Result<(), CallError> {
    match result {
        Err(CallError::Refused { code: Code::NotFound, .. }) => Ok(()),
        result => result,
    }
}
