//! Validation of everything but pods.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::{endpoints, names, pod_validation, services, storage_objects};
use crate::error::FieldError;
use crate::object;
use crate::quantity::Quantity;
use crate::registry::Resource;

/// Bytes of a Secret or ConfigMap (`MaxSecretSize`).
const DATA_BYTES_MAX: usize = 1 << 20;
/// Highest value of a priority class of users (`HighestUserDefinablePriority`).
const PRIORITY_MAX: i64 = 1_000_000_000;

/// Checks an object.
pub fn validate(resource: &Resource, new: &Value) -> Vec<FieldError> {
    match resource.plural {
        "secrets" => validate_secret(new),
        "configmaps" => validate_config_map(new),
        "services" => services::validate(new),
        "podtemplates" => validate_pod_template(new),
        "persistentvolumeclaims" => storage_objects::validate_claim(new),
        "persistentvolumes" => storage_objects::validate_volume(new),
        "storageclasses" => storage_objects::validate_class(new),
        "leases" => validate_lease(new),
        "runtimeclasses" => validate_runtime_class(new),
        "priorityclasses" => validate_priority_class(new),
        "events" => validate_event(new),
        "nodes" => validate_node(new),
        "endpointslices" => endpoints::validate_slice(new),
        "csidrivers" => storage_objects::validate_driver(new),
        "csinodes" => storage_objects::validate_csi_node(new),
        _ => Vec::new(),
    }
}

/// A template is a pod without a name of its own.
fn validate_pod_template(new: &Value) -> Vec<FieldError> {
    let template = new.get("template").unwrap_or(&Value::Null);
    let mut errors = pod_validation::validate(template);
    for error in &mut errors {
        error.field = format!("template.{}", error.field);
    }
    errors
}

/// Checks what may change.
pub fn validate_update(resource: &Resource, new: &Value, old: &Value) -> Vec<FieldError> {
    let same = |key: &str| new.get(key) == old.get(key);
    let immutable = "field is immutable when `immutable` is set";
    let mut errors = Vec::new();
    let mut fixed = |key: &str| {
        if !same(key) {
            errors.push(FieldError::invalid(key, new.get(key).cloned().unwrap_or_default(), "field is immutable"));
        }
    };
    match resource.plural {
        "secrets" => fixed("type"),
        "storageclasses" => {
            ["provisioner", "parameters", "reclaimPolicy", "volumeBindingMode"].into_iter().for_each(&mut fixed)
        }
        "runtimeclasses" => fixed("handler"),
        "endpointslices" => fixed("addressType"),
        "nodes" => errors.extend(validate_node_update(new, old)),
        "csinodes" => errors.extend(storage_objects::validate_csi_node_update(new, old)),
        "priorityclasses" if !same("value") => {
            errors.push(FieldError::forbidden("value", "may not be changed in an update."))
        }
        "persistentvolumeclaims" => errors.extend(storage_objects::validate_claim_update(new, old)),
        "persistentvolumes" => errors.extend(storage_objects::validate_volume_update(new, old)),
        "services" => errors.extend(services::validate_update(new, old)),
        _ => {}
    }
    if matches!(resource.plural, "secrets" | "configmaps")
        && old.get("immutable").and_then(Value::as_bool) == Some(true)
    {
        if new.get("immutable").and_then(Value::as_bool) != Some(true) {
            errors.push(FieldError::forbidden("immutable", immutable));
        }
        for key in ["data", "binaryData"].into_iter().filter(|key| !same(key)) {
            errors.push(FieldError::forbidden(key, immutable));
        }
    }
    errors
}

fn entries<'a>(object: &'a Value, key: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    object.get(key).and_then(Value::as_object).into_iter().flatten()
}

fn check_keys(new: &Value, key: &str, bytes: &mut usize, encoded: bool, errors: &mut Vec<FieldError>) {
    for (name, value) in entries(new, key) {
        if !names::is_config_key(name) {
            let text = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
            errors.push(FieldError::invalid(format!("{key}[{name}]"), name.as_str(), text));
        }
        let length = value.as_str().map_or(0, str::len);
        *bytes += if encoded { length / 4 * 3 } else { length };
    }
}

