//! Exec and attach: joins the streams of a connection to a process.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::runtime::{AttachRequest, ExecRequest, Outcome, ProcessStreams, Runtime, RuntimeError, TerminalSize};
use crate::spdy::{Connection, Stream, StreamSender};
use crate::status::{status_json, status_text};

/// Messages that wait between a process and its client.
pub(crate) const CHANNEL_MESSAGES: usize = 16;
/// How long output may take to reach the client after the process has ended.
pub(crate) const DRAIN: Duration = Duration::from_secs(30);
/// Bytes of an unfinished terminal size.
const RESIZE_BYTES_MAX: usize = 4096;

/// Exec or attach.
#[derive(Clone, Debug)]
pub(crate) enum Job {
    /// A new process.
    Exec(ExecRequest),
    /// The container's own.
    Attach(AttachRequest),
}

/// Which streams a job has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wants {
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
    pub(crate) tty: bool,
}

impl Job {
    /// Which streams the job has.
    pub(crate) fn wants(&self) -> Wants {
        match self {
            Job::Exec(exec) => Wants { stdin: exec.stdin, stdout: exec.stdout, stderr: exec.stderr, tty: exec.tty },
            Job::Attach(attach) => {
                Wants { stdin: attach.stdin, stdout: attach.stdout, stderr: attach.stderr, tty: attach.tty }
            }
        }
    }

    /// Runs the job to its end.
    pub(crate) async fn run(self, runtime: &dyn Runtime, streams: ProcessStreams) -> Result<Outcome, RuntimeError> {
        match self {
            Job::Exec(request) => runtime.exec(request, streams).await,
            Job::Attach(request) => runtime.attach(request, streams).await,
        }
    }
}

/// The streams of an exec or attach over SPDY, once all are there.
#[derive(Default)]
struct SpdyStreams {
    error: Option<Stream>,
    stdin: Option<Stream>,
    stdout: Option<Stream>,
    stderr: Option<Stream>,
    resize: Option<Stream>,
}

impl SpdyStreams {
    /// Takes a stream by its type; gives back one that isn't expected.
    fn take(&mut self, stream: Stream) -> Result<(), Stream> {
        let place = match stream.header("streamType") {
            Some("error") => &mut self.error,
            Some("stdin") => &mut self.stdin,
            Some("stdout") => &mut self.stdout,
            Some("stderr") => &mut self.stderr,
            Some("resize") => &mut self.resize,
            _ => return Err(stream),
        };
        match place {
            Some(_) => Err(stream),
            None => {
                *place = Some(stream);
                Ok(())
            }
        }
    }

    /// Whether every stream that the job and the protocol's version want is there.
    fn complete(&self, wants: Wants, version: u8) -> bool {
        self.error.is_some()
            && (!wants.stdin || self.stdin.is_some())
            && (!wants.stdout || self.stdout.is_some())
            && (!wants.stderr || self.stderr.is_some())
            && (!wants.tty || version < 3 || self.resize.is_some())
    }
}

/// Serves an exec or attach over SPDY.
pub(crate) async fn serve_spdy(
    mut connection: Connection,
    job: Job,
    version: u8,
    runtime: Arc<dyn Runtime>,
    creation: Duration,
) {
    let wants = job.wants();
    let Ok(Some(mut streams)) = tokio::time::timeout(creation, collect(&mut connection, wants, version)).await else {
        tracing::debug!("the client did not open its streams in time");
        connection.close().await;
        return;
    };
    let error = streams.error.take().map(|stream| stream.sender);
    let mut pumps = JoinSet::new();
    let process = ProcessStreams {
        stdin: streams.stdin.filter(|_| wants.stdin).map(|stream| stream.receiver.into_channel()),
        stdout: streams.stdout.filter(|_| wants.stdout).map(|stream| pump_out(stream.sender, &mut pumps)),
        stderr: streams.stderr.filter(|_| wants.stderr).map(|stream| pump_out(stream.sender, &mut pumps)),
        resize: pump_resize(streams.resize),
    };
    let result = tokio::select! {
        result = job.run(runtime.as_ref(), process) => result,
        () = closed(&mut connection) => return,
    };
    let drained = async { while pumps.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(DRAIN, drained).await;
    if let Some(error) = error {
        let said = if version >= 4 { status_json(&result) } else { status_text(&result) };
        error.send(said.into()).await;
        error.finish().await;
    }
    connection.close().await;
}

/// Accepts streams until all are there; none when the connection ends first.
async fn collect(connection: &mut Connection, wants: Wants, version: u8) -> Option<SpdyStreams> {
    let mut streams = SpdyStreams::default();
    while !streams.complete(wants, version) {
        if let Err(unexpected) = streams.take(connection.accept().await?) {
            unexpected.sender.reset().await;
        }
    }
    Some(streams)
}

/// Returns when the client is gone; streams that it opens late are refused.
async fn closed(connection: &mut Connection) {
    while let Some(late) = connection.accept().await {
        late.sender.reset().await;
    }
}

/// A channel whose messages go out on the stream, which is closed at its end.
fn pump_out(sender: StreamSender, pumps: &mut JoinSet<()>) -> mpsc::Sender<Bytes> {
    let (channel, mut messages) = mpsc::channel::<Bytes>(CHANNEL_MESSAGES);
    pumps.spawn(async move {
        while let Some(bytes) = messages.recv().await {
            if !sender.send(bytes).await {
                return;
            }
        }
        sender.finish().await;
    });
    channel
}

/// The sizes that come in on the resize stream.
fn pump_resize(stream: Option<Stream>) -> mpsc::Receiver<TerminalSize> {
    let (sizes, receiver) = mpsc::channel(CHANNEL_MESSAGES);
    if let Some(mut stream) = stream {
        tokio::spawn(async move {
            let mut parser = SizeParser::default();
            while let Some(bytes) = stream.receiver.receive().await {
                for size in parser.push(&bytes) {
                    if sizes.send(size).await.is_err() {
                        return;
                    }
                }
            }
        });
    }
    receiver
}

/// Splits a stream of JSON documents into terminal sizes.
#[derive(Default)]
pub(crate) struct SizeParser {
    rest: Vec<u8>,
}

impl SizeParser {
    /// The sizes that are whole now. Damaged input is dropped.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Vec<TerminalSize> {
        self.rest.extend_from_slice(bytes);
        let mut documents = serde_json::Deserializer::from_slice(&self.rest).into_iter::<TerminalSize>();
        let mut sizes = Vec::new();
        let (mut damaged, mut used) = (false, 0);
        while let Some(document) = documents.next() {
            match document {
                Ok(size) => {
                    sizes.push(size);
                    used = documents.byte_offset();
                }
                Err(error) => damaged = !error.is_eof(),
            }
        }
        self.rest.drain(..used);
        if damaged || self.rest.len() > RESIZE_BYTES_MAX {
            self.rest.clear();
        }
        sizes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_come_in_pieces_and_damage_is_dropped() {
        let mut parser = SizeParser::default();
        assert_eq!(parser.push(br#"{"Width":80,"Hei"#), []);
        assert_eq!(
            parser.push(br#"ght":24}{"Width":1,"Height":2}"#),
            [TerminalSize { width: 80, height: 24 }, TerminalSize { width: 1, height: 2 }]
        );
        assert_eq!(parser.push(b"nonsense"), []);
        assert_eq!(parser.push(br#"{"Width":3,"Height":4}"#), [TerminalSize { width: 3, height: 4 }]);
    }
}
