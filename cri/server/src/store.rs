//! The sandboxes and containers that exist, by id and by name.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::container::Container;
use crate::error::RpcError;
use crate::sandbox::Sandbox;

/// Everything that can be found by an id.
#[derive(Default)]
pub(crate) struct Store(Mutex<Maps>);

#[derive(Default)]
struct Maps {
    sandboxes: BTreeMap<String, Arc<Sandbox>>,
    containers: BTreeMap<String, Arc<Container>>,
    /// Names and the ids that own them.
    names: HashMap<String, String>,
}

/// A name that nobody else can take while this lives, or for good after [`NameGuard::keep`].
pub(crate) struct NameGuard<'a> {
    store: &'a Store,
    name: Option<String>,
}

impl NameGuard<'_> {
    /// Leaves the name with its object, which is in the store by now.
    pub(crate) fn keep(mut self) {
        self.name = None;
    }
}

impl Drop for NameGuard<'_> {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            self.store.maps().names.remove(name);
        }
    }
}

impl Store {
    fn maps(&self) -> MutexGuard<'_, Maps> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a name for an id.
    pub(crate) fn reserve(&self, name: &str, id: &str) -> Result<NameGuard<'_>, RpcError> {
        let mut maps = self.maps();
        if let Some(by) = maps.names.get(name) {
            return Err(RpcError::NameTaken { name: name.into(), by: by.clone() });
        }
        maps.names.insert(name.into(), id.into());
        Ok(NameGuard { store: self, name: Some(name.into()) })
    }

    pub(crate) fn insert_sandbox(&self, sandbox: Arc<Sandbox>) {
        let mut maps = self.maps();
        maps.names.insert(sandbox.name(), sandbox.id.clone());
        maps.sandboxes.insert(sandbox.id.clone(), sandbox);
    }

    pub(crate) fn insert_container(&self, container: Arc<Container>) {
        let mut maps = self.maps();
        maps.names.insert(container.name(), container.id.clone());
        maps.containers.insert(container.id.clone(), container);
    }

    pub(crate) fn remove_sandbox(&self, sandbox: &Sandbox) {
        let mut maps = self.maps();
        maps.names.remove(&sandbox.name());
        maps.sandboxes.remove(&sandbox.id);
    }

    pub(crate) fn remove_container(&self, container: &Container) {
        let mut maps = self.maps();
        maps.names.remove(&container.name());
        maps.containers.remove(&container.id);
    }

    /// A sandbox by its id or the unambiguous beginning of it.
    pub(crate) fn find_sandbox(&self, id: &str) -> Result<Option<Arc<Sandbox>>, RpcError> {
        find(&self.maps().sandboxes, "sandbox", id)
    }

    /// A container by its id or the unambiguous beginning of it.
    pub(crate) fn find_container(&self, id: &str) -> Result<Option<Arc<Container>>, RpcError> {
        find(&self.maps().containers, "container", id)
    }

    /// A sandbox that has to be there.
    pub(crate) fn sandbox(&self, id: &str) -> Result<Arc<Sandbox>, RpcError> {
        self.find_sandbox(id)?.ok_or_else(|| RpcError::NotFound { kind: "sandbox", id: id.into() })
    }

    /// A container that has to be there.
    pub(crate) fn container(&self, id: &str) -> Result<Arc<Container>, RpcError> {
        self.find_container(id)?.ok_or_else(|| RpcError::NotFound { kind: "container", id: id.into() })
    }

    pub(crate) fn sandboxes(&self) -> Vec<Arc<Sandbox>> {
        self.maps().sandboxes.values().cloned().collect()
    }

    pub(crate) fn containers(&self) -> Vec<Arc<Container>> {
        self.maps().containers.values().cloned().collect()
    }

    /// Containers of a sandbox that are not being removed.
    pub(crate) fn shown_containers_of(&self, sandbox_id: &str) -> Vec<Arc<Container>> {
        let mut containers = self.containers_of(sandbox_id);
        containers.retain(|container| !container.is_removing());
        containers
    }

    pub(crate) fn containers_of(&self, sandbox_id: &str) -> Vec<Arc<Container>> {
        self.maps().containers.values().filter(|container| container.sandbox.id == sandbox_id).cloned().collect()
    }
}

fn find<T>(map: &BTreeMap<String, Arc<T>>, kind: &'static str, id: &str) -> Result<Option<Arc<T>>, RpcError> {
    if id.is_empty() {
        return Err(RpcError::Argument {
            field: if kind == "sandbox" { "pod_sandbox_id" } else { "container_id" },
            message: "is empty".into(),
        });
    }
    let mut fitting =
        map.range::<str, _>((Bound::Included(id), Bound::Unbounded)).take_while(|(known, _)| known.starts_with(id));
    match (fitting.next(), fitting.next()) {
        (None, _) => Ok(None),
        (Some((_, found)), None) => Ok(Some(found.clone())),
        (Some((known, found)), Some(_)) if known == id => Ok(Some(found.clone())),
        _ => Err(RpcError::Ambiguous { kind, id: id.into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_found_by_their_beginning() {
        let map: BTreeMap<String, Arc<u8>> =
            [("ab", 1), ("abc", 2), ("b", 3)].map(|(id, value)| (id.to_string(), Arc::new(value))).into();
        for (id, expected) in [("ab", Some(1)), ("abc", Some(2)), ("b", Some(3)), ("x", None)] {
            assert_eq!(find(&map, "sandbox", id).unwrap().map(|found| *found), expected, "{id}");
        }
        assert!(matches!(find(&map, "sandbox", "a"), Err(RpcError::Ambiguous { .. })));
        assert!(find(&map, "sandbox", "").is_err());
    }
}
