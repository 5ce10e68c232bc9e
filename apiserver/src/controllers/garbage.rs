//! What nobody owns any longer is deleted; events end after an hour.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use regex::bytes::Regex;
use serde_json::{Value, json};

use super::on_change;
use crate::api::Api;
use crate::auth::User;
use crate::error::ApiError;
use crate::object;
use crate::registry::{self, Resource};
use crate::rest::query::{DeleteOptions, Propagation};
use crate::rest::{Part, Update, delete_object, update_object};
use crate::storage::{ChangeKind, Next, ObjectKey, Range};

/// Life of an event (`--event-ttl`).
const EVENT_LIFE: SignedDuration = SignedDuration::from_hours(1);
/// Events kept at most, the newest ones.
const EVENTS_MAX: usize = 10_000;
/// Shortest time between looks for events that have ended.
const EVENT_PERIOD: Duration = Duration::from_secs(60);
/// Longest time between looks for events that are too many.
const EVENT_PERIOD_MAX: Duration = Duration::from_secs(300);

/// What an object has that this controller cares about: owners, or a deletion that waits for what it owns.
static CONCERNED: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r#""ownerReferences"|"foregroundDeletion"|"orphan""#).expect("the pattern is good"));

/// An object and who owns it.
struct Owned {
    resource: &'static Resource,
    object: Value,
}

/// Resources whose objects own and are owned.
fn watched() -> Vec<&'static Resource> {
    registry::storages().into_iter().filter(|resource| !resource.short_lived).collect()
}

pub(super) async fn run(api: Arc<Api>) {
    // Up to which revision the changes have been looked at.
    let seen = AtomicU64::new(0);
    on_change(&api, &watched(), "garbage", async || {
        let newest = api.store.revision();
        if is_concerned(&api, seen.load(Ordering::Relaxed)) {
            pass(&api).await?;
        }
        seen.store(newest, Ordering::Relaxed);
        Ok(())
    })
    .await;
}

/// True when an object has gone since, or one with owners or a waiting deletion has changed.
fn is_concerned(api: &Arc<Api>, seen: u64) -> bool {
    seen == 0
        || watched().into_iter().any(|resource| match api.store.changes_after(resource, seen) {
            Next::TooOld => true,
            Next::Changes(changes) => {
                changes.iter().any(|change| change.kind == ChangeKind::Deleted || CONCERNED.is_match(&change.json))
            }
        })
}

async fn pass(api: &Arc<Api>) -> Result<(), ApiError> {
    let mut owned: Vec<Owned> = Vec::new();
    let mut waiting: Vec<Owned> = Vec::new();
    for resource in watched() {
        let found = api
            .store
            .list_with(resource, |json| CONCERNED.is_match(json))
            .map_err(|error| ApiError::from_store(error, resource, ""))?;
        for object in found {
            let held = object::finalizers(&object).iter().any(|name| matches!(*name, "foregroundDeletion" | "orphan"));
            if held && object::is_terminating(&object) {
                waiting.push(Owned { resource, object: object.clone() });
            }
            if !object::items(&object, "/metadata/ownerReferences").is_empty() {
                owned.push(Owned { resource, object });
            }
        }
    }
    let dependents: BTreeMap<String, Vec<usize>> = index(&owned);
    for waiter in &waiting {
        finish_owner(api, waiter, &owned, &dependents).await?;
    }
    for entry in &owned {
        let owners = object::items(&entry.object, "/metadata/ownerReferences");
        let mut orphan = true;
        for owner in owners {
            orphan &= !lives(api, owner, object::namespace(&entry.object))?;
        }
        if orphan && !object::is_terminating(&entry.object) {
            collect(api, entry, Propagation::Background).await?;
        }
    }
    Ok(())
}

/// True when the owner is there. One of a kind that is not served is never there.
fn lives(api: &Arc<Api>, owner: &Value, namespace: &str) -> Result<bool, ApiError> {
    let Some(resource) = registry::find_kind(object::text(owner, "/apiVersion"), object::text(owner, "/kind")) else {
        return Ok(false);
    };
    let namespace = if resource.namespaced { namespace } else { "" };
    let key = ObjectKey::new(resource, namespace, object::text(owner, "/name"));
    let found = api.store.get_value(&key).map_err(|error| ApiError::from_store(error, resource, &key.name))?;
    Ok(found.is_some_and(|found| object::uid(&found) == object::text(owner, "/uid")))
}

fn index(owned: &[Owned]) -> BTreeMap<String, Vec<usize>> {
    let mut found: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (position, entry) in owned.iter().enumerate() {
        for owner in object::items(&entry.object, "/metadata/ownerReferences") {
            found.entry(object::text(owner, "/uid").to_string()).or_default().push(position);
        }
    }
    found
}

async fn collect(api: &Arc<Api>, entry: &Owned, propagation: Propagation) -> Result<(), ApiError> {
    let key = ObjectKey::new(entry.resource, object::namespace(&entry.object), object::name(&entry.object));
    let options =
        DeleteOptions { uid: Some(object::uid(&entry.object).into()), propagation, ..DeleteOptions::default() };
    match delete_object(api, &key, &options).await {
        Err(error) if !matches!(error.code, 404 | 409) => Err(error),
        _ => Ok(()),
    }
}

