//! Deleting objects: at once, with grace, or when the last finalizer is gone.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::query::{DeleteOptions, Propagation};
use crate::api::Api;
use crate::error::ApiError;
use crate::object;
use crate::registry::Resource;
use crate::storage::{Expect, ObjectKey, StoreError};

/// Tries when others change the object at the same time.
const TRIES: usize = 20;
/// Grace of a pod that names none, in seconds.
const POD_GRACE_SECONDS: i64 = 30;
/// Finalizer of a deletion that waits for what the object owns.
pub const FOREGROUND: &str = "foregroundDeletion";
/// Finalizer of a deletion that sets free what the object owns.
pub const ORPHAN: &str = "orphan";

/// What a deletion has done.
#[derive(Debug)]
pub enum Deletion {
    /// The object is gone; its last form.
    Gone(Value),
    /// It is marked and goes later; its present form.
    Marked(Value),
}

/// The next step of a deletion.
#[derive(Debug, PartialEq)]
enum Step {
    Remove,
    Mark(Value),
    Nothing,
}

/// Deletes an object or marks it.
///
/// # Errors
/// What the API answers.
pub async fn delete_object(api: &Api, key: &ObjectKey, options: &DeleteOptions) -> Result<Deletion, ApiError> {
    let (resource, name) = (key.resource, key.name.as_str());
    for attempt in 1.. {
        let stored = api.store.get(key).map_err(|error| ApiError::from_store(error, resource, name))?;
        let stored = stored.ok_or_else(|| ApiError::not_found(resource, name))?;
        let old = stored.value();
        check_preconditions(resource, &old, options)?;
        let done = match plan(resource, &old, options, Timestamp::now()) {
            Step::Nothing => return Ok(Deletion::Marked(old)),
            Step::Remove if options.dry_run => return Ok(Deletion::Gone(last_form(resource, old))),
            Step::Mark(marked) if options.dry_run => return Ok(Deletion::Marked(marked)),
            Step::Remove => {
                let gone = api.store.delete(key, stored.revision).await;
                gone.map(|object| Deletion::Gone(last_form(resource, object)))
            }
            Step::Mark(marked) => {
                api.store.put(key, Expect::Revision(stored.revision), marked).await.map(Deletion::Marked)
            }
        };
        match done {
            Ok(done) => return Ok(done),
            Err(StoreError::Changed) if attempt < TRIES => {}
            Err(error) => return Err(ApiError::from_store(error, resource, name)),
        }
    }
    unreachable!("the loop returns")
}

/// A pod that goes at once is shown as one whose deletion was asked for.
fn last_form(resource: &Resource, mut object: Value) -> Value {
    if resource.plural == "pods" && !object::is_terminating(&object) {
        set_deletion(&mut object, Timestamp::now(), 0);
        let generation = object::number(&object, "/metadata/generation").unwrap_or(0) + 1;
        object::metadata(&mut object).insert("generation".into(), json!(generation));
    }
    object
}

fn check_preconditions(resource: &Resource, old: &Value, options: &DeleteOptions) -> Result<(), ApiError> {
    let name = object::name(old);
    if let Some(uid) = &options.uid
        && uid != object::uid(old)
    {
        let why = format!(
            "the UID in the precondition ({uid}) does not match the UID in record ({}). The object might have been deleted and then recreated",
            object::uid(old)
        );
        return Err(ApiError::precondition(resource, name, &why));
    }
    if let Some(revision) = &options.revision
        && revision != object::text(old, "/metadata/resourceVersion")
    {
        let why = format!(
            "the ResourceVersion in the precondition ({revision}) does not match the ResourceVersion in record ({}). The object might have been modified",
            object::text(old, "/metadata/resourceVersion")
        );
        return Err(ApiError::precondition(resource, name, &why));
    }
    if resource.plural == "namespaces" && ["default", "kube-system", "kube-public"].contains(&name) {
        return Err(ApiError::forbidden(resource, name, "this namespace may not be deleted"));
    }
    Ok(())
}

