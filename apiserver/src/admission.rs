//! What happens to an object before it is stored: defaults, admission, validation; by resource.

mod container_defaults;
mod container_validation;
mod endpoints;
mod environment_validation;
mod metadata;
mod names;
mod namespaces;
mod objects;
mod objects_validation;
mod pod;
mod pod_defaults;
mod pod_update;
mod pod_validation;
mod qos;
mod service_account;
mod services;
mod storage_objects;
mod volume_validation;
mod warnings;

use serde_json::Value;

use crate::api::Api;
use crate::auth::{User, check_node_write};
use crate::error::{ApiError, FieldError};
use crate::object;
use crate::registry::Resource;
use crate::rest::Part;

pub use names::{is_label_value, is_qualified_name, is_subdomain};
pub use service_account::{ACCOUNT_MOUNT_PATH, ROOT_CA_CONFIG_MAP, namespace_content};
pub use storage_objects::{CLAIM_PROTECTION, VOLUME_PROTECTION};
pub use warnings::{warn_of_object, warn_of_resource};

/// Prepares a new object.
///
/// # Errors
/// When admission refuses it.
pub fn admit_create(api: &Api, resource: &'static Resource, new: &mut Value, user: &User) -> Result<(), ApiError> {
    namespaces::check_lifecycle(api, resource, new)?;
    // What has a status of its own is born without one.
    if resource.has_status() && !matches!(resource.plural, "nodes") {
        object::remove(new, "status");
    }
    check_node_write(user, resource, None, new, None)?;
    match resource.plural {
        "pods" => pod::admit_create(api, new)?,
        "namespaces" => namespaces::prepare(new),
        "services" => services::admit_create(api, new)?,
        "persistentvolumeclaims" => storage_objects::prepare_claim(api, new)?,
        "persistentvolumes" => storage_objects::prepare_volume(new),
        "storageclasses" => storage_objects::default_class(new),
        "csidrivers" => storage_objects::default_driver(new),
        _ => objects::default_object(resource, new),
    }
    Ok(())
}

/// Prepares an updated object: what the part does not cover stays as it was.
///
/// # Errors
/// When admission refuses it.
pub fn admit_update(
    api: &Api,
    resource: &'static Resource,
    part: Part,
    new: &mut Value,
    old: &Value,
    user: &User,
) -> Result<(), ApiError> {
    match part {
        Part::Anything => return Ok(()),
        Part::Main | Part::EphemeralContainers | Part::Finalize if resource.has_status() => {
            object::copy_key(old, new, "status")
        }
        Part::Status => {
            let status = new.get("status").cloned();
            let metadata = new.get("metadata").cloned().unwrap_or_default();
            *new = old.clone();
            match status {
                Some(status) => new["status"] = status,
                None => {
                    object::remove(new, "status");
                }
            }
            keep_status_metadata(new, old, metadata);
        }
        _ => {}
    }
    match (resource.plural, part) {
        ("pods", Part::Status) => pod::admit_status(new, old),
        ("pods", _) => pod::admit_update(api, part, new, old)?,
        ("namespaces", part) => namespaces::admit_update(part, new, old),
        ("nodes", Part::Status) => objects::default_node(new),
        ("services", Part::Status) => services::default_status(new),
        ("services", Part::Main) => services::admit_update(api, new, old)?,
        ("storageclasses", _) => storage_objects::default_class(new),
        ("persistentvolumes", Part::Main) => storage_objects::prepare_volume(new),
        ("persistentvolumeclaims", Part::Main) => storage_objects::default_claim(new),
        (_, Part::Main) => objects::default_object(resource, new),
        _ => {}
    }
    check_node_write(user, resource, Some(part), new, Some(old))
}

/// A write of the status may change labels, annotations and finalizers, but not who owns the object.
fn keep_status_metadata(new: &mut Value, old: &Value, given: Value) {
    let owners = old.pointer("/metadata/ownerReferences").cloned();
    if given.is_object() {
        new["metadata"] = given;
    }
    let metadata = object::metadata(new);
    match owners {
        Some(owners) => metadata.insert("ownerReferences".into(), owners),
        None => metadata.remove("ownerReferences"),
    };
}

/// Checks a new object.
pub fn validate_create(resource: &Resource, new: &Value) -> Vec<FieldError> {
    if resource.group == "events.k8s.io" {
        let errors = objects_validation::validate_new_event(new);
        if !errors.is_empty() {
            return errors;
        }
    }
    let mut errors = metadata::validate(resource, new);
    errors.extend(match resource.plural {
        "pods" => {
            let mut errors = pod_validation::validate(new);
            if !object::items(new, "/spec/ephemeralContainers").is_empty() {
                errors.push(FieldError::forbidden("spec.ephemeralContainers", "cannot be set on create"));
            }
            errors
        }
        _ => objects_validation::validate(resource, new),
    });
    errors
}

/// Checks an updated object.
pub fn validate_update(resource: &Resource, part: Part, new: &Value, old: &Value) -> Vec<FieldError> {
    if part == Part::Anything {
        return Vec::new();
    }
    let mut errors = metadata::validate(resource, new);
    errors.extend(metadata::validate_update(new, old));
    errors.extend(match (resource.plural, part) {
        ("pods", Part::Main) => pod_update::validate(new, old),
        ("pods", Part::EphemeralContainers) => pod_update::validate_ephemeral(new, old),
        ("pods", _) => Vec::new(),
        ("nodes", Part::Status) => objects_validation::validate_node_amounts(new),
        (_, Part::Main) => {
            let mut errors = objects_validation::validate(resource, new);
            errors.extend(objects_validation::validate_update(resource, new, old));
            errors
        }
        _ => Vec::new(),
    });
    errors
}