/// An owner that waits: for its dependents to go, or for them to be set free.
async fn finish_owner(
    api: &Arc<Api>,
    owner: &Owned,
    owned: &[Owned],
    dependents: &BTreeMap<String, Vec<usize>>,
) -> Result<(), ApiError> {
    let uid = object::uid(&owner.object);
    let children: Vec<&Owned> = dependents.get(uid).into_iter().flatten().map(|position| &owned[*position]).collect();
    let orphan = object::finalizers(&owner.object).contains(&"orphan");
    if orphan {
        for child in &children {
            set_free(api, child, uid).await?;
        }
    } else {
        let blocking = |child: &&&Owned| {
            object::items(&child.object, "/metadata/ownerReferences").iter().any(|reference| {
                object::text(reference, "/uid") == uid
                    && reference.get("blockOwnerDeletion").and_then(Value::as_bool) == Some(true)
            })
        };
        for child in children.iter().filter(|child| !object::is_terminating(&child.object)) {
            collect(api, child, Propagation::Foreground).await?;
        }
        if children.iter().any(|child| blocking(&child)) {
            return Ok(());
        }
    }
    let gone = if orphan { "orphan" } else { "foregroundDeletion" };
    let user = User::server();
    let key = ObjectKey::new(owner.resource, object::namespace(&owner.object), object::name(&owner.object));
    let update = Update { key: &key, part: Part::Anything, user: &user, dry_run: false, patched: false };
    let freed = update_object(api, update, |old| {
        let mut new = old.clone();
        let kept: Vec<&str> = object::finalizers(old).into_iter().filter(|name| *name != gone).collect();
        new["metadata"]["finalizers"] = json!(kept);
        Ok(new)
    });
    match freed.await {
        Err(error) if error.code != 404 => Err(error),
        _ => Ok(()),
    }
}

async fn set_free(api: &Arc<Api>, child: &Owned, owner: &str) -> Result<(), ApiError> {
    let user = User::server();
    let key = ObjectKey::new(child.resource, object::namespace(&child.object), object::name(&child.object));
    let update = Update { key: &key, part: Part::Anything, user: &user, dry_run: false, patched: false };
    let freed = update_object(api, update, |old| {
        let mut new = old.clone();
        let kept: Vec<Value> = object::items(old, "/metadata/ownerReferences")
            .iter()
            .filter(|reference| object::text(reference, "/uid") != owner)
            .cloned()
            .collect();
        new["metadata"]["ownerReferences"] = json!(kept);
        Ok(new)
    });
    match freed.await {
        Err(error) if error.code != 404 => Err(error),
        _ => Ok(()),
    }
}

/// Deletes events that are older than an hour, and the oldest beyond the bound.
pub(super) async fn expire_events(api: Arc<Api>) {
    let mut changed = api.store.subscribe(registry::core("events"));
    loop {
        changed.borrow_and_update();
        let wait = expire_once(&api).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "old events could not be deleted");
            Some(EVENT_PERIOD)
        });
        tokio::select! {
            () = api.cancel.cancelled() => return,
            // Without an event nothing can end.
            _ = changed.changed(), if wait.is_none() => {}
            () = tokio::time::sleep(wait.unwrap_or_default().clamp(EVENT_PERIOD, EVENT_PERIOD_MAX)), if wait.is_some() => {}
        }
    }
}

/// Deletes what has ended; returns how long the next one has.
async fn expire_once(api: &Arc<Api>) -> Result<Option<Duration>, ApiError> {
    let events = registry::core("events");
    let page = api
        .store
        .list(events, &Range::default(), usize::MAX, |_| true)
        .map_err(|error| ApiError::from_store(error, events, ""))?;
    let oldest = Timestamp::now() - EVENT_LIFE;
    let mut dated: Vec<(Timestamp, u64, ObjectKey)> = page
        .items
        .iter()
        .map(|item| {
            let event: Value = serde_json::from_slice(&item.json).unwrap_or_default();
            let seen = ["/series/lastObservedTime", "/lastTimestamp", "/eventTime", "/metadata/creationTimestamp"];
            let at = seen.iter().filter_map(|pointer| object::time(&event, pointer)).max().unwrap_or(Timestamp::MIN);
            (at, object::revision(&event), ObjectKey::new(events, &item.namespace, &item.name))
        })
        .collect();
    dated.sort_by_key(|(at, ..)| *at);
    let beyond = dated.len().saturating_sub(EVENTS_MAX);
    for (position, (at, revision, key)) in dated.into_iter().enumerate() {
        if position < beyond || at < oldest {
            // One that has changed meanwhile is young again.
            let _ = api.store.delete(&key, revision).await;
        } else {
            return Ok(Some(Duration::try_from(at.duration_since(oldest)).unwrap_or(EVENT_PERIOD)));
        }
    }
    Ok(None)
}
