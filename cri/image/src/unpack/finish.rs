//! What a layer needs from the layers below it: owner and mode of directories it only implied, and files it links to.
//!
//! Layers are unpacked side by side, so this runs afterwards, when everything below is complete.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::extract::{OPAQUE_ATTRIBUTE, split};
use super::tree::{is_directory, open_directory, open_inside};
use super::{Leftover, UnpackError};

/// Completes the layer in `root` by what lies below: `lower` has the roots of the layers below, topmost first.
pub fn finish(root: impl AsFd, leftover: &Leftover, lower: &[OwnedFd]) -> Result<(), UnpackError> {
    for path in &leftover.implied_directories {
        adopt_directory(root.as_fd(), path, lower)
            .map_err(|error| failed(path, "take over a directory of a lower layer", error))?;
    }
    for (path, target) in &leftover.links_down {
        copy_up(root.as_fd(), path, target, lower)?;
    }
    Ok(())
}

fn failed(path: &[u8], operation: &'static str, error: Errno) -> UnpackError {
    UnpackError::Write { entry: String::from_utf8_lossy(path).into_owned(), operation, source: error.into() }
}

/// Gives an implied directory the owner, mode and time of the same directory below.
fn adopt_directory(root: BorrowedFd<'_>, path: &[u8], lower: &[OwnedFd]) -> rustix::io::Result<()> {
    let Ok(directory) = open_directory(root, path) else { return Ok(()) };
    let Some(below) = find_below(path, lower) else { return Ok(()) };
    let stat = rustix::fs::fstat(&below)?;
    if !is_directory(&stat) {
        return Ok(());
    }
    rustix::fs::fchown(&directory, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    rustix::fs::fchmod(&directory, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    rustix::fs::futimens(&directory, &times_of(&stat))
}

/// Copies the file that a hard link means out of the layers below.
fn copy_up(root: BorrowedFd<'_>, path: &[u8], target: &[u8], lower: &[OwnedFd]) -> Result<(), UnpackError> {
    let refuse = |why: String| UnpackError::Entry { entry: String::from_utf8_lossy(path).into_owned(), why };
    let shown = String::from_utf8_lossy(target).into_owned();
    let source =
        find_below(target, lower).ok_or_else(|| refuse(format!("its hard link target {shown:?} is in no layer")))?;
    let stat = rustix::fs::fstat(&source).map_err(|error| failed(path, "stat its link target", error))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(refuse(format!("its hard link target {shown:?} in a lower layer is no regular file")));
    }
    copy_file(root, path, &source, &stat)
        .map_err(|error| failed(path, "copy its link target from a lower layer", error))
}

fn copy_file(root: BorrowedFd<'_>, path: &[u8], source: &OwnedFd, stat: &rustix::fs::Stat) -> rustix::io::Result<()> {
    let components = split(path).map_err(|_| Errno::INVAL)?;
    let (name, parents) = components.split_last().ok_or(Errno::INVAL)?;
    let name = CString::new(*name).map_err(|_| Errno::INVAL)?;
    let parent = open_directory(root, &parents.join(&b'/'))?;
    let readable = reopen(source)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let copy = match rustix::fs::openat(&parent, &name, flags, Mode::from_raw_mode(0o600)) {
        // A later entry took the name.
        Err(Errno::EXIST) => return Ok(()),
        other => other?,
    };
    let mut to = File::from(copy);
    std::io::copy(&mut File::from(readable.try_clone().map_err(|_| Errno::MFILE)?), &mut to)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    rustix::fs::fchown(&to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    rustix::fs::fchmod(&to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    let mut capability = [0; 64];
    if let Ok(length) = rustix::fs::fgetxattr(&readable, "security.capability", &mut capability[..]) {
        rustix::fs::fsetxattr(&to, "security.capability", &capability[..length], XattrFlags::empty())?;
    }
    rustix::fs::futimens(&to, &times_of(stat))
}

/// An O_PATH descriptor of a regular file, opened for reading.
fn reopen(file: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    rustix::fs::open(format!("/proc/self/fd/{}", file.as_raw_fd()), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// What a path means in the stack of lower layers, as overlayfs would merge them: the topmost wins, whiteouts and opaque
/// directories end the search.
fn find_below(path: &[u8], lower: &[OwnedFd]) -> Option<OwnedFd> {
    let components = split(path).ok()?;
    for layer in lower {
        let mut hidden_below = false;
        let mut depth = 0;
        for end in 1..=components.len() {
            let here = components[..end].join(&b'/');
            let Ok(found) = open_inside(layer, &here, OFlags::PATH | OFlags::NOFOLLOW) else { break };
            let stat = rustix::fs::fstat(&found).ok()?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0 {
                return None;
            }
            depth = end;
            if end == components.len() {
                return Some(found);
            }
            if !is_directory(&stat) {
                return None;
            }
            hidden_below |= is_opaque(layer, &here);
        }
        if hidden_below && depth < components.len() {
            return None;
        }
    }
    None
}

fn is_opaque(layer: &OwnedFd, path: &[u8]) -> bool {
    let mut value = [0; 8];
    open_directory(layer, path).is_ok_and(|directory| {
        rustix::fs::fgetxattr(&directory, OPAQUE_ATTRIBUTE, &mut value[..]).is_ok_and(|length| &value[..length] == b"y")
    })
}

fn times_of(stat: &rustix::fs::Stat) -> Timestamps {
    let time = Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as _ };
    Timestamps { last_access: time, last_modification: time }
}
