//! Channels over WebSocket: each message starts with the number of its channel.
//!
//! Exec and attach use 0 stdin, 1 stdout, 2 stderr, 3 error, 4 resize; protocol v5 adds the message `[255, channel]`
//! that closes one. Port-forward uses two channels per port, data and error, whose first message is the port. The
//! protocol `SPDY/3.1+portforward.k8s.io` instead carries the bytes of a SPDY connection.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use crate::port_forward;
use crate::process::{CHANNEL_MESSAGES, DRAIN, Job, SizeParser};
use crate::runtime::{PortForwardRequest, ProcessStreams, Runtime};
use crate::status::{status_json, status_text};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// The regular end: clients take a close without a code for a broken connection.
const END: CloseFrame = CloseFrame { code: CloseCode::Normal, reason: Utf8Bytes::from_static("") };
/// Channel of v5's close message.
const CLOSE: u8 = 255;
/// Ports of one port-forward.
pub(crate) const PORTS_MAX: usize = 100;
/// Bytes that wait in the tunnel of a SPDY connection.
const TUNNEL_BYTES: usize = 64 << 10;

/// A protocol of exec and attach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChannelProtocol {
    /// 1, 4 or 5.
    pub(crate) version: u8,
    /// Payload in base64, channel as a digit, in text messages.
    pub(crate) base64: bool,
}

impl ChannelProtocol {
    /// The protocol of a name as clients offer it.
    pub(crate) fn from_name(name: &str) -> Option<ChannelProtocol> {
        let (version, base64) = match name {
            "v5.channel.k8s.io" => (5, false),
            "v4.channel.k8s.io" => (4, false),
            "v4.base64.channel.k8s.io" => (4, true),
            "" | "channel.k8s.io" => (1, false),
            "base64.channel.k8s.io" => (1, true),
            _ => return None,
        };
        Some(ChannelProtocol { version, base64 })
    }

    /// A message of a channel.
    fn encode(self, channel: u8, bytes: &[u8]) -> Message {
        if self.base64 {
            let mut text = String::with_capacity(1 + bytes.len().div_ceil(3) * 4);
            text.push(char::from(b'0' + channel));
            STANDARD.encode_string(bytes, &mut text);
            return Message::text(text);
        }
        let mut message = BytesMut::with_capacity(1 + bytes.len());
        message.put_u8(channel);
        message.extend_from_slice(bytes);
        Message::binary(message.freeze())
    }

    /// Channel and bytes of a message; none for what carries nothing.
    fn decode(self, message: Message) -> Option<(u8, Bytes)> {
        let mut bytes = match message {
            Message::Binary(bytes) => bytes,
            Message::Text(text) => Bytes::from(text),
            _ => return None,
        };
        if bytes.is_empty() {
            return None;
        }
        let channel = bytes.split_to(1)[0];
        if !self.base64 {
            return Some((channel, bytes));
        }
        let decoded = STANDARD.decode(&bytes).ok()?;
        Some((channel.wrapping_sub(b'0'), decoded.into()))
    }
}

/// Serves an exec or attach over WebSocket.
pub(crate) async fn serve_process<T>(
    socket: WebSocketStream<T>,
    job: Job,
    protocol: ChannelProtocol,
    runtime: Arc<dyn Runtime>,
) where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let wants = job.wants();
    let (mut sink, mut source) = socket.split();
    let (out, mut queue) = mpsc::channel::<(u8, Bytes)>(CHANNEL_MESSAGES);
    let writer = tokio::spawn(async move {
        // An empty message on the first channel that can be written tells the client that the streams are open.
        let mut open = sink.send(protocol.encode(STDOUT, &[])).await.is_ok();
        while let Some((channel, bytes)) = queue.recv().await {
            open = open && sink.send(protocol.encode(channel, &bytes)).await.is_ok();
            if !open {
                return;
            }
        }
        let _ = sink.send(Message::Close(Some(END))).await;
        let _ = sink.close().await;
    });

    let mut pumps = JoinSet::new();
    let (stdin, stdin_receiver) = mpsc::channel(CHANNEL_MESSAGES);
    let (resize, resize_receiver) = mpsc::channel(CHANNEL_MESSAGES);
    let process = ProcessStreams {
        stdin: wants.stdin.then_some(stdin_receiver),
        stdout: wants.stdout.then(|| tag(STDOUT, &out, &mut pumps)),
        stderr: wants.stderr.then(|| tag(STDERR, &out, &mut pumps)),
        resize: resize_receiver,
    };
    let reader = async {
        let (mut stdin, mut sizes) = (Some(stdin), SizeParser::default());
        while let Some(Ok(message)) = source.next().await {
            match protocol.decode(message) {
                Some((STDIN, bytes)) => {
                    if let Some(channel) = &stdin
                        && !bytes.is_empty()
                        && channel.send(bytes).await.is_err()
                    {
                        stdin = None;
                    }
                }
                Some((RESIZE, bytes)) => {
                    for size in sizes.push(&bytes) {
                        let _ = resize.try_send(size);
                    }
                }
                Some((CLOSE, bytes)) if protocol.version >= 5 && bytes.first() == Some(&STDIN) => stdin = None,
                _ => {}
            }
        }
    };
    let result = tokio::select! {
        result = job.run(runtime.as_ref(), process) => result,
        () = reader => {
            writer.abort();
            return;
        }
    };
    let drained = async { while pumps.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(DRAIN, drained).await;
    let said = if protocol.version >= 4 { status_json(&result) } else { status_text(&result) };
    let _ = out.send((ERROR, said.into())).await;
    drop(out);
    let _ = tokio::time::timeout(DRAIN, writer).await;
}

