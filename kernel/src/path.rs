//! Path resolution that never leaves a root.
//!
//! Everything below a root may be hostile: names, links, whole folders. Each step is made by `openat2` relative to a
//! descriptor, so that no path string is ever resolved against the machine's own tree.

mod make;
mod tree;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, StatVfsMountFlags};
use rustix::io::Errno;

pub use make::{make_file_in_root, make_folder_in_root};
pub use tree::{AtMount, TreeEntry, remove_tree, remove_tree_at, walk_tree};

/// How often a resolution is tried again when somebody renames below it at the same time.
const RETRIES: usize = 64;
/// Components of one path, those of the links in it included.
const DEPTH_MAX: usize = 256;

/// Why a path can't be resolved or made inside its root.
#[derive(Debug, thiserror::Error)]
pub enum PathError {
    /// The kernel refused.
    #[error("{step} {path:?} inside the root")]
    Step {
        /// What was being done.
        step: &'static str,
        /// The path inside the root.
        path: PathBuf,
        /// Why it was refused.
        #[source]
        source: std::io::Error,
    },
    /// More components than any honest path has.
    #[error("path {0:?} has more than {DEPTH_MAX} components")]
    TooDeep(PathBuf),
}

fn failed(step: &'static str, path: &Path, errno: Errno) -> PathError {
    PathError::Step { step, path: path.to_path_buf(), source: errno.into() }
}

/// Opens a root folder itself.
///
/// # Errors
/// When the folder can't be opened.
pub fn open_root(path: &Path) -> Result<OwnedFd, PathError> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| failed("open", path, errno))
}

/// Opens a path inside a root; links are followed, absolute ones and `..` relative to the root.
///
/// # Errors
/// When the path doesn't exist or can't be opened.
pub fn open_in_root(root: impl AsFd, path: &Path, flags: OFlags) -> Result<OwnedFd, PathError> {
    open_with(root.as_fd(), path, flags, ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
}

/// Finds a path inside a root, as a mount target; none when it doesn't exist.
///
/// # Errors
/// When the kernel refuses for another reason.
pub fn find_in_root(root: impl AsFd, path: &Path) -> Result<Option<OwnedFd>, PathError> {
    match open_in_root(root, path, OFlags::PATH) {
        Ok(fd) => Ok(Some(fd)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether a path could not be opened because there is no such thing.
#[must_use]
pub fn is_absent(error: &PathError) -> bool {
    let PathError::Step { source, .. } = error else { return false };
    [Errno::NOENT, Errno::NOTDIR].iter().any(|errno| source.raw_os_error() == Some(errno.raw_os_error()))
}

/// Opens a path below a folder without following a single link.
///
/// # Errors
/// When the path doesn't exist, leaves the folder or goes through a link.
pub fn open_beneath(root: impl AsFd, path: &Path, flags: OFlags) -> Result<OwnedFd, PathError> {
    open_with(root.as_fd(), path, flags, ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)
}

fn open_with(root: BorrowedFd<'_>, path: &Path, flags: OFlags, resolve: ResolveFlags) -> Result<OwnedFd, PathError> {
    let path_or_dot = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    for _ in 0..RETRIES {
        match rustix::fs::openat2(root, path_or_dot, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            // Somebody renamed a part of the path: the kernel could not be sure that it stayed inside.
            Err(Errno::AGAIN) => {}
            Err(errno) => return Err(failed("open", path, errno)),
            Ok(fd) => return Ok(fd),
        }
    }
    Err(failed("open", path, Errno::AGAIN))
}

/// Whether an open descriptor is a folder.
///
/// # Errors
/// When it can't be looked at.
pub fn is_folder(fd: impl AsFd) -> std::io::Result<bool> {
    let stat = rustix::fs::statat(fd, "", AtFlags::EMPTY_PATH)?;
    Ok(rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir())
}

/// The locked-in flags (nosuid, nodev, noexec, read-only) of the mount that a descriptor lies on.
///
/// # Errors
/// When it can't be looked at.
pub fn mount_flags(fd: impl AsFd) -> std::io::Result<StatVfsMountFlags> {
    Ok(rustix::fs::fstatvfs(fd)?.f_flag)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use tempfile::TempDir;

    fn folder_with_root() -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("root")).unwrap();
        folder
    }

    #[test]
    fn links_stay_inside() {
        let folder = folder_with_root();
        let root_path = folder.path().join("root");
        symlink(folder.path(), root_path.join("out")).unwrap();
        symlink("../../../../..", root_path.join("up")).unwrap();
        let root = open_root(&root_path).unwrap();
        make_folder_in_root(&root, Path::new("/up/a/b"), Mode::from_raw_mode(0o755)).unwrap();
        assert!(root_path.join("a/b").is_dir());
        // A link to what doesn't exist in the root is followed there, and its target made.
        make_folder_in_root(&root, Path::new("out/c"), Mode::from_raw_mode(0o755)).unwrap();
        assert!(!folder.path().join("c").exists(), "a dangling link is not a way out");
        let inside = root_path.join(folder.path().strip_prefix("/").unwrap()).join("c");
        assert!(inside.is_dir());
        symlink("../run/resolv.conf", root_path.join("a/resolv.conf")).unwrap();
        make_file_in_root(&root, Path::new("/a/resolv.conf"), Mode::from_raw_mode(0o644)).unwrap();
        assert!(root_path.join("run/resolv.conf").is_file());
        symlink("loop", root_path.join("loop")).unwrap();
        assert!(make_folder_in_root(&root, Path::new("loop/x"), Mode::from_raw_mode(0o755)).is_err());
        assert!(make_file_in_root(&root, Path::new(""), Mode::from_raw_mode(0o644)).is_err());
    }

    #[test]
    fn files_are_made_with_their_folders() {
        let folder = folder_with_root();
        let root = open_root(&folder.path().join("root")).unwrap();
        make_file_in_root(&root, Path::new("/etc/hosts"), Mode::from_raw_mode(0o644)).unwrap();
        assert!(folder.path().join("root/etc/hosts").is_file());
        assert!(make_folder_in_root(&root, Path::new("/etc/hosts/x"), Mode::from_raw_mode(0o755)).is_err());
    }
}
