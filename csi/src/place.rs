//! Mounting and unmounting a volume's folder below the kubelet's root, by descriptors only.

use std::ffi::OsString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use orlop_kernel::mount::{self, Attributes};
use orlop_kernel::path;
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

/// Mounts that may be stacked at one target before the driver gives up on taking them away.
const STACK_MAX: usize = 16;

/// Why a volume can't be mounted or unmounted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlaceError {
    /// A path that is none of the kubelet's.
    #[error("{field} {path:?} is not below the kubelet's root {root:?}")]
    Outside { field: &'static str, path: String, root: PathBuf },
    /// Its folder isn't there or can't be trusted.
    #[error("the folder of {path:?} can't be opened without following links: {message}")]
    Folder { path: PathBuf, message: String },
    /// Something else is there.
    #[error("{0:?} is taken: it is a file, or something else is mounted there")]
    Taken(PathBuf),
    /// The kernel refused.
    #[error("{step} {path:?}: {source}")]
    Step {
        step: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// The kubelet's root, below which volumes are mounted.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    root: PathBuf,
    real: PathBuf,
}

/// A mount point: its folder, open, and its name in it.
#[derive(Debug)]
pub(crate) struct Place {
    /// The path as the orchestrator names it.
    pub(crate) path: PathBuf,
    parent: OwnedFd,
    name: OsString,
}

impl Places {
    /// Places below a root, which must be there.
    pub(crate) fn new(root: &Path) -> std::io::Result<Places> {
        Ok(Places { root: root.to_path_buf(), real: root.canonicalize()? })
    }

    /// The path of a request below the root; it is not looked at yet.
    pub(crate) fn below(&self, field: &'static str, path: &str) -> Result<PathBuf, PlaceError> {
        let outside = || PlaceError::Outside { field, path: path.to_owned(), root: self.root.clone() };
        let given = Path::new(path);
        let below =
            given.strip_prefix(&self.root).or_else(|_| given.strip_prefix(&self.real)).map_err(|_| outside())?;
        let plain = below.components().all(|part| matches!(part, Component::Normal(_)));
        if !plain || below.as_os_str().is_empty() || path.contains('\0') || path.contains("/../") {
            return Err(outside());
        }
        Ok(below.to_path_buf())
    }

    /// Opens the folder of a place. None when it isn't there.
    pub(crate) fn open(&self, field: &'static str, path: &str) -> Result<Option<Place>, PlaceError> {
        let below = self.below(field, path)?;
        let full = self.real.join(&below);
        let failed = |message: String| PlaceError::Folder { path: full.clone(), message };
        let name = below.file_name().ok_or_else(|| failed("it has no name".into()))?.to_os_string();
        let folder = below.parent().unwrap_or(Path::new(""));
        let root = path::open_root(&self.real).map_err(|error| failed(error.to_string()))?;
        match path::open_beneath(&root, folder, OFlags::PATH | OFlags::DIRECTORY) {
            Ok(parent) => Ok(Some(Place { path: full, parent, name })),
            Err(path::PathError::Step { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(path::PathError::Step { source, .. }) => Err(failed(source.to_string())),
            Err(error) => Err(failed(error.to_string())),
        }
    }
}

impl Place {
    fn failed(&self, step: &'static str) -> impl FnOnce(std::io::Error) -> PlaceError + '_ {
        move |source| PlaceError::Step { step, path: self.path.clone(), source }
    }

    /// The same place by a path that no rename above it can lead elsewhere.
    fn held(&self) -> PathBuf {
        Path::new("/proc/self/fd").join(self.parent.as_raw_fd().to_string()).join(&self.name)
    }

    /// Whether something is mounted here.
    pub(crate) fn is_mounted(&self) -> Result<bool, PlaceError> {
        mount::is_mount_point(&self.held()).map_err(self.failed("look at"))
    }

    /// Whether the folder is mounted here.
    pub(crate) fn shows(&self, data: &Path) -> Result<bool, PlaceError> {
        if !self.is_mounted()? {
            return Ok(false);
        }
        let here = rustix::fs::statat(&self.parent, &self.name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| self.failed("look at")(errno.into()))?;
        let there = rustix::fs::stat(data).map_err(|errno| self.failed("look at the volume for")(errno.into()))?;
        Ok((here.st_dev, here.st_ino) == (there.st_dev, there.st_ino))
    }

    /// Mounts a folder here, and makes the mount point where it is missing.
    pub(crate) fn mount(&self, data: &Path, attributes: Attributes) -> Result<(), PlaceError> {
        match rustix::fs::mkdirat(&self.parent, &self.name, Mode::from_raw_mode(0o750)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(self.failed("make")(errno.into())),
        }
        let target = path::open_beneath(&self.parent, Path::new(&self.name), OFlags::PATH | OFlags::DIRECTORY)
            .map_err(|_| PlaceError::Taken(self.path.clone()))?;
        if self.is_mounted()? {
            return Err(PlaceError::Taken(self.path.clone()));
        }
        let detached = mount::clone_path(data, false).map_err(self.failed("clone the volume for"))?;
        if !attributes.is_empty() {
            mount::set_attributes(&detached, attributes, None, false).map_err(self.failed("set the options of"))?;
        }
        mount::attach(&detached, &target).map_err(self.failed("mount at"))
    }

    /// Takes away what is mounted here; fine when nothing is.
    pub(crate) fn unmount(&self) -> Result<(), PlaceError> {
        for _ in 0..STACK_MAX {
            if !self.is_mounted()? {
                return Ok(());
            }
            mount::unmount_path(&self.held()).map_err(self.failed("unmount"))?;
        }
        Err(PlaceError::Taken(self.path.clone()))
    }

    /// Removes the empty mount point; fine when it is gone. What is in it is never touched.
    pub(crate) fn remove(&self) -> Result<(), PlaceError> {
        match rustix::fs::unlinkat(&self.parent, &self.name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(self.failed("remove")(errno.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_reached_outside_of_the_root() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("kubelet");
        std::fs::create_dir_all(root.join("pods/u")).unwrap();
        std::os::unix::fs::symlink(place.path(), root.join("pods/out")).unwrap();
        let places = Places::new(&root).unwrap();
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        assert!(places.open("target_path", &text(&root.join("pods/u/mount"))).unwrap().is_some());
        assert!(places.open("target_path", &text(&root.join("pods/gone/mount"))).unwrap().is_none());
        for wrong in [
            "/etc/x".to_owned(),
            "relative".to_owned(),
            text(&root),
            text(&root.join("pods/../../x")),
            text(&root.join("pods/out/x")),
            format!("{}-other/x", text(&root)),
        ] {
            assert!(places.open("target_path", &wrong).is_err(), "{wrong}");
        }
    }
}
