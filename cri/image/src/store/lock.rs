//! One store, one process: a lock on a file, given back by the kernel when the process ends.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use orlop_kernel::lock::lock_file;

use crate::error::ImageError;

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
        match lock_file(&file) {
            Ok(true) => {}
            Ok(false) => {
                let mut owner = String::new();
                let _ = (&mut file).take(100).read_to_string(&mut owner);
                let owner = match owner.trim() {
                    "" => "another process".to_owned(),
                    pid => format!("process {pid}"),
                };
                return Err(ImageError::Locked { path: root.to_path_buf(), owner });
            }
            Err(error) => return Err(ImageError::store("lock", &path)(error)),
        }
        let note = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
        note.map_err(ImageError::store("write", &path))?;
        Ok(Self { _file: file })
    }
}
