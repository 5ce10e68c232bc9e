//! Discovery: which groups, versions and resources there are, group by group or all at once.

use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};

use crate::api::Api;
use crate::error::ApiError;
use crate::registry::{self, Resource};
use crate::rest::answer::{self, Accept, Body, Shape};

/// Media type of all-at-once discovery.
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// Answers `/api`, `/apis` and below, or says that the path is another one.
///
/// # Errors
/// 404 for a group or version that is not there.
pub fn answer(api: &Api, path: &str, headers: &HeaderMap) -> Result<Option<Response<Body>>, ApiError> {
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let aggregated = accepts_aggregated(headers);
    let document = match parts[..] {
        ["api"] if aggregated => return Ok(Some(answer_aggregated(&[("", vec!["v1"])]))),
        ["apis"] if aggregated => return Ok(Some(answer_aggregated(&registry::groups()))),
        ["api"] => json!({
            "kind": "APIVersions", "versions": ["v1"],
            "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": crate::rest::authority(api)}],
        }),
        ["apis"] => json!({
            "kind": "APIGroupList", "apiVersion": "v1",
            "groups": registry::groups().iter().map(|(group, versions)| group_document(group, versions)).collect::<Vec<_>>(),
        }),
        ["apis", group] => {
            let groups = registry::groups();
            let (group, versions) =
                groups.iter().find(|(name, _)| *name == group).ok_or_else(ApiError::no_such_address)?;
            let mut document = group_document(group, versions);
            document["kind"] = json!("APIGroup");
            document["apiVersion"] = json!("v1");
            document
        }
        ["api", version] => resource_list("", version)?,
        ["apis", group, version] => resource_list(group, version)?,
        _ => return Ok(None),
    };
    let accept = Accept { shape: Shape::Full, yaml: false, pretty: false };
    Ok(Some(answer::document(StatusCode::OK, &document, accept)))
}

/// True for a page below a group that is served, whatever its version.
pub fn is_in_group(path: &str) -> bool {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    match parts[..] {
        ["api", _, ..] => true,
        ["apis", group, _, ..] => registry::groups().iter().any(|(name, _)| *name == group),
        _ => false,
    }
}

/// True when a client prefers all-at-once discovery in the version that is served.
fn accepts_aggregated(headers: &HeaderMap) -> bool {
    let header = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    header.split(',').any(|clause| {
        clause.contains("as=APIGroupDiscoveryList") && clause.contains("v=v2") && !clause.contains("v=v2beta1")
    })
}

fn group_document(group: &str, versions: &[&str]) -> Value {
    let version = |version: &&str| json!({"groupVersion": format!("{group}/{version}"), "version": version});
    json!({"name": group, "versions": versions.iter().map(version).collect::<Vec<_>>(), "preferredVersion": version(&versions[0])})
}

fn of(group: &str, version: &str) -> Vec<&'static Resource> {
    registry::all().filter(|resource| resource.group == group && resource.version == version).collect()
}

fn resource_list(group: &str, version: &str) -> Result<Value, ApiError> {
    let resources = of(group, version);
    let Some(first) = resources.first() else { return Err(ApiError::no_such_address()) };
    let mut entries = Vec::new();
    for resource in &resources {
        let mut entry = json!({
            "name": resource.plural, "singularName": resource.singular, "namespaced": resource.namespaced,
            "kind": resource.kind, "verbs": resource.verbs,
        });
        if !resource.short_names.is_empty() {
            entry["shortNames"] = json!(resource.short_names);
        }
        if !resource.categories.is_empty() {
            entry["categories"] = json!(resource.categories);
        }
        entries.push(entry);
        for part in resource.subresources {
            let mut entry = json!({
                "name": format!("{}/{}", resource.plural, part.name), "singularName": "", "namespaced": resource.namespaced,
                "kind": part.kind, "verbs": part.verbs,
            });
            if let (Some(group), Some(version)) = (part.group, part.version) {
                entry["group"] = json!(group);
                entry["version"] = json!(version);
            }
            entries.push(entry);
        }
    }
    let mut list = json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": first.api_version(), "resources": entries});
    // The core group's list is older than this field.
    if group.is_empty() {
        crate::object::remove(&mut list, "apiVersion");
    }
    Ok(list)
}

fn answer_aggregated(groups: &[(&str, Vec<&str>)]) -> Response<Body> {
    let items: Vec<Value> = groups
        .iter()
        .map(|(group, versions)| {
            let versions: Vec<Value> = versions
                .iter()
                .map(|version| {
                    let resources: Vec<Value> = of(group, version).into_iter().map(aggregated_resource).collect();
                    json!({"version": version, "resources": resources, "freshness": "Current"})
                })
                .collect();
            let metadata = if group.is_empty() { json!({}) } else { json!({"name": group}) };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    let document = json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items});
    let accept = Accept { shape: Shape::Full, yaml: false, pretty: false };
    let mut response = answer::document(StatusCode::OK, &document, accept);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(AGGREGATED));
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    response
}

fn aggregated_resource(resource: &Resource) -> Value {
    // Empty is the group and version around it.
    let kind = |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
    let mut entry = json!({
        "resource": resource.plural,
        "responseKind": kind("", "", resource.kind),
        "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": resource.singular,
        "verbs": resource.verbs,
    });
    if !resource.short_names.is_empty() {
        entry["shortNames"] = json!(resource.short_names);
    }
    if !resource.categories.is_empty() {
        entry["categories"] = json!(resource.categories);
    }
    let parts: Vec<Value> = resource
        .subresources
        .iter()
        .map(|part| {
            let (group, version) = (part.group.unwrap_or_default(), part.version.unwrap_or_default());
            json!({"subresource": part.name, "responseKind": kind(group, version, part.kind), "verbs": part.verbs})
        })
        .collect();
    if !parts.is_empty() {
        entry["subresources"] = json!(parts);
    }
    entry
}
