//! Schemas as the OpenAPI pages show them: references in the page's form, and what clients must know to patch.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::definitions::generate;
use crate::openapi::referred;
use crate::patch::{ListStrategy, RETAIN_KEYS, list_strategy};
use crate::registry;

/// Which version of OpenAPI a page is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// `/openapi/v2`.
    V2,
    /// `/openapi/v3`.
    V3,
}

impl Form {
    /// A reference to a definition.
    pub(super) fn reference(self, name: &str) -> Value {
        match self {
            Form::V2 => json!({"$ref": format!("#/definitions/{name}")}),
            Form::V3 => json!({"$ref": format!("#/components/schemas/{name}")}),
        }
    }
}

/// Lists of which several keys name an item.
const SEVERAL_KEYS: &[(&str, &str, &[&str])] = &[
    ("Container", "ports", &["containerPort", "protocol"]),
    ("EphemeralContainer", "ports", &["containerPort", "protocol"]),
    ("PodSpec", "topologySpreadConstraints", &["topologyKey", "whenUnsatisfiable"]),
    ("ServiceSpec", "ports", &["port", "protocol"]),
];
/// Lists whose items have a key although strategic merge does not know it.
const KEYED: &[(&str, &str, &str)] =
    &[("ResourceRequirements", "claims", "name"), ("ResourceStatus", "resources", "resourceID")];
/// Lists that are sets although strategic merge does not know it.
const SETS: &[(&str, &str)] = &[
    ("CSIDriverSpec", "volumeLifecycleModes"),
    ("ContainerRestartRuleOnExitCodes", "values"),
    ("Endpoint", "addresses"),
];
/// Structures that are one value: changed as a whole.
const ATOMIC: &[&str] = &[
    "ConfigMapKeySelector",
    "EndpointAddress",
    "EndpointPort",
    "FileKeySelector",
    "LabelSelector",
    "LocalObjectReference",
    "NodeSelector",
    "NodeSelectorTerm",
    "ObjectFieldSelector",
    "ObjectReference",
    "OwnerReference",
    "ResourceFieldSelector",
    "SecretKeySelector",
    "SecretReference",
    "TypedLocalObjectReference",
];
/// Maps that are one value.
const ATOMIC_MAPS: &[(&str, &str)] =
    &[("PodSpec", "nodeSelector"), ("Scheduling", "nodeSelector"), ("ServiceSpec", "selector")];

/// All definitions in a page's form; with roots only those that can be reached from them.
pub(super) fn schemas(form: Form, roots: Option<&[&str]>) -> Map<String, Value> {
    let mut all = generate();
    if let Some(roots) = roots {
        let reached = reachable(&all, roots);
        all.retain(|name, _| reached.contains(name));
    }
    for (name, schema) in &mut all {
        convert(form, name, schema);
    }
    all
}

fn reachable(all: &Map<String, Value>, roots: &[&str]) -> BTreeSet<String> {
    let mut reached: BTreeSet<String> = BTreeSet::new();
    let mut next: Vec<String> = roots.iter().map(ToString::to_string).collect();
    while let Some(name) = next.pop() {
        let Some(schema) = all.get(&name) else { continue };
        if reached.insert(name) {
            references(schema, &mut next);
        }
    }
    reached
}

fn references(value: &Value, found: &mut Vec<String>) {
    if let Some(name) = referred(value) {
        found.push(name.to_string());
    }
    match value {
        Value::Object(map) => map.values().for_each(|inner| references(inner, found)),
        Value::Array(items) => items.iter().for_each(|inner| references(inner, found)),
        _ => {}
    }
}

fn convert(form: Form, name: &str, schema: &mut Value) {
    let type_name = name.rsplit('.').next().unwrap_or(name);
    if type_name == "IntOrString" {
        let alternatives = if form == Form::V3 {
            json!({"oneOf": [{"type": "integer"}, {"type": "string"}]})
        } else {
            json!({"type": "string"})
        };
        let description = schema.get("description").cloned();
        *schema = alternatives;
        schema["format"] = json!("int-or-string");
        if let Some(description) = description {
            schema["description"] = description;
        }
        return;
    }
    for (field, property) in schema.get_mut("properties").and_then(Value::as_object_mut).into_iter().flatten() {
        extend(type_name, field, property);
    }
    rewrite(form, schema);
    if ATOMIC.contains(&type_name) {
        schema["x-kubernetes-map-type"] = json!("atomic");
    }
    let kinds = kinds_of(name);
    if !kinds.is_empty() {
        schema["x-kubernetes-group-version-kind"] = json!(kinds);
    }
}

