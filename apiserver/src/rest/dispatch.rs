//! From a request to its answer: who, what, may they, do it.

use std::sync::Arc;

use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use serde_json::Value;

use super::address::{self, Address, Target};
use super::answer::{self, Accept, Body};
use super::body::{self, Decoded, Expected};
use super::create::{Creation, create_object};
use super::delete::{Deletion, delete_object};
use super::patch::patch_object;
use super::query::{DeleteOptions, Query};
use super::selector::Selector;
use super::update::{Part, Update, update_object};
use super::{event_versions, get, pages, parts};
use crate::admission;
use crate::api::Api;
use crate::auth::{self, Attributes, Decision, Peer, User};
use crate::controllers;
use crate::discovery;
use crate::error::{self, ApiError, FieldError};
use crate::object;
use crate::patch::{Patch, PatchKind};
use crate::storage::{ObjectKey, Range};
use crate::watch;

/// Schema of the options of a deletion.
const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";

/// A request that may be answered.
pub struct Call {
    /// The server.
    pub api: Arc<Api>,
    /// Who asks.
    pub user: User,
    /// For what.
    pub address: Address,
    /// With which parameters.
    pub query: Query,
    /// In which form.
    pub accept: Accept,
}

impl Call {
    /// The object's key.
    pub fn key(&self) -> ObjectKey {
        ObjectKey::new(self.address.resource, &self.address.namespace, &self.address.name)
    }

    /// The kind that a body must have.
    fn expected<'a>(&self, api_version: &'a str) -> Expected<'a> {
        let resource = self.address.resource;
        Expected { api_version, kind: resource.kind, schema: resource.schema }
    }

    /// The answer of one object.
    pub fn answer_object(&self, code: StatusCode, object: Value) -> Response<Body> {
        answer::document(code, &answer::shaped(self.address.resource, object, self.accept.shape), self.accept)
    }
}

/// Answers a request.
pub async fn handle(api: Arc<Api>, peer: Arc<Peer>, request: Request<Incoming>) -> Response<Body> {
    let (method, path) = (request.method().clone(), request.uri().path().to_string());
    let began = std::time::Instant::now();
    let mut response = match answer_request(&api, &peer, request).await {
        Ok(response) => response,
        Err(error) => answer::error(&error),
    };
    if let Ok(id) = http::HeaderValue::from_str(&uuid::Uuid::new_v4().to_string()) {
        response.headers_mut().insert("audit-id", id);
    }
    tracing::debug!(%method, path, code = response.status().as_u16(), micros = began.elapsed().as_micros() as u64, "request");
    response
}

fn header_text(headers: &HeaderMap, name: header::HeaderName) -> &str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

async fn answer_request(api: &Arc<Api>, peer: &Peer, request: Request<Incoming>) -> Result<Response<Body>, ApiError> {
    let user = auth::authenticate(api, peer, request.headers())?;
    let query = Query::parse(request.uri().query().unwrap_or_default())?;
    let path = request.uri().path().to_string();
    let target = match address::parse(&path) {
        Ok(target) => target,
        // Who may nothing learns nothing.
        Err(error) if user.is_in(auth::AUTHENTICATED) => return Err(error),
        Err(_) => return Err(refuse_page(&user, request.method(), &path, "")),
    };
    match target {
        Target::Page(_) => {
            let asked = Attributes {
                verb: request.method().as_str().to_lowercase(),
                path: path.clone(),
                ..Attributes::default()
            };
            if let Decision::Denied(why) = auth::authorize(api, &user, &asked) {
                return Err(auth::forbidden(&user, &asked, &why));
            }
            let answered = pages::answer(api, &path, &query, request.headers(), request.method());
            match answered {
                // What no handler is there for is told as text.
                Err(error) if error.code == 404 && !discovery::is_in_group(&path) => {
                    Ok(answer::text(StatusCode::NOT_FOUND, "404 page not found\n"))
                }
                other => other,
            }
        }
        Target::Resource(address) => {
            let accept = Accept::parse(header_text(request.headers(), header::ACCEPT), &query);
            let asked = attributes(&address, request.method(), &query);
            if let Decision::Denied(why) = auth::authorize(api, &user, &asked) {
                return Err(auth::forbidden(&user, &asked, &why));
            }
            let long =
                asked.verb == "watch" || matches!(address.part(), "log" | "exec" | "attach" | "portforward" | "proxy");
            let _place = match long {
                true => None,
                false => Some(
                    api.places
                        .try_acquire()
                        .map_err(|_| ApiError::too_many_requests("Too many requests, please try again later."))?,
                ),
            };
            // A stream or a log has its own media types.
            let own_media = matches!(address.part(), "log" | "exec" | "attach" | "portforward" | "proxy");
            let accept =
                if own_media { Accept { shape: answer::Shape::Full, yaml: false, pretty: false } } else { accept? };
            let call = Call { api: api.clone(), user, address, query, accept };
            let warnings = admission::warn_of_resource(call.address.resource);
            let mut answered = call_resource(call, request).await;
            if let Ok(response) = &mut answered {
                answer::warn(response, &warnings);
            }
            answered
        }
    }
}

