//! Errors as clients see them: Status objects with Kubernetes' reasons and wording.

use serde_json::{Value, json};

use crate::object;
use crate::registry::Resource;
use crate::storage::StoreError;

/// An answer that is not a success.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// HTTP status.
    pub code: u16,
    /// Machine-readable reason; empty when unknown.
    pub reason: &'static str,
    /// For people.
    pub message: String,
    /// `details` of the Status.
    pub details: Option<Value>,
    /// `Retry-After`, in seconds.
    pub retry_after_seconds: Option<u32>,
}

/// What is wrong with a field; the kinds of Kubernetes' `field.Error`.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    /// Path, such as `spec.containers[0].name`.
    pub field: String,
    /// Reason of the cause, such as `FieldValueRequired`.
    pub reason: &'static str,
    /// Text without the path.
    pub message: String,
}

fn with_detail(kind: &str, detail: &str) -> String {
    if detail.is_empty() { kind.to_string() } else { format!("{kind}: {detail}") }
}

impl FieldError {
    /// The field is missing.
    pub fn required(field: impl Into<String>, detail: &str) -> FieldError {
        FieldError { field: field.into(), reason: "FieldValueRequired", message: with_detail("Required value", detail) }
    }

    /// The value is wrong.
    pub fn invalid(field: impl Into<String>, value: impl Into<Value>, detail: &str) -> FieldError {
        let value = value.into();
        FieldError {
            field: field.into(),
            reason: "FieldValueInvalid",
            message: with_detail(&format!("Invalid value: {value}"), detail),
        }
    }

    /// The value is none of the known ones.
    pub fn unsupported(field: impl Into<String>, value: &str, supported: &[&str]) -> FieldError {
        let list: Vec<String> = supported.iter().map(|value| format!("{value:?}")).collect();
        let message = format!("Unsupported value: {value:?}: supported values: {}", list.join(", "));
        FieldError { field: field.into(), reason: "FieldValueNotSupported", message }
    }

    /// The field may not be set or changed.
    pub fn forbidden(field: impl Into<String>, detail: &str) -> FieldError {
        FieldError { field: field.into(), reason: "FieldValueForbidden", message: with_detail("Forbidden", detail) }
    }

    /// The value is there twice.
    pub fn duplicate(field: impl Into<String>, value: &str) -> FieldError {
        FieldError {
            field: field.into(),
            reason: "FieldValueDuplicate",
            message: format!("Duplicate value: {value:?}"),
        }
    }

    /// Something that is referred to does not exist.
    pub fn not_found(field: impl Into<String>, value: &str) -> FieldError {
        FieldError { field: field.into(), reason: "FieldValueNotFound", message: format!("Not found: {value:?}") }
    }

    /// The value is too long.
    pub fn too_long(field: impl Into<String>, bytes: usize) -> FieldError {
        let message = format!("Too long: may not be more than {bytes} bytes");
        FieldError { field: field.into(), reason: "FieldValueTooLong", message }
    }

    fn text(&self) -> String {
        format!("{}: {}", self.field, self.message)
    }
}

impl ApiError {
    fn new(code: u16, reason: &'static str, message: impl Into<String>) -> ApiError {
        ApiError { code, reason, message: message.into(), details: None, retry_after_seconds: None }
    }

    fn about(mut self, resource: &Resource, name: &str) -> ApiError {
        let mut details = json!({"name": name, "kind": resource.plural});
        if name.is_empty() {
            details = json!({"kind": resource.plural});
        }
        if !resource.group.is_empty() {
            details["group"] = json!(resource.group);
        }
        self.details = Some(details);
        self
    }

    /// 404 for an object.
    pub fn not_found(resource: &Resource, name: &str) -> ApiError {
        ApiError::new(404, "NotFound", format!("{} {name:?} not found", resource.qualified())).about(resource, name)
    }

    /// 404 for an address.
    pub fn no_such_address() -> ApiError {
        ApiError {
            details: Some(json!({})),
            ..ApiError::new(404, "NotFound", "the server could not find the requested resource")
        }
    }

