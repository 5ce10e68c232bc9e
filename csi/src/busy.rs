//! One operation per volume at a time: a second one is told to come again, as CSI wants it.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use tonic::Status;

/// Volumes that something is being done to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Busy(Arc<Mutex<HashSet<String>>>);

/// Held while something is being done to a volume.
#[derive(Debug)]
pub(crate) struct BusyGuard {
    busy: Busy,
    id: String,
}

impl Busy {
    /// Takes a volume, or says `ABORTED`.
    pub(crate) fn take(&self, id: &str) -> Result<BusyGuard, Status> {
        if self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned()) {
            return Ok(BusyGuard { busy: self.clone(), id: id.to_owned() });
        }
        Err(Status::aborted(format!("another operation on volume {id} is under way; try again")))
    }
}

impl Drop for BusyGuard {
    fn drop(&mut self) {
        self.busy.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}
