//! Updating objects: read, change, check, write if nobody was faster.

use serde_json::{Value, json};

use crate::admission;
use crate::api::Api;
use crate::auth::User;
use crate::error::{ApiError, FieldError};
use crate::object;
use crate::storage::{Expect, ObjectKey};

/// Tries when others change the object at the same time.
const TRIES: usize = 20;

/// Which part of an object may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Everything but the status.
    Main,
    /// The status.
    Status,
    /// A pod's ephemeral containers.
    EphemeralContainers,
    /// A pod's node: by binding only.
    Binding,
    /// A namespace's own finalizers.
    Finalize,
    /// Anything; for the server itself.
    Anything,
}

/// An update.
#[derive(Clone, Copy, Debug)]
pub struct Update<'a> {
    /// Which object.
    pub key: &'a ObjectKey,
    /// Which part.
    pub part: Part,
    /// Who changes it.
    pub user: &'a User,
    /// Nothing is stored.
    pub dry_run: bool,
    /// The new form is a patch of the old one.
    pub patched: bool,
}

/// Changes an object by a function of its present form.
///
/// # Errors
/// What the API answers; what the function answers.
pub async fn update_object(
    api: &Api,
    update: Update<'_>,
    mut change: impl FnMut(&Value) -> Result<Value, ApiError>,
) -> Result<Value, ApiError> {
    let Update { key, part, user, dry_run, .. } = update;
    let (resource, name) = (key.resource, key.name.as_str());
    for attempt in 1.. {
        let stored = api.store.get(key).map_err(|error| ApiError::from_store(error, resource, name))?;
        let stored = stored.ok_or_else(|| ApiError::not_found(resource, name))?;
        let old = stored.value();
        let mut new = change(&old)?;
        let wanted = object::text(&new, "/metadata/resourceVersion").to_string();
        if !wanted.is_empty() && wanted.parse::<u64>().is_err() {
            return Err(ApiError::unforeseen(format!("strconv.ParseUint: parsing {wanted:?}: invalid syntax")));
        }
        if !wanted.is_empty() && wanted != "0" && wanted != object::text(&old, "/metadata/resourceVersion") {
            return Err(ApiError::changed(resource, name));
        }
        check_uid(update, &new, &old)?;
        keep_system_metadata(&mut new, &old);
        admission::admit_update(api, resource, part, &mut new, &old, user)?;
        let errors = admission::validate_update(resource, part, &new, &old);
        if !errors.is_empty() {
            return Err(ApiError::invalid(resource, name, &errors));
        }
        let wish_changed = ["spec", "template"].iter().any(|key| new.get(key) != old.get(key));
        if resource.counts_generation && part != Part::Binding && wish_changed {
            let generation = object::number(&old, "/metadata/generation").unwrap_or(0) + 1;
            object::metadata(&mut new).insert("generation".into(), json!(generation));
        }
        if new == old || dry_run {
            return Ok(new);
        }
        let written = if is_finished(&new) {
            api.store.delete(key, stored.revision).await.map(|_| new)
        } else {
            api.store.put(key, Expect::Revision(stored.revision), new).await
        };
        match written {
            Ok(written) => return Ok(written),
            // The client named the revision: it must know. Otherwise the change is applied to the newer form.
            Err(crate::storage::StoreError::Changed) if attempt < TRIES && wanted_is_open(&wanted, &old) => {}
            Err(error) => return Err(ApiError::from_store(error, resource, name)),
        }
    }
    unreachable!("the loop returns")
}

/// True when the change does not insist on a revision: it named none, or only repeats what it was given.
fn wanted_is_open(wanted: &str, old: &Value) -> bool {
    wanted.is_empty() || wanted == "0" || wanted == object::text(old, "/metadata/resourceVersion")
}

/// True when a deletion was asked for and nobody holds it back any longer.
fn is_finished(object: &Value) -> bool {
    object::is_terminating(object)
        && object::finalizers(object).is_empty()
        && object::items(object, "/spec/finalizers").is_empty()
        && object::number(object, "/metadata/deletionGracePeriodSeconds").unwrap_or(0) == 0
}

/// Deletes an object whose deletion was only held back by finalizers that are gone.
///
/// # Errors
/// What the API answers.
pub async fn finalize_if_done(api: &Api, key: &ObjectKey) -> Result<(), ApiError> {
    let stored = api.store.get(key).map_err(|error| ApiError::from_store(error, key.resource, &key.name))?;
    match stored {
        Some(stored) if is_finished(&stored.value()) => {
            let deleted = api.store.delete(key, stored.revision).await;
            deleted.map(|_| ()).map_err(|error| ApiError::from_store(error, key.resource, &key.name))
        }
        _ => Ok(()),
    }
}

/// A change that names another UID means another object: a precondition of a PUT, an immutable field to a patch.
fn check_uid(update: Update<'_>, new: &Value, old: &Value) -> Result<(), ApiError> {
    let (given, uid) = (object::uid(new), object::uid(old));
    if given.is_empty() || given == uid {
        return Ok(());
    }
    let resource = update.key.resource;
    if update.patched {
        let error = FieldError::invalid("metadata.uid", given, "field is immutable");
        // Checked for every object, and again with the kind.
        return Err(ApiError::invalid(resource, object::name(old), &[error.clone(), error]));
    }
    let place = if update.key.namespace.is_empty() { String::new() } else { format!("{}/", update.key.namespace) };
    let path = format!("/registry/{}/{place}{}", resource.storage, update.key.name);
    let why = format!(
        "StorageError: invalid object, Code: 4, Key: {path}, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: {given}, UID in object meta: {uid}"
    );
    Err(ApiError::conflict(resource, object::name(old), &why))
}

/// What the system sets stays as it is.
fn keep_system_metadata(new: &mut Value, old: &Value) {
    let kept = old.get("metadata").cloned().unwrap_or_default();
    let metadata = object::metadata(new);
    metadata.remove("managedFields");
    metadata.remove("selfLink");
    for key in [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "generateName",
        "resourceVersion",
    ] {
        match kept.get(key) {
            Some(value) => {
                metadata.insert(key.into(), value.clone());
            }
            None => {
                metadata.remove(key);
            }
        }
    }
}
