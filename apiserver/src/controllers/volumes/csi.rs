//! The way to a CSI driver's Controller service.

use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use orlop_proto::csi::controller_client::ControllerClient;
use orlop_proto::csi::{CreateVolumeRequest, DeleteVolumeRequest, Volume};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

/// Time for a driver to make or delete a volume.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Time to reach a driver.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CsiError {
    /// The driver is not there.
    #[error("the CSI driver at {} can't be reached: {source}; check that it runs", path.display())]
    Connect {
        path: PathBuf,
        #[source]
        source: tonic::transport::Error,
    },
    /// The driver refused.
    #[error("rpc error: code = {:?} desc = {}", .0.code(), .0.message())]
    Call(Box<tonic::Status>),
    /// The driver answered without a volume.
    #[error("the CSI driver answered without a volume")]
    NoVolume,
}

async fn client(path: &Path) -> Result<ControllerClient<Channel>, CsiError> {
    let socket = path.to_path_buf();
    // The address is not used, but gRPC wants one.
    let endpoint = Endpoint::from_static("http://localhost").connect_timeout(CONNECT_TIMEOUT).timeout(CALL_TIMEOUT);
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { connect(&socket).await.map(TokioIo::new) }
    });
    let channel = endpoint.connect_with_connector(connector).await;
    channel.map(ControllerClient::new).map_err(|source| CsiError::Connect { path: path.to_path_buf(), source })
}

/// Connects by way of the folder, whose path may be longer than a socket's address can be.
async fn connect(path: &Path) -> std::io::Result<UnixStream> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "not the path of a socket"));
    };
    let folder = std::fs::File::open(folder)?;
    UnixStream::connect(Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name)).await
}

/// Makes a volume; the same name again answers the same volume.
pub(super) async fn create_volume(path: &Path, request: CreateVolumeRequest) -> Result<Volume, CsiError> {
    let answer = client(path).await?.create_volume(request).await.map_err(|status| CsiError::Call(Box::new(status)))?;
    answer.into_inner().volume.ok_or(CsiError::NoVolume)
}

/// Deletes a volume; one that is gone is no error.
pub(super) async fn delete_volume(path: &Path, id: &str) -> Result<(), CsiError> {
    let request = DeleteVolumeRequest { volume_id: id.into(), ..DeleteVolumeRequest::default() };
    client(path).await?.delete_volume(request).await.map_err(|status| CsiError::Call(Box::new(status)))?;
    Ok(())
}
