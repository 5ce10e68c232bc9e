//! Reading a log from its chosen start to its end and, while the container runs, beyond: across rotations, woken by
//! inotify.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use inotify::{Inotify, WatchMask};
use tokio::sync::mpsc;

use super::options::LogOptions;
use super::segments::{Segment, open_log, open_rotated, rotated_files};
use super::tail::find_tail;
use super::text::LogText;

/// Bytes of the file read at once, about as many as one piece of the answer has.
const READ_SIZE: usize = 64 << 10;
/// A line of the file longer than this is cut; the runtime writes 16 KiB at most.
const LINE_MAX: usize = 1 << 20;
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
        let Some(events) = events.as_mut().filter(|_| !ended && !reader.text.is_full()) else { return Ok(()) };
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

/// What a read gave.
enum Piece {
    /// Text, perhaps empty; there may be more at once.
    Text(Vec<u8>),
    /// The last text for now.
    End(Vec<u8>),
}

/// Reads the files of a log one after the other.
struct LogReader {
    path: PathBuf,
    text: LogText,
    current: Segment,
    /// The file that is written to, when `current` is one that was put aside.
    later: VecDeque<PathBuf>,
    /// `current` is the file that is written to.
    live: bool,
    /// The beginning of a line of the file whose end is not written yet.
    rest: Vec<u8>,
    offset: u64,
}

impl LogReader {
    fn open(path: &Path, options: LogOptions) -> io::Result<Self> {
        let live = open_log(path)?;
        let size = live.metadata()?.len();
        let mut wanted = options.tail_lines;
        let mut start = 0;
        let mut current = Segment::Plain(live);
        if let Some(lines) = wanted {
            let tail = find_tail(&mut current, size, lines, options.stream)?;
            start = tail.offset;
            wanted = Some(lines - tail.lines.min(lines));
        }
        let mut later = VecDeque::new();
        if start == 0 && wanted != Some(0) {
            // The newest rotated file first, for as long as lines are missing.
            for rotated in rotated_files(path) {
                // It may have been compressed or removed since it was listed.
                let Ok(mut segment) = open_rotated(&rotated) else { continue };
                let size = segment.seek(SeekFrom::End(0))?;
                later.push_front(rotated);
                if let Some(lines) = wanted {
                    let tail = find_tail(&mut segment, size, lines, options.stream)?;
                    wanted = Some(lines - tail.lines.min(lines));
                    if tail.offset > 0 || wanted == Some(0) {
                        start = tail.offset;
                        break;
                    }
                }
            }
        }
        let live = later.is_empty();
        if let Some(first) = later.pop_front() {
            current = open_rotated(&first)?;
        }
        current.seek(SeekFrom::Start(start))?;
        Ok(Self {
            path: path.to_owned(),
            text: LogText::new(options),
            current,
            later,
            live,
            rest: Vec::new(),
            offset: start,
        })
    }

    fn read_piece(&mut self) -> io::Result<Piece> {
        let mut out = Vec::new();
        if self.text.is_full() {
            return Ok(Piece::End(out));
        }
        let mut buffer = vec![0; READ_SIZE];
        let count = self.current.read(&mut buffer)?;
        if count == 0 {
            return Ok(if self.next_file()? { Piece::Text(out) } else { Piece::End(out) });
        }
        self.offset += count as u64;
        for part in buffer[..count].split_inclusive(|byte| *byte == b'\n') {
            match part.strip_suffix(b"\n") {
                Some(end) if self.rest.is_empty() => self.text.push(end, &mut out),
                Some(end) => {
                    self.rest.extend_from_slice(end);
                    self.text.push(&std::mem::take(&mut self.rest), &mut out);
                }
                None if self.rest.len() < LINE_MAX => self.rest.extend_from_slice(part),
                None => {}
            }
        }
        Ok(Piece::Text(out))
    }

    /// Goes on with the next file when the current one is at its end; false where there is none.
    fn next_file(&mut self) -> io::Result<bool> {
        if let Some(path) = self.later.pop_front() {
            return self.switch(open_rotated(&path)?, false);
        }
        let live = match open_log(&self.path) {
            Ok(live) => live,
            // Between the renaming and the runtime's opening of a new file.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        if !self.live {
            return self.switch(Segment::Plain(live), true);
        }
        let Segment::Plain(current) = &mut self.current else { return Ok(false) };
        if is_same_file(current, &live)? {
            if live.metadata()?.len() >= self.offset {
                return Ok(false);
            }
            // Somebody has cut the file in place.
            current.seek(SeekFrom::Start(0))?;
            self.offset = 0;
            self.rest.clear();
            return Ok(true);
        }
        // The runtime writes to the new file only; but it may have written to the old one since it was read.
        if current.metadata()?.len() > self.offset {
            return Ok(true);
        }
        self.switch(Segment::Plain(live), true)
    }

    fn switch(&mut self, segment: Segment, live: bool) -> io::Result<bool> {
        self.current = segment;
        self.live = live;
        self.offset = 0;
        self.rest.clear();
        Ok(true)
    }
}

fn is_same_file(one: &File, other: &File) -> io::Result<bool> {
    let (one, other) = (one.metadata()?, other.metadata()?);
    Ok(one.dev() == other.dev() && one.ino() == other.ino())
}

#[cfg(test)]
mod tests;
