//! Claims, volumes, classes and drivers: defaults and validation.

use serde_json::{Value, json};

use super::names;
use crate::api::Api;
use crate::error::{ApiError, FieldError};
use crate::object;
use crate::quantity::Quantity;
use crate::registry;

/// Annotation of the class that claims without one get.
pub const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
/// Finalizer that keeps a claim while a pod uses it.
pub const CLAIM_PROTECTION: &str = "kubernetes.io/pvc-protection";
/// Finalizer that keeps a volume while a claim is bound to it.
pub const VOLUME_PROTECTION: &str = "kubernetes.io/pv-protection";

const ACCESS_MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

fn add_finalizer(new: &mut Value, name: &str) {
    if object::is_terminating(new) || object::finalizers(new).contains(&name) {
        return;
    }
    let finalizers = object::metadata(new).entry("finalizers").or_insert_with(|| json!([]));
    if let Some(finalizers) = finalizers.as_array_mut() {
        finalizers.push(json!(name));
    }
}

/// A new claim: the default class, its finalizer, its first phase.
///
/// # Errors
/// When the store fails.
pub fn prepare_claim(api: &Api, new: &mut Value) -> Result<(), ApiError> {
    default_claim(new);
    new["status"] = json!({"phase": "Pending"});
    add_finalizer(new, CLAIM_PROTECTION);
    let old_way = !object::text(new, "/metadata/annotations/volume.beta.kubernetes.io~1storage-class").is_empty();
    if new.pointer("/spec/storageClassName").is_some() || old_way {
        return Ok(());
    }
    let classes = registry::find("storage.k8s.io", "v1", "storageclasses")
        .ok_or_else(|| ApiError::internal("no storage classes"))?;
    let mut defaults: Vec<Value> = api
        .store
        .list_values(classes, None)
        .map_err(|error| ApiError::from_store(error, classes, ""))?
        .into_iter()
        .filter(|class| {
            class.pointer("/metadata/annotations").and_then(|map| map.get(DEFAULT_CLASS)).and_then(Value::as_str)
                == Some("true")
        })
        .collect();
    // The newest counts when there are several.
    defaults.sort_by_key(|class| object::text(class, "/metadata/creationTimestamp").to_string());
    if let Some(class) = defaults.pop() {
        new["spec"]["storageClassName"] = json!(object::name(&class));
    }
    Ok(())
}

/// Defaults of a claim.
pub fn default_claim(new: &mut Value) {
    let spec = object::map(new, "spec");
    spec.entry("volumeMode").or_insert_with(|| json!("Filesystem"));
    // Two fields for one thing: the newer one may also name another namespace.
    match (spec.get("dataSource").cloned(), spec.get("dataSourceRef").cloned()) {
        (Some(source), None) => {
            spec.insert("dataSourceRef".into(), source);
        }
        (None, Some(source)) if object::text(&source, "/namespace").is_empty() => {
            spec.insert("dataSource".into(), source);
        }
        _ => {}
    }
    let resources = spec.entry("resources").or_insert_with(|| json!({}));
    if resources.get("requests").is_none()
        && let Some(storage) = resources.pointer("/limits/storage").cloned()
    {
        resources["requests"] = json!({"storage": storage});
    }
}

/// Defaults, finalizer and phase of a volume.
pub fn prepare_volume(new: &mut Value) {
    let spec = object::map(new, "spec");
    spec.entry("volumeMode").or_insert_with(|| json!("Filesystem"));
    spec.entry("persistentVolumeReclaimPolicy").or_insert_with(|| json!("Retain"));
    if let Some(path) = spec.get_mut("hostPath") {
        object::default(path, "type", || json!(""));
    }
    object::default(new, "status", || json!({"phase": "Pending"}));
    add_finalizer(new, VOLUME_PROTECTION);
}

/// Defaults of a class.
pub fn default_class(new: &mut Value) {
    object::default(new, "reclaimPolicy", || json!("Delete"));
    object::default(new, "volumeBindingMode", || json!("Immediate"));
}

/// Defaults of a driver.
pub fn default_driver(new: &mut Value) {
    let spec = object::map(new, "spec");
    for (key, value) in [
        ("attachRequired", json!(true)),
        ("podInfoOnMount", json!(false)),
        ("storageCapacity", json!(false)),
        ("fsGroupPolicy", json!("ReadWriteOnceWithFSType")),
        ("volumeLifecycleModes", json!(["Persistent"])),
        ("requiresRepublish", json!(false)),
        ("seLinuxMount", json!(false)),
    ] {
        spec.entry(key).or_insert(value);
    }
}

