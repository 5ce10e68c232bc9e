//! A file that one process holds: flock, with patience for an owner that was just killed.

use std::fs::{File, TryLockError};
use std::io;
use std::time::{Duration, Instant};

/// How long a killed owner may go on holding the lock: through a child that it was forking, which has not got to its
/// exec yet.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between two tries.
const RETRY: Duration = Duration::from_millis(10);

/// Locks a file for as long as it is open. False when another process goes on holding it. Blocks for up to a second.
///
/// # Errors
/// What `flock` says but for "held".
pub fn lock_file(file: &File) -> io::Result<bool> {
    let end = Instant::now() + PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(true),
            Err(TryLockError::WouldBlock) if Instant::now() < end => std::thread::sleep(RETRY),
            Err(TryLockError::WouldBlock) => return Ok(false),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_waited_for_and_refused() {
        let path = std::env::temp_dir().join(format!("orlop-lock-{}", std::process::id()));
        let first = File::create(&path).unwrap();
        assert!(lock_file(&first).unwrap());
        assert!(!lock_file(&File::open(&path).unwrap()).unwrap(), "held");
        let second = File::open(&path).unwrap();
        let waits = std::thread::spawn(move || lock_file(&second).unwrap());
        drop(first);
        assert!(waits.join().unwrap(), "free after its owner's end");
        std::fs::remove_file(path).unwrap();
    }
}
