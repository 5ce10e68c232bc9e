//! ConfigMaps and Secrets, each followed by a watch of its own, because the node authorizer lets a node read just the
//! objects of its pods, by name.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::NamespaceResourceScope;
use kube::api::Api;
use kube::{Resource, ResourceExt};
use orlop_agent_core::ports::PortError;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::changes::ChangeBoard;
use crate::client::{ApiClients, REQUEST_DEADLINE, within};
use crate::list_watch::{Change, Next, follow};

/// How long the first answer about an object may take.
const FIRST_ANSWER_DEADLINE: Duration = Duration::from_secs(10);
/// An object that no pod refers to is kept this long after it was last asked for.
const UNREFERENCED_LIMIT: Duration = Duration::from_secs(30);
/// More objects than this are read without a watch.
const WATCHES_MAX: usize = 4096;

/// What is known of one object.
#[derive(Clone)]
enum Known<K> {
    Nothing,
    Failed(PortError),
    Absent,
    Present(Arc<K>),
}

struct Entry<K> {
    known: watch::Receiver<Known<K>>,
    asked: Instant,
    _follower: AbortOnDropHandle<()>,
}

/// The watched objects of one kind.
pub(super) struct WatchedObjects<K> {
    kind: &'static str,
    clients: ApiClients,
    changes: Arc<ChangeBoard>,
    /// Whether an object says that it never changes.
    is_immutable: fn(&K) -> bool,
    entries: Mutex<HashMap<(String, String), Entry<K>>>,
}

impl<K> WatchedObjects<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + DeserializeOwned
        + Debug
        + Send
        + Sync
        + 'static,
{
    pub(super) fn new(
        kind: &'static str,
        clients: ApiClients,
        changes: Arc<ChangeBoard>,
        is_immutable: fn(&K) -> bool,
    ) -> Self {
        Self { kind, clients, changes, is_immutable, entries: Mutex::default() }
    }

    /// The object, from the watch where there is one; the first call starts it.
    pub(super) async fn get(&self, namespace: &str, name: &str) -> Result<Arc<K>, PortError> {
        let Some(mut known) = self.follow_object(namespace, name) else {
            return self.fetch(namespace, name).await;
        };
        let first = known.wait_for(|known| !matches!(known, Known::Nothing));
        // Neither a late answer nor the end of the follower of an immutable object matters: the last word stands.
        let _ = tokio::time::timeout(FIRST_ANSWER_DEADLINE, first).await.map(|first| first.map(drop));
        let answer = known.borrow().clone();
        match answer {
            Known::Present(object) => Ok(object),
            Known::Absent => Err(self.absent(namespace, name)),
            // The node authorizer may have learned of the pod only now: ask again instead of passing on an old refusal.
            Known::Failed(PortError::Unavailable { .. }) => self.fetch(namespace, name).await,
            Known::Failed(error) => Err(error),
            Known::Nothing => Err(PortError::Unavailable {
                what: format!("get {} {namespace}/{name}", self.kind),
                message: format!("no answer from the API server within {} s", FIRST_ANSWER_DEADLINE.as_secs()),
            }),
        }
    }

    /// Stops following what is not in `referenced` and was not asked for lately.
    pub(super) fn retire(&self, referenced: &BTreeSet<(String, String)>) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|key, entry| referenced.contains(key) || entry.asked.elapsed() < UNREFERENCED_LIMIT);
    }

    fn absent(&self, namespace: &str, name: &str) -> PortError {
        PortError::NotFound { kind: self.kind, name: format!("{namespace}/{name}") }
    }

    async fn fetch(&self, namespace: &str, name: &str) -> Result<Arc<K>, PortError> {
        let full_name = format!("{namespace}/{name}");
        let api: Api<K> = Api::namespaced(self.clients.requests.clone(), namespace);
        let what = format!("get {} {full_name}", self.kind);
        within(&what, REQUEST_DEADLINE, api.get(name))
            .await
            .map(Arc::new)
            .map_err(|error| error.to_port(self.kind, &full_name))
    }

    /// The channel of an object; none where too many are followed already.
    fn follow_object(&self, namespace: &str, name: &str) -> Option<watch::Receiver<Known<K>>> {
        let key = (namespace.to_owned(), name.to_owned());
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = entries.get_mut(&key) {
            entry.asked = Instant::now();
            return Some(entry.known.clone());
        }
        if entries.len() >= WATCHES_MAX {
            return None;
        }
        let (sender, known) = watch::channel(Known::Nothing);
        let follower = AbortOnDropHandle::new(tokio::spawn(self.follower(&key, sender)));
        entries.insert(key, Entry { known: known.clone(), asked: Instant::now(), _follower: follower });
        Some(known)
    }

    /// The task that keeps one object up to date.
    fn follower(
        &self,
        key: &(String, String),
        sender: watch::Sender<Known<K>>,
    ) -> impl Future<Output = ()> + Send + use<K> {
        let (namespace, name) = key.clone();
        let api: Api<K> = Api::namespaced(self.clients.watches.clone(), &namespace);
        let (kind, changes, is_immutable) = (self.kind, self.changes.clone(), self.is_immutable);
        let chance = self.clients.pace.chance.clone();
        async move {
            let what = format!("{kind} {namespace}/{name}");
            let selector = format!("metadata.name={name}");
            follow(&what, api, Some(&selector), &chance, |change| {
                let new = match change {
                    Change::Listed(objects) => objects.into_iter().next().map_or(Known::Absent, present),
                    Change::Applied(object) => present(object),
                    Change::Deleted(_) => Known::Absent,
                    Change::Failed(error) => Known::Failed(error.to_port(kind, &format!("{namespace}/{name}"))),
                };
                let settled = matches!(&new, Known::Present(object) if is_immutable(object));
                let mut announced = false;
                sender.send_if_modified(|known| {
                    let (replaced, told) = supersedes(known, &new);
                    if replaced {
                        *known = new;
                    }
                    announced = told;
                    replaced
                });
                if announced {
                    changes.announce(kind, &namespace, &name);
                }
                if settled { Next::Stop } else { Next::Continue }
            })
            .await;
        }
    }
}