fn check_modes(new: &Value, none: &str, errors: &mut Vec<FieldError>) {
    let modes = object::strings(new, "/spec/accessModes");
    if modes.is_empty() {
        errors.push(FieldError::required("spec.accessModes", none));
    }
    for mode in modes.iter().filter(|mode| !ACCESS_MODES.contains(mode)) {
        errors.push(FieldError::unsupported("spec.accessModes", mode, &ACCESS_MODES));
    }
    let class = object::text(new, "/spec/storageClassName");
    if !class.is_empty() && !names::is_subdomain(class) {
        errors.push(FieldError::invalid("spec.storageClassName", class, names::SUBDOMAIN_TEXT));
    }
    if modes.len() > 1 && modes.contains(&"ReadWriteOncePod") {
        errors.push(FieldError::forbidden("spec.accessModes", "may not use ReadWriteOncePod with other access modes"));
    }
}

fn check_mode_and_size(new: &Value, size: &str, path: &str, errors: &mut Vec<FieldError>) {
    let mode = object::text(new, "/spec/volumeMode");
    if !matches!(mode, "Filesystem" | "Block") {
        errors.push(FieldError::unsupported("spec.volumeMode", mode, &["Block", "Filesystem"]));
    }
    match Quantity::parse(object::text(new, size)) {
        None => errors.push(FieldError::required(path, "")),
        Some(size) if size.is_zero() || size.is_negative() => {
            errors.push(FieldError::invalid(path, size.canonical(), "must be greater than zero"));
        }
        Some(_) => {}
    }
}

/// Checks a claim.
pub fn validate_claim(new: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, expression) in object::items(new, "/spec/selector/matchExpressions").iter().enumerate() {
        let operator = object::text(expression, "/operator");
        if !matches!(operator, "In" | "NotIn" | "Exists" | "DoesNotExist") {
            let place = format!("spec.selector.matchExpressions[{index}].operator");
            errors.push(FieldError::invalid(place, operator, "not a valid selector operator"));
        }
    }
    check_modes(new, "at least 1 access mode is required", &mut errors);
    check_mode_and_size(new, "/spec/resources/requests/storage", "spec.resources[storage]", &mut errors);
    errors
}

/// Checks a driver.
pub fn validate_driver(new: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let policy = object::text(new, "/spec/fsGroupPolicy");
    let policies = ["File", "None", "ReadWriteOnceWithFSType"];
    if !policies.contains(&policy) {
        errors.push(FieldError::unsupported("spec.fsGroupPolicy", policy, &policies));
    }
    for mode in object::strings(new, "/spec/volumeLifecycleModes") {
        if !matches!(mode, "Persistent" | "Ephemeral") {
            errors.push(FieldError::unsupported("spec.volumeLifecycleModes", mode, &["Persistent", "Ephemeral"]));
        }
    }
    errors
}

/// Checks a CSI node.
pub fn validate_csi_node(new: &Value) -> Vec<FieldError> {
    let (mut errors, mut seen) = (Vec::new(), std::collections::BTreeSet::new());
    for (index, driver) in object::items(new, "/spec/drivers").iter().enumerate() {
        let path = format!("spec.drivers[{index}]");
        let name = object::text(driver, "/name");
        if name.is_empty() {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        }
        if object::text(driver, "/nodeID").is_empty() {
            errors.push(FieldError::required(format!("{path}.nodeID"), ""));
        }
        if !name.is_empty() && !seen.insert(name) {
            errors.push(FieldError::duplicate(format!("{path}.name"), name));
        }
    }
    errors
}

/// Checks a change of a CSI node: a driver that is there stays as it is, apart from its limit.
pub fn validate_csi_node_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let strip = |driver: &Value| {
        let mut driver = driver.clone();
        object::remove(&mut driver, "allocatable");
        driver
    };
    let before = object::items(old, "/spec/drivers");
    object::items(new, "/spec/drivers")
        .iter()
        .filter(|driver| {
            let same = before.iter().find(|other| other.get("name") == driver.get("name"));
            same.is_some_and(|other| strip(other) != strip(driver))
        })
        .map(|driver| FieldError::invalid("spec.drivers", driver.clone(), "field is immutable"))
        .collect()
}

