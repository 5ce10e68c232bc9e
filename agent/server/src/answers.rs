//! Answers in plain text.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use orlop_agent_core::ports::NodeViewError;

/// A request that is not served, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) text: String,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, text: String) -> Self {
        Self { status, text }
    }

    pub(crate) fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized".to_owned())
    }

    pub(crate) fn forbidden(text: String) -> Self {
        Self::new(StatusCode::FORBIDDEN, text)
    }

    pub(crate) fn bad_request(text: String) -> Self {
        Self::new(StatusCode::BAD_REQUEST, text)
    }

    pub(crate) fn internal(text: String) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, text)
    }
}

impl From<NodeViewError> for Refusal {
    fn from(error: NodeViewError) -> Self {
        match error {
            NodeViewError::NotFound(text) => Self::new(StatusCode::NOT_FOUND, text),
            NodeViewError::BadRequest(text) => Self::bad_request(text),
            NodeViewError::Internal(text) => Self::internal(text),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        text(self.status, self.text + "\n")
    }
}

/// A text answer that no browser takes for something else.
pub(crate) fn text(status: StatusCode, text: impl Into<Body>) -> Response {
    let mut response = Response::new(text.into());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// A JSON answer.
pub(crate) fn json(value: &impl serde::Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(bytes) => {
            let mut response = Response::new(Body::from(bytes));
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            response
        }
        Err(error) => Refusal::internal(format!("the answer can't be written as JSON: {error}")).into_response(),
    }
}
