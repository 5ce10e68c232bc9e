//! Namespaces: nothing new in one that is missing or goes away, and their own life.

use serde_json::{Value, json};

use crate::api::Api;
use crate::error::ApiError;
use crate::object;
use crate::registry::{self, Resource};
use crate::rest::Part;
use crate::storage::ObjectKey;

/// Refuses what is created in a namespace that is missing or terminating.
///
/// # Errors
/// 404 or 403.
pub fn check_lifecycle(api: &Api, resource: &Resource, new: &Value) -> Result<(), ApiError> {
    if !resource.namespaced {
        return Ok(());
    }
    let namespaces = registry::core("namespaces");
    let name = object::namespace(new);
    let key = ObjectKey::new(namespaces, "", name);
    let found = api.store.get_value(&key).map_err(|error| ApiError::from_store(error, namespaces, name))?;
    let namespace = found.ok_or_else(|| ApiError::not_found(namespaces, name))?;
    if !object::is_terminating(&namespace) && object::text(&namespace, "/status/phase") != "Terminating" {
        return Ok(());
    }
    let why = format!("unable to create new content in namespace {name} because it is being terminated");
    let mut error = ApiError::forbidden(resource, object::name(new), &why);
    if let Some(details) = &mut error.details {
        let message = format!("namespace {name} is being terminated");
        details["causes"] =
            json!([{"reason": "NamespaceTerminating", "message": message, "field": "metadata.namespace"}]);
    }
    Err(error)
}

/// A new namespace.
pub fn prepare(new: &mut Value) {
    new["spec"] = json!({"finalizers": ["kubernetes"]});
    new["status"] = json!({"phase": "Active"});
    label(new);
}

fn label(new: &mut Value) {
    let name = object::name(new).to_string();
    let metadata = object::metadata(new);
    let labels = metadata.entry("labels").or_insert_with(|| json!({}));
    labels["kubernetes.io/metadata.name"] = json!(name);
}

/// A changed namespace: its finalizers change only by the part of that name.
pub fn admit_update(part: Part, new: &mut Value, old: &Value) {
    if part != Part::Finalize {
        object::copy_key(old, new, "spec");
    }
    label(new);
}