/// Checks a change of a claim: only more storage, and the volume once.
pub fn validate_claim_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let bound = object::text(old, "/status/phase") == "Bound";
    let strip = |claim: &Value| {
        let mut spec = claim.get("spec").cloned().unwrap_or_default();
        if bound {
            object::remove(&mut spec, "resources");
            object::remove(&mut spec, "volumeAttributesClassName");
        }
        spec
    };
    let (before, mut after) = (strip(old), strip(new));
    if object::text(old, "/spec/volumeName").is_empty() {
        object::copy_key(&before, &mut after, "volumeName");
    }
    let mut errors = Vec::new();
    if before != after {
        let text =
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
        errors.push(FieldError::forbidden("spec", text));
    }
    let size = |claim: &Value| {
        Quantity::parse(object::text(claim, "/spec/resources/requests/storage")).map_or(0, |size| size.units())
    };
    if bound && size(new) < size(old) {
        let text = "field can not be less than status.capacity";
        errors.push(FieldError::forbidden("spec.resources.requests.storage", text));
    }
    errors
}

/// Kinds of volumes that a PersistentVolume may have.
const SOURCES: [&str; 8] = ["hostPath", "nfs", "rbd", "cephfs", "fc", "iscsi", "local", "csi"];

fn check_capacity(new: &Value, errors: &mut Vec<FieldError>) {
    let capacity = new.pointer("/spec/capacity").cloned().unwrap_or_default();
    let names: Vec<&String> = capacity.as_object().into_iter().flatten().map(|(name, _)| name).collect();
    if names.is_empty() {
        errors.push(FieldError::required("spec.capacity", ""));
    }
    if names != ["storage"] {
        let message = format!("Unsupported value: {capacity}: supported values: \"storage\"");
        errors.push(FieldError { field: "spec.capacity".into(), reason: "FieldValueNotSupported", message });
        return;
    }
    check_mode_and_size(new, "/spec/capacity/storage", "spec.capacity[storage]", errors);
}

/// Checks a volume.
pub fn validate_volume(new: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    check_modes(new, "", &mut errors);
    check_capacity(new, &mut errors);
    let given: Vec<&&str> = SOURCES.iter().filter(|source| new.pointer(&format!("/spec/{source}")).is_some()).collect();
    if given.is_empty() {
        errors.push(FieldError::required("spec", "must specify a volume type"));
    }
    for source in given.iter().skip(1) {
        errors.push(FieldError::forbidden(format!("spec.{source}"), "may not specify more than 1 volume type"));
    }
    if given.first().is_some_and(|source| **source == "hostPath") && object::text(new, "/spec/hostPath/path").is_empty()
    {
        errors.push(FieldError::required("spec.hostPath.path", ""));
    }
    if new.pointer("/spec/local").is_some() && new.pointer("/spec/nodeAffinity").is_none() {
        errors.push(FieldError::required("spec.nodeAffinity", "Local volume requires node affinity"));
    }
    for key in ["driver", "volumeHandle"] {
        if given.len() == 1
            && new.pointer("/spec/csi").is_some_and(|csi| object::text(csi, &format!("/{key}")).is_empty())
        {
            errors.push(FieldError::required(format!("spec.csi.{key}"), ""));
        }
    }
    let policy = object::text(new, "/spec/persistentVolumeReclaimPolicy");
    if !matches!(policy, "Retain" | "Delete" | "Recycle") {
        errors.push(FieldError::unsupported(
            "spec.persistentVolumeReclaimPolicy",
            policy,
            &["Delete", "Recycle", "Retain"],
        ));
    }
    errors
}

/// Checks a change of a volume: its source stays.
pub fn validate_volume_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let changed =
        SOURCES.iter().any(|source| new.pointer(&format!("/spec/{source}")) != old.pointer(&format!("/spec/{source}")));
    if changed {
        return vec![FieldError::forbidden(
            "spec.persistentvolumesource",
            "spec.persistentvolumesource is immutable after creation",
        )];
    }
    if new.pointer("/spec/volumeMode") != old.pointer("/spec/volumeMode") {
        return vec![FieldError::invalid(
            "volumeMode",
            new.pointer("/spec/volumeMode").cloned().unwrap_or_default(),
            "field is immutable",
        )];
    }
    Vec::new()
}

/// Checks a class.
pub fn validate_class(new: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if object::text(new, "/provisioner").is_empty() {
        errors.push(FieldError::required("provisioner", ""));
    }
    let mode = object::text(new, "/volumeBindingMode");
    if !matches!(mode, "Immediate" | "WaitForFirstConsumer") {
        errors.push(FieldError::unsupported("volumeBindingMode", mode, &["Immediate", "WaitForFirstConsumer"]));
    }
    let policy = object::text(new, "/reclaimPolicy");
    if !matches!(policy, "Delete" | "Retain") {
        errors.push(FieldError::unsupported("reclaimPolicy", policy, &["Delete", "Retain"]));
    }
    errors
}