fn refuse_page(user: &User, method: &Method, path: &str, why: &str) -> ApiError {
    let asked = Attributes { verb: method.as_str().to_lowercase(), path: path.into(), ..Attributes::default() };
    auth::forbidden(user, &asked, why)
}

fn attributes(address: &Address, method: &Method, query: &Query) -> Attributes {
    let selector = Selector::parse(address.resource, "", query.get("fieldSelector")).unwrap_or_default();
    let fields = ["metadata.name", "spec.nodeName"].into_iter();
    let required_fields: Vec<(String, String)> =
        fields.filter_map(|field| Some((field.to_string(), selector.required_field(field)?.to_string()))).collect();
    let verb = match address.part() {
        // A stream is opened, whatever the method: reading rights alone must not run commands.
        "exec" | "attach" | "portforward" => "create",
        _ => address.verb(method, query.flag("watch")),
    };
    let named = required_fields.iter().find(|(field, _)| field == "metadata.name").map(|(_, value)| value.clone());
    Attributes {
        verb: verb.into(),
        group: address.resource.group.into(),
        resource: address.resource.plural.into(),
        subresource: address.part().into(),
        // A namespace itself is authorised in its own name.
        namespace: if address.resource.plural == "namespaces" {
            address.name.clone()
        } else {
            address.namespace.clone()
        },
        name: if address.name.is_empty() { named.unwrap_or_default() } else { address.name.clone() },
        path: String::new(),
        required_fields,
    }
}

async fn call_resource(call: Call, request: Request<Incoming>) -> Result<Response<Body>, ApiError> {
    let verb = call.address.verb(request.method(), call.query.flag("watch"));
    if call.address.subresource.is_some() {
        return parts::answer(call, request).await;
    }
    let resource = call.address.resource;
    if !resource.verbs.contains(&verb) {
        return Err(ApiError::method_not_allowed());
    }
    // A name is given to what is made, and what is changed has one.
    let named = !call.address.name.is_empty();
    let everywhere = resource.namespaced && call.address.namespace.is_empty();
    if everywhere && !matches!(verb, "list" | "watch") {
        return Err(ApiError::method_not_allowed());
    }
    if (verb == "create" && named) || (matches!(verb, "update" | "patch") && !named) {
        return Err(ApiError::method_not_allowed());
    }
    match verb {
        "get" => get::get(&call.api, &call.address, &call.query, call.accept),
        "list" => get::list(&call.api, &call.address, &call.query, call.accept),
        "watch" => watch::answer(&call.api, &call.address, &call.query, call.accept),
        "create" => create(call, request).await,
        "update" => update(call, request, Part::Main).await,
        "patch" => patch(call, request, Part::Main).await,
        "delete" => delete(call, request).await,
        "deletecollection" => delete_collection(call, request).await,
        _ => Err(ApiError::method_not_allowed()),
    }
}

