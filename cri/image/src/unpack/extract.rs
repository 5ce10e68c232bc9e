//! Writes the entries of a layer below a directory, in the form that overlayfs reads.
//!
//! Each entry's parent is opened inside the layer's root (openat2, in-root), its last component is created by that
//! descriptor and never followed. Whiteouts become 0/0 character devices, opaque markers `trusted.overlay.opaque`.

use std::collections::HashSet;
use std::ffi::CString;
use std::io::Read;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::tar_stream::{Entry, EntryKind, TarStream};
use super::tree::{is_directory, open_directory, remove_tree};
use super::{Leftover, UnpackError, UnpackLimits, read_error};

/// Marks a whiteout of what follows.
const WHITEOUT_PREFIX: &[u8] = b".wh.";
/// Marks its directory as opaque.
const WHITEOUT_OPAQUE: &[u8] = b".wh..wh..opq";
/// Other marks of the old aufs format; they say nothing to us.
const WHITEOUT_META_PREFIX: &[u8] = b".wh..wh.";

/// The attribute by which overlayfs hides everything below a directory.
pub(super) const OPAQUE_ATTRIBUTE: &str = "trusted.overlay.opaque";

/// Bits of a mode that chmod sets.
const MODE_BITS: u32 = 0o7777;
/// Bits of a mode that a file may have before it has its owner.
const FIRST_MODE_BITS: u32 = 0o755;
/// Most components of a path.
const COMPONENTS_MAX: usize = 256;
/// Longest component in bytes (NAME_MAX).
const COMPONENT_BYTES_MAX: usize = 255;
/// Most symlinks followed to make a directory.
const SYMLINKS_MAX: u8 = 10;
/// Bytes written between two looks at the free space.
const SPACE_CHECK_BYTES: u64 = 64 << 20;

/// Extracts all entries below `root`.
pub(super) fn extract(
    source: &mut dyn Read,
    root: BorrowedFd<'_>,
    limits: &UnpackLimits,
) -> Result<Leftover, UnpackError> {
    let mut extractor = Extractor {
        root,
        limits,
        leftover: Leftover::default(),
        parent: None,
        directory_times: Vec::new(),
        implied: HashSet::new(),
        written: SPACE_CHECK_BYTES,
        buffer: vec![0; 256 * 1024],
    };
    let mut stream = TarStream::new(source);
    let mut count = 0;
    while let Some(entry) = stream.next_entry()? {
        count += 1;
        if count > limits.entries_max {
            return Err(UnpackError::TooLarge(format!("the layer has more than {} entries", limits.entries_max)));
        }
        extractor.take(&entry, &mut stream)?;
    }
    extractor.finish()
}

struct Extractor<'a> {
    root: BorrowedFd<'a>,
    limits: &'a UnpackLimits,
    leftover: Leftover,
    /// The directory used last. Archives list files by directory, so this saves most lookups.
    parent: Option<(Vec<u8>, OwnedFd)>,
    /// Times of directories are set last: writing into them changes them.
    directory_times: Vec<(Vec<u8>, Timestamps)>,
    implied: HashSet<Vec<u8>>,
    written: u64,
    buffer: Vec<u8>,
}

