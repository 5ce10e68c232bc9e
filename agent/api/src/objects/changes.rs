//! Telling several listeners which objects changed, without a queue that could overflow: each listener has a set of
//! names that it has not seen yet, bounded by the number of watched objects.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use orlop_agent_core::ports::{ObjectChanges, PortFuture};
use tokio::sync::Notify;

/// Kind, namespace and name of an object.
pub(super) type ObjectKey = (String, String, String);

#[derive(Default)]
struct Listener {
    pending: Mutex<BTreeSet<ObjectKey>>,
    wake: Notify,
}

/// Where changes are announced.
#[derive(Default)]
pub(super) struct ChangeBoard {
    listeners: Mutex<Vec<Weak<Listener>>>,
}

impl ChangeBoard {
    /// Tells every listener of a change.
    pub(super) fn announce(&self, kind: &str, namespace: &str, name: &str) {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.retain(|listener| {
            let Some(listener) = listener.upgrade() else { return false };
            let key = (kind.to_owned(), namespace.to_owned(), name.to_owned());
            listener.pending.lock().unwrap_or_else(PoisonError::into_inner).insert(key);
            listener.wake.notify_one();
            true
        });
    }

    /// A new listener, which hears of every change from now on.
    pub(super) fn listen(&self) -> Box<dyn ObjectChanges> {
        let listener = Arc::new(Listener::default());
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&listener));
        Box::new(ChangeStream { listener })
    }
}

struct ChangeStream {
    listener: Arc<Listener>,
}

impl ObjectChanges for ChangeStream {
    fn next(&mut self) -> PortFuture<'_, ObjectKey> {
        Box::pin(async move {
            loop {
                let first = self.listener.pending.lock().unwrap_or_else(PoisonError::into_inner).pop_first();
                match first {
                    Some(key) => return key,
                    None => self.listener.wake.notified().await,
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_listener_hears_each_object_once_however_often_it_changed() {
        let board = ChangeBoard::default();
        let (mut one, mut two) = (board.listen(), board.listen());
        for _ in 0..3 {
            board.announce("Secret", "ns", "b");
        }
        board.announce("ConfigMap", "ns", "a");
        for listener in [&mut one, &mut two] {
            assert_eq!(listener.next().await, ("ConfigMap".to_owned(), "ns".to_owned(), "a".to_owned()));
            assert_eq!(listener.next().await, ("Secret".to_owned(), "ns".to_owned(), "b".to_owned()));
        }
        drop(one);
        board.announce("Secret", "ns", "c");
        assert_eq!(two.next().await.2, "c");
        assert_eq!(board.listeners.lock().unwrap().len(), 1, "a listener that is gone is forgotten");
    }
}
