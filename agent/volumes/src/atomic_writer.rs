//! Files that change all at once: a new folder is written beside the old one and a link is turned to it, as the
//! kubelet's `AtomicWriter` lays it out.
//!
//! `name -> ..data/name`, `..data -> ..<time>`, `..<time>/name`. All is done relative to the volume's folder by
//! descriptor, without following a link.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path};

use orlop_kernel::path::{AtMount, open_beneath, remove_tree, walk_tree};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

/// Link to the folder in force.
const DATA: &str = "..data";
/// Name under which a new link is made before it replaces the old one.
const FRESH: &str = "..data_tmp";
/// Longest path of a file, in bytes (kubelet `maxPathLength`).
const PATH_MAX: usize = 4096;
/// Longest part of it (kubelet `maxFileNameLength`).
const NAME_MAX: usize = 255;

/// A file of a volume.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) bytes: Vec<u8>,
    /// Mode bits.
    pub(crate) mode: u32,
    /// Owner, where it is not root.
    pub(crate) owner: Option<u32>,
}

/// Contents may be secret: only their size is ever shown.
impl std::fmt::Debug for File {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "File({} bytes, mode {:o}, owner {:?})", self.bytes.len(), self.mode, self.owner)
    }
}

/// Why files can't be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    /// A path that would leave the volume or hide its works.
    #[error("invalid path {0:?}: it must be relative, without '..', not begin with '..', of {PATH_MAX} bytes at most")]
    Path(String),
    /// The kernel refused.
    #[error("{step} {name:?} in the volume: {source}")]
    Step {
        step: &'static str,
        name: OsString,
        #[source]
        source: std::io::Error,
    },
    /// What is done to the new folder before it comes into force.
    #[error("{0}")]
    Prepare(String),
}

fn failed<E: Into<std::io::Error>>(step: &'static str, name: impl AsRef<OsStr>) -> impl FnOnce(E) -> WriteError {
    let name = name.as_ref().to_os_string();
    move |error| WriteError::Step { step, name, source: error.into() }
}

/// Writes files; nothing is touched when they are there already. `prepare` sees the new folder before it comes into
/// force. Returns whether anything was written.
pub(crate) fn write(
    folder: &Path,
    files: &BTreeMap<String, File>,
    prepare: impl FnOnce(&Path) -> Result<(), String>,
) -> Result<bool, WriteError> {
    for name in files.keys() {
        check(name)?;
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, folder, flags, Mode::empty()).map_err(failed("open", folder))?;
    let old = current(&root);
    if let Some(old) = &old
        && is_same(&root, old, files)
    {
        link_names(&root, files)?;
        sweep(&root, old)?;
        return Ok(false);
    }
    let (name, fresh) = new_folder(&root)?;
    let written = files.iter().try_for_each(|(path, file)| write_file(&fresh, path, file));
    let written = written.and_then(|()| prepare(&folder.join(&name)).map_err(WriteError::Prepare));
    if let Err(error) = written {
        let _ = remove_tree(&root, &name);
        return Err(error);
    }
    let _ = rustix::fs::unlinkat(&root, FRESH, AtFlags::empty());
    rustix::fs::symlinkat(&name, &root, FRESH).map_err(failed("link", FRESH))?;
    rustix::fs::renameat(&root, FRESH, &root, DATA).map_err(failed("turn the link", DATA))?;
    link_names(&root, files)?;
    // Only now is nobody led to the old ones; those of an earlier crash go too.
    sweep(&root, &name)?;
    Ok(true)
}

/// Only paths below the folder, and none of ours.
fn check(path: &str) -> Result<(), WriteError> {
    let wrong = || WriteError::Path(path.chars().take(PATH_MAX).collect());
    if path.is_empty() || path.len() > PATH_MAX || path.starts_with("..") || path.contains('\0') {
        return Err(wrong());
    }
    let plain = |part: Component<'_>| matches!(part, Component::Normal(name) if name.len() <= NAME_MAX);
    if Path::new(path).components().all(plain) { Ok(()) } else { Err(wrong()) }
}

/// The folder in force.
fn current(root: &OwnedFd) -> Option<OsString> {
    let name = OsString::from_vec(rustix::fs::readlinkat(root, DATA, Vec::new()).ok()?.into_bytes());
    (name.as_bytes().starts_with(b"..") && !name.as_bytes().contains(&b'/')).then_some(name)
}

