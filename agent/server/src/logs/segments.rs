//! The files of one log: those that rotation has put aside, oldest first, then the one that is written to.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{File, Metadata};
use std::io::{self, Cursor, Read, Seek};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use flate2::read::MultiGzDecoder;
use rustix::fs::OFlags;

/// A compressed file is read up to this size; the kubelet rotates at 10 MiB.
const UNPACKED_MAX: u64 = 256 << 20;
/// Rotated files that are looked at, the newest; the kubelet keeps 5 files of a log unless told otherwise.
const ROTATED_MAX: usize = 64;
/// How often the files are opened again because one of them was rotated or compressed meanwhile.
const OPEN_TRIES: u32 = 16;

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

/// A file of the log, kept open: rotation may rename, compress or remove it meanwhile.
pub(super) struct LogFile {
    file: File,
    packed: bool,
    /// When it was put aside, as its name tells; empty for one that has its first name.
    time: String,
}

impl LogFile {
    /// Its text, from the beginning.
    pub(super) fn segment(&self) -> io::Result<Segment> {
        let mut file = self.file.try_clone()?;
        file.rewind()?;
        if !self.packed {
            return Ok(Segment::Plain(file));
        }
        let mut bytes = Vec::new();
        MultiGzDecoder::new(file).take(UNPACKED_MAX).read_to_end(&mut bytes)?;
        Ok(Segment::Unpacked(Cursor::new(bytes)))
    }

    /// Whether both are the same file, whatever their names.
    pub(super) fn is(&self, other: &File) -> io::Result<bool> {
        Ok(is_same_file(&self.file.metadata()?, &other.metadata()?))
    }
}

/// All files of a log at one moment.
pub(super) struct LogFiles {
    /// The one that is written to.
    pub(super) live: LogFile,
    /// Those put aside, the newest first.
    pub(super) rotated: Vec<LogFile>,
}

