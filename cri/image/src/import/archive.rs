//! An archive to import: a directory, or a tar whose members are found by one pass over it.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::document::{Compression, DOCUMENT_BYTES_MAX};
use crate::error::ImageError;
use crate::unpack::{EntryKind, TarStream, UnpackLimits, decompressed};

/// Most members of an archive.
const MEMBERS_MAX: usize = 100_000;
/// Most links followed to a member: `docker save` of old stored equal layers as symlinks.
const LINKS_MAX: usize = 10;

/// An opened archive.
pub(super) struct Archive {
    path: PathBuf,
    source: Source,
}

enum Source {
    Directory(OwnedFd),
    Tar { file: File, members: HashMap<String, Member> },
}

enum Member {
    Content { offset: u64, size: u64 },
    Link(String),
}

impl Archive {
    /// Opens an archive; a compressed one is first unpacked into an unnamed file in `scratch`.
    pub(super) fn open(path: &Path, scratch: &Path, limits: &UnpackLimits) -> Result<Self, ImageError> {
        let wrong = |why: String| ImageError::Archive { path: path.to_path_buf(), why };
        let mut file = File::open(path).map_err(|error| wrong(format!("can't be opened: {error}")))?;
        let metadata = file.metadata().map_err(|error| wrong(error.to_string()))?;
        if metadata.is_dir() {
            return Ok(Self { path: path.to_path_buf(), source: Source::Directory(file.into()) });
        }
        if !metadata.is_file() {
            return Err(wrong("it is neither a directory nor a file".into()));
        }
        let mut head = [0; 4];
        let compressed = file.read_at(&mut head, 0).is_ok_and(|count| count == 4)
            && (head.starts_with(&[0x1f, 0x8b]) || head == [0x28, 0xb5, 0x2f, 0xfd]);
        if compressed {
            file =
                plain_copy(&file, scratch, limits).map_err(|error| wrong(format!("can't be decompressed: {error}")))?;
        }
        let members = find_members(&file)
            .map_err(|error| wrong(format!("{error}; an OCI layout or a docker save archive is expected")))?;
        Ok(Self { path: path.to_path_buf(), source: Source::Tar { file, members } })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn wrong(&self, why: impl Into<String>) -> ImageError {
        ImageError::Archive { path: self.path.clone(), why: why.into() }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.size(name).is_ok()
    }

    /// Size of a member in bytes.
    pub(super) fn size(&self, name: &str) -> Result<u64, ImageError> {
        match &self.source {
            Source::Directory(_) => {
                Ok(self.open_file(name)?.metadata().map_err(|error| self.wrong(format!("{name}: {error}")))?.len())
            }
            Source::Tar { .. } => Ok(self.member(name)?.1),
        }
    }

    /// Reads a member as a stream.
    pub(super) fn reader(&self, name: &str) -> Result<Box<dyn Read + Send + '_>, ImageError> {
        match &self.source {
            Source::Directory(_) => Ok(Box::new(self.open_file(name)?)),
            Source::Tar { file, .. } => {
                let (offset, size) = self.member(name)?;
                Ok(Box::new(Range { file, offset, left: size }))
            }
        }
    }

    /// Reads a document whole, bounded.
    pub(super) fn read(&self, name: &str) -> Result<Vec<u8>, ImageError> {
        if self.size(name)? > DOCUMENT_BYTES_MAX {
            return Err(self.wrong(format!("{name} is larger than {DOCUMENT_BYTES_MAX} bytes")));
        }
        let mut bytes = Vec::new();
        self.reader(name)?
            .take(DOCUMENT_BYTES_MAX)
            .read_to_end(&mut bytes)
            .map_err(|error| self.wrong(format!("{name}: {error}")))?;
        Ok(bytes)
    }

    /// A file of a directory; nothing outside of it, by no symlink.
    fn open_file(&self, name: &str) -> Result<File, ImageError> {
        let Source::Directory(directory) = &self.source else { return Err(self.wrong("not a directory")) };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let open = CString::new(name)
            .map_err(|_| rustix::io::Errno::INVAL)
            .and_then(|name| rustix::fs::openat2(directory.as_fd(), name, flags, Mode::empty(), resolve));
        let file = File::from(open.map_err(|error| self.wrong(format!("{name}: {error}")))?);
        match file.metadata() {
            Ok(metadata) if metadata.is_file() => Ok(file),
            _ => Err(self.wrong(format!("{name} is no regular file"))),
        }
    }

    fn member(&self, name: &str) -> Result<(u64, u64), ImageError> {
        let Source::Tar { members, .. } = &self.source else { return Err(self.wrong("not a tar archive")) };
        let mut current = name.to_owned();
        for _ in 0..LINKS_MAX {
            match members.get(&current) {
                Some(Member::Content { offset, size }) => return Ok((*offset, *size)),
                Some(Member::Link(target)) => current = target.clone(),
                None => return Err(self.wrong(format!("{current} is missing in the archive"))),
            }
        }
        Err(self.wrong(format!("{name} is a loop of links")))
    }
}

fn plain_copy(file: &File, scratch: &Path, limits: &UnpackLimits) -> io::Result<File> {
    let path = scratch.join(format!("archive-{}", uuid::Uuid::new_v4().simple()));
    let mut copy = std::fs::OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    std::fs::remove_file(&path)?;
    let source = decompressed(file, Compression::Sniff).map_err(|error| io::Error::other(error.to_string()))?;
    let count = io::copy(&mut source.take(limits.bytes_max), &mut copy)?;
    if count >= limits.bytes_max {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it unpacks to more than {} bytes", limits.bytes_max),
        ));
    }
    copy.flush()?;
    copy.rewind()?;
    Ok(copy)
}

fn find_members(file: &File) -> Result<HashMap<String, Member>, String> {
    let size = file.metadata().map_err(|error| error.to_string())?.len();
    let mut stream = TarStream::new(Seeking { file, offset: 0, size });
    let mut members = HashMap::new();
    while let Some(entry) = stream.next_entry().map_err(|error| error.to_string())? {
        let Ok(name) = String::from_utf8(entry.path) else { continue };
        let name = normal(&name);
        match entry.kind {
            EntryKind::File => {
                members.insert(name, Member::Content { offset: stream.position(), size: entry.size });
            }
            EntryKind::Symlink | EntryKind::Hardlink => {
                if let Ok(target) = String::from_utf8(entry.link) {
                    let directory = name.rsplit_once('/').map_or("", |(directory, _)| directory);
                    let target = if entry.kind == EntryKind::Hardlink {
                        normal(&target)
                    } else {
                        normal(&format!("{directory}/{target}"))
                    };
                    members.insert(name, Member::Link(target));
                }
            }
            _ => {}
        }
        if members.len() > MEMBERS_MAX {
            return Err(format!("it has more than {MEMBERS_MAX} members"));
        }
    }
    Ok(members)
}

/// A member name without `.`, `..` and doubled slashes.
fn normal(name: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            other => parts.push(other),
        }
    }
    parts.join("/")
}

/// A part of the archive file.
struct Range<'a> {
    file: &'a File,
    offset: u64,
    left: u64,
}

impl Read for Range<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let count = self.file.read_at(&mut buffer[..most], self.offset)?;
        if count == 0 && most > 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive ends early"));
        }
        self.offset += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}

/// Reads the archive from the start. Contents are passed over by reading; the page cache then has them for the import.
struct Seeking<'a> {
    file: &'a File,
    offset: u64,
    size: u64,
}

impl Read for Seeking<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.offset >= self.size {
            return Ok(0);
        }
        let count = self.file.read_at(buffer, self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}
