//! What nobody owns any longer is deleted; events end after an hour.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::on_change;
use crate::api::Api;
use crate::auth::User;
use crate::error::ApiError;
use crate::object;
use crate::registry::{self, Resource};
use crate::rest::query::{DeleteOptions, Propagation};
use crate::rest::{Part, Update, delete_object, update_object};
use crate::storage::{ObjectKey, Range};

/// Life of an event (`--event-ttl`).
const EVENT_LIFE: SignedDuration = SignedDuration::from_hours(1);
/// Events kept at most, the newest ones.
const EVENTS_MAX: usize = 10_000;
/// Time between looks for events that have ended.
const EVENT_PERIOD: Duration = Duration::from_secs(60);

/// An object and who owns it.
struct Owned {
    resource: &'static Resource,
    object: Value,
}

pub(super) async fn run(api: Arc<Api>) {
    let watched: Vec<&'static Resource> =
        registry::storages().into_iter().filter(|resource| !resource.short_lived).collect();
    on_change(&api, &watched, "garbage", || pass(&api)).await;
}

async fn pass(api: &Arc<Api>) -> Result<(), ApiError> {
    let mut living: BTreeSet<String> = BTreeSet::new();
    let mut owned: Vec<Owned> = Vec::new();
    let mut waiting: Vec<Owned> = Vec::new();
    for resource in registry::storages() {
        let page = api.store.list(resource, &Range::default(), usize::MAX, |_| true);
        for item in page.map_err(|error| ApiError::from_store(error, resource, ""))?.items {
            let object: Value = serde_json::from_slice(&item.json).unwrap_or_default();
            living.insert(object::uid(&object).to_string());
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
        let orphan = owners.iter().all(|owner| !living.contains(object::text(owner, "/uid")));
        if orphan && !object::is_terminating(&entry.object) {
            collect(api, entry, Propagation::Background).await?;
        }
    }
    Ok(())
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
    loop {
        if let Err(error) = expire_once(&api).await {
            tracing::warn!(%error, "old events could not be deleted");
        }
        tokio::select! {
            () = api.cancel.cancelled() => return,
            () = tokio::time::sleep(EVENT_PERIOD) => {}
        }
    }
}

async fn expire_once(api: &Arc<Api>) -> Result<(), ApiError> {
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
            let at = seen.iter().find_map(|pointer| object::time(&event, pointer)).unwrap_or(Timestamp::MIN);
            (at, object::revision(&event), ObjectKey::new(events, &item.namespace, &item.name))
        })
        .collect();
    dated.sort_by_key(|(at, ..)| *at);
    let beyond = dated.len().saturating_sub(EVENTS_MAX);
    for (position, (at, revision, key)) in dated.into_iter().enumerate() {
        if position < beyond || at < oldest {
            // One that has changed meanwhile is young again.
            let _ = api.store.delete(&key, revision).await;
        }
    }
    Ok(())
}
