//! Creating objects.

use serde_json::{Value, json};

use crate::admission;
use crate::api::Api;
use crate::auth::User;
use crate::error::ApiError;
use crate::object;
use crate::registry::{self, Resource};
use crate::storage::{Expect, ObjectKey};

/// Tries for a generated name that is taken (kube-apiserver's `maxNameGenerationCreateAttempts`).
const NAME_TRIES: usize = 8;
/// Letters of generated names: none that spell words.
const NAME_LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// Longest stem of a generated name.
const NAME_STEM_MAX: usize = 58;

/// A create.
#[derive(Debug)]
pub struct Creation<'a> {
    /// The resource.
    pub resource: &'static Resource,
    /// The namespace of the address.
    pub namespace: &'a str,
    /// The object.
    pub object: Value,
    /// Who creates it.
    pub user: &'a User,
    /// Nothing is stored.
    pub dry_run: bool,
}

/// Creates an object: metadata, defaults, admission, validation, store.
///
/// # Errors
/// What the API answers.
pub async fn create_object(api: &Api, creation: Creation<'_>) -> Result<Value, ApiError> {
    let Creation { resource, namespace, mut object, user, dry_run } = creation;
    check_namespace(resource, namespace, &mut object)?;
    if !matches!(object::text(&object, "/metadata/resourceVersion"), "" | "0") {
        return Err(ApiError::unforeseen("resourceVersion should not be set on objects to be created"));
    }
    let generated = object::name(&object).is_empty() && !object::text(&object, "/metadata/generateName").is_empty();
    for attempt in 1.. {
        let mut candidate = object.clone();
        set_system_metadata(resource, &mut candidate, generated);
        admission::admit_create(api, resource, &mut candidate, user)?;
        let errors = admission::validate_create(resource, &candidate);
        if !errors.is_empty() {
            // Both versions of events are checked as one kind.
            let told = if resource.plural == "events" { registry::core("events") } else { resource };
            return Err(ApiError::invalid(told, object::name(&candidate), &errors));
        }
        let name = object::name(&candidate).to_string();
        let key = ObjectKey::new(resource, namespace, &name);
        if dry_run {
            let taken = api.store.get(&key).map_err(|error| ApiError::from_store(error, resource, &name))?.is_some();
            return if taken { Err(ApiError::already_exists(resource, &name)) } else { Ok(candidate) };
        }
        let error = match api.store.put(&key, Expect::Absent, candidate).await {
            Ok(made) => return Ok(made),
            Err(error) => ApiError::from_store(error, resource, &name),
        };
        if error.code != 409 || !generated || attempt == NAME_TRIES {
            return Err(error);
        }
    }
    unreachable!("the loop returns")
}

/// The namespace of the address counts; an object may not name another.
fn check_namespace(resource: &Resource, namespace: &str, object: &mut Value) -> Result<(), ApiError> {
    let named = object::namespace(object).to_string();
    if resource.namespaced {
        if namespace.is_empty() {
            return Err(ApiError::bad_request("an empty namespace may not be set during creation"));
        }
        if !named.is_empty() && named != namespace {
            return Err(ApiError::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        object::metadata(object).insert("namespace".into(), json!(namespace));
    } else {
        object::metadata(object).remove("namespace");
    }
    Ok(())
}

fn set_system_metadata(resource: &Resource, object: &mut Value, generated: bool) {
    let metadata = object::metadata(object);
    for key in ["resourceVersion", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "managedFields"] {
        metadata.remove(key);
    }
    metadata.insert("uid".into(), json!(uuid::Uuid::new_v4().to_string()));
    metadata.insert("creationTimestamp".into(), json!(object::now()));
    if resource.counts_generation {
        metadata.insert("generation".into(), json!(1));
    }
    if generated {
        let stem = metadata.get("generateName").and_then(Value::as_str).unwrap_or_default();
        let name = generated_name(stem);
        metadata.insert("name".into(), json!(name));
    }
}

/// The stem with five random letters.
pub fn generated_name(stem: &str) -> String {
    let stem: String = stem.chars().take(NAME_STEM_MAX).collect();
    format!("{stem}{}", random_letters(5))
}

/// Random letters that spell no words.
pub fn random_letters(count: usize) -> String {
    use rand::Rng;
    let mut random = rand::rng();
    (0..count).map(|_| char::from(NAME_LETTERS[random.random_range(0..NAME_LETTERS.len())])).collect()
}
