//! Changes of nf_tables by a program that does one thing and ends.

use std::sync::atomic::{AtomicBool, Ordering};

use orlop_kernel::nftables::{Batch, Nftables, NftablesError};
use orlop_kernel::process;

use crate::Result;
use crate::kit::CniError;

/// Whether this process holds sockets that are slow to close.
static HOLDS_SOCKETS: AtomicBool = AtomicBool::new(false);

/// Changes rules by a plan that may be asked for several times.
pub(crate) fn change(
    step: &str,
    plan: impl FnMut(&mut Nftables) -> std::result::Result<Batch, NftablesError>,
) -> Result<()> {
    let mut nftables = Nftables::open();
    let changed = nftables.change(plan).map_err(|error: NftablesError| CniError::step(step)(&error));
    if nftables.has_changed() {
        nftables.leave_open();
        HOLDS_SOCKETS.store(true, Ordering::Relaxed);
    }
    changed
}

/// A child has been left behind that closes what was opened so far.
pub(crate) fn closing_is_left() {
    HOLDS_SOCKETS.store(false, Ordering::Relaxed);
}

/// Leaves slow closing to a child: the answer is told, and nobody needs to wait for the kernel's readers.
pub(crate) fn leave_closing() {
    if HOLDS_SOCKETS.load(Ordering::Relaxed) {
        // Without a child this process waits itself.
        let _ = process::linger(|| true);
    }
}