impl Extractor<'_> {
    fn take(&mut self, entry: &Entry, content: &mut dyn Read) -> Result<(), UnpackError> {
        let components = split(&entry.path).map_err(|why| UnpackError::Entry { entry: entry.shown(), why })?;
        let Some((name, parents)) = components.split_last() else {
            return self.take_root(entry);
        };
        // Nothing lies below a whiteout; below the old aufs marks lies what aufs noted for itself.
        if parents.iter().any(|parent| parent.starts_with(WHITEOUT_META_PREFIX)) {
            return Ok(());
        }
        if parents.iter().any(|parent| parent.starts_with(WHITEOUT_PREFIX)) {
            return Err(refuse(entry, "it lies below a whiteout (a name that begins with .wh.)"));
        }
        let parent_path = parents.join(&b'/');
        let parent = self.open_parent(entry, &parent_path)?;
        if name.starts_with(WHITEOUT_PREFIX) {
            let done = self.take_whiteout(entry, &parent, name);
            self.parent = Some((parent_path, parent));
            return done;
        }
        let name = cstring(entry, name)?;
        let mut path = parent_path.clone();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name.as_bytes());
        let was_whiteout = self.make_room(entry, &parent, &name)?;
        match entry.kind {
            EntryKind::File => self.write_file(entry, content, &parent, &name)?,
            EntryKind::Directory => self.make_directory(entry, &parent, &name, &path, was_whiteout)?,
            EntryKind::Symlink => {
                rustix::fs::symlinkat(entry.link.as_slice(), &parent, &name).map_err(write(entry, "symlink"))?;
                self.dress(entry, &parent, &name)?;
            }
            EntryKind::Hardlink => self.link(entry, &parent, &name, &path)?,
            EntryKind::CharacterDevice | EntryKind::BlockDevice | EntryKind::Fifo => {
                let (kind, device) = match entry.kind {
                    EntryKind::CharacterDevice => {
                        (FileType::CharacterDevice, rustix::fs::makedev(entry.device.0, entry.device.1))
                    }
                    EntryKind::BlockDevice => {
                        (FileType::BlockDevice, rustix::fs::makedev(entry.device.0, entry.device.1))
                    }
                    _ => (FileType::Fifo, 0),
                };
                rustix::fs::mknodat(&parent, &name, kind, Mode::from_raw_mode(0o600), device)
                    .map_err(write(entry, "mknod"))?;
                self.dress(entry, &parent, &name)?;
            }
        }
        self.parent = Some((parent_path, parent));
        Ok(())
    }

    /// `./` describes the layer's root itself.
    fn take_root(&mut self, entry: &Entry) -> Result<(), UnpackError> {
        if entry.kind != EntryKind::Directory {
            return Err(refuse(entry, "the root of a layer must be a directory"));
        }
        let root = open_directory(self.root, b"").map_err(write(entry, "open"))?;
        dress_open(entry, &root)?;
        self.directory_times.push((Vec::new(), times(entry)));
        Ok(())
    }

    /// The parent directory of an entry; made where the archive did not describe it.
    fn open_parent(&mut self, entry: &Entry, path: &[u8]) -> Result<OwnedFd, UnpackError> {
        if let Some((known, parent)) = self.parent.take()
            && known == path
        {
            return Ok(parent);
        }
        match open_directory(self.root, path) {
            Err(Errno::NOENT) => {}
            other => return other.map_err(write(entry, "open its parent directory")),
        }
        self.make_directories(entry, path, SYMLINKS_MAX)
    }

    /// Makes the directories of a path that the archive did not describe. A symlink to a directory that is not in this
    /// layer gets that directory, inside the root.
    fn make_directories(&mut self, entry: &Entry, path: &[u8], symlinks_left: u8) -> Result<OwnedFd, UnpackError> {
        let mut end = 0;
        let mut current = open_directory(self.root, b"").map_err(write(entry, "open the layer's root"))?;
        for component in path.split(|byte| *byte == b'/').filter(|component| !component.is_empty()) {
            let parent_end = end.max(1) - 1;
            let name = cstring(entry, component)?;
            end += component.len();
            current = match open_directory(self.root, &path[..end]) {
                Err(Errno::NOENT) => {
                    match rustix::fs::mkdirat(&current, &name, Mode::from_raw_mode(0o755)) {
                        Ok(()) => {
                            // Not left to the umask: until the layers below are known, it looks like anyone else's.
                            rustix::fs::chmodat(&current, &name, Mode::from_raw_mode(0o755), AtFlags::empty())
                                .map_err(write(entry, "chmod"))?;
                            self.implied.insert(path[..end].to_vec());
                        }
                        Err(Errno::EXIST) if symlinks_left > 0 => {
                            let target = rustix::fs::readlinkat(&current, &name, Vec::new())
                                .map_err(write(entry, "read a symlink"))?;
                            let target = follow(&path[..parent_end], target.as_bytes());
                            self.make_directories(entry, &target, symlinks_left - 1)?;
                        }
                        Err(Errno::EXIST) => return Err(refuse(entry, "its parent is a loop of symlinks")),
                        Err(error) => return Err(write(entry, "mkdir of its parent")(error)),
                    }
                    open_directory(self.root, &path[..end])
                }
                other => other,
            }
            .map_err(write(entry, "open its parent directory"))?;
            end += 1;
        }
        Ok(current)
    }

    fn take_whiteout(&mut self, entry: &Entry, parent: &OwnedFd, name: &[u8]) -> Result<(), UnpackError> {
        if name == WHITEOUT_OPAQUE {
            return set_opaque(parent).map_err(write(entry, "mark as opaque"));
        }
        if name.starts_with(WHITEOUT_META_PREFIX) {
            return Ok(());
        }
        let hidden = &name[WHITEOUT_PREFIX.len()..];
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(refuse(entry, "a whiteout of no name"));
        }
        let hidden = cstring(entry, hidden)?;
        // What this layer itself brings stays: a whiteout hides the layers below only.
        match rustix::fs::statat(parent, &hidden, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if is_directory(&stat) => {
                let directory = open_child(parent, &hidden).map_err(write(entry, "open"))?;
                return set_opaque(&directory).map_err(write(entry, "mark as opaque"));
            }
            Ok(_) => return Ok(()),
            Err(Errno::NOENT) => {}
            Err(error) => return Err(write(entry, "stat")(error)),
        }
        rustix::fs::mknodat(parent, &hidden, FileType::CharacterDevice, Mode::empty(), 0)
            .map_err(write(entry, "mknod of a whiteout"))
    }

    /// Removes what stands in an entry's place, unless both are directories. Tells whether it was a whiteout.
    fn make_room(&mut self, entry: &Entry, parent: &OwnedFd, name: &CString) -> Result<bool, UnpackError> {
        let stat = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(false),
            Err(error) => return Err(write(entry, "stat")(error)),
        };
        if is_directory(&stat) && entry.kind == EntryKind::Directory {
            return Ok(false);
        }
        remove_tree(parent, name).map_err(write(entry, "remove what it replaces"))?;
        Ok(FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0)
    }

    fn write_file(
        &mut self,
        entry: &Entry,
        content: &mut dyn Read,
        parent: &OwnedFd,
        name: &CString,
    ) -> Result<(), UnpackError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(entry.mode & FIRST_MODE_BITS);
        let file = rustix::fs::openat(parent, name, flags, mode).map_err(write(entry, "create"))?;
        let mut left = entry.size;
        while left > 0 {
            let count = content.read(&mut self.buffer).map_err(read_error)?;
            self.check_space(count as u64)?;
            let mut bytes = &self.buffer[..count];
            while !bytes.is_empty() {
                let written =
                    rustix::io::retry_on_intr(|| rustix::io::write(&file, bytes)).map_err(write(entry, "write"))?;
                bytes = &bytes[written..];
            }
            left -= count as u64;
        }
        dress_open(entry, &file)?;
        rustix::fs::futimens(&file, &times(entry)).map_err(write(entry, "set times"))
    }

    fn check_space(&mut self, count: u64) -> Result<(), UnpackError> {
        self.written += count;
        if self.written < SPACE_CHECK_BYTES {
            return Ok(());
        }
        self.written = 0;
        let stat = rustix::fs::fstatvfs(self.root).map_err(|error| UnpackError::Read(error.into()))?;
        let free_bytes = stat.f_bavail * stat.f_frsize;
        if free_bytes < self.limits.free_bytes_min {
            return Err(UnpackError::NoSpace { free_bytes, needed_bytes: self.limits.free_bytes_min });
        }
        Ok(())
    }

    fn make_directory(
        &mut self,
        entry: &Entry,
        parent: &OwnedFd,
        name: &CString,
        path: &[u8],
        opaque: bool,
    ) -> Result<(), UnpackError> {
        match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(entry.mode & FIRST_MODE_BITS)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(write(entry, "mkdir")(error)),
        }
        let directory = open_child(parent, name).map_err(write(entry, "open"))?;
        dress_open(entry, &directory)?;
        if opaque {
            set_opaque(&directory).map_err(write(entry, "mark as opaque"))?;
        }
        self.implied.remove(path);
        self.directory_times.push((path.to_vec(), times(entry)));
        Ok(())
    }

    fn link(&mut self, entry: &Entry, parent: &OwnedFd, name: &CString, path: &[u8]) -> Result<(), UnpackError> {
        let target = split(&entry.link).map_err(|why| refuse(entry, &format!("its link target: {why}")))?;
        let Some((target_name, target_parents)) = target.split_last() else {
            return Err(refuse(entry, "a hard link to the root"));
        };
        let target_name = cstring(entry, target_name)?;
        let found = open_directory(self.root, &target_parents.join(&b'/')).and_then(|directory| {
            Ok((rustix::fs::statat(&directory, &target_name, AtFlags::SYMLINK_NOFOLLOW)?, directory))
        });
        match found {
            Ok((stat, _)) if is_directory(&stat) => Err(refuse(entry, "a hard link to a directory")),
            Ok((_, directory)) => rustix::fs::linkat(&directory, &target_name, parent, name, AtFlags::empty())
                .map_err(write(entry, "link")),
            Err(Errno::NOENT) => {
                self.leftover.links_down.push((path.to_vec(), target.join(&b'/')));
                Ok(())
            }
            Err(error) => Err(write(entry, "find its link target")(error)),
        }
    }

    /// Owner, mode, attributes and times of something that can't be opened. It was just created by us, in a directory
    /// that nobody else writes to.
    fn dress(&self, entry: &Entry, parent: &OwnedFd, name: &CString) -> Result<(), UnpackError> {
        let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
        rustix::fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(write(entry, "chown"))?;
        if entry.kind != EntryKind::Symlink {
            rustix::fs::chmodat(parent, name, Mode::from_raw_mode(entry.mode), AtFlags::empty())
                .map_err(write(entry, "chmod"))?;
        }
        for (key, value) in entry.xattrs.iter().filter(|(key, _)| key.starts_with("security.capability")) {
            let path = [format!("/proc/self/fd/{}/", parent.as_raw_fd()).as_bytes(), name.as_bytes()].concat();
            rustix::fs::lsetxattr(path.as_slice(), key.as_str(), value, XattrFlags::empty())
                .map_err(write(entry, "set an attribute"))?;
        }
        rustix::fs::utimensat(parent, name, &times(entry), AtFlags::SYMLINK_NOFOLLOW).map_err(write(entry, "set times"))
    }

    fn finish(mut self) -> Result<Leftover, UnpackError> {
        for (path, times) in self.directory_times.drain(..) {
            // A later entry may have replaced the directory.
            if let Ok(directory) = open_directory(self.root, &path) {
                let _ = rustix::fs::futimens(&directory, &times);
            }
        }
        self.leftover.implied_directories = self.implied.into_iter().collect();
        // Parents before children.
        self.leftover.implied_directories.sort();
        Ok(self.leftover)
    }
}

