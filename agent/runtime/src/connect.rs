//! Connections to a CRI socket.

use std::path::PathBuf;

use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint, Uri};

/// Why a runtime can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The endpoint is not one.
    #[error("runtime endpoint {endpoint:?} is not a unix socket: write unix:///path/to.sock")]
    Endpoint {
        /// The endpoint as configured.
        endpoint: String,
    },
    /// The runtime does not answer.
    #[error("runtime at {endpoint} does not answer: {message}")]
    Silent {
        /// The endpoint.
        endpoint: String,
        /// The last error.
        message: String,
    },
}

/// Path of the socket that an endpoint names (`unix:///x` or `/x`).
pub(crate) fn socket_path(endpoint: &str) -> Result<PathBuf, ConnectError> {
    let path = endpoint.strip_prefix("unix://").or_else(|| endpoint.strip_prefix("unix:")).unwrap_or(endpoint);
    if !path.starts_with('/') {
        return Err(ConnectError::Endpoint { endpoint: endpoint.to_owned() });
    }
    Ok(PathBuf::from(path))
}

/// A channel that connects when it is first used, and again whenever the connection is gone.
pub(crate) fn channel(path: PathBuf) -> Channel {
    // The address is only for the HTTP layer; `localhost` becomes `:authority`.
    let endpoint = Endpoint::from_static("http://localhost").connect_timeout(std::time::Duration::from_secs(5));
    endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move {
            let socket = tokio::task::spawn_blocking(move || orlop_kernel::socket::connect(&path))
                .await
                .map_err(std::io::Error::other)??;
            let stream = tokio::net::UnixStream::from_std(std::os::unix::net::UnixStream::from(socket))?;
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_sockets() {
        assert_eq!(socket_path("unix:///run/x.sock").unwrap(), PathBuf::from("/run/x.sock"));
        assert_eq!(socket_path("/run/x.sock").unwrap(), PathBuf::from("/run/x.sock"));
        assert!(socket_path("tcp://1.2.3.4:5").is_err());
    }
}
