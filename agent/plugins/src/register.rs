//! The handshake of registration: what are you, and whether it worked.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use orlop_agent_core::ports::RegisteredDriver;
use orlop_proto::registration::registration_client::RegistrationClient;
use orlop_proto::registration::{InfoRequest, PluginInfo, RegistrationStatus};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use crate::csi;

/// How long a call may take.
const CALL_TIME: Duration = Duration::from_secs(10);
/// The type of CSI drivers.
const CSI: &str = "CSIPlugin";

/// Asks a plugin what it is and registers it.
pub(crate) async fn register(socket: &Path) -> Result<RegisteredDriver, String> {
    let mut plugin = RegistrationClient::new(connect(socket).await?);
    let info = plugin.get_info(InfoRequest {}).await.map_err(|status| format!("GetInfo: {}", status.message()))?;
    let outcome = accept(socket, info.into_inner()).await;
    let status = RegistrationStatus {
        plugin_registered: outcome.is_ok(),
        error: outcome.as_ref().err().cloned().unwrap_or_default(),
    };
    plugin
        .notify_registration_status(status)
        .await
        .map_err(|status| format!("NotifyRegistrationStatus: {}", status.message()))?;
    outcome
}

async fn accept(socket: &Path, info: PluginInfo) -> Result<RegisteredDriver, String> {
    if info.r#type != CSI {
        return Err(format!("plugins of type {:?} are not supported by this node", info.r#type));
    }
    if info.name.is_empty() || info.name.len() > 63 || info.name.contains('/') {
        return Err(format!("{:?} is no name of a CSI driver", info.name));
    }
    if !info.supported_versions.iter().any(|version| version.trim_start_matches('v').starts_with("1.")) {
        return Err(format!("no version of {:?} is 1.x", info.supported_versions));
    }
    let endpoint = if info.endpoint.is_empty() { socket.to_path_buf() } else { PathBuf::from(info.endpoint) };
    csi::ask(info.name, endpoint).await
}

/// Connects to a socket, which may lie deeper than a socket's path can say.
pub(crate) async fn connect(socket: &Path) -> Result<Channel, String> {
    let (path, shown) = (socket.to_path_buf(), socket.display().to_string());
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move {
            let connected = tokio::task::spawn_blocking(move || orlop_kernel::socket::connect(&path)).await?;
            Ok::<_, std::io::Error>(TokioIo::new(UnixStream::from_std(connected?.into())?))
        }
    });
    let endpoint = Endpoint::from_static("http://localhost").timeout(CALL_TIME).connect_timeout(CALL_TIME);
    endpoint.connect_with_connector(connector).await.map_err(|error| format!("connect to {shown}: {error}"))
}
