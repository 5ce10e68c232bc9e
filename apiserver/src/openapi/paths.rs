//! The operations of the OpenAPI pages: which addresses there are and what they take and answer.

use serde_json::{Map, Value, json};

use super::schemas::Form;
use crate::registry::{Resource, Subresource};

/// Media types of patches.
const PATCHES: [&str; 3] =
    ["application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json"];
/// Parameters of a write.
const WRITE_PARAMETERS: [&str; 3] = ["dryRun", "fieldManager", "fieldValidation"];
/// Parameters of a list.
const LIST_PARAMETERS: [&str; 7] =
    ["allowWatchBookmarks", "continue", "fieldSelector", "labelSelector", "limit", "resourceVersion", "watch"];
const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
const STATUS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";

/// Adds the addresses of a resource.
pub(super) fn add_paths(form: Form, resource: &Resource, paths: &mut Map<String, Value>) {
    let prefix = match resource.group {
        "" => format!("/api/{}", resource.version),
        group => format!("/apis/{group}/{}", resource.version),
    };
    let scope = if resource.namespaced { "/namespaces/{namespace}" } else { "" };
    let collection = format!("{prefix}{scope}/{}", resource.plural);
    let object = format!("{collection}/{{name}}");
    let can = |verb: &str| resource.verbs.contains(&verb);
    let mut add = |path: &str, method: &str, verb: &str, operation: Value| {
        if can(verb) {
            let entry = paths.entry(path.to_string()).or_insert_with(|| path_parameters(form, path));
            entry[method] = operation;
        }
    };
    let whole = Target { form, resource, schema: resource.schema, part: None };
    add(&collection, "get", "list", whole.operation("list"));
    add(&collection, "post", "create", whole.operation("post"));
    add(&collection, "delete", "deletecollection", whole.operation("deletecollection"));
    for (method, verb) in [("get", "get"), ("put", "update"), ("patch", "patch"), ("delete", "delete")] {
        let action = if verb == "update" { "put" } else { verb };
        add(&object, method, verb, whole.operation(action));
    }
    for part in resource.subresources.iter().filter(|part| part.kind == resource.kind && part.verbs.contains(&"patch"))
    {
        let path = format!("{object}/{}", part.name);
        let target = Target { part: Some(part), ..whole };
        for method in ["get", "put", "patch"] {
            let entry = paths.entry(path.clone()).or_insert_with(|| path_parameters(form, &path));
            entry[method] = target.operation(method);
        }
    }
}

/// The parameters that are parts of an address.
fn path_parameters(form: Form, path: &str) -> Value {
    let names = ["namespace", "name"].into_iter().filter(|name| path.contains(&format!("{{{name}}}")));
    let parameters: Vec<Value> = names.map(|name| parameter(form, name, "path")).collect();
    if parameters.is_empty() { json!({}) } else { json!({"parameters": parameters}) }
}

fn parameter(form: Form, name: &str, place: &str) -> Value {
    let kind = match name {
        "limit" => "integer",
        "allowWatchBookmarks" | "watch" => "boolean",
        _ => "string",
    };
    let mut parameter = json!({"name": name, "in": place});
    match form {
        Form::V2 => parameter["type"] = json!(kind),
        Form::V3 => parameter["schema"] = json!({"type": kind, "uniqueItems": true}),
    }
    if place == "path" {
        parameter["required"] = json!(true);
    }
    parameter
}

/// What operations are on.
#[derive(Clone, Copy)]
struct Target<'a> {
    form: Form,
    resource: &'a Resource,
    schema: &'a str,
    part: Option<&'a Subresource>,
}

impl Target<'_> {
    fn operation(&self, action: &str) -> Value {
        let Resource { group, version, kind, namespaced, .. } = self.resource;
        let owner = if group.is_empty() { "core" } else { group.split('.').next().unwrap_or(group) };
        let title = |text: &str| text[..1].to_uppercase() + &text[1..];
        let verb = match action {
            "get" => "read",
            "put" => "replace",
            "post" => "create",
            "deletecollection" => "deleteCollection",
            other => other,
        };
        let scope = if *namespaced { "Namespaced" } else { "" };
        let part = self.part.map(|part| title(part.name)).unwrap_or_default();
        let mut operation = json!({
            "tags": [format!("{owner}_{version}")],
            "operationId": format!("{verb}{}{}{scope}{kind}{part}", title(owner), title(version)),
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": kind},
        });
        let names: &[&str] = match action {
            "post" | "put" | "patch" => &WRITE_PARAMETERS,
            "list" => &LIST_PARAMETERS,
            "delete" | "deletecollection" => &["dryRun", "gracePeriodSeconds", "propagationPolicy"],
            _ => &[],
        };
        operation["parameters"] = names.iter().map(|name| parameter(self.form, name, "query")).collect();
        let answered = if action.starts_with("delete") { STATUS } else { self.schema };
        let code = if action == "post" { "201" } else { "200" };
        match self.form {
            Form::V2 => self.finish_v2(&mut operation, action, answered, code),
            Form::V3 => self.finish_v3(&mut operation, action, answered, code),
        }
        operation
    }

    /// The schema of the body, and whether it is a patch.
    fn body(&self, action: &str) -> Option<(&str, bool)> {
        match action {
            "post" | "put" => Some((self.schema, false)),
            "patch" => Some(("", true)),
            "delete" | "deletecollection" => Some((DELETE_OPTIONS, false)),
            _ => None,
        }
    }

    fn finish_v2(&self, operation: &mut Value, action: &str, answered: &str, code: &str) {
        operation["consumes"] = if action == "patch" { json!(PATCHES) } else { json!(["*/*"]) };
        operation["produces"] = json!(["application/json", "application/yaml"]);
        operation["responses"] = json!({code: {"description": "OK", "schema": self.form.reference(answered)}});
        if let Some((schema, patch)) = self.body(action) {
            let schema = if patch { json!({"type": "object"}) } else { self.form.reference(schema) };
            let body =
                json!({"name": "body", "in": "body", "required": !action.starts_with("delete"), "schema": schema});
            if let Some(parameters) = operation["parameters"].as_array_mut() {
                parameters.insert(0, body);
            }
        }
    }

    fn finish_v3(&self, operation: &mut Value, action: &str, answered: &str, code: &str) {
        let content = json!({"application/json": {"schema": self.form.reference(answered)}, "application/yaml": {"schema": self.form.reference(answered)}});
        operation["responses"] = json!({code: {"description": "OK", "content": content}});
        let Some((schema, patch)) = self.body(action) else { return };
        let content: Map<String, Value> = if patch {
            PATCHES.iter().map(|media| (media.to_string(), json!({"schema": {"type": "object"}}))).collect()
        } else {
            [("*/*".to_string(), json!({"schema": self.form.reference(schema)}))].into_iter().collect()
        };
        operation["requestBody"] = json!({"content": content});
    }
}
