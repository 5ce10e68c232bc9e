//! Connections to the API server from a kubeconfig, with deadlines and dead-connection detection.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{HeaderValue, header};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::{Body, ConfigExt};
use kube::config::{KubeConfigOptions, Kubeconfig};
use orlop_agent_core::ports::PortError;
use tower::ServiceBuilder;

use crate::pace::Pace;

/// How long one request may take, connecting included.
pub const REQUEST_DEADLINE: Duration = Duration::from_secs(30);
/// How long a TCP connect may take.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// HTTP/2 pings of an open connection and how long an answer may take: the values of client-go's health check.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_DEADLINE: Duration = Duration::from_secs(15);
/// An unused connection is closed after this.
const IDLE_LIMIT: Duration = Duration::from_secs(90);

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The kubeconfig can't be read or does not hang together.
    #[error("kubeconfig {path}: {source}")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: kube::config::KubeconfigError,
    },
    /// Certificates or keys of the kubeconfig do not work together.
    #[error("kubeconfig {path}: credentials: {source}")]
    Credentials {
        /// The file.
        path: PathBuf,
        /// What is wrong with them.
        #[source]
        source: kube::Error,
    },
    /// The kubeconfig asks for a proxy, which is not supported.
    #[error("kubeconfig {path}: cluster.proxy-url is not supported; remove it")]
    Proxy {
        /// The file.
        path: PathBuf,
    },
    /// The server name of the kubeconfig is no DNS name or address.
    #[error("kubeconfig {path}: cluster.tls-server-name {name:?} is neither a DNS name nor an IP address")]
    ServerName {
        /// The file.
        path: PathBuf,
        /// The name.
        name: String,
    },
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// No answer within the deadline.
    #[error("{what}: no answer within {seconds} s")]
    Deadline {
        /// What was asked.
        what: String,
        /// The deadline in seconds.
        seconds: u64,
    },
    /// The server refused or could not be reached.
    #[error("{what}: {}", describe(source))]
    Request {
        /// What was asked.
        what: String,
        /// What the client or server said.
        #[source]
        source: kube::Error,
    },
}

impl ApiError {
    /// HTTP status code of the server's answer, where there was one.
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Request { source: kube::Error::Api(status), .. } => Some(status.code),
            _ => None,
        }
    }

    /// The object is not there.
    pub fn is_not_found(&self) -> bool {
        self.code() == Some(404)
    }

    /// Somebody else changed or replaced the object, or it is already there.
    pub fn is_conflict(&self) -> bool {
        self.code() == Some(409)
    }

    /// The same request will fail again: it is the request that is wrong, not the moment.
    pub fn is_invalid(&self) -> bool {
        matches!(self.code(), Some(400 | 405 | 413 | 415 | 422))
    }

    /// Translates for callers of a port; `kind` and `name` name the object that was asked for.
    pub fn to_port(&self, kind: &'static str, name: &str) -> PortError {
        if self.is_not_found() {
            return PortError::NotFound { kind, name: name.to_owned() };
        }
        let (what, message) = match self {
            Self::Deadline { what, seconds } => (what.clone(), format!("no answer within {seconds} s")),
            Self::Request { what, source } => (what.clone(), describe(source)),
        };
        if self.is_invalid() { PortError::Invalid { what, message } } else { PortError::Unavailable { what, message } }
    }
}

/// The message of an error with all its causes, each said once.
fn describe(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        return format!("{} ({} {})", status.message, status.code, status.reason);
    }
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.contains(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
        cause = error.source();
    }
    text
}

/// Runs one request under a deadline; `what` names it in errors.
///
/// # Errors
/// [`ApiError`] of the request or the deadline.
pub async fn within<T>(
    what: &str,
    deadline: Duration,
    request: impl Future<Output = kube::Result<T>>,
) -> Result<T, ApiError> {
    match tokio::time::timeout(deadline, request).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(source)) => Err(ApiError::Request { what: what.to_owned(), source }),
        Err(_) => Err(ApiError::Deadline { what: what.to_owned(), seconds: deadline.as_secs() }),
    }
}

/// Three connections to the API server, so that a slow or crowded one does not hold up the others: requests,
/// watches (many streams, for hours) and heartbeats (which must go through when all else hangs).
#[derive(Clone)]
pub struct ApiClients {
    /// For requests that are answered at once.
    pub requests: kube::Client,
    /// For watches.
    pub watches: kube::Client,
    /// For the lease and the node's status.
    pub heartbeat: kube::Client,
    /// The server's address, for messages.
    pub server: String,
    /// Chance and order of work.
    pub pace: Pace,
}

impl ApiClients {
    /// Clients from a kubeconfig file. Nothing is sent yet.
    ///
    /// # Errors
    /// [`ClientError`] naming the file and the field.
    pub async fn from_kubeconfig(path: &Path) -> Result<Self, ClientError> {
        let kubeconfig =
            Kubeconfig::read_from(path).map_err(|source| ClientError::Kubeconfig { path: path.to_owned(), source })?;
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .map_err(|source| ClientError::Kubeconfig { path: path.to_owned(), source })?;
        Self::from_config(config, path)
    }

    /// Clients from a ready configuration; `path` names its origin in errors.
    ///
    /// # Errors
    /// [`ClientError`] where credentials do not work.
    pub fn from_config(mut config: kube::Config, path: &Path) -> Result<Self, ClientError> {
        if config.proxy_url.is_some() {
            return Err(ClientError::Proxy { path: path.to_owned() });
        }
        // The process may hold no default TLS provider yet; a second call is harmless.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let agent = concat!("orlop/", env!("CARGO_PKG_VERSION"));
        config.headers.push((header::USER_AGENT, HeaderValue::from_static(agent)));
        Ok(Self {
            requests: client(&config, path)?,
            watches: client(&config, path)?,
            heartbeat: client(&config, path)?,
            server: config.cluster_url.to_string(),
            pace: Pace::default(),
        })
    }
}

/// One client with one connection pool: HTTP/2 where the server has it, with pings that find dead connections.
fn client(config: &kube::Config, path: &Path) -> Result<kube::Client, ClientError> {
    let credentials = |source| ClientError::Credentials { path: path.to_owned(), source };
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(CONNECT_DEADLINE));
    http.set_keepalive(Some(PING_INTERVAL));
    let tls = config.rustls_client_config().map_err(credentials)?;
    let builder = hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
    let builder = match &config.tls_server_name {
        Some(name) => {
            let name = rustls::pki_types::ServerName::try_from(name.clone())
                .map_err(|_| ClientError::ServerName { path: path.to_owned(), name: name.clone() })?;
            builder.with_server_name_resolver(hyper_rustls::FixedServerNameResolver::new(name))
        }
        None => builder,
    };
    let connector = builder.enable_http1().enable_http2().wrap_connector(http);
    let pool = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_LIMIT)
        .http2_keep_alive_interval(PING_INTERVAL)
        .http2_keep_alive_timeout(PING_DEADLINE)
        .http2_keep_alive_while_idle(true)
        .build::<_, Body>(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer().map_err(credentials)?)
        .layer(config.extra_headers_layer().map_err(credentials)?)
        .map_err(tower::BoxError::from)
        .service(pool);
    Ok(kube::Client::new(service, config.default_namespace.clone()))
}
