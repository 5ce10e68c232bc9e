//! The log of a daemon in the background: a file that is turned over when it is full.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tracing_subscriber::fmt::MakeWriter;

/// Bytes of a log file; there are two at most.
const BYTES_MAX: u64 = 16 << 20;

/// A log file; cheap to clone.
#[derive(Clone)]
pub struct LogFile(Arc<Inner>);

struct Inner {
    path: PathBuf,
    limit: u64,
    /// Told of each new file.
    turned: fn(&File),
    open: Mutex<Open>,
}

struct Open {
    file: File,
    bytes: u64,
}

impl LogFile {
    /// Goes on with a file, or begins it. Panics and libraries write to standard error, which becomes the new file each
    /// time.
    ///
    /// # Errors
    /// When the file can't be opened.
    pub fn standard_error(path: &Path) -> io::Result<LogFile> {
        LogFile::new(path, BYTES_MAX, |file| {
            // It fails only for a descriptor that is none.
            let _ = rustix::stdio::dup2_stderr(file);
        })
    }

    fn new(path: &Path, limit: u64, turned: fn(&File)) -> io::Result<LogFile> {
        let open = Open::at(path)?;
        Ok(LogFile(Arc::new(Inner { path: path.to_path_buf(), limit, turned, open: Mutex::new(open) })))
    }
}

impl Open {
    fn at(path: &Path) -> io::Result<Open> {
        let file = File::options().create(true).append(true).open(path)?;
        Ok(Open { bytes: file.metadata()?.len(), file })
    }
}

impl Write for LogFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.bytes + line.len() as u64 > self.0.limit {
            // A log that can't be turned over (a full disk) goes on as it is and is tried again after as much more.
            open.bytes = 0;
            let renamed = std::fs::rename(&self.0.path, previous(&self.0.path));
            // It was moved before, and then no new one could be made.
            let moved = renamed.or_else(|error| match error.kind() {
                io::ErrorKind::NotFound => Ok(()),
                _ => Err(error),
            });
            if let Ok(fresh) = moved.and_then(|()| Open::at(&self.0.path)) {
                *open = fresh;
                (self.0.turned)(&open.file);
            }
        }
        open.file.write_all(line)?;
        open.bytes += line.len() as u64;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogFile {
    type Writer = LogFile;

    fn make_writer(&'a self) -> LogFile {
        self.clone()
    }
}

/// Where the full file goes: `orlop.log.1`.
fn previous(path: &Path) -> PathBuf {
    path.with_extension("log.1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_is_turned_over_and_no_line_is_lost() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("orlop.log");
        std::fs::write(&path, "before\n").unwrap();
        let mut log = LogFile::new(&path, 40, |_| {}).unwrap();
        for number in 0..8 {
            log.write_all(format!("line {number}\n").as_bytes()).unwrap();
        }
        let [old, new] = [previous(&path), path].map(|path| std::fs::read_to_string(path).unwrap());
        assert_eq!(old, "before\nline 0\nline 1\nline 2\nline 3\n");
        assert_eq!(new, "line 4\nline 5\nline 6\nline 7\n");
    }
}
