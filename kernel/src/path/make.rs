//! Making what is missing of a path inside a root.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::{DEPTH_MAX, PathError, failed, open_beneath, open_in_root, open_with};

/// Links in one path, as many as the kernel follows.
const LINKS_MAX: usize = 40;

/// Opens a folder inside a root and makes what is missing of it, as `mkdir -p` does. A link to what doesn't exist is
/// followed inside the root, and its target made.
///
/// # Errors
/// When a part of the path is not a folder, or the kernel refuses.
pub fn make_folder_in_root(root: impl AsFd, path: &Path, mode: Mode) -> Result<OwnedFd, PathError> {
    match open_in_root(&root, path, OFlags::PATH | OFlags::DIRECTORY) {
        Err(error) if is_missing(&error) => {}
        other => return other,
    }
    let mut walk = Walk::new(path)?;
    while let Some(name) = walk.next() {
        match walk.step(&root, &name)? {
            Found::Missing => walk.make_folder(&root, &name, mode)?,
            Found::File => return Err(failed("make the folder", path, Errno::NOTDIR)),
            Found::Folder | Found::Link => {}
        }
    }
    walk.open(&root)
}

/// Opens a file inside a root, as a mount target, and makes an empty one with its folders where it is missing. Links
/// are followed as above.
///
/// # Errors
/// When a part of the path is not a folder, or the kernel refuses.
pub fn make_file_in_root(root: impl AsFd, path: &Path, mode: Mode) -> Result<OwnedFd, PathError> {
    if path.file_name().is_none() {
        return Err(failed("make the file", path, Errno::ISDIR));
    }
    match open_in_root(&root, path, OFlags::PATH) {
        Err(error) if is_missing(&error) => {}
        other => return other,
    }
    let mut walk = Walk::new(path)?;
    while let Some(name) = walk.next() {
        let last = walk.is_last();
        match walk.step(&root, &name)? {
            Found::Missing if last => {
                let parent = walk.open(&root)?;
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                match rustix::fs::openat(&parent, &name, flags, mode) {
                    Ok(_) | Err(Errno::EXIST) => return open_beneath(&parent, Path::new(&name), OFlags::PATH),
                    Err(errno) => return Err(failed("make the file", path, errno)),
                }
            }
            Found::Missing => walk.make_folder(&root, &name, Mode::from_raw_mode(0o755))?,
            Found::File if last => return open_beneath(walk.open(&root)?, Path::new(&name), OFlags::PATH),
            Found::File => return Err(failed("make the file", path, Errno::NOTDIR)),
            Found::Folder | Found::Link => {}
        }
    }
    walk.open(&root)
}

fn is_missing(error: &PathError) -> bool {
    matches!(error, PathError::Step { source, .. } if source.raw_os_error() == Some(Errno::NOENT.raw_os_error()))
}

/// What a step has found.
enum Found {
    /// Nothing.
    Missing,
    /// A folder; the walk is in it now.
    Folder,
    /// Something that is neither folder nor link.
    File,
    /// A link; its target comes next.
    Link,
}

/// A walk down a path, one name at a time. Where it stands is a path without links, which is resolved anew from the
/// root at each step and refused when a link has appeared in it: whoever changes the tree meanwhile gains nothing.
struct Walk {
    path: PathBuf,
    at: PathBuf,
    left: VecDeque<OsString>,
    links: usize,
    steps: usize,
}

impl Walk {
    fn new(path: &Path) -> Result<Walk, PathError> {
        let left: VecDeque<OsString> = names(path).collect();
        if left.len() > DEPTH_MAX {
            return Err(PathError::TooDeep(path.to_path_buf()));
        }
        Ok(Walk { path: path.to_path_buf(), at: PathBuf::new(), left, links: 0, steps: 0 })
    }

    fn next(&mut self) -> Option<OsString> {
        loop {
            let name = self.left.pop_front()?;
            if name != ".." {
                return Some(name);
            }
            self.at.pop();
        }
    }

    fn is_last(&self) -> bool {
        self.left.is_empty()
    }

    /// Looks at the next name and goes into it when it is a folder.
    fn step(&mut self, root: impl AsFd, name: &OsStr) -> Result<Found, PathError> {
        self.steps += 1;
        if self.steps > DEPTH_MAX {
            return Err(PathError::TooDeep(self.path.clone()));
        }
        let there = self.at.join(name);
        let found = match open_plain(&root, &there, OFlags::PATH | OFlags::NOFOLLOW) {
            Err(error) if is_missing(&error) => return Ok(Found::Missing),
            other => other?,
        };
        let stat =
            rustix::fs::statat(&found, "", AtFlags::EMPTY_PATH).map_err(|errno| failed("look at", &there, errno))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                self.at = there;
                Ok(Found::Folder)
            }
            FileType::Symlink => {
                self.links += 1;
                if self.links > LINKS_MAX {
                    return Err(failed("follow the links of", &self.path, Errno::LOOP));
                }
                let target = rustix::fs::readlinkat(&found, "", Vec::new())
                    .map_err(|errno| failed("read the link", &there, errno))?;
                let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
                if target.is_absolute() {
                    self.at = PathBuf::new();
                }
                for name in names(&target).collect::<Vec<_>>().into_iter().rev() {
                    self.left.push_front(name);
                }
                Ok(Found::Link)
            }
            _ => Ok(Found::File),
        }
    }

    fn make_folder(&mut self, root: impl AsFd, name: &OsStr, mode: Mode) -> Result<(), PathError> {
        let parent = self.open(root)?;
        self.at.push(name);
        match rustix::fs::mkdirat(&parent, name, mode) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(errno) => Err(failed("make the folder", &self.at, errno)),
        }
    }

    /// Opens the folder where the walk stands.
    fn open(&self, root: impl AsFd) -> Result<OwnedFd, PathError> {
        open_plain(root, &self.at, OFlags::PATH | OFlags::DIRECTORY)
    }
}

/// Opens a path in which nothing may be a link, apart from its end where `NOFOLLOW` is given.
fn open_plain(root: impl AsFd, path: &Path, flags: OFlags) -> Result<OwnedFd, PathError> {
    open_with(root.as_fd(), path, flags, ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS)
}

fn names(path: &Path) -> impl Iterator<Item = OsString> + '_ {
    path.components()
        .filter(|component| matches!(component, Component::Normal(_) | Component::ParentDir))
        .map(|component| component.as_os_str().to_os_string())
}
