//! One store, one process: a lock on a file, given back by the kernel when the process ends.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::error::ImageError;

/// How long to wait for a lock that is about to be given back.
const PATIENCE: Duration = Duration::from_secs(1);

/// The lock, held while this lives.
pub(super) struct StoreLock {
    _file: File,
}

impl StoreLock {
    pub(super) fn take(root: &Path) -> Result<Self, ImageError> {
        let path = root.join("lock");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(ImageError::store("open", &path))?;
        match lock(&file) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let mut owner = String::new();
                let _ = (&mut file).take(100).read_to_string(&mut owner);
                let owner = match owner.trim() {
                    "" => "another process".to_owned(),
                    pid => format!("process {pid}"),
                };
                return Err(ImageError::Locked { path: root.to_path_buf(), owner });
            }
            Err(error) => return Err(ImageError::store("lock", &path)(error.into())),
        }
        let note = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
        note.map_err(ImageError::store("write", &path))?;
        Ok(Self { _file: file })
    }
}

/// Takes the lock. An owner that has just ended may still hold it for a moment, through a child that it was forking.
fn lock(file: &File) -> Result<(), Errno> {
    let began = Instant::now();
    loop {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if began.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(10)),
            outcome => return outcome,
        }
    }
}
