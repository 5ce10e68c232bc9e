//! Tables: what `kubectl get` prints; the columns of each resource and the cells of its objects.

mod classes;
mod column;
mod core;
mod duration;
mod events;
mod nodes;
mod pods;
mod services;
mod storage;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::registry::Resource;
use crate::rest::answer;
use column::Layout;

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
            other => Err(ApiError::bad_request(format!(
                "Unable to convert to Table as requested: includeObject: Invalid value: {other:?}: must be 'Metadata', 'Object', 'None', or empty"
            ))),
        }
    }
}

/// The layout of a resource; what has none of its own shows name and age.
fn layout(resource: &Resource) -> &'static Layout {
    match resource.plural {
        "pods" => &pods::LAYOUT,
        "nodes" => &nodes::LAYOUT,
        "podtemplates" => &pods::TEMPLATES,
        "services" => &services::SERVICES,
        "endpoints" => &services::ENDPOINTS,
        "endpointslices" => &services::ENDPOINT_SLICES,
        "configmaps" => &core::CONFIG_MAPS,
        "secrets" => &core::SECRETS,
        "namespaces" => &core::NAMESPACES,
        "leases" => &core::LEASES,
        "events" => &events::LAYOUT,
        "persistentvolumes" => &storage::VOLUMES,
        "persistentvolumeclaims" => &storage::CLAIMS,
        "storageclasses" => &classes::STORAGE_CLASSES,
        "csinodes" => &storage::CSI_NODES,
        "csidrivers" => &storage::CSI_DRIVERS,
        "runtimeclasses" => &classes::RUNTIME_CLASSES,
        "priorityclasses" => &classes::PRIORITY_CLASSES,
        _ => &core::PLAIN,
    }
}

/// The table of some objects; `columns` says whether their definitions come with it (a watch sends them once).
pub fn render(resource: &Resource, objects: &[Value], include: Include, metadata: &Value, columns: bool) -> Value {
    let layout = layout(resource);
    let now = Timestamp::now();
    let rows: Vec<Value> = objects
        .iter()
        .map(|object| {
            let mut row = json!({"cells": (layout.cells)(object, now)});
            if let Some(conditions) = pods::row_conditions(resource, object) {
                row["conditions"] = conditions;
            }
            row["object"] = match include {
                Include::None => Value::Null,
                Include::Metadata => answer::partial(object),
                Include::Object => answer::typed(resource, object.clone()),
            };
            row
        })
        .collect();
    let definitions = if columns {
        json!(layout.columns.iter().map(column::Column::definition).collect::<Vec<_>>())
    } else {
        Value::Null
    };
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
        "columnDefinitions": definitions, "rows": rows,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry;

    #[test]
    fn every_row_has_a_cell_for_every_column() {
        for resource in registry::all().filter(|resource| resource.is_stored()) {
            let table = render(resource, &[json!({"metadata": {"name": "x"}})], Include::None, &json!({}), true);
            let columns = table["columnDefinitions"].as_array().unwrap().len();
            assert_eq!(table["rows"][0]["cells"].as_array().unwrap().len(), columns, "{}", resource.plural);
        }
    }
}
