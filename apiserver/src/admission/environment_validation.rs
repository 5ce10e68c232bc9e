//! Validation of environment variables.

use serde_json::{Map, Value};

use super::names;
use crate::error::FieldError;
use crate::object;

/// Fields of a pod that a variable may show.
const ENV_FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

/// Amounts of a container that a variable may show, besides huge pages.
const ENV_RESOURCES: [&str; 6] = [
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];
/// Fields of a pod that have a name, but that a variable may not show.
const POD_FIELDS: [&str; 6] = [
    "spec.restartPolicy",
    "spec.schedulerName",
    "status.phase",
    "metadata.labels",
    "metadata.annotations",
    "spec.hostNetwork",
];

/// Checks `env` and `envFrom` of a container.
pub fn validate(container: &Value, path: &str, errors: &mut Vec<FieldError>) {
    for (index, variable) in object::items(container, "/env").iter().enumerate() {
        let path = format!("{path}.env[{index}]");
        let name = object::text(variable, "/name");
        if name.is_empty() {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        } else if !names::is_env_name(name) {
            let text =
                "a valid environment variable name must consist only of printable ASCII characters other than '='";
            errors.push(FieldError::invalid(format!("{path}.name"), name, text));
        }
        let Some(source) = variable.get("valueFrom").and_then(Value::as_object) else { continue };
        if !object::text(variable, "/value").is_empty() && !source.is_empty() {
            errors.push(FieldError::invalid(
                format!("{path}.valueFrom"),
                "",
                "may not be specified when `value` is not empty",
            ));
        }
        if source.len() != 1 {
            let text = if source.is_empty() {
                "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`"
            } else {
                "may not have more than one field specified at a time"
            };
            errors.push(FieldError::invalid(format!("{path}.valueFrom"), "", text));
        }
        validate_references(source, &format!("{path}.valueFrom"), errors);
    }
    for (index, source) in object::items(container, "/envFrom").iter().enumerate() {
        let count = ["configMapRef", "secretRef"].iter().filter(|key| source.get(**key).is_some()).count();
        if count != 1 {
            let text = if count == 0 {
                "must specify one of: `configMapRef` or `secretRef`"
            } else {
                "may not have more than one field specified at a time"
            };
            errors.push(FieldError::invalid(format!("{path}.envFrom[{index}]"), "", text));
        }
    }
}

fn validate_references(source: &Map<String, Value>, path: &str, errors: &mut Vec<FieldError>) {
    if let Some(field) = source.get("fieldRef").map(|reference| object::text(reference, "/fieldPath")) {
        let subscript = ["metadata.labels['", "metadata.annotations['"].iter().any(|start| field.starts_with(start));
        if field.is_empty() {
            errors.push(FieldError::required(format!("{path}.fieldRef.fieldPath"), ""));
        } else if !ENV_FIELDS.contains(&field) && !subscript {
            let place = format!("{path}.fieldRef.fieldPath");
            errors.push(match POD_FIELDS.contains(&field) {
                true => FieldError::unsupported(place, field, &ENV_FIELDS),
                false => FieldError::invalid(
                    place,
                    field,
                    &format!("error converting fieldPath: field label not supported: {field}"),
                ),
            });
        }
    }
    if let Some(amount) = source.get("resourceFieldRef").map(|reference| object::text(reference, "/resource")) {
        let place = format!("{path}.resourceFieldRef.resource");
        if amount.is_empty() {
            errors.push(FieldError::required(place, ""));
        } else if !ENV_RESOURCES.contains(&amount) && !amount.contains(".hugepages-") {
            errors.push(FieldError::unsupported(place, amount, &ENV_RESOURCES));
        }
    }
    if let Some(file) = source.get("fileKeyRef") {
        for key in ["path", "key"] {
            if object::text(file, &format!("/{key}")).is_empty() {
                errors.push(FieldError::required(format!("{path}.fileKeyRef.{key}"), ""));
            }
        }
        let file = object::text(file, "/path");
        if file.split('/').any(|part| part == "..") {
            errors.push(FieldError::invalid(format!("{path}.fileKeyRef.path"), file, "must not contain '..'"));
        }
    }
    for reference in ["secretKeyRef", "configMapKeyRef"] {
        if let Some(name) =
            source.get(reference).map(|found| object::text(found, "/name")).filter(|name| !names::is_subdomain(name))
        {
            errors.push(FieldError::invalid(format!("{path}.{reference}.name"), name, names::SUBDOMAIN_TEXT));
        }
        if source.get(reference).is_some_and(|found| object::text(found, "/key").is_empty()) {
            errors.push(FieldError::required(format!("{path}.{reference}.key"), ""));
        }
    }
}