/// Reads and decodes the body of a create or an update.
async fn read_object(call: &Call, request: Request<Incoming>, options: &str) -> Result<Decoded, ApiError> {
    let resource = call.address.resource;
    let validation = call.query.field_validation(options)?;
    let content_type = header_text(request.headers(), header::CONTENT_TYPE).to_string();
    let bytes = body::read(request.into_body()).await?;
    let api_version = resource.api_version();
    let mut decoded = body::decode(&content_type, &bytes, call.expected(&api_version), validation)?;
    if resource.group == "events.k8s.io" {
        decoded.object = event_versions::to_core(decoded.object);
    }
    Ok(decoded)
}

/// Adds what was noticed while reading to the answer, which may be a refusal for another reason.
fn with_warnings(answered: Result<Response<Body>, ApiError>, warnings: &[String]) -> Response<Body> {
    let mut response = answered.unwrap_or_else(|error| answer::error(&error));
    answer::warn(&mut response, warnings);
    response
}

async fn create(call: Call, request: Request<Incoming>) -> Result<Response<Body>, ApiError> {
    let dry_run = call.query.dry_run("CreateOptions")?;
    let decoded = read_object(&call, request, "CreateOptions").await?;
    let warnings = decoded.warnings.clone();
    Ok(with_warnings(create_decoded(call, decoded, dry_run).await, &warnings))
}

async fn create_decoded(call: Call, decoded: Decoded, dry_run: bool) -> Result<Response<Body>, ApiError> {
    let resource = call.address.resource;
    let made = if resource.is_stored() {
        let namespace = &call.address.namespace;
        let creation = Creation { resource, namespace, object: decoded.object, user: &call.user, dry_run };
        let made = create_object(&call.api, creation).await?;
        if resource.plural == "namespaces" && !dry_run {
            // A pod may follow at once: what it needs is there before the answer.
            controllers::fill_namespace(&call.api, object::name(&made)).await?;
        }
        made
    } else {
        auth::review(&call.api, &call.user, resource, &call.address.namespace, decoded.object)?
    };
    let more = admission::warn_of_object(resource, &made);
    let mut response = call.answer_object(StatusCode::CREATED, made);
    answer::warn(&mut response, &more);
    Ok(response)
}

/// A PUT of an object or of a part that has the object's kind.
pub async fn update(call: Call, request: Request<Incoming>, part: Part) -> Result<Response<Body>, ApiError> {
    let dry_run = call.query.dry_run("UpdateOptions")?;
    let decoded = read_object(&call, request, "UpdateOptions").await?;
    let warnings = decoded.warnings.clone();
    Ok(with_warnings(update_decoded(call, decoded, part, dry_run).await, &warnings))
}

async fn update_decoded(call: Call, decoded: Decoded, part: Part, dry_run: bool) -> Result<Response<Body>, ApiError> {
    let key = call.key();
    check_names(&call, &decoded.object)?;
    let update = Update { key: &key, part, user: &call.user, dry_run, patched: false };
    let result = update_object(&call.api, update, |_| Ok(decoded.object.clone())).await;
    let (code, object) = match result {
        Err(error) if error.code == 404 && key.resource.update_creates && part == Part::Main => {
            let creation = Creation {
                resource: key.resource,
                namespace: &key.namespace,
                object: decoded.object,
                user: &call.user,
                dry_run,
            };
            (StatusCode::CREATED, create_object(&call.api, creation).await?)
        }
        other => (StatusCode::OK, other?),
    };
    let more = if part == Part::Main { admission::warn_of_object(key.resource, &object) } else { Vec::new() };
    let mut response = call.answer_object(code, object);
    answer::warn(&mut response, &more);
    Ok(response)
}

