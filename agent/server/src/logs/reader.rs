//! Reading the files of a log one after the other, from the chosen start to the end that it had when it was asked for,
//! or on and on across rotations.

use std::collections::VecDeque;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::options::LogOptions;
use super::segments::{LogFile, LogFiles, Segment, is_at};
use super::tail::{TailSearch, last_line_end};
use super::text::LogText;

/// Bytes of the file read at once, about as many as one piece of the answer has.
const READ_SIZE: usize = 64 << 10;
/// A line of the file longer than this is cut; the runtime writes 16 KiB at most.
const LINE_MAX: usize = 1 << 20;

/// What a read gave.
pub(super) enum Piece {
    /// Text, perhaps empty; there may be more at once.
    Text(Vec<u8>),
    /// The last text for now.
    End(Vec<u8>),
}

/// Reads a log.
pub(super) struct LogReader {
    path: PathBuf,
    text: LogText,
    follow: bool,
    current: Segment,
    offset: u64,
    /// The files after the current one. The last of them, or the current one if there is none, was the one written to
    /// when they were opened.
    later: VecDeque<LogFile>,
    /// Where reading ends in the file that was written to, if it does not follow: a log that grows as fast as it is read
    /// has an end, too, and a tail the number of lines that was asked for.
    live_end: u64,
    /// The newest time in the name of a file put aside when the files were opened.
    rotated_until: String,
    /// The beginning of a line of the file whose end is not written yet.
    rest: Vec<u8>,
}

impl LogReader {
    /// Opens the log and finds its start.
    pub(super) fn open(path: &Path, options: LogOptions) -> io::Result<LogReader> {
        let files = LogFiles::open(path)?;
        let mut live = files.live.segment()?;
        let size = live.seek(SeekFrom::End(0))?;
        let live_end = last_line_end(&mut live, size)?;
        let rotated_until = files.newest_rotated().to_owned();
        let (mut later, mut start) = (VecDeque::from([files.live]), None);
        let mut search = options.tail_lines.map(|lines| TailSearch::new(lines, options.stream));
        if let Some(search) = &mut search {
            start = search.look_through(&mut live, live_end)?;
        }
        for file in files.rotated {
            if start.is_some() {
                break;
            }
            if let Some(search) = &mut search {
                let mut segment = file.segment()?;
                let end = segment.seek(SeekFrom::End(0))?;
                start = search.look_through(&mut segment, end)?;
            }
            later.push_front(file);
        }
        let offset = start.unwrap_or(0);
        let mut current = later.pop_front().map_or(Ok(live), |first| first.segment())?;
        current.seek(SeekFrom::Start(offset))?;
        let follow = options.follow;
        let (path, text) = (path.to_owned(), LogText::new(options));
        Ok(LogReader { path, text, follow, current, offset, later, live_end, rotated_until, rest: Vec::new() })
    }

    /// Nothing more is to be sent.
    pub(super) fn is_full(&self) -> bool {
        self.text.is_full()
    }

    /// Reads on.
    pub(super) fn read_piece(&mut self) -> io::Result<Piece> {
        let mut out = Vec::new();
        if self.is_full() {
            return Ok(Piece::End(out));
        }
        let bounded = !self.follow && self.later.is_empty();
        let left = if bounded { self.live_end.saturating_sub(self.offset) } else { u64::MAX };
        let mut buffer = vec![0; left.min(READ_SIZE as u64) as usize];
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

    /// Goes on with the next file when the current one is at its end; false where there is none (yet).
    fn next_file(&mut self) -> io::Result<bool> {
        if let Some(file) = self.later.pop_front() {
            self.current = file.segment()?;
            self.offset = 0;
            self.rest.clear();
            return Ok(true);
        }
        let Segment::Plain(current) = &mut self.current else { return Ok(false) };
        if !self.follow {
            return Ok(false);
        }
        if is_at(current, &self.path)? {
            if current.metadata()?.len() >= self.offset {
                return Ok(false);
            }
            // Somebody has cut the file in place.
            current.rewind()?;
            self.offset = 0;
            self.rest.clear();
            return Ok(true);
        }
        let files = match LogFiles::open(&self.path) {
            Ok(files) => files,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        // Between the renaming and the runtime's opening of a new file this one is still written to.
        if files.live.is(current)? {
            return Ok(false);
        }
        // The runtime writes to the new file only; but it may have written to the old one since it was read.
        if current.metadata()?.len() > self.offset {
            return Ok(true);
        }
        let newest = files.newest_rotated().to_owned();
        self.later = files.after(current, &self.rotated_until)?;
        self.rotated_until = newest;
        self.next_file()
    }
}

#[cfg(test)]
mod tests;