fn validate_config_map(new: &Value) -> Vec<FieldError> {
    let (mut errors, mut bytes) = (Vec::new(), 0);
    check_keys(new, "data", &mut bytes, false, &mut errors);
    check_keys(new, "binaryData", &mut bytes, true, &mut errors);
    for (name, _) in entries(new, "binaryData")
        .filter(|(name, _)| new.pointer("/data").and_then(|data| data.get(name.as_str())).is_some())
    {
        errors.push(FieldError::invalid(
            format!("data[{name}]"),
            name.as_str(),
            "duplicate of key present in binaryData",
        ));
    }
    if bytes > DATA_BYTES_MAX {
        errors.push(FieldError::too_long("", DATA_BYTES_MAX));
    }
    errors
}

fn validate_secret(new: &Value) -> Vec<FieldError> {
    let (mut errors, mut bytes) = (Vec::new(), 0);
    check_keys(new, "data", &mut bytes, true, &mut errors);
    if bytes > DATA_BYTES_MAX {
        errors.push(FieldError::too_long("data", DATA_BYTES_MAX));
    }
    let present = |key: &str| new.get("data").is_some_and(|data| data.get(key).is_some());
    let mut required = |key: &str| {
        if !present(key) {
            errors.push(FieldError::required(format!("data[{key}]"), ""));
        }
    };
    match object::text(new, "/type") {
        "kubernetes.io/dockerconfigjson" => required(".dockerconfigjson"),
        "kubernetes.io/dockercfg" => required(".dockercfg"),
        "kubernetes.io/tls" => ["tls.crt", "tls.key"].into_iter().for_each(required),
        "kubernetes.io/ssh-auth" => required("ssh-privatekey"),
        "kubernetes.io/basic-auth" if !present("username") && !present("password") => {
            errors.push(FieldError::required("data[username]", ""));
            errors.push(FieldError::required("data[password]", ""));
        }
        "kubernetes.io/service-account-token"
            if object::text(new, "/metadata/annotations/kubernetes.io~1service-account.name").is_empty() =>
        {
            errors.push(FieldError::required("metadata.annotations[kubernetes.io/service-account.name]", ""));
        }
        _ => {}
    }
    if object::text(new, "/type") == "kubernetes.io/dockerconfigjson"
        && let Some(text) = new.pointer("/data/.dockerconfigjson").and_then(Value::as_str)
        && STANDARD.decode(text).is_ok_and(|bytes| serde_json::from_slice::<Value>(&bytes).is_err())
    {
        errors.push(FieldError::invalid("data[.dockerconfigjson]", "<secret contents redacted>", "invalid JSON"));
    }
    errors
}

fn validate_lease(new: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for key in ["leaseDurationSeconds"] {
        if let Some(seconds) = object::number(new, &format!("/spec/{key}"))
            && seconds <= 0
        {
            errors.push(FieldError::invalid(format!("spec.{key}"), seconds, "must be greater than 0"));
        }
    }
    if let Some(count) = object::number(new, "/spec/leaseTransitions")
        && count < 0
    {
        errors.push(FieldError::invalid("spec.leaseTransitions", count, "must be greater than or equal to 0"));
    }
    errors
}

fn validate_runtime_class(new: &Value) -> Vec<FieldError> {
    let handler = object::text(new, "/handler");
    if handler.is_empty() {
        vec![FieldError::required("handler", "")]
    } else if !names::is_label(handler) {
        vec![FieldError::invalid("handler", handler, names::LABEL_TEXT)]
    } else {
        Vec::new()
    }
}

