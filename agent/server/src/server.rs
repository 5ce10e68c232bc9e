//! Listening, TLS and connections of the kubelet port and of the port for health checks.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use axum::routing::get;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use orlop_agent_core::ports::{Access, NodeView};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use crate::access::{Authorization, Gate};
use crate::metrics::Counters;
use crate::routes::{Endpoints, Peer, health_answer, router};
use crate::tls::{ServerIdentity, TlsError, TlsFiles, certificate_user};

/// Connections at once.
const CONNECTIONS_MAX: usize = 1000;
/// How long a client may take for the TLS handshake, and for the head of a request.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
const HEAD_DEADLINE: Duration = Duration::from_secs(30);
/// How often the certificate files are looked at.
const RELOAD_INTERVAL: Duration = Duration::from_secs(10);
/// How long open requests may go on after the end was asked for.
const DRAIN_DEADLINE: Duration = Duration::from_secs(2);

/// How the kubelet port is served.
#[derive(Clone, Debug)]
pub struct KubeletServerConfig {
    /// Address of the kubelet port.
    pub listen: SocketAddr,
    /// Address of the port for health checks; none for no such port.
    pub healthz: Option<SocketAddr>,
    /// The server's certificate.
    pub identity: ServerIdentity,
    /// CA of client certificates.
    pub client_ca: Option<PathBuf>,
    /// Requests without credentials are those of `system:anonymous`.
    pub anonymous: bool,
    /// How requests are authorised.
    pub authorization: Authorization,
    /// Serve logs, exec, attach, port-forward and run.
    pub debugging_handlers: bool,
    /// A stream without traffic for so long is closed.
    pub idle_timeout: Duration,
    /// Name of the node.
    pub node_name: String,
    /// What `/configz` shows.
    pub config: serde_json::Value,
}

/// What the kubelet port needs of other parts.
#[derive(Clone)]
pub struct KubeletServerPorts {
    /// The pods.
    pub view: Arc<dyn NodeView>,
    /// The API server's opinion of users; none without one.
    pub access: Option<Arc<dyn Access>>,
}

/// Why the kubelet port can't be served.
#[derive(Debug, thiserror::Error)]
pub enum KubeletServerError {
    /// The address is taken or not ours.
    #[error(
        "the kubelet port can't listen on {address}: {source}; is another kubelet running? set another address or port"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Certificates can't be used.
    #[error("TLS of the kubelet port: {0}")]
    Tls(#[from] TlsError),
}

/// The bound server.
pub struct KubeletServer {
    listener: TcpListener,
    healthz: Option<TcpListener>,
    files: TlsFiles,
    tls: watch::Sender<Arc<ServerConfig>>,
    endpoints: Arc<Endpoints>,
}

impl KubeletServer {
    /// Binds the ports and reads the certificates.
    ///
    /// # Errors
    /// [`KubeletServerError`] naming the address or file.
    pub async fn bind(config: KubeletServerConfig, ports: KubeletServerPorts) -> Result<Self, KubeletServerError> {
        let files = TlsFiles { identity: config.identity, client_ca: config.client_ca };
        let tls = watch::Sender::new(files.load()?);
        let gate = Gate {
            access: ports.access,
            authorization: config.authorization,
            anonymous: config.anonymous,
            node_name: config.node_name,
        };
        let endpoints = Arc::new(Endpoints {
            gate,
            view: ports.view,
            counters: Arc::new(Counters::default()),
            config: config.config,
            debugging: config.debugging_handlers,
            idle_timeout: config.idle_timeout,
        });
        let listener = listen(config.listen).await?;
        let healthz = match config.healthz {
            Some(address) => Some(listen(address).await?),
            None => None,
        };
        Ok(Self { listener, healthz, files, tls, endpoints })
    }

