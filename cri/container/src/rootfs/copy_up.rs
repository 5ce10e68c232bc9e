//! Filling a fresh file system with what lies at its place in the root (`tmpcopyup`).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, Stat};
use std::ffi::CStr;
use std::mem::MaybeUninit;

use crate::stage::{StageError, Step};

/// How deep folders may nest.
const DEPTH_MAX: usize = 64;

/// Copies folders, files, links, pipes and device nodes with their modes and owners; no link is followed. What the fresh
/// file system may hold bounds it.
pub(super) fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), StageError> {
    copy_folder(from, to, 0).step("copy what lies there")
}

fn copy_folder(from: BorrowedFd<'_>, to: BorrowedFd<'_>, depth: usize) -> std::io::Result<()> {
    if depth > DEPTH_MAX {
        return Err(std::io::Error::other(format!("its folders nest deeper than {DEPTH_MAX}")));
    }
    let list = rustix::fs::openat(from, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut entries = RawDir::new(&list, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            copy_entry(from, to, name, depth)?;
        }
    }
    Ok(())
}

fn copy_entry(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr, depth: usize) -> std::io::Result<()> {
    let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let (kind, mode) = (FileType::from_raw_mode(stat.st_mode), Mode::from_raw_mode(stat.st_mode & 0o7777));
    match kind {
        FileType::Directory => {
            rustix::fs::mkdirat(to, name, Mode::RWXU)?;
            let open = |folder: BorrowedFd<'_>| {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                rustix::fs::openat(folder, name, flags, Mode::empty())
            };
            copy_folder(open(from)?.as_fd(), open(to)?.as_fd(), depth + 1)?;
        }
        FileType::RegularFile => copy_file(from, to, name)?,
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(from, name, Vec::new())?;
            rustix::fs::symlinkat(target, to, name)?;
        }
        FileType::CharacterDevice | FileType::BlockDevice | FileType::Fifo => {
            rustix::fs::mknodat(to, name, kind, Mode::RUSR, stat.st_rdev)?;
        }
        // A socket without its listener is of no use.
        _ => return Ok(()),
    }
    own(to, name, &stat)?;
    if kind != FileType::Symlink {
        rustix::fs::chmodat(to, name, mode, AtFlags::empty())?;
    }
    Ok(())
}

fn copy_file(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr) -> std::io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let source: OwnedFd = rustix::fs::openat(from, name, flags, Mode::empty())?;
    // It may have been something else a moment ago.
    if !FileType::from_raw_mode(rustix::fs::fstat(&source)?.st_mode).is_file() {
        return Ok(());
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let target = rustix::fs::openat(to, name, flags, Mode::RUSR | Mode::WUSR)?;
    std::io::copy(&mut std::fs::File::from(source), &mut std::fs::File::from(target))?;
    Ok(())
}

fn own(to: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> std::io::Result<()> {
    let (uid, gid) = (rustix::fs::Uid::from_raw(stat.st_uid), rustix::fs::Gid::from_raw(stat.st_gid));
    Ok(rustix::fs::chownat(to, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?)
}