/// Owner, mode and attributes of an open file or directory. The order matters: chown clears setuid bits and capabilities.
/// Most files are as they should be from the start, and a look costs a hundredth of a change, which is journalled.
fn dress_open(entry: &Entry, file: &OwnedFd) -> Result<(), UnpackError> {
    let is = rustix::fs::fstat(file).map_err(write(entry, "stat"))?;
    let owned = (is.st_uid, is.st_gid) == (entry.uid, entry.gid);
    if !owned {
        rustix::fs::fchown(file, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))
            .map_err(write(entry, "chown"))?;
    }
    if !owned || is.st_mode & MODE_BITS != entry.mode & MODE_BITS {
        rustix::fs::fchmod(file, Mode::from_raw_mode(entry.mode)).map_err(write(entry, "chmod"))?;
    }
    for (key, value) in entry.xattrs.iter().filter(|(key, _)| keeps_attribute(key)) {
        match rustix::fs::fsetxattr(file, key.as_str(), value, XattrFlags::empty()) {
            // A file system without user attributes loses decoration only; capabilities are needed.
            Err(Errno::OPNOTSUPP) if key != "security.capability" => {}
            other => other.map_err(write(entry, "set an attribute"))?,
        }
    }
    Ok(())
}

/// Attributes that may come out of a layer: those of users, and capabilities. What steers overlayfs may not.
fn keeps_attribute(key: &str) -> bool {
    key == "security.capability" || (key.starts_with("user.") && !key.starts_with("user.overlay."))
}

