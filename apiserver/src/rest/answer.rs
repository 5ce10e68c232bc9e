//! Answers: the form that the client accepts, and the bytes.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};

use super::event_versions;
use super::query::Query;
use crate::error::ApiError;
use crate::registry::Resource;
use crate::table;

/// The body of an answer.
pub type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// What of an object is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// All of it.
    Full,
    /// `PartialObjectMetadata`.
    Metadata,
    /// A row of a table.
    Table(table::Include),
}

/// The form that the client accepts.
#[derive(Clone, Copy, Debug)]
pub struct Accept {
    /// What of an object.
    pub shape: Shape,
    /// YAML instead of JSON.
    pub yaml: bool,
    /// Indented JSON.
    pub pretty: bool,
}

impl Accept {
    /// The first form of the header that can be served.
    ///
    /// # Errors
    /// 406 when there is none.
    pub fn parse(header: &str, query: &Query) -> Result<Accept, ApiError> {
        let pretty = query.flag("pretty");
        let plain = Accept { shape: Shape::Full, yaml: false, pretty };
        if header.trim().is_empty() {
            return Ok(plain);
        }
        for clause in header.split(',') {
            let mut parts = clause.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default();
            let yaml = match media {
                "application/json" | "*/*" | "application/*" => false,
                "application/yaml" => true,
                _ => continue,
            };
            let mut kind = "";
            for (key, value) in parts.filter_map(|part| part.split_once('=')) {
                if key == "as" {
                    kind = value;
                }
            }
            let shape = match kind {
                "" => Shape::Full,
                "PartialObjectMetadata" | "PartialObjectMetadataList" => Shape::Metadata,
                "Table" => Shape::Table(table::Include::parse(query.get("includeObject"))?),
                _ => continue,
            };
            return Ok(Accept { shape, yaml, pretty });
        }
        // A browser or a person without a preference that can be served.
        if header.contains("text/html") || header.contains("text/plain") {
            return Ok(plain);
        }
        Err(ApiError::not_acceptable(
            "application/json, application/yaml",
            header.contains("json") || header.contains("yaml"),
        ))
    }
}

/// `kind` and `apiVersion` put in front of an object's stored JSON.
pub fn with_kind(resource: &Resource, json: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(json.len() + 64);
    out.extend_from_slice(
        format!("{{\"kind\":{:?},\"apiVersion\":{:?}", resource.kind, resource.api_version()).as_bytes(),
    );
    // `{}` has nothing to separate from.
    if json.len() > 2 {
        out.push(b',');
    }
    out.extend_from_slice(json.get(1..).unwrap_or(b"}"));
    Bytes::from(out)
}

/// `kind` and `apiVersion` put into an object.
pub fn typed(resource: &Resource, object: Value) -> Value {
    let mut object = in_version(resource, object);
    object["kind"] = json!(resource.kind);
    object["apiVersion"] = json!(resource.api_version());
    object
}

/// An object in the resource's version, without `kind` and `apiVersion`: as lists have it.
pub fn in_version(resource: &Resource, object: Value) -> Value {
    if resource.group == "events.k8s.io" { event_versions::from_core(object) } else { object }
}

/// One object in the shape asked for.
pub fn shaped(resource: &Resource, object: Value, shape: Shape) -> Value {
    match shape {
        Shape::Full => typed(resource, object),
        Shape::Metadata => partial(&object),
        Shape::Table(include) => {
            let metadata = json!({"resourceVersion": object.pointer("/metadata/resourceVersion")});
            table::render(resource, &[object], include, &metadata, true)
        }
    }
}

/// `PartialObjectMetadata` of an object.
pub fn partial(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object.get("metadata").cloned().unwrap_or_default()})
}

/// An answer of JSON or YAML.
pub fn document(code: StatusCode, value: &Value, accept: Accept) -> Response<Body> {
    if accept.yaml {
        let text = serde_saphyr::to_string(value).unwrap_or_default();
        return bytes(code, "application/yaml", Bytes::from(text));
    }
    let json = if accept.pretty { serde_json::to_vec_pretty(value) } else { serde_json::to_vec(value) };
    let mut json = json.unwrap_or_default();
    json.push(b'\n');
    bytes(code, "application/json", Bytes::from(json))
}

/// An answer of bytes.
pub fn bytes(code: StatusCode, media: &'static str, bytes: Bytes) -> Response<Body> {
    let mut response = Response::new(Full::new(bytes).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

/// An answer of text.
pub fn text(code: StatusCode, text: impl Into<String>) -> Response<Body> {
    let mut response = bytes(code, "text/plain; charset=utf-8", Bytes::from(text.into()));
    response.headers_mut().insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    response
}

/// The answer of an error.
pub fn error(error: &ApiError) -> Response<Body> {
    let code = StatusCode::from_u16(error.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = document(code, &error.status(), Accept { shape: Shape::Full, yaml: false, pretty: false });
    if let Some(seconds) = error.retry_after_seconds {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// Adds warnings for people to an answer.
pub fn warn(response: &mut Response<Body>, warnings: &[String]) {
    for warning in warnings {
        let quoted: String = warning
            .chars()
            .flat_map(|c| match c {
                '"' | '\\' => vec!['\\', c],
                c if c.is_control() => vec![' '],
                c => vec![c],
            })
            .collect();
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}
