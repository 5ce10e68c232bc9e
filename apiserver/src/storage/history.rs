//! The window of recent changes, one ring per resource, from which every watch reads at its own pace.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::watch;

use crate::registry::Resource;

/// Changes kept per resource.
const CHANGES_MAX: usize = 2048;
/// Bytes of JSON kept per resource.
const BYTES_MAX: usize = 4 << 20;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// A new object.
    Added,
    /// A new form of it.
    Modified,
    /// It is gone; the JSON is its last form.
    Deleted,
}

/// What selectors look at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selectable {
    /// `metadata.namespace`.
    pub namespace: String,
    /// The labels.
    pub labels: BTreeMap<String, String>,
    /// The fields that the resource lets be selected.
    pub fields: Vec<(&'static str, String)>,
}

impl Selectable {
    /// What selectors see of an object.
    pub fn of(resource: &Resource, object: &Value) -> Selectable {
        let labels = object.pointer("/metadata/labels").and_then(Value::as_object);
        let text = |value: Option<&Value>| match value {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Bool(flag)) => flag.to_string(),
            Some(Value::Number(number)) => number.to_string(),
            _ => String::new(),
        };
        let common = [("metadata.name", "/metadata/name"), ("metadata.namespace", "/metadata/namespace")];
        Selectable {
            namespace: text(object.pointer("/metadata/namespace")),
            labels: labels
                .map(|labels| labels.iter().map(|(key, value)| (key.clone(), text(Some(value)))).collect())
                .unwrap_or_default(),
            fields: common
                .iter()
                .chain(resource.selectable_fields)
                .map(|(field, pointer)| (*field, text(object.pointer(pointer))))
                .map(|(field, value)| match (field, value.as_str()) {
                    // A missing flag is selected as false.
                    ("spec.unschedulable" | "spec.hostNetwork", "") => (field, "false".to_string()),
                    _ => (field, value),
                })
                .collect(),
        }
    }
}

/// One change of one object.
#[derive(Debug)]
pub struct Change {
    /// The revision that it made.
    pub revision: u64,
    /// What happened.
    pub kind: ChangeKind,
    /// The object after it (before it, when deleted).
    pub json: Bytes,
    /// What selectors see.
    pub selectable: Selectable,
    /// What selectors saw before and the old form (at the new revision), when they see another thing now.
    pub before: Option<(Selectable, Bytes)>,
}

impl Change {
    /// The object as one sees it last from whose view it goes: its old form, at the new revision.
    pub fn left(&self) -> &Bytes {
        self.before.as_ref().map_or(&self.json, |(_, json)| json)
    }
}

/// The answer to a watch that asks what is new.
#[derive(Debug)]
pub enum Next {
    /// The changes, oldest first; may be none.
    Changes(Vec<Arc<Change>>),
    /// The window starts after the revision asked for.
    TooOld,
}

struct Ring {
    /// Every change after this revision is in the ring.
    floor: u64,
    changes: VecDeque<Arc<Change>>,
    bytes: usize,
    newest: watch::Sender<u64>,
}

/// All rings.
pub(super) struct History {
    start: u64,
    rings: Mutex<HashMap<&'static str, Ring>>,
}

impl History {
    pub(super) fn new(start: u64) -> History {
        History { start, rings: Mutex::new(HashMap::new()) }
    }

    fn rings(&self) -> MutexGuard<'_, HashMap<&'static str, Ring>> {
        self.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring<'a>(&self, rings: &'a mut HashMap<&'static str, Ring>, storage: &'static str) -> &'a mut Ring {
        rings.entry(storage).or_insert_with(|| Ring {
            floor: self.start,
            changes: VecDeque::new(),
            bytes: 0,
            newest: watch::channel(self.start).0,
        })
    }

    pub(super) fn publish(&self, storage: &'static str, change: Change) {
        let mut rings = self.rings();
        let ring = self.ring(&mut rings, storage);
        let revision = change.revision;
        ring.bytes += weight(&change);
        ring.changes.push_back(Arc::new(change));
        while ring.changes.len() > CHANGES_MAX || (ring.bytes > BYTES_MAX && ring.changes.len() > 1) {
            if let Some(oldest) = ring.changes.pop_front() {
                ring.bytes -= weight(&oldest);
                ring.floor = oldest.revision;
            }
        }
        ring.newest.send_replace(revision);
    }

    pub(super) fn after(&self, storage: &'static str, revision: u64) -> Next {
        let mut rings = self.rings();
        let ring = self.ring(&mut rings, storage);
        if revision < ring.floor {
            return Next::TooOld;
        }
        let first = ring.changes.partition_point(|change| change.revision <= revision);
        Next::Changes(ring.changes.range(first..).cloned().collect())
    }

    pub(super) fn subscribe(&self, storage: &'static str) -> watch::Receiver<u64> {
        let mut rings = self.rings();
        self.ring(&mut rings, storage).newest.subscribe()
    }
}

fn weight(change: &Change) -> usize {
    change.json.len() + change.before.as_ref().map_or(0, |(_, json)| json.len())
}