fn validate_priority_class(new: &Value) -> Vec<FieldError> {
    let value = object::number(new, "/value").unwrap_or(0);
    let name = object::name(new);
    let mut errors = Vec::new();
    if name.starts_with("system-") {
        let known = matches!(
            (name, value),
            ("system-node-critical", 2_000_001_000) | ("system-cluster-critical", 2_000_000_000)
        );
        if !known {
            errors.push(FieldError::forbidden(
                "metadata.name",
                &format!("priority class names with 'system-' prefix are reserved for system use only. error: {name} is not a known system priority class"),
            ));
        }
    } else if value > PRIORITY_MAX {
        errors.push(FieldError::forbidden(
            "value",
            &format!("maximum allowed value of a user defined priority is {PRIORITY_MAX}"),
        ));
    }
    let policy = object::text(new, "/preemptionPolicy");
    if !matches!(policy, "PreemptLowerPriority" | "Never") {
        errors.push(FieldError::unsupported("preemptionPolicy", policy, &["PreemptLowerPriority", "Never"]));
    }
    errors
}

fn validate_event(new: &Value) -> Vec<FieldError> {
    let involved = object::text(new, "/involvedObject/namespace");
    let namespace = object::namespace(new);
    let matches = involved == namespace || (involved.is_empty() && matches!(namespace, "default" | "kube-system"));
    if matches {
        Vec::new()
    } else {
        vec![FieldError::invalid("involvedObject.namespace", involved, "does not match event.namespace")]
    }
}

/// Checks an event that was made in the newer version, which asks for more.
pub fn validate_new_event(new: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if object::text(new, "/eventTime").is_empty() {
        errors.push(FieldError::required("eventTime", ""));
    }
    let kind = object::text(new, "/type");
    if !matches!(kind, "Normal" | "Warning") {
        errors.push(FieldError::invalid("type", "", &format!("has invalid value: {kind}")));
    }
    if !errors.is_empty() {
        return errors;
    }
    for (key, field) in [
        ("reportingComponent", "reportingController"),
        ("reportingInstance", "reportingInstance"),
        ("action", "action"),
        ("reason", "reason"),
    ] {
        if object::text(new, &format!("/{key}")).is_empty() {
            errors.push(FieldError::required(field, ""));
        }
    }
    errors
}

/// Checks the amounts of a node's status.
pub fn validate_node_amounts(new: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for kind in ["allocatable", "capacity"] {
        for (name, amount) in new.pointer(&format!("/status/{kind}")).and_then(Value::as_object).into_iter().flatten() {
            if Quantity::parse(amount.as_str().unwrap_or_default()).is_none_or(|amount| amount.is_negative()) {
                let text = "must be greater than or equal to 0";
                errors.push(FieldError::invalid(format!("status.{kind}.{name}"), amount.clone(), text));
            }
        }
    }
    errors
}

/// The address ranges of a node stay once they are given.
fn validate_node_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = validate_node(new);
    let (before, after) = (object::strings(old, "/spec/podCIDRs"), object::strings(new, "/spec/podCIDRs"));
    if !before.is_empty() && before != after {
        errors.push(FieldError::forbidden(
            "spec.podCIDRs",
            "node updates may not change podCIDR except from \"\" to valid",
        ));
    }
    let (before, after) = (object::text(old, "/spec/providerID"), object::text(new, "/spec/providerID"));
    if !before.is_empty() && before != after {
        errors.push(FieldError::forbidden(
            "spec.providerID",
            "node updates may not change providerID except from \"\" to valid",
        ));
    }
    errors
}

fn validate_node(new: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, taint) in object::items(new, "/spec/taints").iter().enumerate() {
        let path = format!("metadata.taints[{index}]");
        let (key, effect) = (object::text(taint, "/key"), object::text(taint, "/effect"));
        if !names::is_qualified_name(key) {
            errors.push(FieldError::invalid(format!("{path}.key"), key, names::QUALIFIED_TEXT));
        }
        if !matches!(effect, "NoSchedule" | "PreferNoSchedule" | "NoExecute") {
            errors.push(FieldError::unsupported(
                format!("{path}.effect"),
                effect,
                &["NoSchedule", "PreferNoSchedule", "NoExecute"],
            ));
        }
    }
    errors
}
