//! Metadata: names, labels, annotations, owners, finalizers.

use serde_json::Value;

use super::names;
use crate::error::FieldError;
use crate::object;
use crate::registry::{NameRule, Resource};

/// Bytes of all annotations (`TotalAnnotationSizeLimitB`).
const ANNOTATION_BYTES_MAX: usize = 256 << 10;

/// Finalizers without a domain.
const STANDARD_FINALIZERS: [&str; 3] = ["kubernetes", "orphan", "foregroundDeletion"];

/// Checks the metadata of an object.
pub fn validate(resource: &Resource, new: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let name = object::name(new);
    let stem = object::text(new, "/metadata/generateName").trim_end_matches('-');
    if !stem.is_empty() && !names::is_subdomain(stem) {
        let given = object::text(new, "/metadata/generateName");
        let text = if resource.name_rule == NameRule::Label { names::LABEL_TEXT } else { names::SUBDOMAIN_TEXT };
        errors.push(FieldError::invalid("metadata.generateName", given, text));
    }
    if name.is_empty() {
        errors.push(FieldError::required("metadata.name", "name or generateName is required"));
    } else {
        let (good, text) = match resource.name_rule {
            NameRule::Subdomain => (names::is_subdomain(name), names::SUBDOMAIN_TEXT),
            NameRule::Label => (names::is_label(name), names::LABEL_TEXT),
        };
        if !good {
            errors.push(FieldError::invalid("metadata.name", name, text));
        }
    }
    for (key, value) in entries(new, "/metadata/labels") {
        if !names::is_qualified_name(key) {
            errors.push(FieldError::invalid("metadata.labels", key.as_str(), names::QUALIFIED_TEXT));
        }
        let value = value.as_str().unwrap_or_default();
        if value.len() > 63 {
            errors.push(FieldError::invalid("metadata.labels", value, "must be no more than 63 bytes"));
        } else if !names::is_label_value(value) {
            errors.push(FieldError::invalid("metadata.labels", value, names::LABEL_VALUE_TEXT));
        }
    }
    let mut bytes = 0;
    for (key, value) in entries(new, "/metadata/annotations") {
        if !names::is_qualified_name(&key.to_ascii_lowercase()) {
            errors.push(FieldError::invalid("metadata.annotations", key.as_str(), names::QUALIFIED_TEXT));
        }
        bytes += key.len() + value.as_str().map_or(0, str::len);
    }
    if bytes > ANNOTATION_BYTES_MAX {
        errors.push(FieldError::too_long("metadata.annotations", ANNOTATION_BYTES_MAX));
    }
    validate_owners(new, &mut errors);
    for (index, finalizer) in object::finalizers(new).into_iter().enumerate() {
        if !names::is_qualified_name(finalizer) {
            errors.push(FieldError::invalid("metadata.finalizers", finalizer, names::QUALIFIED_TEXT));
        } else if !finalizer.contains('/') && !STANDARD_FINALIZERS.contains(&finalizer) {
            let text = "name is neither a standard finalizer name nor is it fully qualified";
            errors.push(FieldError::invalid(format!("metadata.finalizers[{index}]"), finalizer, text));
        }
    }
    errors
}

fn validate_owners(new: &Value, errors: &mut Vec<FieldError>) {
    let mut controllers = Vec::new();
    let path = "metadata.ownerReferences";
    for owner in object::items(new, "/metadata/ownerReferences") {
        for key in ["apiVersion", "kind", "name", "uid"] {
            if object::text(owner, &format!("/{key}")).is_empty() {
                errors.push(FieldError::invalid(format!("{path}.{key}"), "", "must not be empty"));
            }
        }
        if owner.get("controller").and_then(Value::as_bool) == Some(true) {
            controllers.push(format!("{}/{}", object::text(owner, "/kind"), object::text(owner, "/name")));
        }
    }
    if controllers.len() > 1 {
        let owners = new.pointer("/metadata/ownerReferences").cloned().unwrap_or_default();
        let found = controllers.join(" and ");
        let text =
            format!("Only one reference can have Controller set to true. Found \"true\" in references for {found}");
        errors.push(FieldError::invalid(path, owners, &text));
    }
}

fn entries<'a>(object: &'a Value, pointer: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    object.pointer(pointer).and_then(Value::as_object).into_iter().flatten()
}

/// Checks what may change.
pub fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    if !object::is_terminating(old) {
        return Vec::new();
    }
    let before = object::finalizers(old);
    let added: Vec<&str> = object::finalizers(new).into_iter().filter(|name| !before.contains(name)).collect();
    if added.is_empty() {
        return Vec::new();
    }
    let text = format!(
        "no new finalizers can be added if the object is being deleted, found new finalizers []string{added:?}"
    );
    let error =
        FieldError::forbidden("metadata.finalizers", &text.replace('[', "{").replace(']', "}").replacen("{}", "[]", 1));
    // Checked for every object, and again with the kind.
    vec![error.clone(), error]
}
