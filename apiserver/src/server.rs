//! The server: opens the store, listens with TLS, answers until it is told to end.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::api::Api;
use crate::auth::{Peer, Tokens};
use crate::config::ApiServerConfig;
use crate::controllers;
use crate::error::ApiError;
use crate::pki::{self, PkiError};
use crate::proxy::Kubelets;
use crate::rest;
use crate::storage::{Store, StoreError};

/// Connections at the same time.
const CONNECTIONS_MAX: usize = 4096;
/// Requests of one HTTP/2 connection at the same time (kube-apiserver: 100, for more watches of one client: 250).
const STREAMS_MAX: u32 = 250;
/// Requests answered at the same time (`--max-requests-inflight` and its mutating sister together).
const REQUESTS_MAX: usize = 600;
/// Time to agree on keys.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Time between signs of life on an idle HTTP/2 connection.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// Time that running requests get at the end.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the server could not start or ended.
#[derive(Debug, thiserror::Error)]
pub enum ApiServerError {
    /// Keys or certificates.
    #[error("keys and certificates of the API server")]
    Pki(#[from] PkiError),
    /// The store.
    #[error("the store of the API server")]
    Store(#[from] StoreError),
    /// TLS.
    #[error("TLS of the API server with {}", path.display())]
    Tls {
        /// The certificate in question.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An address.
    #[error("listen on {address}{}", hint(source))]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The first objects.
    #[error("make the first objects")]
    FirstObjects(#[source] ApiError),
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => ": another program listens there; stop it or choose another port",
        io::ErrorKind::AddrNotAvailable => ": this machine does not have the address",
        _ => "",
    }
}

/// Serves the API until `cancel` is cancelled.
///
/// # Errors
/// When it can't start.
pub async fn serve(config: ApiServerConfig, cancel: CancellationToken) -> Result<(), ApiServerError> {
    let acceptor = acceptor(&config)?;
    let tokens = Tokens::open(&config.service_account_key, &config.service_account_issuer)?;
    let kubelets =
        Kubelets::open(&config.ca_certificate, &config.kubelet_client_certificate, &config.kubelet_client_key)?;
    let ca_pem = std::fs::read_to_string(&config.ca_certificate).map_err(|source| PkiError::File {
        action: "read",
        path: config.ca_certificate.clone(),
        source,
    })?;
    let mut listeners = Vec::new();
    for address in &config.listen {
        listeners.push(listen(*address)?);
    }
    let path = config.data_dir.join("objects.redb");
    let (store, opened) =
        tokio::task::spawn_blocking(move || Store::open(&path)).await.map_err(|_| StoreError::Closed)??;
    let ready = config.ready.clone();
    // A token of its own: the controllers end before the store does.
    let cancel = cancel.child_token();
    let api = Arc::new(Api {
        config,
        store,
        tokens,
        kubelets,
        ca_pem,
        started: AtomicBool::new(false),
        places: Semaphore::new(REQUESTS_MAX),
        cancel: cancel.clone(),
    });
    controllers::make_first_objects(&api).await.map_err(ApiServerError::FirstObjects)?;
    controllers::tell_damage(&api, &opened).await;
    let mut tasks = controllers::start(&api);
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut serving = JoinSet::new();
    for listener in listeners {
        serving.spawn(accept(api.clone(), listener, acceptor.clone(), connections.clone()));
    }
    api.started.store(true, Ordering::Release);
    if let Some(ready) = ready {
        ready.notify_one();
    }
    tracing::info!(listen = ?api.config.listen, revision = api.store.revision(), "the API is served");
    cancel.cancelled().await;
    while serving.join_next().await.is_some() {}
    while tasks.join_next().await.is_some() {}
    api.store.close().await;
    Ok(())
}

fn listen(address: SocketAddr) -> Result<TcpListener, ApiServerError> {
    let failed = |source| ApiServerError::Listen { address, source };
    // The address is free again at once when the server is restarted.
    let socket = if address.is_ipv4() { tokio::net::TcpSocket::new_v4() } else { tokio::net::TcpSocket::new_v6() };
    let socket = socket.map_err(failed)?;
    socket.set_reuseaddr(true).map_err(failed)?;
    socket.bind(address).map_err(failed)?;
    socket.listen(1024).map_err(failed)
}

fn acceptor(config: &ApiServerConfig) -> Result<TlsAcceptor, ApiServerError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    let tls = |path: &PathBuf| {
        let path = path.clone();
        move |source: Box<dyn std::error::Error + Send + Sync>| ApiServerError::Tls { path, source }
    };
    for root in pki::read_certificates(&config.ca_certificate)? {
        roots.add(root).map_err(|error| tls(&config.ca_certificate)(error.into()))?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|error| tls(&config.ca_certificate)(error.into()))?;
    let mut server = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| tls(&config.serving_certificate)(error.into()))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(pki::read_certificates(&config.serving_certificate)?, pki::read_key(&config.serving_key)?)
        .map_err(|error| tls(&config.serving_certificate)(error.into()))?;
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(server)))
}

async fn accept(api: Arc<Api>, listener: TcpListener, acceptor: TlsAcceptor, limit: Arc<Semaphore>) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
            () = api.cancel.cancelled() => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, mostly: wait for some to be free.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(permit) = limit.clone().try_acquire_owned() else {
            tracing::warn!(limit = CONNECTIONS_MAX, "a connection was refused: there are too many");
            continue;
        };
        let (api, acceptor) = (api.clone(), acceptor.clone());
        connections.spawn(async move {
            connection(api, stream, acceptor).await;
            drop(permit);
        });
    }
    drop(listener);
    let _ = tokio::time::timeout(END_TIMEOUT, async { while connections.join_next().await.is_some() {} }).await;
}

async fn connection(api: Arc<Api>, stream: TcpStream, acceptor: TlsAcceptor) {
    let _ = stream.set_nodelay(true);
    let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "a TLS handshake failed"),
        Err(_) => return,
    };
    let certificates = stream.get_ref().1.peer_certificates();
    let peer = Arc::new(Peer::from_certificate(certificates.and_then(|chain| chain.first())));
    let cancel = api.cancel.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let (api, peer) = (api.clone(), peer.clone());
        async move { Ok::<_, std::convert::Infallible>(rest::handle(api, peer, request).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(64 << 10)
        .keep_alive_interval(KEEP_ALIVE);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = cancel.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection ended");
    }
}
