//! The way to the node: logs, exec, attach, port-forward, and the node's own pages.

mod kubelet;
mod socket;
mod target;

use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;

pub use kubelet::Kubelets;

use crate::error::{ApiError, FieldError};
use crate::object;
use crate::registry;
use crate::rest::answer::{self, Body};
use crate::rest::query::{Query, percent_encode};
use crate::rest::{BODY_BYTES_MAX, Call};
use crate::storage::ObjectKey;

/// Bytes of a refusal of the kubelet that are shown.
const REFUSAL_BYTES_MAX: usize = 64 << 10;
/// Headers of a stream that go through, in both directions.
const STREAM_HEADERS: [&str; 9] = [
    "connection",
    "upgrade",
    "sec-websocket-key",
    "sec-websocket-version",
    "sec-websocket-protocol",
    "sec-websocket-accept",
    "sec-websocket-extensions",
    "x-stream-protocol-version",
    "x-accepted-stream-protocol-versions",
];

/// Answers the log of a container, over a WebSocket to who asks for one.
///
/// # Errors
/// What the API or the kubelet answers.
pub async fn logs(call: Call, asked: Request<Incoming>) -> Result<Response<Body>, ApiError> {
    check_log_options(&call)?;
    let pod = read_pod(&call)?;
    let container = target::container(&pod, call.query.get("container"))?;
    let node = object::text(&pod, "/spec/nodeName");
    if node.is_empty() {
        // Nothing runs yet, nothing has been said.
        let mut nothing = answer::text(StatusCode::NO_CONTENT, "");
        nothing.headers_mut().remove(http::header::CONTENT_TYPE);
        return Ok(nothing);
    }
    let mut query = Query::default();
    for key in ["follow", "previous", "timestamps", "sinceSeconds", "sinceTime", "tailLines", "limitBytes", "stream"] {
        if call.query.has(key) {
            query.push(key, call.query.get(key));
        }
    }
    let (namespace, name) = (&call.address.namespace, &call.address.name);
    let path = format!(
        "/containerLogs/{}/{}/{}?{}",
        percent_encode(namespace),
        percent_encode(name),
        percent_encode(&container),
        query.encode()
    );
    let request = kubelet::request(
        Method::GET,
        &path,
        HeaderMap::new(),
        Empty::new().map_err(|never| match never {}).boxed_unsync(),
    )?;
    let response = call.api.kubelets.send(&call.api, node, request).await?;
    if !response.status().is_success() {
        return Err(refusal(response).await);
    }
    if socket::is_asked(asked.headers()) {
        return socket::carry(asked, response.into_body(), call.api.cancel.clone());
    }
    Ok(pass_on(response))
}

fn check_log_options(call: &Call) -> Result<(), ApiError> {
    let mut errors = Vec::new();
    for (key, lowest) in [("tailLines", 0), ("limitBytes", 1), ("sinceSeconds", 1)] {
        if let Some(number) = call.query.number(key)?.filter(|number| *number < lowest) {
            let text = if lowest == 0 { "must be greater than or equal to 0" } else { "must be greater than 0" };
            errors.push(FieldError::invalid(key, number, text));
        }
    }
    match errors.is_empty() {
        true => Ok(()),
        false => Err(ApiError::invalid_kind("PodLogOptions", "", "PodLogOptions", &call.address.name, &errors)),
    }
}

/// Opens a stream to a container or into a pod's network.
///
/// # Errors
/// What the API or the kubelet answers.
pub async fn stream(call: Call, request: Request<Incoming>) -> Result<Response<Body>, ApiError> {
    let pod = read_pod(&call)?;
    let part = call.address.part();
    let name = &call.address.name;
    let node = object::text(&pod, "/spec/nodeName").to_string();
    if node.is_empty() {
        return Err(ApiError::bad_request(format!("pod {name} does not have a host assigned")));
    }
    let mut query = Query::default();
    let mut path = format!("{}/{}", percent_encode(&call.address.namespace), percent_encode(name));
    if part == "portforward" {
        for ports in call.query.all("ports") {
            for port in ports.split(',').filter(|port| !port.is_empty()) {
                query.push("port", port);
            }
        }
        path = format!("/portForward/{path}");
    } else {
        let phase = object::text(&pod, "/status/phase");
        if matches!(phase, "Succeeded" | "Failed") {
            let into = if part == "exec" { "exec into" } else { "attach to" };
            return Err(ApiError::bad_request(format!(
                "cannot {into} a container in a completed pod; current phase is {phase}"
            )));
        }
        let container = target::container(&pod, call.query.get("container"))?;
        for (from, to) in [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")] {
            if call.query.flag(from) {
                query.push(to, "1");
            }
        }
        for word in call.query.all("command") {
            query.push("command", word);
        }
        if part == "exec" && call.query.get("command").is_empty() && !call.query.has("command") {
            return Err(ApiError::bad_request("you must specify at least 1 command for the container"));
        }
        path = format!("/{part}/{path}/{}", percent_encode(&container));
    }
    tunnel(call, &node, &format!("{path}?{}", query.encode()), request).await
}