/// What a deletion of the object does now.
fn plan(resource: &Resource, old: &Value, options: &DeleteOptions, now: Timestamp) -> Step {
    let grace = if resource.plural == "pods" { pod_grace_seconds(old, options) } else { 0 };
    let mut new = old.clone();
    if resource.plural == "namespaces" && !object::is_terminating(old) {
        object::map(&mut new, "status").insert("phase".into(), json!("Terminating"));
    }
    if !object::is_terminating(old) {
        set_finalizer(&mut new, options.propagation);
    }
    let held = !object::finalizers(&new).is_empty() || !object::items(&new, "/spec/finalizers").is_empty();
    if grace == 0 && !held {
        return Step::Remove;
    }
    if object::is_terminating(old) {
        let before = object::number(old, "/metadata/deletionGracePeriodSeconds").unwrap_or(0);
        if grace >= before {
            return Step::Nothing;
        }
        // The time counts from when the deletion was asked for.
        let asked = object::time(old, "/metadata/deletionTimestamp").unwrap_or(now) - SignedDuration::from_secs(before);
        set_deletion(&mut new, asked, grace);
        return Step::Mark(new);
    }
    set_deletion(&mut new, now, grace);
    if resource.counts_generation {
        let generation = object::number(old, "/metadata/generation").unwrap_or(0) + 1;
        object::metadata(&mut new).insert("generation".into(), json!(generation));
    }
    Step::Mark(new)
}

fn set_deletion(object: &mut Value, asked: Timestamp, grace_seconds: i64) {
    let at = asked.checked_add(SignedDuration::from_secs(grace_seconds)).unwrap_or(Timestamp::MAX);
    let namespace = object.pointer("/spec/finalizers").is_some();
    let metadata = object::metadata(object);
    metadata.insert("deletionTimestamp".into(), json!(object::time_text(at)));
    // A namespace has no grace, not even none.
    if !namespace {
        metadata.insert("deletionGracePeriodSeconds".into(), json!(grace_seconds));
    }
}

fn set_finalizer(object: &mut Value, propagation: Propagation) {
    let wanted = match propagation {
        Propagation::Background => None,
        Propagation::Foreground => Some(FOREGROUND),
        Propagation::Orphan => Some(ORPHAN),
    };
    let mut finalizers: Vec<String> = object::finalizers(object)
        .into_iter()
        .filter(|name| *name != FOREGROUND && *name != ORPHAN)
        .map(String::from)
        .collect();
    finalizers.extend(wanted.map(String::from));
    if finalizers.is_empty() {
        object::metadata(object).remove("finalizers");
    } else {
        object::metadata(object).insert("finalizers".into(), json!(finalizers));
    }
}

/// The pod strategy of Kubernetes: who runs nowhere or has ended needs no grace.
fn pod_grace_seconds(pod: &Value, options: &DeleteOptions) -> i64 {
    let asked = options.grace_period_seconds;
    let own = object::number(pod, "/spec/terminationGracePeriodSeconds").unwrap_or(POD_GRACE_SECONDS);
    let mut grace = asked.unwrap_or(own);
    let phase = object::text(pod, "/status/phase");
    if object::text(pod, "/spec/nodeName").is_empty() || phase == "Failed" || phase == "Succeeded" {
        grace = 0;
    }
    if grace < 0 { 1 } else { grace }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry;

    fn pod(spec: Value, metadata: Value) -> Value {
        json!({"metadata": metadata, "spec": spec, "status": {"phase": "Running"}})
    }

    fn after(seconds: Option<i64>) -> DeleteOptions {
        DeleteOptions { grace_period_seconds: seconds, ..DeleteOptions::default() }
    }

    #[test]
    fn pods_go_with_grace() {
        let pods = registry::core("pods");
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let running =
            pod(json!({"nodeName": "n", "terminationGracePeriodSeconds": 10}), json!({"name": "x", "generation": 1}));
        let Step::Mark(marked) = plan(pods, &running, &after(None), now) else { panic!("marked") };
        assert_eq!(marked["metadata"]["deletionTimestamp"], "2026-01-01T00:00:10Z");
        assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 10);
        assert_eq!(marked["metadata"]["generation"], 2);
        assert_eq!(plan(pods, &marked, &after(None), now), Step::Nothing);
        let Step::Mark(sooner) = plan(pods, &marked, &after(Some(2)), now) else { panic!("marked") };
        assert_eq!(sooner["metadata"]["deletionTimestamp"], "2026-01-01T00:00:02Z");
        assert_eq!(plan(pods, &marked, &after(Some(0)), now), Step::Remove);
        let unbound = pod(json!({}), json!({"name": "x"}));
        assert_eq!(plan(pods, &unbound, &after(None), now), Step::Remove);
        let held = pod(json!({}), json!({"name": "x", "finalizers": ["a/b"]}));
        let Step::Mark(held) = plan(pods, &held, &after(None), now) else { panic!("marked") };
        assert_eq!(held["metadata"]["deletionGracePeriodSeconds"], 0);
        assert_eq!(plan(pods, &held, &after(Some(0)), now), Step::Nothing);
    }
}
