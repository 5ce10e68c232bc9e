//! Validation of a pod's volumes.

use std::collections::BTreeSet;

use serde_json::Value;

use super::names;
use crate::error::FieldError;
use crate::object;

/// Checks the volumes; returns their names.
pub fn validate(spec: &Value, errors: &mut Vec<FieldError>) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    for (index, volume) in object::items(spec, "/volumes").iter().enumerate() {
        let path = format!("spec.volumes[{index}]");
        let name = object::text(volume, "/name");
        if name.is_empty() {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        } else if !names::is_label(name) {
            errors.push(FieldError::invalid(format!("{path}.name"), name, names::LABEL_TEXT));
        } else if !seen.insert(name.to_string()) {
            errors.push(FieldError::duplicate(format!("{path}.name"), name));
        }
        let sources: Vec<&String> =
            volume.as_object().into_iter().flatten().map(|(key, _)| key).filter(|key| *key != "name").collect();
        if sources.len() > 1 {
            errors.push(FieldError::forbidden(
                format!("{path}.{}", sources[1]),
                "may not specify more than 1 volume type",
            ));
        }
        validate_source(volume, &path, errors);
    }
    seen
}

fn validate_source(volume: &Value, path: &str, errors: &mut Vec<FieldError>) {
    for (source, key) in [
        ("secret", "secretName"),
        ("configMap", "name"),
        ("persistentVolumeClaim", "claimName"),
        ("csi", "driver"),
        ("nfs", "server"),
    ] {
        if volume.get(source).is_some_and(|found| object::text(found, &format!("/{key}")).is_empty()) {
            errors.push(FieldError::required(format!("{path}.{source}.{key}"), ""));
        }
    }
    if let Some(host) = volume.get("hostPath") {
        let target = object::text(host, "/path");
        if target.is_empty() {
            errors.push(FieldError::required(format!("{path}.hostPath.path"), ""));
        } else if target.split('/').any(|part| part == "..") {
            errors.push(FieldError::invalid(format!("{path}.hostPath.path"), target, "must not contain '..'"));
        }
        let known =
            ["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
        let kind = object::text(host, "/type");
        if !known.contains(&kind) {
            errors.push(FieldError::unsupported(format!("{path}.hostPath.type"), kind, &known));
        }
    }
    if volume.get("gitRepo").is_some() {
        errors.push(FieldError::forbidden(
            format!("{path}.gitRepo"),
            "gitRepo volumes are not served; use an init container that clones into an emptyDir",
        ));
    }
    for source in ["secret", "configMap"] {
        if let Some(found) = volume.get(source) {
            validate_items(found, &format!("{path}.{source}"), "key", errors);
        }
    }
    if let Some(found) = volume.get("downwardAPI") {
        let path = format!("{path}.downwardAPI");
        validate_items(found, &path, "path", errors);
        validate_downward(found, &path, errors);
    }
    if let Some(found) = volume.get("projected") {
        validate_projected(found, &format!("{path}.projected"), errors);
    }
}

fn validate_items(source: &Value, path: &str, required: &str, errors: &mut Vec<FieldError>) {
    if let Some(mode) = object::number(source, "/defaultMode").filter(|mode| !(0..=0o777).contains(mode)) {
        errors.push(FieldError::invalid(
            format!("{path}.defaultMode"),
            mode,
            "must be a number between 0 and 0777 (octal), both inclusive",
        ));
    }
    for (index, item) in object::items(source, "/items").iter().enumerate() {
        let path = format!("{path}.items[{index}]");
        if object::text(item, &format!("/{required}")).is_empty() {
            errors.push(FieldError::required(format!("{path}.{required}"), ""));
        }
        let target = object::text(item, "/path");
        if target.is_empty() && required != "path" {
            errors.push(FieldError::required(format!("{path}.path"), ""));
        }
        validate_relative(target, &format!("{path}.path"), errors);
        if let Some(mode) = object::number(item, "/mode").filter(|mode| !(0..=0o777).contains(mode)) {
            errors.push(FieldError::invalid(
                format!("{path}.mode"),
                mode,
                "must be a number between 0 and 0777 (octal), both inclusive",
            ));
        }
    }
}

/// Fields of a pod that a file may show.
const FILE_FIELDS: [&str; 5] =
    ["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];

fn validate_downward(source: &Value, path: &str, errors: &mut Vec<FieldError>) {
    for item in object::items(source, "/items") {
        let (field, amount) = (item.get("fieldRef"), item.get("resourceFieldRef"));
        if field.is_none() && amount.is_none() {
            errors.push(FieldError::required(path, "one of fieldRef and resourceFieldRef is required"));
        }
        if field.is_some() && amount.is_some() {
            errors.push(FieldError::invalid(
                path,
                "resource",
                "fieldRef and resourceFieldRef can not be specified simultaneously",
            ));
        }
        let Some(field) = field.map(|field| object::text(field, "/fieldPath")) else { continue };
        let place = format!("{path}.fieldRef.fieldPath");
        let subscript = ["metadata.labels['", "metadata.annotations['"].iter().any(|start| field.starts_with(start));
        if field.is_empty() {
            errors.push(FieldError::required(place, ""));
        } else if !subscript && !FILE_FIELDS.contains(&field) {
            let known = field.starts_with("status.") || ["spec.nodeName", "spec.serviceAccountName"].contains(&field);
            errors.push(match known {
                true => FieldError::unsupported(place, field, &FILE_FIELDS),
                false => FieldError::invalid(
                    place,
                    field,
                    &format!("error converting fieldPath: field label not supported: {field}"),
                ),
            });
        }
    }
}

fn validate_relative(target: &str, path: &str, errors: &mut Vec<FieldError>) {
    if target.starts_with('/') {
        errors.push(FieldError::invalid(path, target, "must be a relative path"));
    }
    if target.split('/').any(|part| part == "..") {
        errors.push(FieldError::invalid(path, target, "must not contain '..'"));
    } else if target.starts_with("..") {
        errors.push(FieldError::invalid(path, target, "must not start with '..'"));
    }
}

fn validate_projected(projected: &Value, path: &str, errors: &mut Vec<FieldError>) {
    if let Some(mode) = object::number(projected, "/defaultMode").filter(|mode| !(0..=0o777).contains(mode)) {
        errors.push(FieldError::invalid(
            format!("{path}.defaultMode"),
            mode,
            "must be a number between 0 and 0777 (octal), both inclusive",
        ));
    }
    let projected_path = path;
    for (index, source) in object::items(projected, "/sources").iter().enumerate() {
        let path = format!("{path}.sources[{index}]");
        let kinds = source.as_object().map_or(0, serde_json::Map::len);
        if kinds != 1 {
            errors.push(FieldError::forbidden(path.as_str(), "may not specify more than 1 volume type"));
        }
        for kind in ["secret", "configMap"] {
            if let Some(found) = source.get(kind) {
                if object::text(found, "/name").is_empty() {
                    errors.push(FieldError::required(format!("{path}.{kind}.name"), ""));
                }
                validate_items(found, &format!("{path}.{kind}"), "key", errors);
            }
        }
        if let Some(found) = source.get("downwardAPI") {
            validate_items(found, &format!("{path}.downwardAPI"), "path", errors);
            validate_downward(found, &format!("{path}.downwardAPI"), errors);
        }
        if let Some(token) = source.get("serviceAccountToken") {
            let path = format!("{path}.serviceAccountToken");
            if object::text(token, "/path").is_empty() {
                errors.push(FieldError::required(format!("{projected_path}.path"), ""));
            }
            validate_relative(object::text(token, "/path"), &format!("{path}.path"), errors);
            if let Some(seconds) = object::number(token, "/expirationSeconds").filter(|seconds| *seconds < 600) {
                errors.push(FieldError::invalid(
                    format!("{path}.expirationSeconds"),
                    seconds,
                    "may not specify a duration less than 10 minutes",
                ));
            }
        }
    }
}
