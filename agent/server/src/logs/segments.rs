//! The files of one log: those that rotation has put aside, oldest first, then the one that is written to.

use std::fs::File;
use std::io::{self, Cursor, Read, Seek};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use rustix::fs::OFlags;

/// A compressed file is read up to this size; the kubelet rotates at 10 MiB.
const UNPACKED_MAX: u64 = 256 << 20;

/// A file of the log. Compressed ones are unpacked in memory.
pub(super) enum Segment {
    Plain(File),
    Unpacked(Cursor<Vec<u8>>),
}

impl Read for Segment {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(file) => file.read(buffer),
            Self::Unpacked(bytes) => bytes.read(buffer),
        }
    }
}

impl Seek for Segment {
    fn seek(&mut self, position: io::SeekFrom) -> io::Result<u64> {
        match self {
            Self::Plain(file) => file.seek(position),
            Self::Unpacked(bytes) => bytes.seek(position),
        }
    }
}

/// Opens a file of the log: a regular file, never through a link, never waiting for a pipe's other end.
pub(super) fn open_log(path: &Path) -> io::Result<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC).bits() as i32;
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{} is not a regular file", path.display())));
    }
    Ok(file)
}

/// Opens a rotated file.
pub(super) fn open_rotated(path: &Path) -> io::Result<Segment> {
    let file = open_log(path)?;
    if path.extension().is_none_or(|extension| extension != "gz") {
        return Ok(Segment::Plain(file));
    }
    let mut bytes = Vec::new();
    MultiGzDecoder::new(file).take(UNPACKED_MAX).read_to_end(&mut bytes)?;
    Ok(Segment::Unpacked(Cursor::new(bytes)))
}

/// Rotated files of the log at `live`, the newest first: `<name>.<time>` and `<name>.<time>.gz`, where the time is
/// written so that names sort by it (`20260102-030405`).
pub(super) fn rotated_files(live: &Path) -> Vec<PathBuf> {
    let (Some(folder), Some(name)) = (live.parent(), live.file_name().and_then(|name| name.to_str())) else {
        return Vec::new();
    };
    let prefix = format!("{name}.");
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(|name| is_rotated(name, &prefix)))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found.reverse();
    found
}

fn is_rotated(name: &str, prefix: &str) -> bool {
    let Some(rest) = name.strip_prefix(prefix) else { return false };
    let time = rest.strip_suffix(".gz").unwrap_or(rest);
    // `.tmp` files are being written by whoever rotates.
    !time.is_empty() && time.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotated_files_are_those_with_a_time() {
        for (name, want) in [
            ("0.log.20260102-030405", true),
            ("0.log.20260102-030405.gz", true),
            ("0.log.20260102-030405.tmp", false),
            ("0.log.", false),
            ("0.log", false),
            ("1.log.20260102-030405", false),
        ] {
            assert_eq!(is_rotated(name, "0.log."), want, "{name}");
        }
    }
}
