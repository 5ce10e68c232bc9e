//! The OpenAPI pages: `/openapi/v2`, and `/openapi/v3` with one page for each group and version.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde_json::{Map, Value, json};

use super::gnostic;
use super::paths::add_paths;
use super::schemas::{Form, schemas};
use crate::registry;
use crate::rest::answer::{self, Body};
use crate::rest::query::Query;

/// Hashes of the pages, which are the same as long as the program runs; the pages themselves are made when asked for.
static HASHES: LazyLock<BTreeMap<String, String>> =
    LazyLock::new(|| groups().map(|(group, version)| (place(group, version), hash(&page(group, version)))).collect());

/// Answers a page, or says that the path is another one.
pub fn answer(path: &str, query: &Query, headers: &HeaderMap) -> Option<Response<Body>> {
    match path {
        "/openapi/v2" => Some(answer_v2(headers)),
        "/openapi/v3" => Some(answer::bytes(StatusCode::OK, "application/json", Bytes::from(index().to_string()))),
        _ => {
            let wanted = path.strip_prefix("/openapi/v3/")?;
            let (group, version) = groups().find(|(group, version)| place(group, version) == wanted)?;
            Some(answer_v3(path, wanted, group, version, query, headers))
        }
    }
}

/// Every group with every version, the core group first.
fn groups() -> impl Iterator<Item = (&'static str, &'static str)> {
    let named = registry::groups()
        .into_iter()
        .flat_map(|(group, versions)| versions.into_iter().map(move |version| (group, version)));
    [("", "v1")].into_iter().chain(named)
}

fn place(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

fn index() -> Value {
    let pages: Map<String, Value> = HASHES
        .iter()
        .map(|(place, hash)| (place.clone(), json!({"serverRelativeURL": format!("/openapi/v3/{place}?hash={hash}")})))
        .collect();
    json!({"paths": pages})
}

fn info() -> Value {
    json!({"title": "Kubernetes", "version": crate::rest::VERSION})
}

fn page(group: &str, version: &str) -> Vec<u8> {
    let rows: Vec<_> = registry::all().filter(|row| row.group == group && row.version == version).collect();
    let mut paths = Map::new();
    for row in &rows {
        add_paths(Form::V3, row, &mut paths);
    }
    let mut roots: Vec<&str> = rows.iter().map(|row| row.schema).collect();
    roots.extend(["io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions", "io.k8s.apimachinery.pkg.apis.meta.v1.Status"]);
    if group.is_empty() {
        roots.extend([
            "io.k8s.api.core.v1.Binding",
            "io.k8s.api.policy.v1.Eviction",
            "io.k8s.api.authentication.v1.TokenRequest",
        ]);
    }
    let document = json!({
        "openapi": "3.0.0", "info": info(), "paths": paths,
        "components": {"schemas": schemas(Form::V3, Some(&roots))},
    });
    serde_json::to_vec(&document).unwrap_or_default()
}

fn hash(bytes: &[u8]) -> String {
    hex::encode_upper(ring::digest::digest(&ring::digest::SHA256, bytes))
}

/// A page of version 3. Its address carries its hash, so that clients keep it as long as they like.
fn answer_v3(
    path: &str,
    place: &str,
    group: &str,
    version: &str,
    query: &Query,
    headers: &HeaderMap,
) -> Response<Body> {
    let hash = HASHES.get(place).map_or("", String::as_str);
    let wanted = query.get("hash");
    if !wanted.is_empty() && wanted != hash {
        let mut response = answer::bytes(StatusCode::MOVED_PERMANENTLY, "application/json", Bytes::new());
        if let Ok(location) = HeaderValue::from_str(&format!("{path}?hash={hash}")) {
            response.headers_mut().insert(header::LOCATION, location);
        }
        return response;
    }
    let lasting = !wanted.is_empty();
    tagged(headers, hash, lasting, "application/json", || page(group, version))
}

fn answer_v2(headers: &HeaderMap) -> Response<Body> {
    let accepted = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let document = document_v2();
    let json = serde_json::to_vec(&document).unwrap_or_default();
    let tag = hash(&json);
    if accepted.contains(gnostic::MEDIA_TYPE_NEW) || accepted.contains(gnostic::MEDIA_TYPE) {
        return tagged(headers, &tag, false, gnostic::MEDIA_TYPE_NEW, || gnostic::encode(&document));
    }
    tagged(headers, &tag, false, "application/json", || json)
}

fn document_v2() -> Value {
    let mut paths = Map::new();
    for row in registry::all() {
        add_paths(Form::V2, row, &mut paths);
    }
    json!({"swagger": "2.0", "info": info(), "paths": paths, "definitions": schemas(Form::V2, None)})
}

/// An answer with an entity tag; 304 where the client has it already.
fn tagged(
    headers: &HeaderMap,
    tag: &str,
    lasting: bool,
    media: &'static str,
    bytes: impl FnOnce() -> Vec<u8>,
) -> Response<Body> {
    let tag = format!("\"{tag}\"");
    let known = headers
        .get(header::IF_NONE_MATCH)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.contains(&tag));
    let mut response = match known {
        true => answer::bytes(StatusCode::NOT_MODIFIED, media, Bytes::new()),
        false => answer::bytes(StatusCode::OK, media, Bytes::from(bytes())),
    };
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    if lasting {
        response
            .headers_mut()
            .insert(header::CACHE_CONTROL, HeaderValue::from_static("public, immutable, max-age=31536000"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_the_same_each_time() {
        assert_eq!(hash(&page("coordination.k8s.io", "v1")), HASHES["apis/coordination.k8s.io/v1"]);
        let index = index();
        let address = index["paths"]["api/v1"]["serverRelativeURL"].as_str().unwrap();
        assert!(address.starts_with("/openapi/v3/api/v1?hash="));
    }
}
