//! Objects read by GET and believed for a short time; while the API server is away the last answer stays in force.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use orlop_agent_core::ports::PortError;
use tokio::sync::Mutex as AsyncMutex;

/// Answers kept at most; the oldest goes first.
const ENTRIES_MAX: usize = 2048;

/// A slot that one caller at a time may renew; the others wait for its answer.
type Slot<V> = Arc<AsyncMutex<Option<(Instant, Result<V, PortError>)>>>;

/// Answers by key.
pub(crate) struct FetchedObjects<V> {
    life: Duration,
    slots: Mutex<HashMap<String, (Instant, Slot<V>)>>,
}

impl<V: Clone> FetchedObjects<V> {
    /// A cache whose answers, absence included, are believed for `life`.
    pub(crate) fn new(life: Duration) -> Self {
        Self { life, slots: Mutex::default() }
    }

    /// The answer for `key`, asked by `fetch` if there is none young enough.
    pub(crate) async fn get<F>(&self, key: &str, fetch: impl FnOnce() -> F) -> Result<V, PortError>
    where
        F: Future<Output = Result<V, PortError>>,
    {
        let slot = self.slot(key);
        let mut slot = slot.lock().await;
        if let Some((at, answer)) = slot.as_ref()
            && at.elapsed() < self.life
        {
            return answer.clone();
        }
        match (fetch().await, slot.as_ref()) {
            (Err(PortError::Unavailable { .. }), Some((_, Ok(old)))) => Ok(old.clone()),
            (Err(error @ PortError::Unavailable { .. }), _) => Err(error),
            (answer, _) => {
                *slot = Some((Instant::now(), answer.clone()));
                answer
            }
        }
    }

    fn slot(&self, key: &str) -> Slot<V> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if !slots.contains_key(key)
            && slots.len() >= ENTRIES_MAX
            && let Some(oldest) = slots.iter().min_by_key(|(_, (used, _))| *used).map(|(key, _)| key.clone())
        {
            slots.remove(&oldest);
        }
        let (used, slot) = slots.entry(key.to_owned()).or_insert_with(|| (Instant::now(), Slot::default()));
        *used = Instant::now();
        slot.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn away() -> PortError {
        PortError::Unavailable { what: "get".into(), message: "connection refused".into() }
    }

    #[tokio::test]
    async fn answers_are_believed_for_their_life_and_longer_while_the_server_is_away() {
        let cache = FetchedObjects::new(Duration::from_secs(60));
        assert!(cache.get("a", || async { Err(away()) }).await.is_err(), "nothing known yet");
        assert_eq!(cache.get("a", || async { Ok(1) }).await.unwrap(), 1);
        assert_eq!(cache.get("a", || async { Ok(2) }).await.unwrap(), 1, "still young");
        let stale = FetchedObjects::new(Duration::ZERO);
        assert_eq!(stale.get("a", || async { Ok(1) }).await.unwrap(), 1);
        assert_eq!(stale.get("a", || async { Err(away()) }).await.unwrap(), 1, "the server is away");
        let gone = || async { Err(PortError::NotFound { kind: "X", name: "a".into() }) };
        assert!(stale.get("a", gone).await.is_err(), "the server says it is gone");
        assert!(stale.get("a", || async { Err(away()) }).await.is_err(), "and stays gone");
    }

    #[tokio::test]
    async fn the_number_of_answers_is_bounded() {
        let cache = FetchedObjects::new(Duration::from_secs(60));
        for n in 0..ENTRIES_MAX + 10 {
            cache.get(&n.to_string(), || async { Ok(n) }).await.unwrap();
        }
        assert_eq!(cache.slots.lock().unwrap().len(), ENTRIES_MAX);
    }
}
