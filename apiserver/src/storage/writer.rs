//! The one writer: takes what waits, commits it in one go, publishes the changes, then answers.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use redb::{Database, Durability, ReadableTable};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::database::{self, META, OBJECTS, REVISION};
use super::history::{Change, ChangeKind, Selectable};
use super::{Expect, ObjectKey, Shared, StoreError};

/// Writes that may wait.
const WAITING_MAX: usize = 4096;
/// Writes in one commit at most.
const BATCH_MAX: usize = 256;
/// Writes of short-lived objects (events, leases) that may be ahead of the disk.
pub(super) const UNSYNCED_MAX: u64 = 1000;
/// How long they may be ahead.
const UNSYNCED_LIFE: Duration = Duration::from_secs(1);

/// One write and who waits for it.
pub(super) struct Request {
    pub(super) key: ObjectKey,
    pub(super) expect: Expect,
    /// The new form; `None` deletes.
    pub(super) object: Option<Value>,
    pub(super) reply: oneshot::Sender<Result<Value, StoreError>>,
}

/// The writer's thread and the way to it.
pub(super) struct Writer {
    sender: Mutex<Option<SyncSender<Request>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Writer {
    pub(super) fn start(shared: Arc<Shared>, revision: u64) -> Result<Writer, StoreError> {
        let (sender, receiver) = sync_channel(WAITING_MAX);
        let path = shared.path.clone();
        let thread = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || Batches { shared, revision, unsynced: 0 }.run(&receiver))
            .map_err(|error| StoreError::Failed { path, reason: format!("start its thread: {error}") })?;
        Ok(Writer { sender: Mutex::new(Some(sender)), thread: Mutex::new(Some(thread)) })
    }

    pub(super) fn send(&self, request: Request) -> Result<(), StoreError> {
        let sender = self.sender.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Some(sender) = sender.as_ref() else { return Err(StoreError::Closed) };
        sender.try_send(request).map_err(|error| match error {
            TrySendError::Full(_) => StoreError::Busy,
            TrySendError::Disconnected(_) => StoreError::Closed,
        })
    }