fn check_names(call: &Call, object: &Value) -> Result<(), ApiError> {
    let (name, namespace) = (object::name(object), object::namespace(object));
    if name.is_empty() {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({} based on URL) was undeterminable: name must be provided",
            call.address.name
        )));
    }
    if name != call.address.name {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            call.address.name
        )));
    }
    if !namespace.is_empty() && namespace != call.address.namespace {
        return Err(ApiError::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    Ok(())
}

/// A PATCH of an object or of a part that has the object's kind.
pub async fn patch(call: Call, request: Request<Incoming>, part: Part) -> Result<Response<Body>, ApiError> {
    let dry_run = call.query.dry_run("PatchOptions")?;
    let validation = call.query.field_validation("PatchOptions")?;
    let kind = PatchKind::parse(header_text(request.headers(), header::CONTENT_TYPE))?;
    if call.query.has("force") {
        let error = FieldError::forbidden("force", "may not be specified for non-apply patch");
        return Err(ApiError::invalid_options("PatchOptions", error));
    }
    let bytes = body::read(request.into_body()).await?;
    let patch = Patch::parse(kind, &bytes)?;
    let key = call.key();
    let update = Update { key: &key, part, user: &call.user, dry_run, patched: true };
    let (object, warnings) = patch_object(&call.api, update, &patch, validation).await?;
    let more = if part == Part::Main { admission::warn_of_object(key.resource, &object) } else { Vec::new() };
    let mut response = call.answer_object(StatusCode::OK, object);
    answer::warn(&mut response, &warnings);
    answer::warn(&mut response, &more);
    Ok(response)
}

/// Reads the options of a deletion.
async fn delete_options(call: &Call, request: Request<Incoming>) -> Result<DeleteOptions, ApiError> {
    let content_type = header_text(request.headers(), header::CONTENT_TYPE).to_string();
    let bytes = body::read(request.into_body()).await?;
    if bytes.is_empty() {
        return DeleteOptions::read(&call.query, None);
    }
    let document = body::parse(&content_type, &bytes, DELETE_OPTIONS)?.value;
    let kind = object::text(&document, "/kind");
    if !matches!(kind, "" | "DeleteOptions") {
        return Err(ApiError::bad_request(format!(
            "the object provided is unrecognized (must be of type DeleteOptions): {kind}"
        )));
    }
    DeleteOptions::read(&call.query, Some(&document))
}

async fn delete(call: Call, request: Request<Incoming>) -> Result<Response<Body>, ApiError> {
    let options = delete_options(&call, request).await?;
    let key = call.key();
    let deletion = delete_object(&call.api, &key, &options).await?;
    Ok(answer_deletion(&call, deletion))
}

/// The answer of a deletion: the object where the resource answers it or it is still there, else a Status.
pub fn answer_deletion(call: &Call, deletion: Deletion) -> Response<Body> {
    let resource = call.address.resource;
    match deletion {
        Deletion::Marked(object) => call.answer_object(StatusCode::OK, object),
        Deletion::Gone(object) if resource.answers_deleted => call.answer_object(StatusCode::OK, object),
        Deletion::Gone(object) => answer::document(
            StatusCode::OK,
            &error::success(resource, object::name(&object), object::uid(&object)),
            call.accept,
        ),
    }
}

async fn delete_collection(call: Call, request: Request<Incoming>) -> Result<Response<Body>, ApiError> {
    let options = delete_options(&call, request).await?;
    let resource = call.address.resource;
    let selector = Selector::parse(resource, call.query.get("labelSelector"), call.query.get("fieldSelector"))?;
    let range =
        Range { namespace: Some(call.address.namespace.clone()).filter(|name| !name.is_empty()), ..Range::default() };
    let page = get::read_page(&call.api, resource, &range, usize::MAX, &selector)?;
    let mut items: Vec<Value> = Vec::new();
    for item in page.items {
        let key = ObjectKey::new(resource, &item.namespace, &item.name);
        match delete_object(&call.api, &key, &options).await {
            // They are shown as they were listed.
            Ok(_) => items.push(answer::in_version(resource, serde_json::from_slice(&item.json).unwrap_or_default())),
            Err(error) if error.code == 404 => {}
            Err(error) => return Err(error),
        }
    }
    let list = serde_json::json!({
        "kind": format!("{}List", resource.kind), "apiVersion": resource.api_version(),
        "metadata": {"resourceVersion": page.revision.to_string()}, "items": items,
    });
    Ok(answer::document(StatusCode::OK, &list, call.accept))
}
