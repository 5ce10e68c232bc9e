//! Walking and removing trees of files that may be hostile: no link is followed, no mount is crossed, and no depth is
//! too deep.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Descriptors that one walk holds at most; the folders above those are opened again on the way back.
const OPEN_MAX: usize = 32;
/// How often a folder that fills again while it is being removed is tried.
const REMOVE_TRIES: usize = 8;

/// One folder of the walk.
struct Level {
    fd: Option<OwnedFd>,
    identity: (u64, u64),
    name: CString,
    folders: Vec<CString>,
}

/// What lies on the way of a walk, seen from its folder.
#[derive(Clone, Copy, Debug)]
pub struct TreeEntry<'a> {
    /// The folder that it is in.
    pub parent: BorrowedFd<'a>,
    /// Its name there.
    pub name: &'a CStr,
    /// Whether it is a folder; all in it has been visited before.
    pub is_folder: bool,
}

/// What a walk does about a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtMount {
    /// It ends with an error.
    Stop,
    /// It goes on beside it.
    PassBy,
}

/// Visits everything below a folder, a folder after what is in it, and not the folder itself.
///
/// # Errors
/// What the visitor or the kernel says, and `EXDEV` at a mount with [`AtMount::Stop`].
pub fn walk_tree(
    root: impl AsFd,
    at_mount: AtMount,
    visit: &mut dyn FnMut(TreeEntry<'_>) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let top = rustix::fs::openat(root, ".", FOLDER, Mode::empty())?;
    let mut levels = vec![enter(top, CString::default(), visit)?];
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.folders.pop() else {
            leave(&mut levels, visit)?;
            continue;
        };
        let Some(fd) = level.fd.as_ref() else { return Err(Errno::BADF.into()) };
        match open_below(fd.as_fd(), &name) {
            Ok(below) => {
                let below = enter(below, name, visit)?;
                levels.push(below);
                if let Some(far) = levels.len().checked_sub(OPEN_MAX + 1) {
                    levels[far].fd = None;
                }
            }
            Err(Errno::XDEV) if at_mount == AtMount::PassBy => {}
            Err(Errno::NOENT) => {}
            // It was a folder a moment ago.
            Err(Errno::NOTDIR | Errno::LOOP) => {
                visit(TreeEntry { parent: fd.as_fd(), name: &name, is_folder: false })?;
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

fn open_below(folder: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    loop {
        match rustix::fs::openat2(folder, name, FOLDER, Mode::empty(), resolve) {
            Err(Errno::AGAIN) => {}
            other => return other,
        }
    }
}

/// Reads a folder: files are visited at once, folders are noted.
fn enter(
    fd: OwnedFd,
    name: CString,
    visit: &mut dyn FnMut(TreeEntry<'_>) -> std::io::Result<()>,
) -> std::io::Result<Level> {
    let stat = rustix::fs::fstat(&fd)?;
    let mut folders = Vec::new();
    for entry in Dir::read_from(&fd)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => match rustix::fs::statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(errno.into()),
            },
            known => known,
        };
        if kind.is_dir() {
            folders.push(name.to_owned());
        } else {
            visit(TreeEntry { parent: fd.as_fd(), name, is_folder: false })?;
        }
    }
    Ok(Level { fd: Some(fd), identity: (stat.st_dev, stat.st_ino), name, folders })
}

/// Goes up from a folder that is done, and visits it from there.
fn leave(levels: &mut Vec<Level>, visit: &mut dyn FnMut(TreeEntry<'_>) -> std::io::Result<()>) -> std::io::Result<()> {
    let Some(done) = levels.pop() else { return Ok(()) };
    let Some(parent) = levels.last_mut() else { return Ok(()) };
    if parent.fd.is_none()
        && let Some(below) = &done.fd
    {
        let up = rustix::fs::openat(below, "..", FOLDER, Mode::empty())?;
        let stat = rustix::fs::fstat(&up)?;
        if (stat.st_dev, stat.st_ino) != parent.identity {
            // Somebody moved the folder away under the walk; what is above it now is none of ours.
            return Err(Errno::STALE.into());
        }
        parent.fd = Some(up);
    }
    match &parent.fd {
        Some(fd) => visit(TreeEntry { parent: fd.as_fd(), name: &done.name, is_folder: true }),
        None => Err(Errno::BADF.into()),
    }
}

/// Removes a file, or a folder with all that is in it, from the folder `parent`. Its absence is success.
///
/// # Errors
/// `EXDEV` when something is mounted in it (nothing below a mount is touched), or what the kernel says.
pub fn remove_tree(parent: impl AsFd, name: &OsStr) -> std::io::Result<()> {
    let name = CString::new(name.as_bytes()).map_err(|_| Errno::INVAL)?;
    let parent = parent.as_fd();
    for _ in 0..REMOVE_TRIES {
        match open_below(parent, &name) {
            Ok(folder) => {
                walk_tree(&folder, AtMount::Stop, &mut |entry| unlink(entry.parent, entry.name, entry.is_folder))?;
            }
            Err(Errno::NOENT) => return Ok(()),
            Err(Errno::NOTDIR | Errno::LOOP) => return unlink(parent, &name, false),
            Err(errno) => return Err(errno.into()),
        }
        match rustix::fs::unlinkat(parent, &name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Err(Errno::NOTEMPTY.into())
}

/// The same by the machine's own path, whose folder must be trusted.
///
/// # Errors
/// As [`remove_tree`].
pub fn remove_tree_at(path: &Path) -> std::io::Result<()> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::INVAL.into()) };
    match rustix::fs::openat(CWD, folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(parent) => remove_tree(parent, name),
        Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn unlink(parent: BorrowedFd<'_>, name: &CStr, is_folder: bool) -> std::io::Result<()> {
    let flags = if is_folder { AtFlags::REMOVEDIR } else { AtFlags::empty() };
    match rustix::fs::unlinkat(parent, name, flags) {
        // A folder that has filled again is seen to by the next round.
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::NOTEMPTY | Errno::EXIST) if is_folder => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    fn folder(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("orlop-tree-{name}-{}", std::process::id()));
        let _ = remove_tree_at(&path);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn links_are_removed_and_not_followed() {
        let base = folder("links");
        std::fs::create_dir(base.join("kept")).unwrap();
        std::fs::write(base.join("kept/file"), "x").unwrap();
        std::fs::create_dir(base.join("gone")).unwrap();
        symlink(base.join("kept"), base.join("gone/out")).unwrap();
        symlink("/no/such", base.join("gone/dangling")).unwrap();
        remove_tree_at(&base.join("gone")).unwrap();
        assert!(!base.join("gone").exists() && base.join("kept/file").exists());
        symlink("kept", base.join("link")).unwrap();
        remove_tree_at(&base.join("link")).unwrap();
        assert!(base.join("kept/file").exists() && base.join("link").symlink_metadata().is_err());
        remove_tree_at(&base.join("never/there")).unwrap();
        remove_tree_at(&base).unwrap();
    }

    #[test]
    fn trees_deeper_than_a_path_can_be_are_removed() {
        let base = folder("deep");
        let mut at = rustix::fs::openat(CWD, &base, FOLDER, Mode::empty()).unwrap();
        let name = "d".repeat(100);
        for _ in 0..600 {
            rustix::fs::mkdirat(&at, name.as_str(), Mode::from_raw_mode(0o700)).unwrap();
            at = rustix::fs::openat(&at, name.as_str(), FOLDER, Mode::empty()).unwrap();
        }
        drop(at);
        remove_tree_at(&base).unwrap();
        assert!(!base.exists());
    }
}