/// A folder named by the time.
fn new_folder(root: &OwnedFd) -> Result<(OsString, OwnedFd), WriteError> {
    let mut tries = 0;
    loop {
        let now = jiff::Timestamp::now();
        let name = format!("..{}.{:09}", now.strftime("%Y_%m_%d_%H_%M_%S"), now.subsec_nanosecond());
        match rustix::fs::mkdirat(root, name.as_str(), Mode::from_raw_mode(0o755)) {
            Err(Errno::EXIST) if tries < 100 => tries += 1,
            made => {
                made.map_err(failed("make", &name))?;
                let flags = OFlags::RDONLY | OFlags::DIRECTORY;
                let fresh = open_beneath(root, Path::new(&name), flags)
                    .map_err(|error| failed("open", &name)(std::io::Error::other(error)))?;
                // The volume's users pass through it, whatever the process's mask is.
                rustix::fs::fchmod(&fresh, Mode::from_raw_mode(0o755)).map_err(failed("open up", &name))?;
                return Ok((name.into(), fresh));
            }
        }
    }
}

fn write_file(fresh: &OwnedFd, path: &str, file: &File) -> Result<(), WriteError> {
    let path = Path::new(path);
    let (Some(name), Some(above)) = (path.file_name(), path.parent()) else { return Ok(()) };
    let beneath = |folder: BorrowedFd<'_>, name: &Path| {
        open_beneath(folder, name, OFlags::RDONLY | OFlags::DIRECTORY)
            .map_err(|error| failed("open", name)(std::io::Error::other(error)))
    };
    let mut folder = beneath(fresh.as_fd(), Path::new(""))?;
    for part in above.components() {
        match rustix::fs::mkdirat(&folder, part.as_os_str(), Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(failed("make", part)(errno)),
        }
        folder = beneath(folder.as_fd(), Path::new(part.as_os_str()))?;
        rustix::fs::fchmod(&folder, Mode::from_raw_mode(0o755)).map_err(failed("open up", part))?;
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let out = rustix::fs::openat(&folder, name, flags, Mode::from_raw_mode(0o600)).map_err(failed("make", path))?;
    let mut out = std::fs::File::from(out);
    out.write_all(&file.bytes).map_err(failed("write", path))?;
    if let Some(owner) = file.owner {
        std::os::unix::fs::fchown(&out, Some(owner), None).map_err(failed("give to its user", path))?;
    }
    rustix::fs::fchmod(&out, Mode::from_raw_mode(file.mode & 0o7777)).map_err(failed("set the mode of", path))
}

/// Whether a folder holds these files and no others.
fn is_same(root: &OwnedFd, old: &OsStr, files: &BTreeMap<String, File>) -> bool {
    let Ok(folder) = open_beneath(root, Path::new(old), OFlags::RDONLY | OFlags::DIRECTORY) else { return false };
    let mut count = 0;
    let counted = walk_tree(&folder, AtMount::Stop, &mut |entry| {
        count += usize::from(!entry.is_folder);
        Ok(())
    });
    let same = |(name, file): (&String, &File)| {
        let Ok(found) = open_beneath(&folder, Path::new(name), OFlags::RDONLY) else { return false };
        let mut bytes = Vec::with_capacity(file.bytes.len());
        let most = file.bytes.len() as u64 + 1;
        std::fs::File::from(found).take(most).read_to_end(&mut bytes).is_ok() && bytes == file.bytes
    };
    counted.is_ok() && count == files.len() && files.iter().all(same)
}

/// Names in the volume's folder, and whether each is a link or a folder.
fn names(root: &OwnedFd) -> Result<Vec<(OsString, FileType)>, WriteError> {
    let mut found = Vec::new();
    for entry in Dir::read_from(root).map_err(failed("list", "."))? {
        let entry = entry.map_err(failed("list", "."))?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes()).to_os_string();
        if name != "." && name != ".." {
            let stat = rustix::fs::statat(root, &name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed("look at", &name))?;
            found.push((name, FileType::from_raw_mode(stat.st_mode)));
        }
    }
    Ok(found)
}

/// Makes the links that users see and removes those of files that are gone.
fn link_names(root: &OwnedFd, files: &BTreeMap<String, File>) -> Result<(), WriteError> {
    let first = |name: &String| Path::new(name).components().next().map(|part| part.as_os_str().to_os_string());
    let wanted: BTreeSet<OsString> = files.keys().filter_map(first).collect();
    for name in &wanted {
        match rustix::fs::symlinkat(Path::new(DATA).join(name), root, name) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(failed("link", name)(errno)),
        }
    }
    for (name, kind) in names(root)? {
        if kind.is_symlink() && !name.as_bytes().starts_with(b"..") && !wanted.contains(&name) {
            rustix::fs::unlinkat(root, &name, AtFlags::empty()).map_err(failed("remove", &name))?;
        }
    }
    Ok(())
}