impl LogFiles {
    /// Opens the files of the log at `path`, which may be rotated at any time.
    ///
    /// # Errors
    /// When the file can't be opened. Between its renaming and the opening of a new one, the one that was put aside
    /// last stands in for it, since it is still written to.
    pub(super) fn open(path: &Path) -> io::Result<LogFiles> {
        for _ in 1..OPEN_TRIES {
            if let Some(files) = Self::try_open(path, false)? {
                return Ok(files);
            }
        }
        Self::try_open(path, true)?.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// When the newest of those put aside was, as its name tells.
    pub(super) fn newest_rotated(&self) -> &str {
        self.rotated.first().map_or("", |newest| &newest.time)
    }

    /// The files that were written after `current`, the oldest first. `current` was written to when the newest file put
    /// aside was that of `known`.
    pub(super) fn after(self, current: &File, known: &str) -> io::Result<VecDeque<LogFile>> {
        let mut later = VecDeque::from([self.live]);
        for file in self.rotated {
            if file.is(current)? {
                return Ok(later);
            }
            if file.time.as_str() <= known {
                break;
            }
            later.push_front(file);
        }
        // By its name the oldest of them is `current`, though in another file since it was compressed.
        if later.front().is_some_and(|oldest| oldest.packed) {
            later.pop_front();
        }
        Ok(later)
    }

    /// None when the files changed their names meanwhile: some would be there twice, or not at all. The last try takes
    /// what there is.
    fn try_open(path: &Path, last: bool) -> io::Result<Option<LogFiles>> {
        let live = open_log(path);
        let Some(mut rotated) = open_rotated(path, last) else { return Ok(None) };
        match live {
            Ok(live) if last || is_at(&live, path)? => {
                Ok(Some(LogFiles { live: LogFile { file: live, packed: false, time: String::new() }, rotated }))
            }
            Ok(_) => Ok(None),
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Err(_) if rotated.first().is_some_and(|newest| !newest.packed) => {
                Ok(Some(LogFiles { live: rotated.remove(0), rotated }))
            }
            Err(_) if !last && !rotated.is_empty() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Whether the file still has that name.
pub(super) fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    match path.symlink_metadata() {
        Ok(named) => Ok(is_same_file(&file.metadata()?, &named)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_same_file(one: &Metadata, other: &Metadata) -> bool {
    one.dev() == other.dev() && one.ino() == other.ino()
}

/// Opens a file of the log: a regular file, never through a link, never waiting for a pipe's other end.
fn open_log(path: &Path) -> io::Result<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC).bits() as i32;
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{} is not a regular file", path.display())));
    }
    Ok(file)
}

/// Opens the rotated files of the log at `live`, the newest first: `<name>.<time>` and `<name>.<time>.gz`, where the
/// time is written so that names sort by it (`20260102-030405`). None when one was compressed or removed meanwhile,
/// unless such are to be left out.
fn open_rotated(live: &Path, leave_out: bool) -> Option<Vec<LogFile>> {
    let (Some(folder), Some(name)) = (live.parent(), live.file_name().and_then(|name| name.to_str())) else {
        return Some(Vec::new());
    };
    let prefix = format!("{name}.");
    // By time; of a file that is just being compressed the one that is whole, which sorts first.
    let mut names: BTreeMap<String, String> = BTreeMap::new();
    for entry in folder.read_dir().into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let Some(time) = rotated_at(&name, &prefix) else { continue };
        let known = names.entry(time.to_owned()).or_insert_with(|| name.clone());
        if name < *known {
            *known = name;
        }
    }
    let mut files = Vec::new();
    for (time, name) in names.into_iter().rev().take(ROTATED_MAX) {
        match open_log(&folder.join(&name)) {
            Ok(file) => files.push(LogFile { file, packed: name.ends_with(".gz"), time }),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !leave_out => return None,
            // What can't be opened is no reason to withhold the rest.
            Err(_) => {}
        }
    }
    Some(files)
}

/// The time in the name of a rotated file.
fn rotated_at<'a>(name: &'a str, prefix: &str) -> Option<&'a str> {
    let rest = name.strip_prefix(prefix)?;
    let time = rest.strip_suffix(".gz").unwrap_or(rest);
    // `.tmp` files are being written by whoever rotates.
    (!time.is_empty() && time.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-')).then_some(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotated_files_are_those_with_a_time() {
        let time = Some("20260102-030405");
        for (name, want) in [
            ("0.log.20260102-030405", time),
            ("0.log.20260102-030405.gz", time),
            ("0.log.20260102-030405.tmp", None),
            ("0.log.", None),
            ("0.log", None),
            ("1.log.20260102-030405", None),
        ] {
            assert_eq!(rotated_at(name, "0.log."), want, "{name}");
        }
    }

    #[test]
    fn files_are_found_in_every_state_of_a_rotation() {
        type Case = (&'static str, &'static [&'static str], Option<(&'static str, &'static [&'static str])>);
        let cases: [Case; 8] = [
            ("nothing", &[], None),
            ("one file", &["0.log"], Some(("0.log", &[]))),
            ("others", &["0.log", "1.log", "0.log.tmp"], Some(("0.log", &[]))),
            ("rotated", &["0.log", "0.log.1", "0.log.2"], Some(("0.log", &["0.log.2", "0.log.1"]))),
            ("compressed", &["0.log", "0.log.1.gz", "0.log.2"], Some(("0.log", &["0.log.2", "0.log.1.gz"]))),
            ("being compressed", &["0.log", "0.log.1", "0.log.1.gz", "0.log.1.tmp"], Some(("0.log", &["0.log.1"]))),
            ("renamed, not opened again", &["0.log.1", "0.log.2"], Some(("0.log.2", &["0.log.1"]))),
            ("only what is compressed", &["0.log.1.gz"], None),
        ];
        for (what, files, want) in cases {
            let folder = tempfile::tempdir().unwrap();
            for name in files {
                std::fs::write(folder.path().join(name), name).unwrap();
            }
            let text = |file: &LogFile| io::read_to_string(&file.file).unwrap();
            let found = LogFiles::open(&folder.path().join("0.log")).ok();
            let found = found.map(|found| (text(&found.live), found.rotated.iter().map(text).collect::<Vec<_>>()));
            let want =
                want.map(|(live, rotated)| (live.to_owned(), rotated.iter().map(|name| (*name).to_owned()).collect()));
            assert_eq!(found, want, "{what}");
        }
    }
}
