//! The store: every object as JSON in one file, one global revision, and a window of recent changes for watches.

mod database;
mod history;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use redb::{Database, ReadTransaction, ReadableDatabase};
use serde_json::Value;
use tokio::sync::oneshot;

pub use database::Opened;
pub use history::{Change, ChangeKind, Next, Selectable};

use crate::registry::Resource;
use database::{META, OBJECTS, REVISION};
use history::History;
use writer::{Request, Writer};

/// Memory that the database may use for its pages, in bytes.
const CACHE_BYTES: usize = 8 << 20;
/// Snapshots kept for chunked lists.
const SNAPSHOTS_MAX: usize = 8;
/// How long a chunked list may be continued (etcd's compaction interval is five minutes).
const SNAPSHOT_LIFE: Duration = Duration::from_secs(120);

/// Which object.
#[derive(Clone, Debug)]
pub struct ObjectKey {
    /// The resource's row.
    pub resource: &'static Resource,
    /// The namespace, empty for what is not in one.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl ObjectKey {
    /// A key.
    pub fn new(resource: &'static Resource, namespace: &str, name: &str) -> ObjectKey {
        ObjectKey { resource, namespace: namespace.into(), name: name.into() }
    }

    fn path(&self) -> String {
        format!("{}/{}/{}", self.resource.storage, self.namespace, self.name)
    }
}

/// What must hold for a write to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// No such object.
    Absent,
    /// The object, unchanged since this revision.
    Revision(u64),
}

/// An object as it lies in the store.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Revision of its last change.
    pub revision: u64,
    /// Its JSON.
    pub json: Bytes,
}

impl Stored {
    /// The object's document.
    pub fn value(&self) -> Value {
        // What is damaged is taken out when the store is opened, so this can't fail.
        serde_json::from_slice(&self.json).unwrap_or_default()
    }
}

/// Why the store refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A create met an existing object.
    #[error("the object is there already")]
    Exists,
    /// The object is gone.
    #[error("the object is not there")]
    Missing,
    /// The object has changed since it was read.
    #[error("the object has changed")]
    Changed,
    /// The snapshot or window that was asked for is gone.
    #[error("revision {0} is too old")]
    TooOld(u64),
    /// More writes wait than may.
    #[error("too many writes are waiting")]
    Busy,
    /// Another process has the file open.
    #[error("{} is in use by another process; stop the other instance or use another folder", .0.display())]
    InUse(PathBuf),
    /// The file is damaged. Nothing was changed.
    #[error(
        "{} is damaged ({reason}): put a backup in its place, or move it away to start with an empty API, which ends the pods that run",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the database says.
        reason: String,
    },
    /// The file can't be read or written.
    #[error("the store {} failed: {reason}", path.display())]
    Failed {
        /// The file.
        path: PathBuf,
        /// What the database says.
        reason: String,
    },
    /// The writer has ended.
    #[error("the store is closed")]
    Closed,
}

/// One page of a list.
#[derive(Debug, Default)]
pub struct Page {
    /// The revision that the list shows.
    pub revision: u64,
    /// The objects, in the order of namespace and name.
    pub items: Vec<Listed>,
    /// True when more follow.
    pub more: bool,
    /// How many follow; one of a list with a filter.
    pub remaining: usize,
}

/// An object of a list.
#[derive(Debug)]
pub struct Listed {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its JSON.
    pub json: Bytes,
}

/// Where a list begins and what it shows.
#[derive(Clone, Debug, Default)]
pub struct Range {
    /// One namespace, or all.
    pub namespace: Option<String>,
    /// Namespace and name after which it goes on.
    pub after: Option<(String, String)>,
    /// The revision that it must show, when it goes on.
    pub revision: Option<u64>,
}

pub(crate) struct Shared {
    path: PathBuf,
    /// `None` only between a failure and the next try to open the file again.
    database: RwLock<Option<Arc<Database>>>,
    history: History,
    published: AtomicU64,
    snapshots: Mutex<Vec<(u64, Instant, Arc<ReadTransaction>)>>,
}

