//! One agent per root directory.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

/// A process that was killed gives its lock back only when the kernel is done with it.
const PATIENCE: Duration = Duration::from_secs(3);
const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// Why the root directory can't be used.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another agent uses it.
    #[error(
        "{path} is locked: another agent{holder} uses this root directory; stop it, or give this one another root directory"
    )]
    Held {
        /// The lock file.
        path: PathBuf,
        /// ` (process 123)` where it is known.
        holder: String,
    },
    /// The file can't be made or locked.
    #[error("{path}: {source}")]
    File {
        /// The lock file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The lock, for as long as it is kept; the kernel gives it back when the process ends in whatever way.
#[derive(Debug)]
pub(crate) struct RootLock {
    _file: File,
}

/// Takes the lock of a root directory, waiting for a moment for an agent that was just killed.
pub(crate) async fn lock_root(root: &Path) -> Result<RootLock, LockError> {
    let end = Instant::now() + PATIENCE;
    loop {
        match try_lock_root(root) {
            Err(LockError::Held { .. }) if Instant::now() < end => tokio::time::sleep(RETRY_INTERVAL).await,
            result => return result,
        }
    }
}

/// Takes the lock of a root directory, which is made where it is missing.
fn try_lock_root(root: &Path) -> Result<RootLock, LockError> {
    let path = root.join("orlop-agent.lock");
    let failed = |source| LockError::File { path: path.clone(), source };
    std::fs::create_dir_all(root).map_err(failed)?;
    let mut file = File::options().create(true).read(true).write(true).truncate(false).open(&path).map_err(failed)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut process = String::new();
            let _ = file.read_to_string(&mut process);
            let known = process.trim().parse::<u32>().map(|process| format!(" (process {process})"));
            return Err(LockError::Held { path, holder: known.unwrap_or_default() });
        }
        Err(error) => return Err(failed(error.into())),
    }
    // For the message above only.
    file.set_len(0).and_then(|()| file.rewind()).map_err(failed)?;
    writeln!(file, "{}", std::process::id()).map_err(failed)?;
    Ok(RootLock { _file: file })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_agent_is_refused_and_told_why() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("kubelet");
        let lock = try_lock_root(&root).unwrap();
        let error = try_lock_root(&root).unwrap_err().to_string();
        assert!(error.contains("another agent (process ") && error.contains("root directory"), "{error}");
        drop(lock);
        try_lock_root(&root).unwrap();
    }

    #[tokio::test]
    async fn an_agent_that_is_just_ending_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let lock = try_lock_root(folder.path()).unwrap();
        let (locked, ()) = tokio::join!(lock_root(folder.path()), async {
            tokio::task::yield_now().await;
            drop(lock);
        });
        locked.unwrap();
    }
}