/// What a client must know to merge a field.
fn extend(type_name: &str, field: &str, property: &mut Value) {
    let is = |row: &(&str, &str)| *row == (type_name, field);
    if ATOMIC_MAPS.iter().any(is) {
        property["x-kubernetes-map-type"] = json!("atomic");
    }
    if property.get("type").and_then(Value::as_str) != Some("array") {
        return;
    }
    let merge = if RETAIN_KEYS.contains(&(type_name, field)) { "merge,retainKeys" } else { "merge" };
    let keyed = |property: &mut Value, keys: &[&str]| {
        property["x-kubernetes-list-type"] = json!("map");
        property["x-kubernetes-list-map-keys"] = json!(keys);
    };
    match list_strategy(type_name, field) {
        ListStrategy::ByKey(key) => {
            property["x-kubernetes-patch-strategy"] = json!(merge);
            property["x-kubernetes-patch-merge-key"] = json!(key);
            match SEVERAL_KEYS.iter().find(|(owner, name, _)| (*owner, *name) == (type_name, field)) {
                Some((.., keys)) => keyed(property, keys),
                // The one list of which only strategic merge knows the key.
                None if (type_name, field) == ("PodStatus", "hostIPs") => {
                    property["x-kubernetes-list-type"] = json!("atomic")
                }
                None => keyed(property, &[key]),
            }
        }
        ListStrategy::Set => {
            property["x-kubernetes-patch-strategy"] = json!(merge);
            property["x-kubernetes-list-type"] = json!("set");
        }
        ListStrategy::Replace => match KEYED.iter().find(|(owner, name, _)| (*owner, *name) == (type_name, field)) {
            Some((.., key)) => keyed(property, &[key]),
            None => property["x-kubernetes-list-type"] = json!(if SETS.iter().any(is) { "set" } else { "atomic" }),
        },
    }
}

/// References in the page's form; in version 3 nothing may stand beside one.
fn rewrite(form: Form, value: &mut Value) {
    if let Some(name) = referred(value).map(String::from) {
        let reference = form.reference(&name);
        let Some(map) = value.as_object_mut() else { return };
        map.remove("$ref");
        if map.is_empty() || form == Form::V2 {
            map.insert("$ref".into(), reference["$ref"].clone());
        } else {
            map.insert("allOf".into(), json!([reference]));
        }
        return;
    }
    match value {
        Value::Object(map) => map.values_mut().for_each(|inner| rewrite(form, inner)),
        Value::Array(items) => items.iter_mut().for_each(|inner| rewrite(form, inner)),
        _ => {}
    }
}

/// The kinds that a definition is of.
fn kinds_of(name: &str) -> Vec<Value> {
    let kind = |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
    match name {
        "io.k8s.api.core.v1.Binding" => return vec![kind("", "v1", "Binding")],
        "io.k8s.api.policy.v1.Eviction" => return vec![kind("policy", "v1", "Eviction")],
        "io.k8s.api.authentication.v1.TokenRequest" => {
            return vec![kind("authentication.k8s.io", "v1", "TokenRequest")];
        }
        "io.k8s.apimachinery.pkg.apis.meta.v1.Status" => return vec![kind("", "v1", "Status")],
        "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions" => {
            let groups = registry::groups()
                .into_iter()
                .flat_map(|(group, versions)| versions.into_iter().map(move |version| (group, version)));
            return [("", "v1")]
                .into_iter()
                .chain(groups)
                .map(|(group, version)| kind(group, version, "DeleteOptions"))
                .collect();
        }
        _ => {}
    }
    registry::all().filter(|row| row.schema == name).map(|row| kind(row.group, row.version, row.kind)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_and_kinds_are_published() {
        let schemas = schemas(Form::V3, Some(&["io.k8s.api.core.v1.Pod"]));
        assert!(!schemas.contains_key("io.k8s.api.core.v1.Node"));
        assert_eq!(
            schemas["io.k8s.api.core.v1.Pod"]["x-kubernetes-group-version-kind"],
            json!([{"group": "", "version": "v1", "kind": "Pod"}])
        );
        let volumes = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["volumes"];
        assert_eq!(volumes["x-kubernetes-patch-strategy"], "merge,retainKeys");
        assert_eq!(volumes["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(volumes["items"]["$ref"], "#/components/schemas/io.k8s.api.core.v1.Volume");
        let ports = &schemas["io.k8s.api.core.v1.Container"]["properties"]["ports"];
        assert_eq!(ports["x-kubernetes-list-map-keys"], json!(["containerPort", "protocol"]));
        let spec = &schemas["io.k8s.api.core.v1.Pod"]["properties"]["spec"];
        assert_eq!(spec["allOf"][0]["$ref"], "#/components/schemas/io.k8s.api.core.v1.PodSpec");
        assert!(spec["description"].is_string(), "{spec}");
    }

    #[test]
    fn every_reference_is_there() {
        for form in [Form::V2, Form::V3] {
            let all = schemas(form, None);
            let text = serde_json::to_string(&all).unwrap();
            let prefix = form.reference("")["$ref"].as_str().unwrap().to_string();
            for part in text.split(&prefix).skip(1) {
                let name = part.split('"').next().unwrap();
                assert!(all.contains_key(name), "{name}");
            }
        }
    }
}