pub(super) fn set_opaque(directory: &OwnedFd) -> rustix::io::Result<()> {
    rustix::fs::fsetxattr(directory, OPAQUE_ATTRIBUTE, b"y", XattrFlags::empty())
}

fn open_child(parent: &OwnedFd, name: &CString) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(
        parent,
        name,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// The components of a path below the root. `..` is refused, `.` and doubled slashes say nothing.
pub(super) fn split(path: &[u8]) -> Result<Vec<&[u8]>, String> {
    let components: Vec<&[u8]> = path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b".")).collect();
    if components.len() > COMPONENTS_MAX {
        return Err(format!("the path has more than {COMPONENTS_MAX} components"));
    }
    for component in &components {
        if *component == b".." {
            return Err("the path has \"..\"".into());
        }
        if component.len() > COMPONENT_BYTES_MAX {
            return Err(format!("a component of the path is longer than {COMPONENT_BYTES_MAX} bytes"));
        }
    }
    Ok(components)
}

/// Where a symlink in `directory` points, as a path below the root.
fn follow(directory: &[u8], target: &[u8]) -> Vec<u8> {
    let start: &[u8] = if target.starts_with(b"/") { b"" } else { directory };
    let mut components: Vec<&[u8]> = Vec::new();
    for component in start.split(|byte| *byte == b'/').chain(target.split(|byte| *byte == b'/')) {
        match component {
            b"" | b"." => {}
            b".." => {
                components.pop();
            }
            other => components.push(other),
        }
    }
    components.join(&b'/')
}

fn times(entry: &Entry) -> Timestamps {
    let time = Timespec { tv_sec: entry.mtime_seconds, tv_nsec: entry.mtime_nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}

fn cstring(entry: &Entry, name: &[u8]) -> Result<CString, UnpackError> {
    CString::new(name).map_err(|_| refuse(entry, "its path holds a NUL byte"))
}

fn refuse(entry: &Entry, why: &str) -> UnpackError {
    UnpackError::Entry { entry: entry.shown(), why: why.to_owned() }
}

fn write(entry: &Entry, operation: &'static str) -> impl FnOnce(Errno) -> UnpackError {
    move |error| UnpackError::Write { entry: entry.shown(), operation, source: error.into() }
}
