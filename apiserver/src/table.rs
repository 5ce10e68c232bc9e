//! Tables: what `kubectl get` prints.

use serde_json::{Value, json};

use crate::error::ApiError;
use crate::object;
use crate::registry::Resource;
use crate::rest::answer;

/// What of the object comes with its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Include {
    /// Nothing.
    None,
    /// Its metadata.
    Metadata,
    /// All of it.
    Object,
}

impl Include {
    /// Reads `includeObject`.
    ///
    /// # Errors
    /// 400 for an unknown value.
    pub fn parse(text: &str) -> Result<Include, ApiError> {
        match text {
            "" | "Metadata" => Ok(Include::Metadata),
            "None" => Ok(Include::None),
            "Object" => Ok(Include::Object),
            other => Err(ApiError::bad_request(format!("unrecognized includeObject value: {other:?}"))),
        }
    }
}

/// The table of some objects; `columns` says whether their definitions come with it (a watch sends them once).
pub fn render(resource: &Resource, objects: &[Value], include: Include, metadata: &Value, columns: bool) -> Value {
    let definitions = json!([
        {"name": "Name", "type": "string", "format": "name", "description": "Name must be unique within a namespace.", "priority": 0},
        {"name": "Age", "type": "date", "format": "", "description": "CreationTimestamp is when this object was created.", "priority": 0},
    ]);
    let rows: Vec<Value> = objects
        .iter()
        .map(|object| {
            let cells = json!([object::name(object), object::text(object, "/metadata/creationTimestamp")]);
            let mut row = json!({"cells": cells});
            match include {
                Include::None => {}
                Include::Metadata => row["object"] = answer::partial(object),
                Include::Object => row["object"] = answer::typed(resource, object.clone()),
            }
            row
        })
        .collect();
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
        "columnDefinitions": if columns { definitions } else { json!([]) }, "rows": rows,
    })
}