fn present<K: Resource>(mut object: K) -> Known<K> {
    object.managed_fields_mut().clear();
    Known::Present(Arc::new(object))
}

/// Whether `new` takes the place of `old`, and whether listeners are told. The first answer is not a change, unless
/// it comes after a failure that somebody may have been told; a failure never hides what was known.
fn supersedes<K: Resource>(old: &Known<K>, new: &Known<K>) -> (bool, bool) {
    match (old, new) {
        (Known::Nothing, _) => (true, false),
        (Known::Failed(_), Known::Failed(_)) => (true, false),
        (_, Known::Failed(_) | Known::Nothing) => (false, false),
        (Known::Absent, Known::Absent) => (false, false),
        (Known::Present(old), Known::Present(new)) => {
            let same = old.resource_version() == new.resource_version() && old.uid() == new.uid();
            (!same, !same)
        }
        _ => (true, true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;

    fn map(version: &str) -> Known<ConfigMap> {
        let mut map = ConfigMap::default();
        map.metadata.resource_version = Some(version.to_owned());
        Known::Present(Arc::new(map))
    }

    #[test]
    fn listeners_hear_of_changes_and_of_nothing_else() {
        let failed = || Known::Failed(PortError::Invalid { what: "x".into(), message: "y".into() });
        type Case = (&'static str, Known<ConfigMap>, Known<ConfigMap>, (bool, bool));
        let cases: [Case; 10] = [
            ("first answer", Known::Nothing, map("1"), (true, false)),
            ("first answer is absence", Known::Nothing, Known::Absent, (true, false)),
            ("first answer is a failure", Known::Nothing, failed(), (true, false)),
            ("back after a failure", failed(), map("1"), (true, true)),
            ("a failure hides nothing", map("1"), failed(), (false, false)),
            ("a failure does not hide absence", Known::Absent, failed(), (false, false)),
            ("the same version again", map("1"), map("1"), (false, false)),
            ("a new version", map("1"), map("2"), (true, true)),
            ("deleted", map("1"), Known::Absent, (true, true)),
            ("created", Known::Absent, map("3"), (true, true)),
        ];
        for (what, old, new, want) in cases {
            assert_eq!(supersedes(&old, &new), want, "{what}");
        }
    }
}
