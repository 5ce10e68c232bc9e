//! The OpenAPI pages: `/openapi/v2` and `/openapi/v3`.

use http::{HeaderMap, Response, StatusCode};
use serde_json::{Value, json};

use super::definitions::definitions;
use crate::registry;
use crate::rest::answer::{self, Accept, Body, Shape};
use crate::rest::query::Query;

/// Answers a page, or says that the path is another one.
pub fn answer(path: &str, _query: &Query, _headers: &HeaderMap) -> Option<Response<Body>> {
    let document = match path {
        "/openapi/v3" => index(),
        "/openapi/v3/api/v1" => group("", "v1"),
        _ => {
            let (name, version) = path.strip_prefix("/openapi/v3/apis/")?.split_once('/')?;
            registry::groups().iter().find(|(group, versions)| *group == name && versions.contains(&version))?;
            group(name, version)
        }
    };
    Some(answer::document(StatusCode::OK, &document, Accept { shape: Shape::Full, yaml: false, pretty: false }))
}

fn index() -> Value {
    let mut paths = json!({"api/v1": {"serverRelativeURL": "/openapi/v3/api/v1"}});
    for (group, versions) in registry::groups() {
        for version in versions {
            paths[format!("apis/{group}/{version}")] =
                json!({"serverRelativeURL": format!("/openapi/v3/apis/{group}/{version}")});
        }
    }
    json!({"paths": paths})
}

fn group(name: &str, version: &str) -> Value {
    let mut schemas = definitions().clone();
    let mut paths = json!({});
    for resource in registry::all().filter(|resource| resource.group == name && resource.version == version) {
        if let Some(schema) = schemas.get_mut(resource.schema) {
            let kind = json!({"group": resource.group, "version": resource.version, "kind": resource.kind});
            schema["x-kubernetes-group-version-kind"] = json!([kind]);
            let prefix = if name.is_empty() { format!("/api/{version}") } else { format!("/apis/{name}/{version}") };
            let scope = if resource.namespaced { "/namespaces/{namespace}" } else { "" };
            let operation = json!({
                "parameters": [{"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}],
                "x-kubernetes-group-version-kind": kind,
                "responses": {"200": {"description": "OK"}},
            });
            paths[format!("{prefix}{scope}/{}", resource.plural)] = json!({"post": operation});
            paths[format!("{prefix}{scope}/{}/{{name}}", resource.plural)] =
                json!({"patch": operation, "put": operation});
        }
    }
    json!({"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": crate::rest::VERSION}, "paths": paths, "components": {"schemas": schemas}})
}
