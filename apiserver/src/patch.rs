//! The patch kinds: JSON patch, merge patch and strategic merge patch.

mod merge_keys;
mod strategic;

use serde_json::Value;

use crate::error::ApiError;
pub use merge_keys::{ListStrategy, RETAIN_KEYS, list_strategy};
pub use strategic::strategic_merge;

/// Operations of one JSON patch at most (kube-apiserver's `maxJSONPatchOperations`).
const OPERATIONS_MAX: usize = 10_000;

/// How a patch is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchKind {
    /// RFC 6902.
    Json,
    /// RFC 7386.
    Merge,
    /// Kubernetes' own: lists are merged by key.
    Strategic,
}

impl PatchKind {
    /// Reads the media type.
    ///
    /// # Errors
    /// 415 for any other.
    pub fn parse(content_type: &str) -> Result<PatchKind, ApiError> {
        match content_type.split(';').next().unwrap_or_default().trim() {
            "application/json-patch+json" => Ok(PatchKind::Json),
            "application/merge-patch+json" => Ok(PatchKind::Merge),
            "application/strategic-merge-patch+json" => Ok(PatchKind::Strategic),
            "application/apply-patch+yaml" | "application/apply-patch+cbor" => Err(ApiError::unsupported_media_type(
                "server-side apply is not served by this API server; use client-side apply (kubectl apply without --server-side)",
            )),
            _ => Err(ApiError::unsupported_patch()),
        }
    }
}

/// A parsed patch.
#[derive(Clone, Debug)]
pub enum Patch {
    /// Operations.
    Json(json_patch::Patch),
    /// A document that is laid over.
    Merge(Value),
    /// A document that is laid over, with lists merged by key.
    Strategic(Value),
}

impl Patch {
    /// Parses a patch.
    ///
    /// # Errors
    /// 400 for what is none, 413 for too many operations.
    pub fn parse(kind: PatchKind, body: &[u8]) -> Result<Patch, ApiError> {
        let refuse = |error: serde_json::Error| ApiError::bad_request(format!("error decoding patch: {error}"));
        match kind {
            PatchKind::Json => {
                let patch: json_patch::Patch = serde_json::from_slice(body).map_err(refuse)?;
                if patch.0.len() > OPERATIONS_MAX {
                    let mut error = ApiError::body_too_large(OPERATIONS_MAX);
                    error.message = format!(
                        "The allowed maximum operations in a JSON patch is {OPERATIONS_MAX}, got {}",
                        patch.0.len()
                    );
                    return Err(error);
                }
                Ok(Patch::Json(patch))
            }
            PatchKind::Merge | PatchKind::Strategic => {
                let document: Value = serde_json::from_slice(body).map_err(refuse)?;
                if !document.is_object() {
                    return Err(ApiError::bad_request("error decoding patch: it is not an object"));
                }
                Ok(if kind == PatchKind::Merge { Patch::Merge(document) } else { Patch::Strategic(document) })
            }
        }
    }

    /// Applies the patch to a document of the schema.
    ///
    /// # Errors
    /// 422 when it does not fit the document.
    pub fn apply(&self, mut document: Value, schema: &str) -> Result<Value, ApiError> {
        match self {
            Patch::Json(patch) => json_patch::patch(&mut document, &patch.0).map_err(|_| ApiError::patch_rejected())?,
            Patch::Merge(over) => json_patch::merge(&mut document, over),
            Patch::Strategic(over) => strategic_merge(&mut document, over, schema).map_err(ApiError::unforeseen)?,
        }
        Ok(document)
    }
}
