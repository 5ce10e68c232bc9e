//! Defaults of the resources that need little.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::endpoints;
use super::pod_defaults::default_pod;
use crate::object;
use crate::registry::Resource;

/// Fills in what Kubernetes fills in.
pub fn default_object(resource: &Resource, new: &mut Value) {
    match resource.plural {
        "secrets" => default_secret(new),
        "nodes" => default_node(new),
        "podtemplates" => default_template(new),
        "events" => default_event(new),
        "priorityclasses" => object::default(new, "preemptionPolicy", || json!("PreemptLowerPriority")),
        "endpointslices" => endpoints::default_slice(new),
        "endpoints" => endpoints::default_endpoints(new),
        _ => {}
    }
}

/// A template has a pod's defaults but for what only a pod is given.
fn default_template(new: &mut Value) {
    object::map(new, "template");
    let template = &mut new["template"];
    object::map(template, "metadata");
    let links = template.pointer("/spec/enableServiceLinks").cloned();
    default_pod(template);
    if links.is_none() {
        object::map(template, "spec").remove("enableServiceLinks");
    }
}

/// Plain text goes where the encoded data is.
fn default_secret(new: &mut Value) {
    object::default(new, "type", || json!("Opaque"));
    let Some(Value::Object(plain)) = object::remove(new, "stringData") else { return };
    let data = object::map(new, "data");
    for (key, value) in plain {
        data.insert(key, json!(STANDARD.encode(value.as_str().unwrap_or_default())));
    }
}

/// Defaults of a node, of its status too.
pub fn default_node(new: &mut Value) {
    let spec = object::map(new, "spec");
    if let Some(range) = spec.get("podCIDR").filter(|range| range.as_str() != Some("")).cloned() {
        spec.entry("podCIDRs").or_insert_with(|| json!([range]));
    }
    if new.pointer("/status/capacity").is_some() && new.pointer("/status/allocatable").is_none() {
        new["status"]["allocatable"] = new["status"]["capacity"].clone();
    }
}

/// Those that read events expect these keys.
fn default_event(new: &mut Value) {
    object::default(new, "reportingComponent", || json!(""));
    object::default(new, "reportingInstance", || json!(""));
    object::map(new, "source");
    object::map(new, "involvedObject");
    for key in ["eventTime", "firstTimestamp", "lastTimestamp"] {
        object::default(new, key, || Value::Null);
    }
}
