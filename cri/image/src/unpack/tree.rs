//! Directory trees by file descriptor: nothing here follows a symlink or leaves the directory it was given.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Deepest directory nesting worked on in one go: each level holds a file descriptor.
const DEPTH_MAX: usize = 300;

/// Opens a directory inside `root`; symlinks on the way are resolved inside `root`.
pub(crate) fn open_directory(root: impl AsFd, path: &[u8]) -> rustix::io::Result<OwnedFd> {
    open_inside(root, path, OFlags::RDONLY | OFlags::DIRECTORY)
}

/// Opens something inside `root` with these flags; symlinks are resolved inside `root`, magic links refused.
pub(crate) fn open_inside(root: impl AsFd, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let path = if path.is_empty() { b"." } else { path };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    // EAGAIN: something was renamed during the walk and the kernel could not be sure; nothing of ours does that for long.
    for _ in 0..16 {
        match rustix::fs::openat2(&root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN) => {}
            result => return result,
        }
    }
    Err(Errno::AGAIN)
}

/// Removes what `name` is in `parent`, with everything below it. Absent is fine. Directories nested deeper than file
/// descriptors allow are first moved up, into `parent`.
pub(crate) fn remove_tree(parent: impl AsFd, name: &CStr) -> rustix::io::Result<()> {
    let parent = parent.as_fd();
    let mut moved_up = 0;
    let mut names = vec![name.to_owned()];
    while let Some(name) = names.pop() {
        remove_at_depth(parent, parent, &name, 0, &mut moved_up, &mut names)?;
    }
    Ok(())
}

fn remove_at_depth(
    top: BorrowedFd<'_>,
    parent: BorrowedFd<'_>,
    name: &CStr,
    depth: usize,
    moved_up: &mut u32,
    later: &mut Vec<CString>,
) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error),
    }
    if depth >= DEPTH_MAX {
        *moved_up += 1;
        let up = CString::new(format!(".removing-{}-{moved_up}", std::process::id())).map_err(|_| Errno::INVAL)?;
        rustix::fs::renameat(parent, name, top, up.as_c_str())?;
        later.push(up);
        return Ok(());
    }
    let directory = match open_child(parent, name) {
        Err(Errno::NOENT) => return Ok(()),
        other => other?,
    };
    let mut below = Vec::new();
    for entry in Dir::read_from(&directory)? {
        let entry = entry?;
        if matches!(entry.file_name().to_bytes(), b"." | b"..") {
            continue;
        }
        match rustix::fs::unlinkat(&directory, entry.file_name(), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR | Errno::PERM) => below.push(entry.file_name().to_owned()),
            Err(error) => return Err(error),
        }
    }
    for name in below {
        remove_at_depth(top, directory.as_fd(), &name, depth + 1, moved_up, later)?;
    }
    drop(directory);
    match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error),
    }
}

fn open_child(parent: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(
        parent,
        name,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// Bytes on disk and inodes of a tree, itself included. A file with several links counts by shares.
pub(crate) fn measure(directory: impl AsFd) -> rustix::io::Result<(u64, u64)> {
    let mut total = (0, 1);
    measure_into(directory.as_fd(), &mut total, 0)?;
    Ok(total)
}

fn measure_into(directory: BorrowedFd<'_>, total: &mut (u64, u64), depth: usize) -> rustix::io::Result<()> {
    if depth >= DEPTH_MAX {
        return Err(Errno::LOOP);
    }
    let mut below = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        if matches!(entry.file_name().to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = rustix::fs::statat(directory, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)?;
        let shares = if is_directory(&stat) { 1 } else { stat.st_nlink.max(1) };
        total.0 += stat.st_blocks as u64 * 512 / shares;
        total.1 += 1;
        if is_directory(&stat) {
            below.push(entry.file_name().to_owned());
        }
    }
    for name in below {
        measure_into(open_child(directory, &name)?.as_fd(), total, depth + 1)?;
    }
    Ok(())
}

pub(crate) fn is_directory(stat: &rustix::fs::Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}
