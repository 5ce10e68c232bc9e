//! Connections to kubelets: only to the address that the Node shows, with certificates checked both ways.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri, header};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::api::Api;
use crate::error::ApiError;
use crate::object;
use crate::pki::{self, PkiError};
use crate::registry;
use crate::storage::ObjectKey;

/// Time to reach a kubelet and agree on keys.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Time until a kubelet begins to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Port of a kubelet whose Node names none.
const DEFAULT_PORT: u16 = 10250;

/// The body of a request to a kubelet.
pub(super) type OutBody = UnsyncBoxBody<Bytes, std::convert::Infallible>;

/// The way to kubelets.
pub struct Kubelets {
    connector: TlsConnector,
}

impl Kubelets {
    /// Reads the authority that kubelets are checked against and the certificate that is shown to them.
    ///
    /// # Errors
    /// When a file can't be read or does not fit the others.
    pub fn open(ca: &Path, certificate: &Path, key: &Path) -> Result<Kubelets, PkiError> {
        let damaged = |path: &Path, reason: String| PkiError::Damaged { path: path.into(), reason };
        let mut roots = RootCertStore::empty();
        for root in pki::read_certificates(ca)? {
            roots.add(root).map_err(|error| damaged(ca, error.to_string()))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| damaged(ca, error.to_string()))?
            .with_root_certificates(roots)
            .with_client_auth_cert(pki::read_certificates(certificate)?, pki::read_key(key)?)
            .map_err(|error| damaged(certificate, error.to_string()))?;
        Ok(Kubelets { connector: TlsConnector::from(Arc::new(config)) })
    }

    /// Sends a request to a node's kubelet over a connection of its own.
    pub(super) async fn send(
        &self,
        api: &Api,
        node: &str,
        mut request: Request<OutBody>,
    ) -> Result<Response<Incoming>, ApiError> {
        let address = address(api, node)?;
        let failed =
            |why: String| ApiError::internal(format!("error dialing backend: node {node:?} at {address}: {why}"));
        let host = HeaderValue::from_str(&address.to_string()).map_err(|error| failed(error.to_string()))?;
        request.headers_mut().insert(header::HOST, host);
        let connect = async {
            let tcp = TcpStream::connect(address).await?;
            tcp.set_nodelay(true)?;
            self.connector.connect(ServerName::IpAddress(address.ip().into()), tcp).await
        };
        let tls = match tokio::time::timeout(CONNECT_TIMEOUT, connect).await {
            Ok(connected) => connected.map_err(|error| failed(error.to_string()))?,
            Err(_) => return Err(failed(format!("no connection within {} s", CONNECT_TIMEOUT.as_secs()))),
        };
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls))
            .await
            .map_err(|error| failed(error.to_string()))?;
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "a connection to a kubelet ended");
            }
        });
        match tokio::time::timeout(ANSWER_TIMEOUT, sender.send_request(request)).await {
            Ok(answered) => answered.map_err(|error| failed(error.to_string())),
            Err(_) => Err(failed(format!("no answer within {} s", ANSWER_TIMEOUT.as_secs()))),
        }
    }
}

/// A request for a path of a kubelet.
pub(super) fn request(
    method: Method,
    path: &str,
    headers: HeaderMap,
    body: OutBody,
) -> Result<Request<OutBody>, ApiError> {
    let uri: Uri =
        path.parse().map_err(|error| ApiError::bad_request(format!("the address {path:?} can't be sent: {error}")))?;
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    *request.headers_mut() = headers;
    Ok(request)
}

/// Where the Node says that its kubelet listens.
fn address(api: &Api, node: &str) -> Result<SocketAddr, ApiError> {
    let nodes = registry::core("nodes");
    let found = api
        .store
        .get_value(&ObjectKey::new(nodes, "", node))
        .map_err(|error| ApiError::from_store(error, nodes, node))?;
    let found = found.ok_or_else(|| ApiError::not_found(nodes, node))?;
    let ip: Option<IpAddr> = ["InternalIP", "ExternalIP"].iter().find_map(|kind| typed_address(&found, kind));
    let ip = ip.ok_or_else(|| {
        ApiError::internal(format!("no preferred addresses found for node {node:?}; known addresses: []"))
    })?;
    let port = object::number(&found, "/status/daemonEndpoints/kubeletEndpoint/Port")
        .and_then(|port| u16::try_from(port).ok());
    Ok(SocketAddr::new(ip, port.filter(|port| *port > 0).unwrap_or(DEFAULT_PORT)))
}

fn typed_address(node: &Value, kind: &str) -> Option<IpAddr> {
    object::items(node, "/status/addresses")
        .iter()
        .filter(|address| object::text(address, "/type") == kind)
        .find_map(|address| object::text(address, "/address").parse().ok())
}
