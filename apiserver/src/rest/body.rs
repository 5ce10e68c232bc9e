//! Request bodies: read with a bound, decoded by their type, checked against the schema.

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde_json::Value;

use super::BODY_BYTES_MAX;
use super::query::FieldValidation;
use crate::document::Document;
use crate::error::ApiError;
use crate::object;
use crate::openapi;
use crate::protobuf;
use crate::registry;

/// A decoded object and what the client should be warned of.
#[derive(Debug, Default)]
pub struct Decoded {
    /// The document, without `apiVersion` and `kind`.
    pub object: Value,
    /// Warnings.
    pub warnings: Vec<String>,
}

/// The kind that a body must have.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// `apiVersion`.
    pub api_version: &'a str,
    /// `kind`.
    pub kind: &'a str,
    /// Name of the schema.
    pub schema: &'a str,
}

/// Reads a body of at most [`BODY_BYTES_MAX`].
///
/// # Errors
/// 413 when it is longer, 400 when the connection breaks.
pub async fn read(body: Incoming) -> Result<Bytes, ApiError> {
    match Limited::new(body, BODY_BYTES_MAX).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(ApiError::body_too_large(BODY_BYTES_MAX)),
        Err(error) => Err(ApiError::bad_request(format!("the body could not be read: {error}"))),
    }
}

/// Parses a body by its media type; protobuf by the schema.
///
/// # Errors
/// 415 for another type than JSON, YAML and protobuf, 400 for what can't be parsed.
pub fn parse(content_type: &str, bytes: &[u8], schema: &str) -> Result<Document, ApiError> {
    let kind = schema.rsplit('.').next().unwrap_or(schema);
    let media = content_type.split(';').next().unwrap_or_default().trim();
    let parsed = match media {
        "" | "application/json" | "*/*" => Document::from_json(bytes),
        "application/yaml" => Document::from_yaml(bytes),
        protobuf::MEDIA_TYPE => protobuf::decode(bytes, schema).map(|value| Document { value, duplicates: Vec::new() }),
        other => {
            return Err(ApiError::unsupported_media_type(format!(
                "the body of the request was in an unknown format{} - accepted media types include: application/json, application/yaml, application/vnd.kubernetes.protobuf",
                if other.is_empty() { " (none)" } else { "" }
            )));
        }
    };
    let refuse = |why: &str| {
        ApiError::bad_request(format!(
            "the object provided is unrecognized (must be of type {kind}): couldn't get version/kind; json parse error: {why}"
        ))
    };
    let parsed = parsed.map_err(|error| refuse(&error))?;
    if !parsed.value.is_object() {
        return Err(refuse("it is not an object"));
    }
    Ok(parsed)
}

/// Decodes a body to an object of the expected kind.
///
/// # Errors
/// 400 in the words of a typed decoder.
pub fn decode(
    content_type: &str,
    bytes: &[u8],
    expected: Expected<'_>,
    validation: FieldValidation,
) -> Result<Decoded, ApiError> {
    if bytes.is_empty() {
        return Err(ApiError::bad_request("the body of the request is empty"));
    }
    check(parse(content_type, bytes, expected.schema)?, expected, validation)
}

/// Checks a parsed document.
///
/// # Errors
/// As for [`decode`].
pub fn check(document: Document, expected: Expected<'_>, validation: FieldValidation) -> Result<Decoded, ApiError> {
    let Document { value: mut object, duplicates } = document;
    let kind = object::text(&object, "/kind").to_string();
    let version = object::text(&object, "/apiVersion").to_string();
    if (!kind.is_empty() && kind != expected.kind) || (!version.is_empty() && version != expected.api_version) {
        return Err(ApiError::bad_request(wrong_kind(&kind, &version, expected)));
    }
    let refuse = |reason: String| {
        let kind = expected.kind;
        ApiError::bad_request(format!(
            "{kind} in version {:?} cannot be handled as a {kind}: {reason}",
            version_of(expected.api_version)
        ))
    };
    let report = openapi::normalize(&mut object, expected.schema).map_err(refuse)?;
    object::remove(&mut object, "kind");
    object::remove(&mut object, "apiVersion");
    let duplicates = duplicates.iter().map(|path| format!("duplicate field {path:?}"));
    let unknown = report.unknown.iter().map(|path| format!("unknown field {path:?}"));
    let mut found: Vec<String> = duplicates.chain(unknown).collect();
    match validation {
        FieldValidation::Strict if !found.is_empty() => {
            Err(refuse(format!("strict decoding error: {}", found.join(", "))))
        }
        FieldValidation::Ignore => {
            found.clear();
            Ok(Decoded { object, warnings: found })
        }
        _ => Ok(Decoded { object, warnings: found }),
    }
}

/// The version without its group.
fn version_of(api_version: &str) -> &str {
    api_version.rsplit('/').next().unwrap_or(api_version)
}

/// The first part of a group's name, as types are called by it.
fn group_of(api_version: &str) -> &str {
    api_version.split_once('/').map_or("core", |(group, _)| group.split('.').next().unwrap_or(group))
}

/// What is wrong with a document of another kind than the address has.
fn wrong_kind(kind: &str, version: &str, expected: Expected<'_>) -> String {
    let (kind, version) = (
        if kind.is_empty() { expected.kind } else { kind },
        if version.is_empty() { expected.api_version } else { version },
    );
    let why = match registry::find_kind(version, kind) {
        Some(_) => {
            let (found, wanted) = (
                format!("{}.{kind}", version_of(version)),
                format!("{}.{}", group_of(expected.api_version), expected.kind),
            );
            format!("converting ({found}) to ({wanted}): unknown conversion")
        }
        None => format!("no kind {kind:?} is registered for version {version:?}"),
    };
    format!("{kind} in version {:?} cannot be handled as a {}: {why}", version_of(version), expected.kind)
}
