//! Sending a log to a client: what there is and, while the container runs, what it says from then on, woken by inotify.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use inotify::{Inotify, WatchMask};
use tokio::sync::mpsc;

use super::options::LogOptions;
use super::reader::{LogReader, Piece};

/// Pieces of the answer that wait for the client.
const PIECES_MAX: usize = 4;
/// How often a silent log's container is looked at: it may have ended without another word.
const LIVENESS_INTERVAL: Duration = Duration::from_secs(1);

/// Whether the container whose log this is still runs.
pub(crate) type Liveness = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = bool> + Send>> + Send + Sync>;

/// A log to be sent.
pub(crate) struct LogSource {
    /// The file that the runtime writes.
    pub(crate) path: PathBuf,
    /// What of it.
    pub(crate) options: LogOptions,
    /// Asked while following.
    pub(crate) running: Liveness,
}

/// Opens the log and sends it in pieces until its end, the limit, or until the receiver is dropped.
///
/// # Errors
/// When the file can't be opened; later failures end the stream with an error in it.
pub(crate) async fn stream_log(source: LogSource) -> io::Result<mpsc::Receiver<io::Result<Bytes>>> {
    let (path, options) = (source.path.clone(), source.options.clone());
    // Before the file is read, so that nothing happens unseen between reading and watching.
    let events = if options.follow { Some(watch_folder(&path)?) } else { None };
    let reader = blocking(move || LogReader::open(&path, options)).await?;
    let (sender, receiver) = mpsc::channel(PIECES_MAX);
    tokio::spawn(async move {
        if let Err(error) = send(source, reader, events, &sender).await {
            let _ = sender.send(Err(error)).await;
        }
    });
    Ok(receiver)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// Names of files in the log's folder that change.
type Events = inotify::EventStream<[u8; 4096]>;

fn watch_folder(path: &Path) -> io::Result<Events> {
    let inotify = Inotify::init()?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    let mask = WatchMask::MODIFY | WatchMask::CREATE | WatchMask::MOVED_TO | WatchMask::DELETE_SELF;
    inotify.watches().add(folder, mask)?;
    inotify.into_event_stream([0; 4096])
}

async fn send(
    source: LogSource,
    mut reader: LogReader,
    mut events: Option<Events>,
    sender: &mpsc::Sender<io::Result<Bytes>>,
) -> io::Result<()> {
    // Once more after the end of the container was seen: it may have spoken just before.
    let mut ended = false;
    loop {
        let (back, piece) = blocking(move || {
            let piece = reader.read_piece()?;
            Ok((reader, piece))
        })
        .await?;
        reader = back;
        let (bytes, more) = match piece {
            Piece::Text(bytes) => (bytes, true),
            Piece::End(bytes) => (bytes, false),
        };
        if !bytes.is_empty() && sender.send(Ok(Bytes::from(bytes))).await.is_err() {
            return Ok(());
        }
        if more {
            continue;
        }
        let Some(events) = events.as_mut().filter(|_| !ended && !reader.is_full()) else { return Ok(()) };
        tokio::select! {
            event = events.next() => match event {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error),
                None => return Ok(()),
            },
            () = sender.closed() => return Ok(()),
            () = tokio::time::sleep(LIVENESS_INTERVAL) => ended = !(source.running)().await,
        }
    }
}

#[cfg(test)]
mod tests;