/// Passes a request on to a page of the kubelet.
///
/// # Errors
/// What the API answers; an answer of the kubelet is passed on as it is.
pub async fn node(call: Call, request: Request<Incoming>) -> Result<Response<Body>, ApiError> {
    let node = call.address.name.clone();
    let rest = if call.address.rest.is_empty() { "/" } else { &call.address.rest };
    let path: String = rest.split('/').map(percent_encode).collect::<Vec<_>>().join("/");
    let query = call.query.encode();
    let path = if query.is_empty() { path } else { format!("{path}?{query}") };
    if request.headers().contains_key(header::UPGRADE) {
        return tunnel(call, &node, &path, request).await;
    }
    let mut headers = HeaderMap::new();
    for key in [header::ACCEPT, header::CONTENT_TYPE] {
        if let Some(value) = request.headers().get(&key) {
            headers.insert(key, value.clone());
        }
    }
    let method = request.method().clone();
    let bytes = http_body_util::Limited::new(request.into_body(), BODY_BYTES_MAX).collect().await;
    let bytes =
        bytes.map_err(|error| ApiError::bad_request(format!("the body could not be read: {error}")))?.to_bytes();
    let outgoing =
        kubelet::request(method, &path, headers, Full::new(bytes).map_err(|never| match never {}).boxed_unsync())?;
    Ok(pass_on(call.api.kubelets.send(&call.api, &node, outgoing).await?))
}

fn read_pod(call: &Call) -> Result<Value, ApiError> {
    let pods = registry::core("pods");
    let key = ObjectKey::new(pods, &call.address.namespace, &call.address.name);
    let pod = call.api.store.get_value(&key).map_err(|error| ApiError::from_store(error, pods, &key.name))?;
    pod.ok_or_else(|| ApiError::not_found(pods, &key.name))
}

/// Only after the kubelet has switched protocols does the client get its connection.
async fn tunnel(
    call: Call,
    node: &str,
    path: &str,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, ApiError> {
    if !request.headers().contains_key(header::UPGRADE) {
        return Err(ApiError::bad_request("Upgrade request required"));
    }
    let headers = stream_headers(request.headers());
    let outgoing = kubelet::request(
        request.method().clone(),
        path,
        headers,
        Empty::new().map_err(|never| match never {}).boxed_unsync(),
    )?;
    let mut response = call.api.kubelets.send(&call.api, node, outgoing).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(refusal(response).await);
    }
    let mut answer = Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *answer.headers_mut() = stream_headers(response.headers());
    let (near, far) = (hyper::upgrade::on(&mut request), hyper::upgrade::on(&mut response));
    let cancel = call.api.cancel.clone();
    tokio::spawn(async move {
        let (near, far) = match tokio::try_join!(near, far) {
            Ok(both) => both,
            Err(error) => return tracing::debug!(%error, "a stream could not be joined"),
        };
        let (mut near, mut far) = (TokioIo::new(near), TokioIo::new(far));
        tokio::select! {
            result = tokio::io::copy_bidirectional(&mut near, &mut far) => {
                if let Err(error) = result {
                    tracing::debug!(%error, "a stream broke");
                }
            }
            () = cancel.cancelled() => {}
        }
    });
    Ok(answer)
}

fn stream_headers(from: &HeaderMap) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in from {
        if STREAM_HEADERS.contains(&name.as_str()) {
            headers.append(name.clone(), value.clone());
        }
    }
    headers
}

/// The kubelet's answer without what belongs to its connection.
fn pass_on(response: Response<Incoming>) -> Response<Body> {
    let (parts, body) = response.into_parts();
    let mut answer = Response::new(body.map_err(std::io::Error::other).boxed_unsync());
    *answer.status_mut() = parts.status;
    for key in [header::CONTENT_TYPE, header::CONTENT_LENGTH] {
        if let Some(value) = parts.headers.get(&key) {
            answer.headers_mut().insert(key, value.clone());
        }
    }
    answer
}

/// The kubelet's refusal as an error of the API; redirects are not followed.
async fn refusal(response: Response<Incoming>) -> ApiError {
    let code = response.status().as_u16();
    let body = http_body_util::Limited::new(response.into_body(), REFUSAL_BYTES_MAX).collect().await;
    let bytes = body.map(|body| body.to_bytes()).unwrap_or_default();
    if let Ok(status) = serde_json::from_slice::<Value>(&bytes)
        && object::text(&status, "/kind") == "Status"
    {
        return with_code(code, object::text(&status, "/message"));
    }
    with_code(code, String::from_utf8_lossy(&bytes).trim())
}

fn with_code(code: u16, message: &str) -> ApiError {
    match code {
        400 => ApiError::bad_request(message),
        404 => ApiError { code: 404, reason: "NotFound", ..ApiError::bad_request(message) },
        401 | 403 => ApiError::internal(format!("the kubelet refused the API server: {message}")),
        500..=599 => ApiError::internal(message),
        code => ApiError::internal(format!("the kubelet answered {code}: {message}")),
    }
}