/// The store; cheap to clone.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
    writer: Arc<Writer>,
}

impl Store {
    /// Opens or makes the file and starts the writer.
    ///
    /// # Errors
    /// When the file is damaged, another process has it open, or the folder can't be written.
    pub fn open(path: &Path) -> Result<(Store, Opened), StoreError> {
        let (database, opened) = database::open(path)?;
        let shared = Arc::new(Shared {
            path: path.to_path_buf(),
            database: RwLock::new(Some(Arc::new(database))),
            history: History::new(opened.revision),
            published: AtomicU64::new(opened.revision),
            snapshots: Mutex::new(Vec::new()),
        });
        let writer = Arc::new(Writer::start(shared.clone(), opened.revision)?);
        Ok((Store { shared, writer }, opened))
    }

    /// The newest revision that every reader sees.
    pub fn revision(&self) -> u64 {
        self.shared.published.load(Ordering::Acquire)
    }

    /// Reads one object.
    ///
    /// # Errors
    /// When the file fails.
    pub fn get(&self, key: &ObjectKey) -> Result<Option<Stored>, StoreError> {
        let database = self.shared.database()?;
        let read = || -> Result<Option<Stored>, redb::Error> {
            let table = database.begin_read()?.open_table(OBJECTS)?;
            Ok(table.get(key.path().as_str())?.map(|found| {
                let (revision, json) = found.value();
                Stored { revision, json: Bytes::copy_from_slice(json) }
            }))
        };
        read().map_err(|error| self.shared.failed(&error))
    }

    /// Reads one object's document.
    ///
    /// # Errors
    /// When the file fails.
    pub fn get_value(&self, key: &ObjectKey) -> Result<Option<Value>, StoreError> {
        Ok(self.get(key)?.map(|stored| stored.value()))
    }

    /// Reads the objects of a range that the filter takes, `limit` of them at most.
    ///
    /// # Errors
    /// When the file fails or the revision asked for is no longer there.
    pub fn list(
        &self,
        resource: &Resource,
        range: &Range,
        limit: usize,
        mut filter: impl FnMut(&Listed) -> bool,
    ) -> Result<Page, StoreError> {
        let snapshot = self.shared.snapshot(range.revision)?;
        let prefix = match &range.namespace {
            Some(namespace) => format!("{}/{namespace}/", resource.storage),
            None => format!("{}/", resource.storage),
        };
        // '0' follows '/', so that the end excludes exactly what has another prefix.
        let end = format!("{}0", &prefix[..prefix.len() - 1]);
        let start = match &range.after {
            Some((namespace, name)) => format!("{}/{namespace}/{name}\0", resource.storage),
            None => prefix,
        };
        let mut read = || -> Result<Page, redb::Error> {
            let mut page = Page { revision: revision_of(&snapshot)?, ..Page::default() };
            let table = snapshot.open_table(OBJECTS)?;
            if start >= end {
                return Ok(page);
            }
            for entry in table.range(start.as_str()..end.as_str())? {
                let (key, value) = entry?;
                if page.more {
                    page.remaining += 1;
                    continue;
                }
                let mut parts = key.value().splitn(3, '/').skip(1);
                let listed = Listed {
                    namespace: parts.next().unwrap_or_default().into(),
                    name: parts.next().unwrap_or_default().into(),
                    json: Bytes::copy_from_slice(value.value().1),
                };
                if !filter(&listed) {
                    continue;
                }
                if page.items.len() == limit {
                    (page.more, page.remaining) = (true, 1);
                    continue;
                }
                page.items.push(listed);
            }
            Ok(page)
        };
        let page = read().map_err(|error| self.shared.failed(&error))?;
        if page.more {
            self.shared.keep_snapshot(page.revision, snapshot);
        }
        Ok(page)
    }

    /// Reads all documents of a resource, in one namespace or in all.
    ///
    /// # Errors
    /// When the file fails.
    pub fn list_values(&self, resource: &Resource, namespace: Option<&str>) -> Result<Vec<Value>, StoreError> {
        let range = Range { namespace: namespace.map(String::from), ..Range::default() };
        let page = self.list(resource, &range, usize::MAX, |_| true)?;
        Ok(page.items.iter().map(|item| serde_json::from_slice(&item.json).unwrap_or_default()).collect())
    }

