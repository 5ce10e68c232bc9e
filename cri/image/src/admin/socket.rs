//! Unix sockets at paths of any length: reached through a descriptor of their directory.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// Keeps the directory open while the short path is in use.
pub(super) struct ShortPath {
    _directory: File,
    path: PathBuf,
}

impl ShortPath {
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let name = path
            .file_name()
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the socket path has no file name"))?;
        let directory =
            File::open(path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")))?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name);
        Ok(Self { _directory: directory, path })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}
