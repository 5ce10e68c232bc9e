//! The HTTP server that clients of exec, attach and port-forward are sent to.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_util::sync::CancellationToken;

use crate::process::{self, Job};
use crate::runtime::{AttachRequest, ExecRequest, PortForwardRequest, Runtime};
use crate::spdy::Connection;
use crate::tokens::{Pending, Tokens, TooManyRequests};
use crate::upgrade::{self, Spoken};
use crate::{port_forward, websocket};

/// Connections at once.
const CONNECTIONS_MAX: usize = 1000;
/// How long a client may take to send its request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest WebSocket message that is taken, in bytes.
const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// Where and how to serve.
#[derive(Clone, Debug)]
pub struct StreamingConfig {
    /// Address to listen on. The token is the only access control: keep it on loopback.
    pub listen: SocketAddr,
    /// How long a client may take to open its streams.
    pub creation_timeout: Duration,
}

impl Default for StreamingConfig {
    fn default() -> Self {
        StreamingConfig { listen: ([127, 0, 0, 1], 0).into(), creation_timeout: Duration::from_secs(30) }
    }
}

/// Why the server can't start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The address is taken or not ours.
    #[error("the streaming server can't listen on {address}; choose another stream address")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// The server: requests are registered here and fetched by their URL.
pub struct Server {
    tokens: Tokens,
    address: SocketAddr,
    listener: std::sync::Mutex<Option<TcpListener>>,
    config: StreamingConfig,
}

impl Server {
    /// Binds the address.
    ///
    /// # Errors
    /// When the address can't be listened on.
    pub async fn bind(config: StreamingConfig) -> Result<Arc<Server>, ServerError> {
        let failed = |source| ServerError::Listen { address: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Arc::new(Server {
            tokens: Tokens::default(),
            address,
            listener: std::sync::Mutex::new(Some(listener)),
            config,
        }))
    }

    /// The URL of an exec.
    ///
    /// # Errors
    /// When too many requests wait for their client.
    pub fn exec_url(&self, request: ExecRequest) -> Result<String, TooManyRequests> {
        self.url("exec", Pending::Exec(request))
    }

    /// The URL of an attach.
    ///
    /// # Errors
    /// When too many requests wait for their client.
    pub fn attach_url(&self, request: AttachRequest) -> Result<String, TooManyRequests> {
        self.url("attach", Pending::Attach(request))
    }

    /// The URL of a port-forward.
    ///
    /// # Errors
    /// When too many requests wait for their client.
    pub fn port_forward_url(&self, request: PortForwardRequest) -> Result<String, TooManyRequests> {
        self.url("portforward", Pending::PortForward(request))
    }

    fn url(&self, kind: &str, pending: Pending) -> Result<String, TooManyRequests> {
        let token = self.tokens.put(pending, Instant::now())?;
        Ok(format!("http://{}/{kind}/{token}", self.address))
    }