    /// Address of the kubelet port, with the port that was chosen where 0 was asked for.
    ///
    /// # Errors
    /// Never on a bound socket.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until cancelled; open streams are then cut.
    pub async fn serve(self, cancel: CancellationToken) {
        let tracker = TaskTracker::new();
        let app = router(self.endpoints.clone());
        let view = self.endpoints.view.clone();
        let health = Router::new().route("/healthz", get(move || async move { health_answer(&*view) }));
        let tls = self.tls.subscribe();
        let secured = accept(&self.listener, &tracker, &cancel, |stream| {
            secured_connection(stream, tls.borrow().clone(), app.clone(), cancel.clone())
        });
        let plain = async {
            match &self.healthz {
                Some(listener) => {
                    accept(listener, &tracker, &cancel, |stream| {
                        connection(stream, health.clone(), Peer::default(), cancel.clone())
                    })
                    .await;
                }
                None => cancel.cancelled().await,
            }
        };
        let reloading = reload(&self.files, &self.tls);
        tokio::select! {
            _ = async { tokio::join!(secured, plain) } => {}
            () = reloading => {}
        }
        tracker.close();
        let _ = tokio::time::timeout(DRAIN_DEADLINE, tracker.wait()).await;
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener, KubeletServerError> {
    TcpListener::bind(address).await.map_err(|source| KubeletServerError::Listen { address, source })
}

/// Loads the certificates again whenever their files change; broken ones leave the old in force.
async fn reload(files: &TlsFiles, tls: &watch::Sender<Arc<ServerConfig>>) {
    let mut stamps = files.stamps();
    loop {
        tokio::time::sleep(RELOAD_INTERVAL).await;
        let now = files.stamps();
        if now == stamps {
            continue;
        }
        stamps = now;
        match files.load() {
            Ok(config) => {
                info!("the certificates of the kubelet port were renewed");
                tls.send_replace(config);
            }
            Err(error) => warn!(%error, "changed certificates can't be used; the old ones stay in force"),
        }
    }
}

async fn accept<F>(
    listener: &TcpListener,
    tracker: &TaskTracker,
    cancel: &CancellationToken,
    serve: impl Fn(TcpStream) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = tokio::select! {
            () = cancel.cancelled() => return,
            accepted = async {
                let slot = slots.clone().acquire_owned().await;
                (slot, listener.accept().await)
            } => accepted,
        };
        match accepted {
            (Ok(slot), Ok((stream, _))) => {
                let _ = stream.set_nodelay(true);
                let served = serve(stream);
                tracker.spawn(async move {
                    served.await;
                    drop(slot);
                });
            }
            (_, Err(error)) => {
                // Out of descriptors or the like: not a reason to spin.
                debug!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            (Err(_), Ok(_)) => return,
        }
    }
}

async fn secured_connection(stream: TcpStream, tls: Arc<ServerConfig>, app: Router, cancel: CancellationToken) {
    let handshake = tokio::time::timeout(HANDSHAKE_DEADLINE, TlsAcceptor::from(tls).accept(stream));
    let stream = match handshake.await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return debug!(%error, "a TLS handshake failed"),
        Err(_) => return debug!("a TLS handshake took too long"),
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let peer = Peer(certificate.and_then(certificate_user));
    connection(stream, app, peer, cancel).await;
}

async fn connection<S>(stream: S, app: Router, peer: Peer, cancel: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = TowerToHyperService::new(app.layer(axum::Extension(ConnectInfo(peer))));
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_DEADLINE);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(100)
        .keep_alive_interval(HEAD_DEADLINE)
        .keep_alive_timeout(HEAD_DEADLINE);
    let serving = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    let mut serving = std::pin::pin!(serving);
    tokio::select! {
        result = &mut serving => {
            if let Err(error) = result {
                debug!(%error, "a connection ended with an error");
            }
        }
        () = cancel.cancelled() => {
            serving.as_mut().graceful_shutdown();
            let _ = tokio::time::timeout(DRAIN_DEADLINE, serving).await;
        }
    }
}
