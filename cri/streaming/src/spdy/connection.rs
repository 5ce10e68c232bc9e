//! A SPDY connection: its streams, its reading and its writing task.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::frame::{self, Frame};
use super::headers::{Compressor, Decompressor, HeaderList};

/// Streams that may be open at once.
const STREAMS_MAX: usize = 256;
/// Frames that wait in a stream's channel before the connection is held back.
const STREAM_FRAMES: usize = 32;
/// Frames that wait to be written.
const WRITE_FRAMES: usize = 64;
/// Bytes of a data frame that we send.
const DATA_BYTES: usize = 32 << 10;
/// How long the peer may take to close after we did.
const CLOSE_SECONDS: u64 = 5;
/// RST_STREAM status: refused.
const STATUS_REFUSED: u32 = 3;
/// RST_STREAM status: cancelled.
const STATUS_CANCEL: u32 = 5;

/// What the writing task is asked to do; header blocks are compressed there, in the order of the wire.
enum Write {
    Frame(Frame),
    Reply { stream: u32 },
    Open { stream: u32, headers: Vec<(String, String)> },
}

/// One stream: its headers and both directions.
pub struct Stream {
    /// The stream's number.
    pub id: u32,
    /// Headers, names in lower case.
    pub headers: HeaderList,
    /// What the peer sends.
    pub receiver: StreamReceiver,
    /// What we send.
    pub sender: StreamSender,
}

impl Stream {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// The receiving half of a stream.
pub struct StreamReceiver(mpsc::Receiver<Bytes>);

impl StreamReceiver {
    /// The next bytes; none once the peer has closed its side.
    pub async fn receive(&mut self) -> Option<Bytes> {
        self.0.recv().await
    }

    /// The channel itself.
    pub fn into_channel(self) -> mpsc::Receiver<Bytes> {
        self.0
    }
}

/// The sending half of a stream; it ends by [`StreamSender::finish`] or [`StreamSender::reset`].
pub struct StreamSender {
    id: u32,
    writes: mpsc::Sender<Write>,
    finished: Arc<AtomicBool>,
}

impl StreamSender {
    /// Sends bytes; false when the connection is gone.
    pub async fn send(&self, mut bytes: Bytes) -> bool {
        while !bytes.is_empty() {
            let part = bytes.split_to(bytes.len().min(DATA_BYTES));
            if !self.write(Frame::Data { stream: self.id, fin: false, bytes: part }).await {
                return false;
            }
        }
        true
    }

    /// Closes our side.
    pub async fn finish(&self) {
        if !self.finished.swap(true, Ordering::SeqCst) {
            self.write(Frame::Data { stream: self.id, fin: true, bytes: Bytes::new() }).await;
        }
    }

    /// Ends the stream in both directions.
    pub async fn reset(&self) {
        if !self.finished.swap(true, Ordering::SeqCst) {
            self.write(Frame::RstStream { stream: self.id, status: STATUS_CANCEL }).await;
        }
    }

    async fn write(&self, frame: Frame) -> bool {
        self.writes.send(Write::Frame(frame)).await.is_ok()
    }
}

/// One side of a SPDY connection.
pub struct Connection {
    accepted: mpsc::Receiver<Stream>,
    opened: mpsc::Sender<(u32, mpsc::Sender<Bytes>)>,
    writes: mpsc::Sender<Write>,
    next_id: u32,
    reader: JoinHandle<()>,
    writer: JoinHandle<()>,
}

impl Connection {
    /// Starts the tasks over an upgraded connection; `server` tells which side's stream numbers are ours.
    pub fn new<T>(io: T, server: bool) -> Connection
    where
        T: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (read, write) = tokio::io::split(io);
        let (accept, accepted) = mpsc::channel(16);
        let (opened, open) = mpsc::channel(16);
        let (writes, queue) = mpsc::channel(WRITE_FRAMES);
        let reader =
            Reader { streams: HashMap::new(), accept, open, writes: writes.clone(), headers: Decompressor::new() };
        Connection {
            accepted,
            opened,
            writes,
            next_id: if server { 2 } else { 1 },
            reader: tokio::spawn(reader.run(read)),
            writer: tokio::spawn(write_frames(write, queue)),
        }
    }

    /// The next stream that the peer opens; it has been answered already. None when the connection has ended.
    pub async fn accept(&mut self) -> Option<Stream> {
        self.accepted.recv().await
    }

    /// Opens a stream with these headers.
    pub async fn open(&mut self, headers: Vec<(String, String)>) -> Option<Stream> {
        let (id, (sender, receiver)) = (self.next_id, mpsc::channel(STREAM_FRAMES));
        self.next_id += 2;
        self.opened.send((id, sender)).await.ok()?;
        self.writes.send(Write::Open { stream: id, headers: headers.clone() }).await.ok()?;
        let sender = StreamSender { id, writes: self.writes.clone(), finished: Arc::default() };
        Some(Stream { id, headers, receiver: StreamReceiver(receiver), sender })
    }