/// Removes all folders but the one in force.
fn sweep(root: &OwnedFd, keep: &OsStr) -> Result<(), WriteError> {
    for (name, kind) in names(root)? {
        if kind.is_dir() && name.as_bytes().starts_with(b"..") && name != keep {
            remove_tree(root, &name).map_err(failed("remove", &name))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn files(list: &[(&str, &str)]) -> BTreeMap<String, File> {
        let file = |text: &str| File { bytes: text.into(), mode: 0o640, owner: None };
        list.iter().map(|(name, text)| (name.to_string(), file(text))).collect()
    }

    fn write_all(folder: &Path, list: &[(&str, &str)]) -> bool {
        write(folder, &files(list), |_| Ok(())).unwrap()
    }

    #[test]
    fn contents_change_as_a_whole() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path();
        assert!(write_all(folder, &[("a", "1"), ("b/c", "2")]));
        let before = std::fs::read_link(folder.join(DATA)).unwrap();
        assert_eq!(std::fs::read_to_string(folder.join("b/c")).unwrap(), "2");
        assert_eq!(std::fs::read_link(folder.join("a")).unwrap(), Path::new("..data/a"));
        let mode = std::fs::metadata(folder.join("a")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
        assert!(!write_all(folder, &[("a", "1"), ("b/c", "2")]));
        assert_eq!(std::fs::read_link(folder.join(DATA)).unwrap(), before, "nothing changed");
        assert!(write_all(folder, &[("a", "3")]));
        assert_eq!(std::fs::read_to_string(folder.join("a")).unwrap(), "3");
        assert!(!folder.join("b").exists() && !folder.join(before).exists());
        let refused = write(folder, &files(&[("a", "4")]), |_| Err("no".into()));
        assert_eq!(refused.unwrap_err().to_string(), "no");
        assert_eq!(std::fs::read_to_string(folder.join("a")).unwrap(), "3");
        assert_eq!(std::fs::read_dir(folder).unwrap().count(), 3, "a, ..data and one folder");
        assert!(write_all(folder, &[]), "an object may have no keys");
        assert_eq!(std::fs::read_dir(folder).unwrap().count(), 2);
    }

    #[test]
    fn what_a_crash_has_left_goes() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path();
        write_all(folder, &[("a", "1")]);
        std::fs::create_dir(folder.join("..2001_01_01_00_00_00.1")).unwrap();
        std::os::unix::fs::symlink("..gone", folder.join(FRESH)).unwrap();
        std::fs::remove_file(folder.join("a")).unwrap();
        assert!(!write_all(folder, &[("a", "1")]));
        assert_eq!(std::fs::read_to_string(folder.join("a")).unwrap(), "1");
        assert!(!folder.join("..2001_01_01_00_00_00.1").exists());
        assert!(write_all(folder, &[("a", "2")]));
        assert_eq!(std::fs::read_dir(folder).unwrap().count(), 3);
    }

    #[test]
    fn paths_stay_inside_and_links_are_not_followed() {
        let place = tempfile::tempdir().unwrap();
        for name in ["../x", "/x", "a/../../x", "..data", "", "..x", "a\0b", &"x".repeat(256), "./../x"] {
            assert!(write(place.path(), &files(&[(name, "")]), |_| Ok(())).is_err(), "{name:?}");
        }
        let (volume, outside) = (place.path().join("volume"), place.path().join("outside"));
        std::fs::create_dir_all(&volume).unwrap();
        std::fs::create_dir_all(outside.join("kept")).unwrap();
        std::os::unix::fs::symlink(&outside, volume.join(DATA)).unwrap();
        std::os::unix::fs::symlink(&outside, volume.join("..old")).unwrap();
        write_all(&volume, &[("a", "1")]);
        assert!(outside.join("kept").is_dir() && !outside.join("a").exists());
        assert_eq!(std::fs::read_to_string(volume.join("a")).unwrap(), "1");
    }

    #[test]
    fn contents_are_not_shown() {
        let file = File { bytes: b"password".to_vec(), mode: 0o600, owner: None };
        assert_eq!(format!("{file:?}"), "File(8 bytes, mode 600, owner None)");
    }
}
