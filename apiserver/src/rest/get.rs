//! Reading one object and lists of them.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::address::Address;
use super::answer::{self, Accept, Body, Shape};
use super::query::Query;
use super::selector::Selector;
use crate::api::Api;
use crate::error::{ApiError, FieldError};
use crate::registry::Resource;
use crate::storage::{ObjectKey, Page, Range, Selectable};
use crate::table;

/// Answers one object.
pub fn get(api: &Api, address: &Address, query: &Query, accept: Accept) -> Result<Response<Body>, ApiError> {
    let Address { resource, namespace, name, .. } = address;
    not_in_future(api, query.revision("resourceVersion")?)?;
    let key = ObjectKey::new(resource, namespace, name);
    let stored = api.store.get(&key).map_err(|error| ApiError::from_store(error, resource, name))?;
    let stored = stored.ok_or_else(|| ApiError::not_found(resource, name))?;
    if accept.shape == Shape::Full && !accept.yaml && !accept.pretty && resource.group != "events.k8s.io" {
        return Ok(answer::bytes(StatusCode::OK, "application/json", answer::with_kind(resource, &stored.json)));
    }
    Ok(answer::document(StatusCode::OK, &answer::shaped(resource, stored.value(), accept.shape), accept))
}

/// Answers a list.
pub fn list(api: &Api, address: &Address, query: &Query, accept: Accept) -> Result<Response<Body>, ApiError> {
    let resource = address.resource;
    if query.has("sendInitialEvents") {
        let error = FieldError::forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list");
        return Err(ApiError::invalid_options("ListOptions", error));
    }
    let selector = Selector::parse(resource, query.get("labelSelector"), query.get("fieldSelector"))?;
    let (range, limit) = range(api, address, query)?;
    let page = read_page(api, resource, &range, limit, &selector)?;
    let mut metadata = json!({"resourceVersion": page.revision.to_string()});
    if page.more
        && let Some(last) = page.items.last()
    {
        metadata["continue"] = json!(encode_continue(page.revision, &last.namespace, &last.name));
        // With a selector nobody has counted.
        if selector.is_everything() {
            metadata["remainingItemCount"] = json!(page.remaining);
        }
    }
    if accept.shape == Shape::Full && !accept.yaml && !accept.pretty && resource.group != "events.k8s.io" {
        return Ok(answer::bytes(StatusCode::OK, "application/json", join(resource, &metadata, &page)));
    }
    let objects: Vec<Value> =
        page.items.iter().map(|item| serde_json::from_slice(&item.json).unwrap_or_default()).collect();
    let document = match accept.shape {
        Shape::Table(include) => table::render(resource, &objects, include, &metadata, true),
        Shape::Metadata => json!({
            "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
            "items": objects.iter().map(answer::partial).collect::<Vec<_>>(),
        }),
        Shape::Full => json!({
            "kind": format!("{}List", resource.kind), "apiVersion": resource.api_version(), "metadata": metadata,
            "items": objects.into_iter().map(|object| answer::in_version(resource, object)).collect::<Vec<_>>(),
        }),
    };
    Ok(answer::document(StatusCode::OK, &document, accept))
}

/// Reads the objects of a list that the selector takes.
pub fn read_page(
    api: &Api,
    resource: &Resource,
    range: &Range,
    limit: usize,
    selector: &Selector,
) -> Result<Page, ApiError> {
    // A selector of one name needs no look at the others.
    let page = api.store.list(resource, range, limit, |listed| {
        if selector.is_everything() {
            return true;
        }
        if selector.required_field("metadata.name").is_some_and(|name| name != listed.name) {
            return false;
        }
        let object: Value = serde_json::from_slice(&listed.json).unwrap_or_default();
        selector.matches(&Selectable::of(resource, &object))
    });
    page.map_err(|error| ApiError::from_store(error, resource, ""))
}

fn range(api: &Api, address: &Address, query: &Query) -> Result<(Range, usize), ApiError> {
    let limit = match query.number("limit")? {
        Some(limit) if limit > 0 => usize::try_from(limit).unwrap_or(usize::MAX),
        _ => usize::MAX,
    };
    let mut range =
        Range { namespace: Some(address.namespace.clone()).filter(|name| !name.is_empty()), ..Range::default() };
    let revision = query.revision("resourceVersion")?;
    let token = query.get("continue");
    if !token.is_empty() {
        if revision.is_some_and(|revision| revision != 0) {
            return Err(ApiError::bad_request("specifying resource version is not allowed when using continue"));
        }
        let (revision, namespace, name) = decode_continue(token).ok_or_else(|| {
            ApiError::bad_request("invalid continue token: continue key is not valid: it was not made by this server")
        })?;
        range.revision = Some(revision);
        range.after = Some((namespace, name));
        return Ok((range, limit));
    }
    check_match(query.get("resourceVersionMatch"), revision)?;
    not_in_future(api, revision)?;
    if query.get("resourceVersionMatch") == "Exact" {
        range.revision = revision;
    }
    Ok((range, limit))
}

fn check_match(matching: &str, revision: Option<u64>) -> Result<(), ApiError> {
    let field = "resourceVersionMatch";
    let error = match (matching, revision) {
        ("", _) => return Ok(()),
        (_, None) => {
            FieldError::forbidden(field, "resourceVersionMatch is forbidden unless resourceVersion is provided")
        }
        ("Exact", Some(0)) => {
            FieldError::forbidden(field, "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"")
        }
        ("Exact" | "NotOlderThan", _) => return Ok(()),
        (other, _) => FieldError::unsupported(field, other, &["Exact", "NotOlderThan", ""]),
    };
    Err(ApiError::invalid_options("ListOptions", error))
}

/// A revision that is not there yet can't be shown.
pub fn not_in_future(api: &Api, revision: Option<u64>) -> Result<(), ApiError> {
    let newest = api.store.revision();
    match revision {
        Some(wanted) if wanted > newest => Err(ApiError::too_large_revision(wanted, newest)),
        _ => Ok(()),
    }
}

/// The list's JSON, without a look into the items.
fn join(resource: &Resource, metadata: &Value, page: &Page) -> Bytes {
    let size: usize = page.items.iter().map(|item| item.json.len() + 1).sum();
    let mut out = Vec::with_capacity(size + 256);
    let head = format!(
        "{{\"kind\":\"{}List\",\"apiVersion\":{:?},\"metadata\":{metadata},\"items\":[",
        resource.kind,
        resource.api_version()
    );
    out.extend_from_slice(head.as_bytes());
    for (index, item) in page.items.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        out.extend_from_slice(&item.json);
    }
    out.extend_from_slice(b"]}\n");
    Bytes::from(out)
}

fn encode_continue(revision: u64, namespace: &str, name: &str) -> String {
    URL_SAFE_NO_PAD.encode(json!({"rv": revision, "namespace": namespace, "name": name}).to_string())
}

fn decode_continue(token: &str) -> Option<(u64, String, String)> {
    let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
    let token: Value = serde_json::from_slice(&bytes).ok()?;
    Some((token.get("rv")?.as_u64()?, token.get("namespace")?.as_str()?.into(), token.get("name")?.as_str()?.into()))
}
