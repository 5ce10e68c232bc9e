//! Exec, attach and port-forward: the client's upgraded connection joined, byte for byte, with one to the runtime's
//! streaming server.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use http::{HeaderMap, HeaderName, Method, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::answers::Refusal;
use crate::metrics::Counters;

/// How long the runtime may take to answer the upgrade.
const UPGRADE_DEADLINE: Duration = Duration::from_secs(30);
/// How long the one side may go on after the other has ended.
const LINGER: Duration = Duration::from_secs(30);
/// Bytes read at once.
const BUFFER: usize = 32 << 10;
/// Longest text of a refusal of the runtime that is passed on.
const REFUSAL_MAX: usize = 64 << 10;

/// Joins `request`, which asks for an upgrade, with the streaming server at `url`. The client gets the 101 only after
/// the runtime has given one; redirects and refusals never lead to an open connection.
pub(crate) async fn join(
    request: Request,
    url: &str,
    idle: Duration,
    counters: Arc<Counters>,
) -> Result<Response, Refusal> {
    if !request.headers().contains_key(header::UPGRADE) {
        return Err(Refusal::bad_request("Upgrade request required".to_owned()));
    }
    let bad = |what: String| Refusal::internal(format!("the runtime's streaming server: {what}"));
    let uri: Uri = url.parse().map_err(|_| bad("its URL can't be read".to_owned()))?;
    let (method, headers) = (request.method().clone(), passed_headers(request.headers()));
    let connecting = tokio::time::timeout(UPGRADE_DEADLINE, upgrade_runtime(method, headers, &uri));
    let answer = connecting.await.map_err(|_| bad("no answer in time".to_owned()))?.map_err(bad)?;
    let mut answer = match answer {
        Upgrade::Agreed(answer) => answer,
        Upgrade::Refused(status, text) => return Err(Refusal::new(status, text)),
    };
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = answer.headers().clone();
    let runtime_side = hyper::upgrade::on(&mut answer);
    let client_side = hyper::upgrade::on(request);
    tokio::spawn(async move {
        counters.streams.fetch_add(1, Ordering::Relaxed);
        if let (Ok(client), Ok(runtime)) = tokio::join!(client_side, runtime_side) {
            copy_both(TokioIo::new(client), TokioIo::new(runtime), idle).await;
        }
        counters.streams.fetch_sub(1, Ordering::Relaxed);
    });
    Ok(response)
}

enum Upgrade {
    Agreed(http::Response<hyper::body::Incoming>),
    Refused(StatusCode, String),
}

async fn upgrade_runtime(method: Method, mut passed: HeaderMap, uri: &Uri) -> Result<Upgrade, String> {
    if uri.scheme_str() != Some("http") {
        return Err("its URL is not http; only a local server without TLS can be used".to_owned());
    }
    let host = uri.host().ok_or("its URL has no host")?.trim_matches(['[', ']']);
    let address = (host, uri.port_u16().unwrap_or(80));
    let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    let _ = stream.set_nodelay(true);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    tokio::spawn(connection.with_upgrades());
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let authority = uri.authority().ok_or("its URL has no host")?.as_str();
    passed.insert(header::HOST, authority.parse().map_err(|_| "its host is no header value")?);
    let mut upgrade = http::Request::builder().method(method).uri(path);
    if let Some(headers) = upgrade.headers_mut() {
        *headers = passed;
    }
    let upgrade = upgrade.body(Empty::<bytes::Bytes>::new()).map_err(|error| error.to_string())?;
    let answer = sender.send_request(upgrade).await.map_err(|error| error.to_string())?;
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Ok(Upgrade::Agreed(answer));
    }
    let status = if answer.status().is_client_error() || answer.status().is_server_error() {
        answer.status()
    } else {
        StatusCode::BAD_GATEWAY
    };
    let text = Limited::new(answer.into_body(), REFUSAL_MAX).collect().await;
    let text = text.map(|text| String::from_utf8_lossy(&text.to_bytes()).trim_end().to_owned()).unwrap_or_default();
    Ok(Upgrade::Refused(status, if text.is_empty() { "the runtime refuses to stream".to_owned() } else { text }))
}