    /// Reads the documents of a resource in all namespaces whose JSON the filter takes; the others are not parsed.
    ///
    /// # Errors
    /// When the file fails.
    pub fn list_with(&self, resource: &Resource, filter: impl Fn(&[u8]) -> bool) -> Result<Vec<Value>, StoreError> {
        let page = self.list(resource, &Range::default(), usize::MAX, |item| filter(&item.json))?;
        Ok(page.items.iter().map(|item| serde_json::from_slice(&item.json).unwrap_or_default()).collect())
    }

    /// Writes an object if the expectation holds; returns it with its new `metadata.resourceVersion`.
    ///
    /// # Errors
    /// When the expectation does not hold, too many writes wait, or the file fails.
    pub async fn put(&self, key: &ObjectKey, expect: Expect, object: Value) -> Result<Value, StoreError> {
        self.send(key, expect, Some(object)).await
    }

    /// Deletes an object if it is unchanged since the revision; returns its last form.
    ///
    /// # Errors
    /// As for [`Store::put`].
    pub async fn delete(&self, key: &ObjectKey, revision: u64) -> Result<Value, StoreError> {
        self.send(key, Expect::Revision(revision), None).await
    }

    async fn send(&self, key: &ObjectKey, expect: Expect, object: Option<Value>) -> Result<Value, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.writer.send(Request { key: key.clone(), expect, object, reply })?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// Changes of a resource after a revision, or that the window no longer reaches back so far.
    pub fn changes_after(&self, resource: &Resource, revision: u64) -> Next {
        self.shared.history.after(resource.storage, revision)
    }

    /// Wakes whenever the resource has changed.
    pub fn subscribe(&self, resource: &Resource) -> tokio::sync::watch::Receiver<u64> {
        self.shared.history.subscribe(resource.storage)
    }

    /// Ends the writer after what it has; nothing can be written after.
    pub async fn close(&self) {
        let writer = self.writer.clone();
        let _ = tokio::task::spawn_blocking(move || writer.stop()).await;
    }
}

fn revision_of(snapshot: &ReadTransaction) -> Result<u64, redb::Error> {
    Ok(snapshot.open_table(META)?.get(REVISION)?.map_or(0, |value| value.value()))
}

impl Shared {
    fn database(&self) -> Result<Arc<Database>, StoreError> {
        let held = self.database.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        held.clone().ok_or_else(|| self.failed(&"it is being opened again after a failure"))
    }

    fn failed(&self, reason: &dyn std::fmt::Display) -> StoreError {
        StoreError::Failed { path: self.path.clone(), reason: reason.to_string() }
    }

    /// The present, or the kept past.
    fn snapshot(&self, revision: Option<u64>) -> Result<Arc<ReadTransaction>, StoreError> {
        let database = self.database()?;
        let present = database.begin_read().map_err(|error| self.failed(&error))?;
        let Some(wanted) = revision else { return Ok(Arc::new(present)) };
        if revision_of(&present).map_err(|error| self.failed(&error))? == wanted {
            return Ok(Arc::new(present));
        }
        let mut kept = self.snapshots.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        kept.retain(|(_, since, _)| since.elapsed() < SNAPSHOT_LIFE);
        kept.iter()
            .find(|(revision, ..)| *revision == wanted)
            .map(|(.., snapshot)| snapshot.clone())
            .ok_or(StoreError::TooOld(wanted))
    }

    fn keep_snapshot(&self, revision: u64, snapshot: Arc<ReadTransaction>) {
        let mut kept = self.snapshots.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        kept.retain(|(other, since, _)| *other != revision && since.elapsed() < SNAPSHOT_LIFE);
        if kept.len() == SNAPSHOTS_MAX {
            kept.remove(0);
        }
        kept.push((revision, Instant::now(), snapshot));
    }
}

#[cfg(test)]
#[path = "storage/tests.rs"]
mod tests;