/// A channel whose messages are queued with the number of theirs.
fn tag(number: u8, out: &mpsc::Sender<(u8, Bytes)>, pumps: &mut JoinSet<()>) -> mpsc::Sender<Bytes> {
    let (channel, mut messages) = mpsc::channel::<Bytes>(CHANNEL_MESSAGES);
    let out = out.clone();
    pumps.spawn(async move {
        while let Some(bytes) = messages.recv().await {
            if out.send((number, bytes)).await.is_err() {
                return;
            }
        }
    });
    channel
}

/// Serves a port-forward over WebSocket channels.
pub(crate) async fn serve_ports<T>(
    socket: WebSocketStream<T>,
    request: PortForwardRequest,
    protocol: ChannelProtocol,
    runtime: Arc<dyn Runtime>,
) where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sink, mut source) = socket.split();
    let (out, mut queue) = mpsc::channel::<(u8, Bytes)>(CHANNEL_MESSAGES);
    let mut tasks = JoinSet::new();
    let mut inputs = Vec::new();
    for (index, port) in request.ports.iter().copied().take(PORTS_MAX).enumerate() {
        let (data, error) = (2 * index as u8, 2 * index as u8 + 1);
        for channel in [data, error] {
            let _ = out.try_send((channel, Bytes::copy_from_slice(&port.to_le_bytes())));
        }
        let (input, from_client) = mpsc::channel(CHANNEL_MESSAGES);
        inputs.push(Some(input));
        let (data, error) = (tag(data, &out, &mut tasks), tag(error, &out, &mut tasks));
        let (runtime, sandbox) = (runtime.clone(), request.sandbox_id.clone());
        tasks.spawn(async move {
            port_forward::forward_channel(port, &sandbox, runtime.as_ref(), from_client, data, error).await;
        });
    }
    drop(out);
    let writer = async {
        while let Some((channel, bytes)) = queue.recv().await {
            if sink.send(protocol.encode(channel, &bytes)).await.is_err() {
                return;
            }
        }
        let _ = sink.send(Message::Close(Some(END))).await;
        let _ = sink.close().await;
    };
    let reader = async {
        while let Some(Ok(message)) = source.next().await {
            let Some((channel, bytes)) = protocol.decode(message) else { continue };
            if channel % 2 == 0
                && let Some(input) = inputs.get_mut(usize::from(channel / 2))
                && let Some(sender) = input
                && sender.send(bytes).await.is_err()
            {
                *input = None;
            }
        }
    };
    tokio::select! {
        () = writer => {}
        () = reader => {}
    }
    tasks.abort_all();
}

/// The bytes of a connection that a WebSocket carries in binary messages.
pub(crate) fn tunnel<T>(socket: WebSocketStream<T>) -> DuplexStream
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (ours, theirs) = tokio::io::duplex(TUNNEL_BYTES);
    let (mut read, mut write) = tokio::io::split(theirs);
    let (mut sink, mut source) = socket.split();
    tokio::spawn(async move {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(TUNNEL_BYTES);
            match read.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(_) => {
                    if sink.send(Message::binary(buffer.split().freeze())).await.is_err() {
                        return;
                    }
                }
            }
        }
        let _ = sink.send(Message::Close(Some(END))).await;
        let _ = sink.close().await;
    });
    tokio::spawn(async move {
        while let Some(Ok(message)) = source.next().await {
            if let Message::Binary(bytes) = message
                && write.write_all(&bytes).await.is_err()
            {
                return;
            }
        }
        let _ = write.shutdown().await;
    });
    ours
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_carry_their_channel() {
        for (name, wire) in
            [("v4.channel.k8s.io", Message::binary(&b"\x01hi"[..])), ("base64.channel.k8s.io", Message::text("1aGk="))]
        {
            let protocol = ChannelProtocol::from_name(name).unwrap();
            assert_eq!(protocol.encode(STDOUT, b"hi"), wire);
            assert_eq!(protocol.decode(wire), Some((STDOUT, Bytes::from_static(b"hi"))));
        }
        assert_eq!(ChannelProtocol::from_name("v6.channel.k8s.io"), None);
    }
}
