//! The handshake of registration: what are you, and whether it worked.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use orlop_agent_core::ports::RegisteredDriver;
use orlop_proto::registration::registration_client::RegistrationClient;
use orlop_proto::registration::{InfoRequest, PluginInfo, RegistrationStatus};
use tokio::net::UnixStream;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};

use crate::csi::{self, CsiError};

/// How long a connect may take (kubelet `dialTimeoutDuration`).
const DIAL_DEADLINE: Duration = Duration::from_secs(10);
/// How long GetInfo may take.
const INFO_DEADLINE: Duration = Duration::from_secs(5);
/// How long NotifyRegistrationStatus may take (kubelet `notifyTimeoutDuration`).
const NOTIFY_DEADLINE: Duration = Duration::from_secs(5);
/// The type of CSI drivers.
const CSI: &str = "CSIPlugin";

/// Why a plugin is not registered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegistrationError {
    /// Its socket does not answer.
    #[error("{socket}: {message}")]
    Dial { socket: PathBuf, message: String },
    /// A call has failed.
    #[error("{call}: {message}")]
    Call { call: &'static str, message: String },
    /// Its type.
    #[error("no handler registered for plugin type: {0:?}; this node takes {CSI}")]
    Type(String),
    /// Its name.
    #[error("{0:?} is no name of a CSI driver: letters, digits, '-' and '.', 63 at most")]
    Name(String),
    /// Its versions.
    #[error("plugin {name} supports versions {versions:?}, and none is 1.x")]
    Versions { name: String, versions: Vec<String> },
    /// Its endpoint.
    #[error("plugin {name} has the endpoint {endpoint:?}, which is no absolute path")]
    Endpoint { name: String, endpoint: String },
    /// Its node service.
    #[error(transparent)]
    Csi(#[from] CsiError),
}

/// Asks a plugin what it is, has it listed and tells it so. Returns its name.
pub(crate) async fn register(socket: &Path, list: impl FnOnce(RegisteredDriver)) -> Result<String, RegistrationError> {
    let mut plugin = RegistrationClient::new(connect(socket).await?);
    let info = within("GetInfo", INFO_DEADLINE, plugin.get_info(InfoRequest {})).await?;
    let accepted = accept(socket, info).await;
    let status = RegistrationStatus {
        plugin_registered: accepted.is_ok(),
        error: accepted.as_ref().err().map(ToString::to_string).unwrap_or_default(),
    };
    let accepted = accepted.map(|driver| {
        let name = driver.name.clone();
        list(driver);
        name
    });
    let told = within("NotifyRegistrationStatus", NOTIFY_DEADLINE, plugin.notify_registration_status(status)).await;
    let name = accepted?;
    told.map(|_| name)
}

/// A call with a deadline.
pub(crate) async fn within<T>(
    call: &'static str,
    deadline: Duration,
    work: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, RegistrationError> {
    let failed = |message: String| RegistrationError::Call { call, message };
    match timeout(deadline, work).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(failed(format!("code = {:?} desc = {}", status.code(), status.message()))),
        Err(_) => Err(failed(format!("the plugin has not answered within {} s", deadline.as_secs()))),
    }
}

async fn accept(socket: &Path, info: PluginInfo) -> Result<RegisteredDriver, RegistrationError> {
    let endpoint = check(socket, &info)?;
    csi::ask(info.name, endpoint).await
}

/// What can be said of a plugin by its own words; returns the socket of its services.
fn check(socket: &Path, info: &PluginInfo) -> Result<PathBuf, RegistrationError> {
    if info.r#type != CSI {
        return Err(RegistrationError::Type(info.r#type.clone()));
    }
    let name = info.name.clone();
    // The name becomes the name of a folder.
    let plain = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '.');
    let edge = |letter: Option<char>| letter.is_some_and(|letter| letter.is_ascii_alphanumeric());
    if name.len() > 63 || !name.chars().all(plain) || !edge(name.chars().next()) || !edge(name.chars().last()) {
        return Err(RegistrationError::Name(name.chars().take(64).collect()));
    }
    let is_first = |version: &String| version.trim_start_matches('v').split('.').next() == Some("1");
    if !info.supported_versions.iter().any(is_first) {
        return Err(RegistrationError::Versions { name, versions: info.supported_versions.clone() });
    }
    match info.endpoint.as_str() {
        "" => Ok(socket.to_path_buf()),
        path if path.starts_with('/') => Ok(PathBuf::from(path)),
        other => Err(RegistrationError::Endpoint { name, endpoint: other.to_owned() }),
    }
}

/// Connects to a socket, which may lie deeper than a socket's path can say.
pub(crate) async fn connect(socket: &Path) -> Result<Channel, RegistrationError> {
    let path = socket.to_path_buf();
    let failed = |message: String| RegistrationError::Dial { socket: socket.to_path_buf(), message };
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move {
            let connected = tokio::task::spawn_blocking(move || orlop_kernel::socket::connect(&path)).await?;
            Ok::<_, std::io::Error>(TokioIo::new(UnixStream::from_std(connected?.into())?))
        }
    });
    let endpoint = Endpoint::from_static("http://localhost");
    let channel = timeout(DIAL_DEADLINE, endpoint.connect_with_connector(connector)).await;
    let channel = channel.map_err(|_| failed("the connect hangs".to_owned()))?;
    channel.map_err(|error| {
        failed(std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_plugin_says_of_itself_is_checked() {
        let info = |kind: &str, name: &str, endpoint: &str, version: &str| PluginInfo {
            r#type: kind.into(),
            name: name.into(),
            endpoint: endpoint.into(),
            supported_versions: vec![version.into()],
        };
        let socket = Path::new("/r/d.sock");
        assert_eq!(check(socket, &info(CSI, "a.b", "", "1.0.0")).unwrap(), socket);
        assert_eq!(check(socket, &info(CSI, "a.b", "/p/csi.sock", "v1.2")).unwrap(), Path::new("/p/csi.sock"));
        for (wrong, word) in [
            (info("DevicePlugin", "a.b", "", "1.0.0"), "no handler registered for plugin type"),
            (info(CSI, "", "", "1.0.0"), "no name"),
            (info(CSI, "../x", "", "1.0.0"), "no name"),
            (info(CSI, &"x".repeat(64), "", "1.0.0"), "no name"),
            (info(CSI, "a.b", "", "0.3.0"), "none is 1.x"),
            (info(CSI, "a.b", "", "10.0"), "none is 1.x"),
            (info(CSI, "a.b", "csi.sock", "1.0"), "no absolute path"),
        ] {
            let error = check(socket, &wrong).unwrap_err().to_string();
            assert!(error.contains(word), "{wrong:?}: {error}");
        }
    }
}
