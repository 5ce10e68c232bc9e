//! The CRI log file of a container.
//!
//! A line is `<time> <stdout|stderr> <F|P> <text>`; `P` marks a part of a line that is longer than 16 KiB, or a last
//! line without a newline. A disk that is full loses lines, and says so once there is room again; it never stops the
//! container.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use orlop_container::clock;

/// Bytes of text in one line of the file; longer lines are split (containerd's `max_container_log_line_size`).
const LINE_BYTES: usize = 16 << 10;

/// Which stream a text came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output, and all of a terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

/// The open file, with what is left of each stream's last line.
pub struct Log {
    path: Option<PathBuf>,
    file: Option<File>,
    rest: [Vec<u8>; 2],
    lost_bytes: u64,
    reason: String,
    cut: bool,
}

impl Log {
    /// Opens the file, or keeps nothing when the container has none.
    pub fn open(path: Option<&Path>) -> std::io::Result<Log> {
        let file = path.map(open).transpose()?;
        let path = path.map(Path::to_path_buf);
        Ok(Log { path, file, rest: [Vec::new(), Vec::new()], lost_bytes: 0, reason: String::new(), cut: false })
    }

    /// Opens the file's name again, after its rotation; the old one stays in use when that fails.
    pub fn reopen(&mut self) -> std::io::Result<()> {
        if let Some(path) = &self.path {
            (self.file, self.cut) = (Some(open(path)?), false);
        }
        Ok(())
    }

    /// Takes what a stream said.
    pub fn write(&mut self, stream: Stream, bytes: &[u8]) {
        if self.file.is_none() {
            return;
        }
        let mut out = Vec::with_capacity(bytes.len() + 128);
        let rest = &mut self.rest[stream as usize];
        format(stream, rest, bytes, clock::now(), &mut out);
        self.put(&out);
    }

    /// Takes the end of a stream: a line without a newline is written out.
    pub fn finish(&mut self, stream: Stream) {
        let rest = std::mem::take(&mut self.rest[stream as usize]);
        if !rest.is_empty() && self.file.is_some() {
            let mut out = Vec::new();
            write_line(stream, b'P', &rest, clock::now(), &mut out);
            self.put(&out);
        }
    }

    fn put(&mut self, out: &[u8]) {
        let Some(file) = &self.file else { return };
        if self.lost_bytes > 0 {
            let mut note = Vec::new();
            if std::mem::take(&mut self.cut) {
                // The disk was full in the middle of a line.
                note.push(b'\n');
            }
            let text = format!("orlop: {} bytes of log were lost: {}", self.lost_bytes, self.reason);
            write_line(Stream::Stderr, b'F', text.as_bytes(), clock::now(), &mut note);
            match write_whole(file, &note) {
                Ok(()) => self.lost_bytes = 0,
                Err((written, _)) => self.cut = written > 0,
            }
        }
        let written = if self.lost_bytes == 0 { write_whole(file, out) } else { Err((0, self.reason.clone())) };
        if let Err((written, reason)) = written {
            self.lost_bytes += (out.len() - written) as u64;
            self.cut |= written > 0 && out[written - 1] != b'\n';
            self.reason = reason;
        }
    }
}

/// Writes all of it, or says how much was written and why not more.
fn write_whole(mut file: &File, bytes: &[u8]) -> Result<(), (usize, String)> {
    let mut done = 0;
    while done < bytes.len() {
        match file.write(&bytes[done..]) {
            Ok(0) => return Err((done, "the file takes no more".into())),
            Ok(count) => done += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err((done, error.to_string())),
        }
    }
    Ok(())
}

fn open(path: &Path) -> std::io::Result<File> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    // A link in the log's place is not followed: the folder may be a volume of somebody.
    std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o640)
        .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32)
        .open(path)
}

/// Splits bytes into lines; what has no newline yet stays in `rest`, which never gets longer than a line may be.
fn format(stream: Stream, rest: &mut Vec<u8>, mut bytes: &[u8], now: i64, out: &mut Vec<u8>) {
    while !bytes.is_empty() {
        let room = LINE_BYTES - rest.len();
        let newline = bytes.iter().take(room + 1).position(|byte| *byte == b'\n');
        match newline {
            Some(at) => {
                rest.extend(&bytes[..at]);
                write_line(stream, b'F', rest, now, out);
                rest.clear();
                bytes = &bytes[at + 1..];
            }
            None if bytes.len() > room => {
                rest.extend(&bytes[..room]);
                write_line(stream, b'P', rest, now, out);
                rest.clear();
                bytes = &bytes[room..];
            }
            None => {
                rest.extend(bytes);
                bytes = &[];
            }
        }
    }
}

fn write_line(stream: Stream, tag: u8, text: &[u8], now: i64, out: &mut Vec<u8>) {
    clock::write_timestamp(now, out);
    out.extend(match stream {
        Stream::Stdout => b" stdout ",
        Stream::Stderr => b" stderr ",
    });
    out.extend([tag, b' ']);
    out.extend(text);
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(chunks: &[&[u8]]) -> (Vec<String>, usize) {
        let (mut rest, mut out) = (Vec::new(), Vec::new());
        for chunk in chunks {
            format(Stream::Stdout, &mut rest, chunk, 0, &mut out);
        }
        let text = String::from_utf8(out).unwrap();
        (
            text.lines().map(|line| line.trim_start_matches("1970-01-01T00:00:00.000000000Z ").to_string()).collect(),
            rest.len(),
        )
    }

    #[test]
    fn lines_are_put_together_and_split() {
        assert_eq!(
            lines(&[b"a\nb", b"c\n\nd"]),
            (vec!["stdout F a".into(), "stdout F bc".into(), "stdout F ".into()], 1)
        );
        let long = vec![b'x'; LINE_BYTES + 5];
        let (split, rest) = lines(&[&long, b"\n"]);
        assert_eq!((split.len(), rest), (2, 0));
        assert!(split[0].starts_with("stdout P x") && split[1] == "stdout F xxxxx");
        let exact = [vec![b'y'; LINE_BYTES], b"\n".to_vec()].concat();
        assert_eq!(lines(&[&exact]).0.len(), 1, "a line of exactly the limit is whole");
    }
}