    /// Says goodbye, lets what is queued reach the peer and waits a moment for the peer to close.
    pub async fn close(self) {
        let _ = self.writes.send(Write::Frame(Frame::GoAway { last: 0, status: 0 })).await;
        drop(self.writes);
        drop(self.accepted);
        let abort = [self.reader.abort_handle(), self.writer.abort_handle()];
        let ended = async {
            let _ = self.reader.await;
            let _ = self.writer.await;
        };
        if tokio::time::timeout(Duration::from_secs(CLOSE_SECONDS), ended).await.is_err() {
            abort.iter().for_each(tokio::task::AbortHandle::abort);
        }
    }
}

/// The reading task's state.
struct Reader {
    streams: HashMap<u32, mpsc::Sender<Bytes>>,
    accept: mpsc::Sender<Stream>,
    open: mpsc::Receiver<(u32, mpsc::Sender<Bytes>)>,
    writes: mpsc::Sender<Write>,
    headers: Decompressor,
}

impl Reader {
    /// Reads until the peer closes, breaks the protocol or nobody is left to hear it.
    async fn run<R: AsyncRead + Unpin>(mut self, mut read: R) {
        let mut buffer = BytesMut::with_capacity(16 << 10);
        loop {
            loop {
                match frame::decode(&mut buffer) {
                    Ok(Some(frame)) => {
                        if let Err(reason) = self.handle(frame).await {
                            tracing::debug!(reason, "SPDY connection ended");
                            return;
                        }
                    }
                    Ok(None) => break,
                    Err(error) => {
                        tracing::debug!(%error, "SPDY connection ended");
                        return;
                    }
                }
            }
            match read.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
    }

    /// Acts on one frame; an error ends the connection.
    async fn handle(&mut self, frame: Frame) -> Result<(), String> {
        while let Ok((id, sender)) = self.open.try_recv() {
            self.streams.insert(id, sender);
        }
        match frame {
            Frame::Data { stream, fin, bytes } => {
                if let Some(sender) = self.streams.get(&stream)
                    && !bytes.is_empty()
                    && sender.send(bytes).await.is_err()
                {
                    self.streams.remove(&stream);
                }
                if fin {
                    self.streams.remove(&stream);
                }
            }
            Frame::SynStream { stream, fin, headers } => self.start(stream, fin, &headers).await?,
            Frame::SynReply { stream, fin, headers } => {
                // Every block must pass through the decompressor, whose state covers the whole connection.
                self.headers.decompress(&headers).map_err(|error| error.to_string())?;
                if fin {
                    self.streams.remove(&stream);
                }
            }
            Frame::Headers { headers, .. } => {
                self.headers.decompress(&headers).map_err(|error| error.to_string())?;
            }
            Frame::RstStream { stream, .. } => {
                self.streams.remove(&stream);
            }
            Frame::Ping { id } => {
                let _ = self.writes.send(Write::Frame(Frame::Ping { id })).await;
            }
            Frame::GoAway { .. } | Frame::Ignored => {}
        }
        Ok(())
    }

    /// Takes a new stream of the peer and answers it.
    async fn start(&mut self, id: u32, fin: bool, block: &[u8]) -> Result<(), String> {
        let headers = self.headers.decompress(block).map_err(|error| error.to_string())?;
        self.streams.retain(|_, sender| !sender.is_closed());
        if self.streams.len() >= STREAMS_MAX || self.streams.contains_key(&id) {
            let refuse = Frame::RstStream { stream: id, status: STATUS_REFUSED };
            let _ = self.writes.send(Write::Frame(refuse)).await;
            return Ok(());
        }
        let (sender, receiver) = mpsc::channel(STREAM_FRAMES);
        if !fin {
            self.streams.insert(id, sender);
        }
        let _ = self.writes.send(Write::Reply { stream: id }).await;
        let sender = StreamSender { id, writes: self.writes.clone(), finished: Arc::default() };
        let stream = Stream { id, headers, receiver: StreamReceiver(receiver), sender };
        // Nobody accepts any more while the connection is being closed: the stream is then dropped.
        let _ = self.accept.send(stream).await;
        Ok(())
    }
}

/// Writes what is queued, several frames at a time, until every sender is gone.
async fn write_frames<W: AsyncWrite + Unpin>(mut write: W, mut queue: mpsc::Receiver<Write>) {
    let (mut buffer, mut headers) = (BytesMut::new(), Compressor::new());
    while let Some(first) = queue.recv().await {
        let mut next = Some(first);
        while let Some(item) = next {
            if let Err(error) = put(item, &mut headers, &mut buffer) {
                tracing::debug!(%error, "SPDY connection ended");
                return;
            }
            next = (buffer.len() < 4 * DATA_BYTES).then(|| queue.try_recv().ok()).flatten();
        }
        if write.write_all_buf(&mut buffer).await.is_err() || write.flush().await.is_err() {
            return;
        }
    }
    let _ = write.shutdown().await;
}

/// Appends one item to the buffer.
fn put(item: Write, headers: &mut Compressor, buffer: &mut BytesMut) -> Result<(), super::HeadersError> {
    let frame = match item {
        Write::Frame(frame) => frame,
        Write::Reply { stream } => Frame::SynReply { stream, fin: false, headers: headers.compress(&[])? },
        Write::Open { stream, headers: list } => {
            let list: Vec<(&str, &str)> = list.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            Frame::SynStream { stream, fin: false, headers: headers.compress(&list)? }
        }
    };
    frame::encode(&frame, buffer);
    Ok(())
}
