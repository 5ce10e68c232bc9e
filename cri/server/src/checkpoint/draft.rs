//! A file that gets its name once it is whole.

use std::fs::File;
use std::io::Result;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

/// The file: without a name as far as the file system can, so that nothing is left of it whatever happens.
pub(super) struct Draft {
    file: File,
    /// The name that it has until it is whole, where it needs one.
    named: bool,
    hidden: PathBuf,
    wanted: PathBuf,
}

impl Draft {
    pub(super) fn open(wanted: &Path) -> Result<Draft> {
        let folder = wanted.parent().unwrap_or(Path::new("/"));
        let name = wanted.file_name().unwrap_or_default().to_string_lossy();
        let hidden = folder.join(format!(".{name}.{}.draft", std::process::id()));
        let mode = Mode::from_raw_mode(0o600);
        let nameless = rustix::fs::open(folder, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, mode);
        let (fd, named) = match nameless {
            Ok(fd) => (fd, false),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::RDWR | OFlags::CLOEXEC;
                (rustix::fs::open(&hidden, flags, mode)?, true)
            }
            Err(errno) => return Err(errno.into()),
        };
        Ok(Draft { file: fd.into(), named, hidden, wanted: wanted.into() })
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Gives it its name, in the place of an older file.
    pub(super) fn publish(mut self) -> Result<()> {
        self.file.sync_all()?;
        if !self.named {
            let place = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            rustix::fs::linkat(CWD, place, CWD, &self.hidden, AtFlags::SYMLINK_FOLLOW)?;
            self.named = true;
        }
        std::fs::rename(&self.hidden, &self.wanted)?;
        self.named = false;
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if self.named {
            let _ = std::fs::remove_file(&self.hidden);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_name_comes_last_or_never() {
        let folder = tempfile::tempdir().unwrap();
        let wanted = folder.path().join("a.tar");
        let names = || std::fs::read_dir(folder.path()).unwrap().count();
        let draft = Draft::open(&wanted).unwrap();
        draft.file().write_all(b"half").unwrap();
        drop(draft);
        assert_eq!(names(), 0);
        for text in ["one", "two"] {
            let draft = Draft::open(&wanted).unwrap();
            draft.file().write_all(text.as_bytes()).unwrap();
            draft.publish().unwrap();
            assert_eq!((std::fs::read_to_string(&wanted).unwrap().as_str(), names()), (text, 1));
        }
        assert!(Draft::open(&folder.path().join("missing/a.tar")).is_err());
    }
}
