//! What of a pod may change.

use std::collections::BTreeSet;

use serde_json::Value;

use super::pod_validation;
use crate::error::FieldError;
use crate::object;

const MAY_CHANGE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// Checks a change of the spec.
pub fn validate(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = pod_validation::validate(new);
    let (mut after, before) =
        (new.get("spec").cloned().unwrap_or_default(), old.get("spec").cloned().unwrap_or_default());
    for list in ["containers", "initContainers"] {
        let (changed, kept) = (object::items(&before, &format!("/{list}")).to_vec(), after.get_mut(list));
        let Some(containers) = kept.and_then(Value::as_array_mut) else { continue };
        if containers.len() != changed.len() {
            errors.push(FieldError::forbidden(format!("spec.{list}"), "pod updates may not add or remove containers"));
            return errors;
        }
        for (container, old) in containers.iter_mut().zip(&changed) {
            object::copy_key(old, container, "image");
        }
    }
    check_deadline(&before, &mut after, &mut errors);
    check_tolerations(&before, &mut after, &mut errors);
    let grace = |spec: &Value| object::number(spec, "/terminationGracePeriodSeconds");
    if grace(&before).is_some_and(|seconds| seconds < 0) && grace(&after) == Some(1) {
        object::copy_key(&before, &mut after, "terminationGracePeriodSeconds");
    }
    if !object::items(&before, "/schedulingGates").is_empty() {
        let gates = |spec: &Value| -> BTreeSet<String> {
            object::items(spec, "/schedulingGates").iter().map(|gate| object::text(gate, "/name").to_string()).collect()
        };
        // Gates may go, and a gated pod may be narrowed to some nodes.
        if gates(&after).is_subset(&gates(&before)) {
            object::copy_key(&before, &mut after, "schedulingGates");
        }
        object::copy_key(&before, &mut after, "nodeSelector");
        object::copy_key(&before, &mut after, "affinity");
    }
    if after != before {
        errors
            .push(FieldError::forbidden("spec", &format!("{MAY_CHANGE}\n{}", differences(&before, &after).join("\n"))));
    }
    errors
}

fn check_deadline(before: &Value, after: &mut Value, errors: &mut Vec<FieldError>) {
    let read = |spec: &Value| object::number(spec, "/activeDeadlineSeconds");
    let (old, new) = (read(before), read(after));
    if let Some(new) = new.filter(|new| old != Some(*new) && !(0..=i64::from(i32::MAX)).contains(new)) {
        errors.push(FieldError::invalid(
            "spec.activeDeadlineSeconds",
            new,
            "must be between 0 and 2147483647, inclusive",
        ));
    }
    match (old, new) {
        (Some(old), Some(new)) if new > old => {
            errors.push(FieldError::invalid(
                "spec.activeDeadlineSeconds",
                new,
                "must be less than or equal to previous value",
            ));
        }
        (Some(_), None) => {
            errors.push(FieldError::invalid(
                "spec.activeDeadlineSeconds",
                Value::Null,
                "must not update from a positive integer to nil value",
            ));
        }
        _ => {}
    }
    object::copy_key(before, after, "activeDeadlineSeconds");
}

fn check_tolerations(before: &Value, after: &mut Value, errors: &mut Vec<FieldError>) {
    let strip = |toleration: &Value| {
        let mut toleration = toleration.clone();
        object::remove(&mut toleration, "tolerationSeconds");
        toleration
    };
    let after_list: Vec<Value> = object::items(after, "/tolerations").iter().map(strip).collect();
    let gone =
        object::items(before, "/tolerations").iter().map(strip).any(|toleration| !after_list.contains(&toleration));
    if gone {
        errors.push(FieldError::forbidden(
            "spec.tolerations",
            "existing toleration can not be modified except its tolerationSeconds",
        ));
    }
    object::copy_key(before, after, "tolerations");
}

/// The paths that differ, ten at most.
fn differences(before: &Value, after: &Value) -> Vec<String> {
    let mut found = Vec::new();
    compare("spec", before, after, &mut found);
    found.truncate(10);
    found
}

fn compare(path: &str, before: &Value, after: &Value, found: &mut Vec<String>) {
    match (before, after) {
        (Value::Object(old), Value::Object(new)) => {
            let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
            for key in keys {
                let (old, new) = (old.get(key).unwrap_or(&Value::Null), new.get(key).unwrap_or(&Value::Null));
                compare(&format!("{path}.{key}"), old, new, found);
            }
        }
        (Value::Array(old), Value::Array(new)) if old.len() == new.len() => {
            for (index, (old, new)) in old.iter().zip(new).enumerate() {
                compare(&format!("{path}[{index}]"), old, new, found);
            }
        }
        (old, new) if old != new => found.push(format!("{path}: {old} -> {new}")),
        _ => {}
    }
}

/// Checks added ephemeral containers: those that are there stay as they are.
pub fn validate_ephemeral(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = pod_validation::validate(new);
    let after = object::items(new, "/spec/ephemeralContainers");
    if !object::text(new, "/metadata/annotations/kubernetes.io~1config.mirror").is_empty() {
        errors.push(FieldError::forbidden("", "static pods do not support ephemeral containers"));
    }
    for before in object::items(old, "/spec/ephemeralContainers") {
        let name = object::text(before, "/name");
        match after.iter().find(|container| object::text(container, "/name") == name) {
            None => errors.push(FieldError::forbidden(
                "spec.ephemeralContainers",
                &format!("existing ephemeral containers {name:?} may not be removed\n"),
            )),
            Some(container) if container != before => errors.push(FieldError::forbidden(
                "spec.ephemeralContainers",
                &format!("existing ephemeral containers {name:?} may not be changed\n"),
            )),
            Some(_) => {}
        }
    }
    let names: BTreeSet<&str> = ["/spec/containers", "/spec/initContainers"]
        .iter()
        .flat_map(|pointer| object::items(new, pointer))
        .map(|container| object::text(container, "/name"))
        .collect();
    for (index, container) in after.iter().enumerate() {
        let target = object::text(container, "/targetContainerName");
        if !target.is_empty() && !names.contains(target) {
            errors
                .push(FieldError::not_found(format!("spec.ephemeralContainers[{index}].targetContainerName"), target));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::pod_defaults::default_pod;
    use super::*;

    fn pod(spec: Value) -> Value {
        let mut pod = json!({"metadata": {"name": "x"}, "spec": spec});
        default_pod(&mut pod);
        pod
    }

    #[test]
    fn an_image_may_change_and_a_port_not() {
        let old = pod(json!({"containers": [{"name": "a", "image": "x:1"}]}));
        assert_eq!(validate(&pod(json!({"containers": [{"name": "a", "image": "x:2"}]})), &old), []);
        let errors = validate(
            &pod(json!({"containers": [{"name": "a", "image": "x:1", "ports": [{"containerPort": 80}]}]})),
            &old,
        );
        assert_eq!(errors.len(), 1);
        assert!(errors[0].message.contains("spec.containers[0].ports"), "{}", errors[0].message);
        let errors = validate(&pod(json!({"nodeName": "n", "containers": [{"name": "a", "image": "x:1"}]})), &old);
        assert_eq!(errors[0].field, "spec");
    }
}