/// Headers that the runtime has to see: those of the upgrade and of the protocol; no credentials.
fn passed_headers(headers: &HeaderMap) -> HeaderMap {
    let passed = |name: &HeaderName| {
        let name = name.as_str();
        matches!(name, "connection" | "upgrade" | "origin" | "user-agent")
            || name.starts_with("sec-websocket-")
            || name.starts_with("x-stream-protocol-version")
            || name.starts_with("x-accept-stream-protocol-version")
            || name.starts_with("kubectl-")
    };
    headers.iter().filter(|(name, _)| passed(name)).map(|(name, value)| (name.clone(), value.clone())).fold(
        HeaderMap::new(),
        |mut all, (name, value)| {
            all.append(name, value);
            all
        },
    )
}

/// Copies both ways until both have ended, nothing moved for `idle`, or one side lingers after the other's end.
async fn copy_both<A, B>(client: A, runtime: B, idle: Duration)
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let moved = Movement::new();
    let (client_read, client_write) = tokio::io::split(client);
    let (runtime_read, runtime_write) = tokio::io::split(runtime);
    let mut up = std::pin::pin!(copy_one(client_read, runtime_write, &moved));
    let mut down = std::pin::pin!(copy_one(runtime_read, client_write, &moved));
    tokio::select! {
        () = &mut up => { let _ = tokio::time::timeout(LINGER, down).await; }
        () = &mut down => { let _ = tokio::time::timeout(LINGER, up).await; }
        () = moved.rests_for(idle) => tracing::debug!("a stream without traffic is closed"),
    }
}

async fn copy_one(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, moved: &Movement) {
    let mut buffer = vec![0; BUFFER];
    loop {
        let count = match from.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(count) => count,
        };
        moved.note();
        if to.write_all(&buffer[..count]).await.is_err() || to.flush().await.is_err() {
            break;
        }
        moved.note();
    }
    let _ = to.shutdown().await;
}

/// When bytes last moved.
struct Movement {
    start: Instant,
    last_millis: AtomicU64,
}

impl Movement {
    fn new() -> Self {
        Self { start: Instant::now(), last_millis: AtomicU64::new(0) }
    }

    fn note(&self) {
        let millis = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_millis.store(millis, Ordering::Relaxed);
    }

    async fn rests_for(&self, idle: Duration) {
        loop {
            let last = self.start + Duration::from_millis(self.last_millis.load(Ordering::Relaxed));
            let left = (last + idle).saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_stay_here() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer secret"),
            ("cookie", "secret"),
            ("connection", "Upgrade"),
            ("upgrade", "SPDY/3.1"),
            ("x-stream-protocol-version", "v4.channel.k8s.io"),
            ("x-stream-protocol-version", "v3.channel.k8s.io"),
            ("sec-websocket-protocol", "v5.channel.k8s.io"),
            ("content-length", "3"),
        ] {
            headers.append(HeaderName::from_static(name), value.parse().unwrap());
        }
        let passed = passed_headers(&headers);
        assert_eq!(passed.len(), 5);
        assert_eq!(passed.get_all("x-stream-protocol-version").iter().count(), 2);
        assert!(!passed.contains_key("authorization") && !passed.contains_key("cookie"));
    }

    #[tokio::test]
    async fn bytes_go_both_ways_and_idle_streams_end() {
        let (mut client, client_end) = tokio::io::duplex(64);
        let (mut runtime, runtime_end) = tokio::io::duplex(64);
        let copying = tokio::spawn(copy_both(client_end, runtime_end, Duration::from_secs(60)));
        client.write_all(b"up").await.unwrap();
        runtime.write_all(b"down").await.unwrap();
        let mut buffer = [0; 4];
        runtime.read_exact(&mut buffer[..2]).await.unwrap();
        client.read_exact(&mut buffer).await.unwrap();
        assert_eq!(&buffer, b"down");
        client.shutdown().await.unwrap();
        assert_eq!(runtime.read(&mut buffer).await.unwrap(), 0, "the end is passed on");
        runtime.write_all(b"last").await.unwrap();
        client.read_exact(&mut buffer).await.unwrap();
        drop(runtime);
        copying.await.unwrap();
        let (_client, client_end) = tokio::io::duplex(64);
        let (_runtime, runtime_end) = tokio::io::duplex(64);
        copy_both(client_end, runtime_end, Duration::from_millis(20)).await;
    }
}
