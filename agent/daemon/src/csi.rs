//! Registered CSI drivers, as the CSINode object shows them.

use orlop_agent_api::csi_node::CsiNodeDriver;
use tokio::sync::watch;

/// A channel of `CsiNodeDriver`s that follows one of another type, until either end is gone.
pub(crate) fn follow_drivers<T, F>(
    mut drivers: watch::Receiver<Vec<T>>,
    convert: F,
) -> watch::Receiver<Vec<CsiNodeDriver>>
where
    T: Send + Sync + 'static,
    F: Fn(&T) -> CsiNodeDriver + Send + 'static,
{
    let all = |list: &[T], convert: &F| list.iter().map(convert).collect::<Vec<_>>();
    let first = all(&drivers.borrow_and_update(), &convert);
    let (sender, receiver) = watch::channel(first);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                changed = drivers.changed() => if changed.is_err() { return },
                () = sender.closed() => return,
            }
            let list = all(&drivers.borrow_and_update(), &convert);
            sender.send_replace(list);
        }
    });
    receiver
}