    /// 409 for a create.
    pub fn already_exists(resource: &Resource, name: &str) -> ApiError {
        ApiError::new(409, "AlreadyExists", format!("{} {name:?} already exists", resource.qualified()))
            .about(resource, name)
    }

    /// 409 for a write.
    pub fn conflict(resource: &Resource, name: &str, why: &str) -> ApiError {
        let message = format!("Operation cannot be fulfilled on {} {name:?}: {why}", resource.qualified());
        ApiError::new(409, "Conflict", message).about(resource, name)
    }

    /// 409 because the object has changed meanwhile.
    pub fn changed(resource: &Resource, name: &str) -> ApiError {
        ApiError::conflict(
            resource,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// 422 with one cause per field.
    pub fn invalid(resource: &Resource, name: &str, errors: &[FieldError]) -> ApiError {
        ApiError::invalid_kind(&resource.qualified_kind(), resource.group, resource.kind, name, errors)
    }

    /// 422 for a kind that has no row of its own.
    pub fn invalid_kind(qualified: &str, group: &str, kind: &str, name: &str, errors: &[FieldError]) -> ApiError {
        // Checked twice is told once; the causes keep both.
        let mut texts: Vec<String> = Vec::new();
        for text in errors.iter().map(FieldError::text) {
            if !texts.contains(&text) {
                texts.push(text);
            }
        }
        let text = if texts.len() == 1 { texts[0].clone() } else { format!("[{}]", texts.join(", ")) };
        let causes: Vec<Value> = errors
            .iter()
            .map(|error| json!({"reason": error.reason, "message": error.message, "field": error.field}))
            .collect();
        let mut details = json!({"name": name, "kind": kind, "causes": causes});
        if kind.is_empty() {
            object::remove(&mut details, "kind");
        }
        if name.is_empty() {
            object::remove(&mut details, "name");
        }
        if !group.is_empty() {
            details["group"] = json!(group);
        }
        let message = format!("{qualified} {name:?} is invalid: {text}");
        ApiError { details: Some(details), ..ApiError::new(422, "Invalid", message) }
    }

    /// 400.
    pub fn bad_request(message: impl Into<String>) -> ApiError {
        ApiError::new(400, "BadRequest", message)
    }

    /// 422 for options of a request.
    pub fn invalid_options(kind: &str, error: FieldError) -> ApiError {
        ApiError::invalid_kind(&format!("{kind}.meta.k8s.io"), "meta.k8s.io", kind, "", &[error])
    }

    /// 409 because what is deleted is not what the client means.
    pub fn precondition(resource: &Resource, name: &str, why: &str) -> ApiError {
        let message = format!("Operation cannot be fulfilled on {} {name:?}: {why}", resource.qualified_kind());
        let mut error = ApiError::new(409, "Conflict", message).about(resource, name);
        if let Some(details) = &mut error.details {
            details["kind"] = json!(resource.kind);
        }
        error
    }

    /// 422 for a patch that can't be applied to the document.
    pub fn patch_rejected() -> ApiError {
        let message = "the server rejected our request due to an error in our request";
        ApiError { details: Some(json!({})), ..ApiError::new(422, "Invalid", message) }
    }

    /// 422 for a patch whose outcome is no object of the kind.
    pub fn patch_outcome(document: &Value, why: &str) -> ApiError {
        ApiError::invalid_kind("", "", "", "", &[FieldError::invalid("patch", document.to_string(), why)])
    }

    /// 500 of kube-apiserver's that names no reason: a request that its own checks do not foresee.
    pub fn unforeseen(message: impl Into<String>) -> ApiError {
        ApiError::new(500, "", message)
    }

    /// 403 for an object or a resource.
    pub fn forbidden(resource: &Resource, name: &str, why: &str) -> ApiError {
        let subject = if name.is_empty() { resource.qualified() } else { format!("{} {name:?}", resource.qualified()) };
        ApiError::new(403, "Forbidden", format!("{subject} is forbidden: {why}")).about(resource, name)
    }

    /// 403 for an address.
    pub fn forbidden_address(message: String) -> ApiError {
        ApiError { details: Some(json!({})), ..ApiError::new(403, "Forbidden", message) }
    }

    /// 401.
    pub fn unauthorized() -> ApiError {
        ApiError::new(401, "Unauthorized", "Unauthorized")
    }

    /// 405.
    pub fn method_not_allowed() -> ApiError {
        let message = "the server does not allow this method on the requested resource";
        ApiError { details: Some(json!({})), ..ApiError::new(405, "MethodNotAllowed", message) }
    }

    /// 406; of another form only, or of another media type altogether.
    pub fn not_acceptable(accepted: &str, form: bool) -> ApiError {
        if form {
            return ApiError::new(
                406,
                "NotAcceptable",
                format!("only the following media types are accepted: {accepted}"),
            );
        }
        let message = format!("406: Not Acceptable\n\nAvailable representations: {accepted}");
        ApiError { details: Some(json!({})), ..ApiError::new(406, "NotAcceptable", message) }
    }

    /// 415.
    pub fn unsupported_media_type(message: impl Into<String>) -> ApiError {
        ApiError::new(415, "UnsupportedMediaType", message)
    }

    /// 415 for a patch of no known kind.
    pub fn unsupported_patch() -> ApiError {
        ApiError {
            details: Some(json!({})),
            ..ApiError::new(415, "UnsupportedMediaType", "415: Unsupported Media Type")
        }
    }

    /// 413.
    pub fn body_too_large(limit: usize) -> ApiError {
        ApiError::new(413, "RequestEntityTooLarge", format!("Request entity too large: limit is {limit}"))
    }

    /// 410 for a revision that is no longer there.
    pub fn expired(message: impl Into<String>) -> ApiError {
        ApiError::new(410, "Expired", message)
    }

    /// 504 for a revision that is not there yet.
    pub fn too_large_revision(wanted: u64, newest: u64) -> ApiError {
        let message = format!("Timeout: Too large resource version: {wanted}, current: {newest}");
        let details = json!({"causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}], "retryAfterSeconds": 1});
        ApiError { details: Some(details), retry_after_seconds: Some(1), ..ApiError::new(504, "Timeout", message) }
    }

    /// 429.
    pub fn too_many_requests(message: impl Into<String>) -> ApiError {
        let details = Some(json!({"retryAfterSeconds": 1}));
        ApiError { retry_after_seconds: Some(1), details, ..ApiError::new(429, "TooManyRequests", message) }
    }

    /// 500.
    pub fn internal(message: impl std::fmt::Display) -> ApiError {
        let details = json!({"causes": [{"message": message.to_string()}]});
        ApiError {
            details: Some(details),
            ..ApiError::new(500, "InternalError", format!("Internal error occurred: {message}"))
        }
    }

    /// 503.
    pub fn unavailable(message: impl Into<String>) -> ApiError {
        ApiError { retry_after_seconds: Some(1), ..ApiError::new(503, "ServiceUnavailable", message) }
    }

    /// What the store says, in the words of the API.
    pub fn from_store(error: StoreError, resource: &Resource, name: &str) -> ApiError {
        match error {
            StoreError::Exists => ApiError::already_exists(resource, name),
            StoreError::Missing => ApiError::not_found(resource, name),
            StoreError::Changed => ApiError::changed(resource, name),
            StoreError::TooOld(_) => ApiError::expired(
                "The provided continue parameter is too old to display a consistent list result. You must start a new list without the continue parameter.",
            ),
            StoreError::Busy => ApiError::too_many_requests("too many writes are waiting, please try again later"),
            StoreError::Closed => ApiError::unavailable("the server is shutting down"),
            other => ApiError::internal(other),
        }
    }

    /// The Status object.
    pub fn status(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "code": self.code,
        });
        if !self.reason.is_empty() {
            status["reason"] = json!(self.reason);
        }
        if let Some(details) = &self.details {
            status["details"] = details.clone();
        }
        status
    }
}

/// The Status of a success that has nothing else to show.
pub fn success(resource: &Resource, name: &str, uid: &str) -> Value {
    let mut details = json!({"name": name, "kind": resource.plural, "uid": uid});
    if !resource.group.is_empty() {
        details["group"] = json!(resource.group);
    }
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}
