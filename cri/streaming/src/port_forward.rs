//! Port-forward: joins pairs of streams to connections inside a pod's network namespace.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::runtime::Runtime;
use crate::spdy::{Connection, Stream, StreamReceiver, StreamSender};

/// How long the second direction may go on after the first has ended (CRI streaming server's grace).
const SECOND_DIRECTION: Duration = Duration::from_secs(1);
/// How long the second stream of a pair may take.
const PAIR: Duration = Duration::from_secs(30);
/// Bytes read at once.
const READ_BYTES: usize = 32 << 10;

/// Serves the pairs of streams of a SPDY connection until it ends.
pub(crate) async fn serve_spdy(mut connection: Connection, sandbox_id: String, runtime: Arc<dyn Runtime>) {
    let mut waiting: HashMap<String, (Stream, tokio::time::Instant)> = HashMap::new();
    let mut forwards = JoinSet::new();
    while let Some(stream) = connection.accept().await {
        waiting.retain(|_, (_, since)| since.elapsed() < PAIR);
        while forwards.try_join_next().is_some() {}
        let key = pair_key(&stream);
        let Some((first, _)) = waiting.remove(&key) else {
            waiting.insert(key, (stream, tokio::time::Instant::now()));
            continue;
        };
        let (data, error) = match (first.header("streamType"), stream.header("streamType")) {
            (Some("error"), Some("data")) => (stream, first),
            (Some("data"), Some("error")) => (first, stream),
            _ => {
                first.sender.reset().await;
                stream.sender.reset().await;
                continue;
            }
        };
        let (runtime, sandbox_id) = (runtime.clone(), sandbox_id.clone());
        forwards.spawn(async move { forward(data, error, &sandbox_id, runtime.as_ref()).await });
    }
    forwards.abort_all();
    connection.close().await;
}

/// What ties the two streams of a pair together: the request id, or for old clients the number of the error stream,
/// which comes right before that of the data stream.
fn pair_key(stream: &Stream) -> String {
    match (stream.header("requestID"), stream.header("streamType")) {
        (Some(id), _) if !id.is_empty() => format!("request {id}"),
        (_, Some("data")) => format!("stream {}", stream.id.saturating_sub(2)),
        _ => format!("stream {}", stream.id),
    }
}

/// Joins one pair to a connection in the pod, or tells on the error stream why not.
async fn forward(data: Stream, error: Stream, sandbox_id: &str, runtime: &dyn Runtime) {
    let connected = match data.header("port").and_then(|port| port.parse::<u16>().ok()).filter(|port| *port > 0) {
        Some(port) => runtime.dial(sandbox_id, port).await.map_err(|error| error.to_string()),
        None => Err(format!("\"port\" header {:?} is not a port number", data.header("port").unwrap_or_default())),
    };
    match connected {
        Ok(tcp) => {
            join(tcp, data.receiver, &data.sender).await;
            error.sender.finish().await;
        }
        Err(message) => {
            error.sender.send(message.into()).await;
            error.sender.finish().await;
            data.sender.reset().await;
        }
    }
}

/// Copies both ways until both have ended, or a moment after one has.
async fn join(tcp: TcpStream, mut receiver: StreamReceiver, sender: &StreamSender) {
    let (mut read, mut write) = tcp.into_split();
    let out = async {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(READ_BYTES);
            match read.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(_) => {
                    if !sender.send(buffer.split().freeze()).await {
                        break;
                    }
                }
            }
        }
        sender.finish().await;
    };
    let into = async {
        while let Some(bytes) = receiver.receive().await {
            if write.write_all(&bytes).await.is_err() {
                return;
            }
        }
        let _ = write.shutdown().await;
    };
    both(out, into).await;
}

/// Runs two directions; the client's half-close leaves the pod's answer all the time it needs, while an ended
/// answer gives the client's side a moment only.
async fn both(out: impl Future<Output = ()>, into: impl Future<Output = ()>) {
    tokio::pin!(out, into);
    tokio::select! {
        () = &mut out => {
            let _ = tokio::time::timeout(SECOND_DIRECTION, into).await;
        }
        () = &mut into => out.await,
    }
}

/// One port of a WebSocket port-forward: what the client sends, and where to what the pod says goes.
pub(crate) async fn forward_channel(
    port: u16,
    sandbox_id: &str,
    runtime: &dyn Runtime,
    mut from_client: mpsc::Receiver<Bytes>,
    data: mpsc::Sender<Bytes>,
    error: mpsc::Sender<Bytes>,
) {
    let tcp = match runtime.dial(sandbox_id, port).await {
        Ok(tcp) => tcp,
        Err(problem) => {
            let _ = error.send(problem.to_string().into()).await;
            return;
        }
    };
    let (mut read, mut write) = tcp.into_split();
    let out = async {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(READ_BYTES);
            match read.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {
                    if data.send(buffer.split().freeze()).await.is_err() {
                        return;
                    }
                }
            }
        }
    };
    let into = async {
        while let Some(bytes) = from_client.recv().await {
            if write.write_all(&bytes).await.is_err() {
                return;
            }
        }
        let _ = write.shutdown().await;
    };
    both(out, into).await;
}
