//! Rates and sizes that are worked out from what was seen before: processor use, and bytes of writable layers.
//!
//! Nothing is measured unless somebody asks.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use orlop_kernel::path::{AtMount, walk_tree};
use rustix::fs::AtFlags;
use tokio::sync::Semaphore;

/// Shortest time over which processor use is worked out.
const RATE_TIME: Duration = Duration::from_millis(500);
/// How long a measured size counts, as long as the kubelet's own interval (`housekeeping`).
const SIZE_TIME: Duration = Duration::from_secs(10);
/// How long a caller waits for a size that is being measured.
const MEASURE_TIME: Duration = Duration::from_secs(1);
/// Layers that are measured at the same time.
static MEASURES: Semaphore = Semaphore::const_new(2);
/// Bytes of a block, as `stat(2)` counts.
const BLOCK_BYTES: u64 = 512;

fn lock<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Processor use over the time between two questions.
#[derive(Default)]
pub(crate) struct Rate(Mutex<Option<Sample>>);

struct Sample {
    at: Instant,
    nanoseconds: u64,
    cores: Option<u64>,
}

impl Rate {
    /// Billionths of a core, after a reading of the whole time used; none at the first question.
    pub(crate) fn next(&self, at: Instant, nanoseconds: u64) -> Option<u64> {
        let mut last = lock(&self.0);
        let (elapsed, before) = match &*last {
            Some(sample) => (at.saturating_duration_since(sample.at), sample.nanoseconds),
            None => {
                *last = Some(Sample { at, nanoseconds, cores: None });
                return None;
            }
        };
        if elapsed >= RATE_TIME {
            let used = u128::from(nanoseconds.saturating_sub(before));
            let cores = (used * 1_000_000_000 / elapsed.as_nanos()) as u64;
            *last = Some(Sample { at, nanoseconds, cores: Some(cores) });
        }
        last.as_ref().and_then(|sample| sample.cores)
    }
}

/// What a folder takes on its disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
}

/// The size of a writable layer, measured when somebody asks and it was last long ago.
#[derive(Default)]
pub(crate) struct LayerSize {
    last: Mutex<Option<(Instant, Size)>>,
    measuring: AtomicBool,
}

impl LayerSize {
    /// The size; the one before while a large layer is being measured, none when there is none yet.
    pub(crate) async fn get(self: &Arc<Self>, folder: PathBuf) -> Option<Size> {
        let known = *lock(&self.last);
        if let Some((at, size)) = known
            && at.elapsed() < SIZE_TIME
        {
            return Some(size);
        }
        if !self.measuring.swap(true, Ordering::AcqRel) {
            let own = self.clone();
            let measured = tokio::spawn(async move {
                let permit = MEASURES.acquire().await;
                let size = tokio::task::spawn_blocking(move || measure(&folder)).await;
                drop(permit);
                if let Ok(Ok(size)) = size {
                    *lock(&own.last) = Some((Instant::now(), size));
                }
                own.measuring.store(false, Ordering::Release);
            });
            let _ = tokio::time::timeout(MEASURE_TIME, measured).await;
        }
        lock(&self.last).map(|(_, size)| size)
    }

    /// The last size, without measuring.
    pub(crate) fn last(&self) -> Option<Size> {
        lock(&self.last).map(|(_, size)| size)
    }
}

/// Counts what a folder takes; files with several names count once, by parts.
fn measure(folder: &Path) -> std::io::Result<Size> {
    let mut bytes = 0.0;
    let mut inodes = 1.0;
    walk_tree(std::fs::File::open(folder)?, AtMount::PassBy, &mut |entry| match rustix::fs::statat(
        entry.parent,
        entry.name,
        AtFlags::SYMLINK_NOFOLLOW,
    ) {
        Ok(stat) => {
            let names = if entry.is_folder { 1.0 } else { stat.st_nlink.max(1) as f64 };
            bytes += (stat.st_blocks as u64 * BLOCK_BYTES) as f64 / names;
            inodes += 1.0 / names;
            Ok(())
        }
        Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    })?;
    Ok(Size { bytes: bytes as u64, inodes: inodes as u64 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn use_between_two_questions() {
        let rate = Rate::default();
        let start = Instant::now();
        assert_eq!(rate.next(start, 0), None);
        assert_eq!(rate.next(start + Duration::from_millis(100), 50_000_000), None, "too soon to tell");
        assert_eq!(rate.next(start + Duration::from_secs(2), 1_000_000_000), Some(500_000_000));
        assert_eq!(
            rate.next(start + Duration::from_millis(2100), 1_000_000_000),
            Some(500_000_000),
            "the last one counts"
        );
    }

    #[test]
    fn names_of_one_file_count_once() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a"), vec![1; 64 << 10]).unwrap();
        let one = measure(folder.path()).unwrap();
        std::fs::hard_link(folder.path().join("a"), folder.path().join("b")).unwrap();
        std::os::unix::fs::symlink("/", folder.path().join("machine")).unwrap();
        let both = measure(folder.path()).unwrap();
        assert_eq!((both.bytes, both.inodes), (one.bytes, one.inodes + 1));
    }
}