    /// Serves until cancelled. A second call returns at once.
    pub async fn serve(self: Arc<Self>, runtime: Arc<dyn Runtime>, cancel: CancellationToken) {
        let listener = self.listener.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        let Some(listener) = listener else { return };
        let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let accepted = tokio::select! {
                () = cancel.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    let Ok(slot) = slots.clone().try_acquire_owned() else { continue };
                    let (server, runtime, cancel) = (self.clone(), runtime.clone(), cancel.clone());
                    tokio::spawn(async move {
                        tokio::select! {
                            () = cancel.cancelled() => {}
                            () = server.serve_connection(stream, runtime) => {}
                        }
                        drop(slot);
                    });
                }
                Err(error) => {
                    // Out of descriptors: wait until some are free again instead of spinning.
                    tracing::warn!(%error, "the streaming server could not accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// Serves one connection, and what it is upgraded to.
    async fn serve_connection(self: Arc<Self>, stream: TcpStream, runtime: Arc<dyn Runtime>) {
        let _ = stream.set_nodelay(true);
        let upgraded = Arc::new(std::sync::Mutex::new(None));
        let service = service_fn(|request: Request<Incoming>| {
            let response = self.answer(request, &runtime, &upgraded);
            async move { Ok::<_, Infallible>(response) }
        });
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
            .await;
        if let Err(error) = served {
            tracing::debug!(%error, "streaming connection");
        }
        let task = upgraded.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(task) = task {
            let task: tokio::task::JoinHandle<()> = task;
            let _ = AbortOnDrop(task).await;
        }
    }

    /// Answers a request: 101 and a task for the streams, or an error.
    fn answer(
        &self,
        mut request: Request<Incoming>,
        runtime: &Arc<dyn Runtime>,
        upgraded: &std::sync::Mutex<Option<tokio::task::JoinHandle<()>>>,
    ) -> Response<String> {
        let path = request.uri().path().to_string();
        let mut parts = path.trim_start_matches('/').splitn(2, '/');
        let (kind, token) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let port_forward = kind == "portforward";
        if !matches!(kind, "exec" | "attach" | "portforward") {
            return not_found();
        }
        let (spoken, name) = match upgrade::negotiate(request.headers(), port_forward) {
            Ok(chosen) => chosen,
            Err(refusal) => return upgrade::refuse(&refusal, port_forward),
        };
        let pending = match (kind, self.tokens.take(token, Instant::now())) {
            ("exec", Some(pending @ Pending::Exec(_)))
            | ("attach", Some(pending @ Pending::Attach(_)))
            | ("portforward", Some(pending @ Pending::PortForward(_))) => pending,
            _ => return not_found(),
        };
        let response = upgrade::switching(request.headers(), spoken, &name);
        let (runtime, creation) = (runtime.clone(), self.config.creation_timeout);
        let on_upgrade = hyper::upgrade::on(&mut request);
        let task = tokio::spawn(async move {
            match on_upgrade.await {
                Ok(io) => serve_upgraded(TokioIo::new(io), pending, spoken, runtime, creation).await,
                Err(error) => tracing::debug!(%error, "streaming upgrade"),
            }
        });
        *upgraded.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(task);
        response
    }
}

/// A task that ends with its owner.
struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Future for AbortOnDrop {
    type Output = Result<(), tokio::task::JoinError>;

    fn poll(mut self: std::pin::Pin<&mut Self>, context: &mut std::task::Context<'_>) -> std::task::Poll<Self::Output> {
        std::pin::Pin::new(&mut self.0).poll(context)
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn not_found() -> Response<String> {
    let mut response =
        Response::new("no such streaming request; its token is good once and for a minute\n".to_string());
    *response.status_mut() = StatusCode::NOT_FOUND;
    response
}

/// Joins the upgraded connection to the request.
async fn serve_upgraded(
    io: TokioIo<hyper::upgrade::Upgraded>,
    pending: Pending,
    spoken: Spoken,
    runtime: Arc<dyn Runtime>,
    creation: Duration,
) {
    let job = match pending {
        Pending::Exec(exec) => Job::Exec(exec),
        Pending::Attach(attach) => Job::Attach(attach),
        Pending::PortForward(request) => return serve_port_forward(io, request, spoken, runtime).await,
    };
    match spoken {
        Spoken::Spdy(version) => {
            process::serve_spdy(Connection::new(io, true), job, version, runtime, creation).await;
        }
        Spoken::Channels(protocol) => websocket::serve_process(websocket_over(io).await, job, protocol, runtime).await,
        Spoken::Tunnel => {}
    }
}

async fn serve_port_forward(
    io: TokioIo<hyper::upgrade::Upgraded>,
    request: PortForwardRequest,
    spoken: Spoken,
    runtime: Arc<dyn Runtime>,
) {
    match spoken {
        Spoken::Spdy(_) => port_forward::serve_spdy(Connection::new(io, true), request.sandbox_id, runtime).await,
        Spoken::Tunnel => {
            let tunnel = websocket::tunnel(websocket_over(io).await);
            port_forward::serve_spdy(Connection::new(tunnel, true), request.sandbox_id, runtime).await;
        }
        Spoken::Channels(protocol) => {
            websocket::serve_ports(websocket_over(io).await, request, protocol, runtime).await;
        }
    }
}

async fn websocket_over<T>(io: T) -> WebSocketStream<T>
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let limits =
        WebSocketConfig::default().max_message_size(Some(MESSAGE_BYTES_MAX)).max_frame_size(Some(MESSAGE_BYTES_MAX));
    WebSocketStream::from_raw_socket(io, Role::Server, Some(limits)).await
}