    /// Lets the thread finish what waits, and waits for it.
    pub(super) fn stop(&self) {
        self.sender.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        let thread = self.thread.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Batches {
    shared: Arc<Shared>,
    revision: u64,
    unsynced: u64,
}

/// Who waits for what.
type Answer = (oneshot::Sender<Result<Value, StoreError>>, Result<Value, StoreError>);

/// What a batch has done, before it is committed.
#[derive(Default)]
struct Done {
    changes: Vec<(&'static str, Change)>,
    answers: Vec<Answer>,
}

impl Batches {
    fn run(&mut self, receiver: &Receiver<Request>) {
        loop {
            let first = match receiver.recv_timeout(if self.unsynced > 0 {
                UNSYNCED_LIFE
            } else {
                Duration::from_secs(3600)
            }) {
                Ok(request) => request,
                Err(RecvTimeoutError::Timeout) => {
                    self.sync();
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => break,
            };
            let mut batch = vec![first];
            while batch.len() < BATCH_MAX
                && let Ok(request) = receiver.try_recv()
            {
                batch.push(request);
            }
            self.apply(batch);
        }
        self.sync();
        // The file's lock is free when the thread has ended, whoever still holds the store.
        self.shared.snapshots.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clear();
        self.shared.database.write().unwrap_or_else(std::sync::PoisonError::into_inner).take();
    }

    /// Brings unsynced writes to the disk.
    fn sync(&mut self) {
        if self.unsynced > 0 {
            self.apply(Vec::new());
        }
    }

    fn apply(&mut self, batch: Vec<Request>) {
        let lasting = batch.is_empty() || batch.iter().any(|request| !request.key.resource.short_lived);
        let count = batch.len() as u64;
        let durable = lasting || self.unsynced + count > UNSYNCED_MAX;
        let database = match self.database() {
            Ok(database) => database,
            Err(error) => return refuse(batch, &error),
        };
        let start = self.revision;
        let mut waiting: Vec<Request> = batch;
        let mut done = Done::default();
        match self.commit(&database, &mut waiting, &mut done, durable) {
            Ok(()) => {
                self.unsynced = if durable { 0 } else { self.unsynced + count };
                for (storage, change) in done.changes {
                    self.shared.history.publish(storage, change);
                }
                self.shared.published.store(self.revision, Ordering::Release);
                for (reply, answer) in done.answers {
                    let _ = reply.send(answer);
                }
            }
            Err(error) => {
                self.revision = start;
                let failed = self.shared.failed(&error);
                tracing::error!(error = %failed, "a write to the store failed; the file is opened again for the next one");
                for (reply, _) in done.answers {
                    let _ = reply.send(Err(self.shared.failed(&error)));
                }
                refuse(waiting, &failed);
                drop(database);
                self.shared.snapshots.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clear();
                self.shared.database.write().unwrap_or_else(std::sync::PoisonError::into_inner).take();
            }
        }
    }

    /// The open database, opened again after a failure.
    fn database(&self) -> Result<Arc<Database>, StoreError> {
        if let Ok(database) = self.shared.database() {
            return Ok(database);
        }
        let database = Arc::new(database::reopen(&self.shared.path)?);
        *self.shared.database.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(database.clone());
        Ok(database)
    }

    fn commit(
        &mut self,
        database: &Database,
        waiting: &mut Vec<Request>,
        done: &mut Done,
        durable: bool,
    ) -> Result<(), redb::Error> {
        let mut write = database.begin_write()?;
        write.set_durability(if durable { Durability::Immediate } else { Durability::None })?;
        {
            let mut objects = write.open_table(OBJECTS)?;
            for request in waiting.drain(..) {
                let Request { key, expect, object, reply } = request;
                let answer = self.step(&mut objects, &key, expect, object, done);
                match answer {
                    Ok(answer) => done.answers.push((reply, answer)),
                    Err(error) => {
                        done.answers.push((reply, Err(StoreError::Closed)));
                        return Err(error);
                    }
                }
            }
            write.open_table(META)?.insert(REVISION, self.revision)?;
        }
        write.commit()?;
        Ok(())
    }

    fn step(
        &mut self,
        objects: &mut redb::Table<'_, &'static str, (u64, &'static [u8])>,
        key: &ObjectKey,
        expect: Expect,
        object: Option<Value>,
        done: &mut Done,
    ) -> Result<Result<Value, StoreError>, redb::Error> {
        let path = key.path();
        let before = objects.get(path.as_str())?.map(|found| {
            let (revision, json) = found.value();
            (revision, Bytes::copy_from_slice(json))
        });
        match (expect, &before) {
            (Expect::Absent, Some(_)) => return Ok(Err(StoreError::Exists)),
            (Expect::Revision(_), None) => return Ok(Err(StoreError::Missing)),
            (Expect::Revision(expected), Some((revision, _))) if *revision != expected => {
                return Ok(Err(StoreError::Changed));
            }
            _ => {}
        }
        self.revision += 1;
        let deleted = object.is_none();
        let old: Option<Value> = before.as_ref().map(|(_, json)| serde_json::from_slice(json).unwrap_or_default());
        let old_selectable = old.as_ref().map(|old| Selectable::of(key.resource, old));
        let mut document = object.or(old).unwrap_or_default();
        document["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        let json = Bytes::from(serde_json::to_vec(&document).unwrap_or_default());
        if deleted {
            objects.remove(path.as_str())?;
        } else {
            objects.insert(path.as_str(), (self.revision, json.as_ref()))?;
        }
        let selectable = Selectable::of(key.resource, &document);
        let kind = match (deleted, &before) {
            (true, _) => ChangeKind::Deleted,
            (false, None) => ChangeKind::Added,
            (false, Some(_)) => ChangeKind::Modified,
        };
        // The old form is only needed where a selector may have stopped to match.
        let before = match (kind, old_selectable) {
            (ChangeKind::Modified, Some(seen)) if seen != selectable => before.map(|(_, json)| {
                let mut left: Value = serde_json::from_slice(&json).unwrap_or_default();
                left["metadata"]["resourceVersion"] = json!(self.revision.to_string());
                (seen, Bytes::from(left.to_string()))
            }),
            _ => None,
        };
        done.changes.push((key.resource.storage, Change { revision: self.revision, kind, json, selectable, before }));
        Ok(Ok(document))
    }
}

fn refuse(batch: Vec<Request>, error: &StoreError) {
    for request in batch {
        let refused = match error {
            StoreError::Failed { path, reason } => StoreError::Failed { path: path.clone(), reason: reason.clone() },
            StoreError::InUse(path) => StoreError::InUse(path.clone()),
            _ => StoreError::Closed,
        };
        let _ = request.reply.send(Err(refused));
    }
}
