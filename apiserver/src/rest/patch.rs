//! Patching objects over HTTP.

use serde_json::Value;

use super::answer;
use super::body::{self, Expected};
use super::event_versions;
use super::query::FieldValidation;
use super::update::{Update, update_object};
use crate::api::Api;
use crate::document::Document;
use crate::error::ApiError;
use crate::object;
use crate::patch::Patch;

/// Applies a patch; returns the object and warnings.
///
/// # Errors
/// What the API answers.
pub async fn patch_object(
    api: &Api,
    update: Update<'_>,
    patch: &Patch,
    validation: FieldValidation,
) -> Result<(Value, Vec<String>), ApiError> {
    let key = update.key;
    let resource = key.resource;
    let api_version = resource.api_version();
    let expected = Expected { api_version: &api_version, kind: resource.kind, schema: resource.schema };
    let mut warnings = Vec::new();
    let change = |old: &Value| {
        let patched = patch.apply(answer::typed(resource, old.clone()), resource.schema)?;
        let decoded = body::check(Document { value: patched.clone(), duplicates: Vec::new() }, expected, validation);
        let decoded = decoded.map_err(|error| {
            // Only what was wrong with the document; its kind is in it.
            let why = error.message.split_once("cannot be handled as a ").and_then(|(_, rest)| rest.split_once(": "));
            ApiError::patch_outcome(&patched, why.map_or(error.message.as_str(), |(_, why)| why))
        })?;
        warnings = decoded.warnings;
        if object::name(&decoded.object) != key.name {
            return Err(ApiError::bad_request(format!(
                "the name of the object ({}) does not match the name on the URL ({})",
                object::name(&decoded.object),
                key.name
            )));
        }
        Ok(if resource.group == "events.k8s.io" { event_versions::to_core(decoded.object) } else { decoded.object })
    };
    let object = update_object(api, update, change).await?;
    Ok((object, warnings))
}
