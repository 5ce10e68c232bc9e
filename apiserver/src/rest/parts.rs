//! Parts of objects: status, binding, eviction, tokens, logs and streams.

use http::{Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::answer::{self, Body};
use super::body::{self, Expected};
use super::delete::delete_object;
use super::dispatch::{self, Call};
use super::get;
use super::query::DeleteOptions;
use super::update::{Part, Update, update_object};
use crate::auth;
use crate::error::ApiError;
use crate::object;
use crate::proxy;
use crate::storage::ObjectKey;

/// Answers a request to a part.
pub async fn answer(call: Call, request: Request<Incoming>) -> Result<Response<Body>, ApiError> {
    let method = request.method().clone();
    let part = match call.address.part() {
        "status" => Part::Status,
        "ephemeralcontainers" => Part::EphemeralContainers,
        "finalize" => Part::Finalize,
        "resize" => {
            return Err(ApiError::bad_request(
                "resizing a running pod is not served by this API server; delete the pod and create it anew",
            ));
        }
        "binding" if method == Method::POST => return bind(call, request).await,
        "eviction" if method == Method::POST => return evict(call, request).await,
        "token" if method == Method::POST => return token(call, request).await,
        "log" if method == Method::GET => return proxy::logs(call, request).await,
        "exec" | "attach" | "portforward" if method == Method::GET || method == Method::POST => {
            return proxy::stream(call, request).await;
        }
        "proxy" => return proxy::node(call, request).await,
        _ => return Err(ApiError::method_not_allowed()),
    };
    match method {
        Method::GET => get::get(&call.api, &call.address, &call.query, call.accept),
        Method::PUT => dispatch::update(call, request, part).await,
        Method::PATCH => dispatch::patch(call, request, part).await,
        _ => Err(ApiError::method_not_allowed()),
    }
}

async fn read(request: Request<Incoming>, call: &Call, expected: Expected<'_>) -> Result<Value, ApiError> {
    let validation = call.query.field_validation("CreateOptions")?;
    let content_type = request
        .headers()
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
        .to_string();
    let bytes = body::read(request.into_body()).await?;
    Ok(body::decode(&content_type, &bytes, expected, validation)?.object)
}

/// Binds a pod to a node.
async fn bind(call: Call, request: Request<Incoming>) -> Result<Response<Body>, ApiError> {
    let expected = Expected { api_version: "v1", kind: "Binding", schema: "io.k8s.api.core.v1.Binding" };
    let binding = read(request, &call, expected).await?;
    let node = object::text(&binding, "/target/name").to_string();
    let key = call.key();
    if node.is_empty() {
        return Err(ApiError::unforeseen("target.name: Required value"));
    }
    let update = Update {
        key: &key,
        part: Part::Binding,
        user: &call.user,
        dry_run: call.query.dry_run("CreateOptions")?,
        patched: false,
    };
    bind_pod(&call.api, update, &node).await?;
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    Ok(answer::document(StatusCode::CREATED, &status, call.accept))
}

/// Writes the node into a pod that has none.
///
/// # Errors
/// 409 when it has one or is being deleted.
pub async fn bind_pod(api: &crate::api::Api, update: Update<'_>, node: &str) -> Result<Value, ApiError> {
    let key = update.key;
    update_object(api, update, |old| {
        let bound = object::text(old, "/spec/nodeName");
        if !bound.is_empty() {
            return Err(binding_conflict(key, &format!("pod {} is already assigned to node {bound:?}", key.name)));
        }
        if object::is_terminating(old) {
            return Err(binding_conflict(
                key,
                &format!("pod {} is being deleted, cannot be assigned to a host", key.name),
            ));
        }
        let mut new = old.clone();
        new["spec"]["nodeName"] = json!(node);
        object::set_condition(&mut new, "PodScheduled", "True", "", "");
        Ok(new)
    })
    .await
}

fn binding_conflict(key: &ObjectKey, why: &str) -> ApiError {
    ApiError {
        message: format!("Operation cannot be fulfilled on pods/binding {:?}: {why}", key.name),
        details: Some(json!({"name": key.name, "kind": "pods/binding"})),
        ..ApiError::conflict(key.resource, &key.name, why)
    }
}

/// Evicts a pod: a deletion, there are no budgets here.
async fn evict(call: Call, request: Request<Incoming>) -> Result<Response<Body>, ApiError> {
    let expected = Expected { api_version: "policy/v1", kind: "Eviction", schema: "io.k8s.api.policy.v1.Eviction" };
    let eviction = read(request, &call, expected).await?;
    if object::name(&eviction) != call.address.name {
        return Err(ApiError::bad_request("name in URL does not match name in Eviction object"));
    }
    let mut options = match eviction.get("deleteOptions") {
        Some(options) => DeleteOptions::read(&call.query, Some(options))?,
        None => DeleteOptions::default(),
    };
    options.dry_run |= call.query.dry_run("CreateOptions")?;
    delete_object(&call.api, &call.key(), &options).await?;
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    Ok(answer::document(StatusCode::CREATED, &status, call.accept))
}

/// Issues a token of a service account.
async fn token(call: Call, request: Request<Incoming>) -> Result<Response<Body>, ApiError> {
    let expected = Expected {
        api_version: "authentication.k8s.io/v1",
        kind: "TokenRequest",
        schema: "io.k8s.api.authentication.v1.TokenRequest",
    };
    let question = read(request, &call, expected).await?;
    if let Some(node) = call.user.node() {
        check_node_token(&call, node, &question)?;
    }
    let issued = auth::issue_token(&call.api, &call.address.namespace, &call.address.name, question)?;
    Ok(answer::document(StatusCode::CREATED, &issued, call.accept))
}

/// A node gets tokens only for its own pods, bound to them.
fn check_node_token(call: &Call, node: &str, question: &Value) -> Result<(), ApiError> {
    let refuse = |why: &str| Err(ApiError::forbidden(call.address.resource, &call.address.name, why));
    let reference = question.pointer("/spec/boundObjectRef").unwrap_or(&Value::Null);
    if object::text(reference, "/kind") != "Pod" || object::text(reference, "/uid").is_empty() {
        return refuse(&format!("node {node:?} may only request tokens bound to a pod, by name and UID"));
    }
    let key = crate::storage::ObjectKey::new(
        crate::registry::core("pods"),
        &call.address.namespace,
        object::text(reference, "/name"),
    );
    let pod = call.api.store.get_value(&key).map_err(|error| ApiError::from_store(error, key.resource, &key.name))?;
    match pod {
        Some(pod) if object::text(&pod, "/spec/nodeName") == node => Ok(()),
        Some(_) => refuse(&format!("node requested token bound to a pod scheduled on a different node than {node:?}")),
        None => Err(ApiError::not_found(key.resource, &key.name)),
    }
}
