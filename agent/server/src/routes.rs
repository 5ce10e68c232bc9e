//! The endpoints of the kubelet port.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{ConnectInfo, Path, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use axum::{Router, middleware};
use futures::stream;
use http::StatusCode;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use orlop_agent_core::metrics::names::is_of_probes;
use orlop_agent_core::ports::{ContainerRef, NodeView, StreamOptions, User};

use crate::access::Gate;
use crate::answers::{Refusal, json, text};
use crate::logs::{Liveness, LogSource, parse_options, stream_log};
use crate::metrics::{Counters, metrics_text};
use crate::proxy::join;
use crate::query::Query;

/// How long the other parts of the agent may take to answer.
const VIEW_DEADLINE: Duration = Duration::from_secs(30);
/// How long a command of `/run` may take.
const RUN_DEADLINE: Duration = Duration::from_secs(240);

/// What the endpoints work with.
pub(crate) struct Endpoints {
    pub(crate) gate: Gate,
    pub(crate) view: Arc<dyn NodeView>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) config: serde_json::Value,
    pub(crate) debugging: bool,
    pub(crate) idle_timeout: Duration,
}

/// The user of the connection's client certificate.
#[derive(Clone, Debug, Default)]
pub(crate) struct Peer(pub(crate) Option<User>);

type Shared = State<Arc<Endpoints>>;

/// All endpoints behind the door.
pub(crate) fn router(endpoints: Arc<Endpoints>) -> Router {
    let debugging = Router::new()
        .route("/containerLogs/{namespace}/{pod}/{container}", get(container_logs))
        .route("/exec/{namespace}/{pod}/{container}", any(exec))
        .route("/exec/{namespace}/{pod}/{uid}/{container}", any(exec))
        .route("/attach/{namespace}/{pod}/{container}", any(attach))
        .route("/attach/{namespace}/{pod}/{uid}/{container}", any(attach))
        .route("/portForward/{namespace}/{pod}", any(port_forward))
        .route("/portForward/{namespace}/{pod}/{uid}", any(port_forward))
        .route("/run/{namespace}/{pod}/{container}", post(run))
        .route("/run/{namespace}/{pod}/{uid}/{container}", post(run))
        .route("/runningpods", get(running_pods))
        .route("/runningpods/", get(running_pods))
        .layer(middleware::from_fn_with_state(endpoints.clone(), debugging_only));
    Router::new()
        .route("/healthz", get(healthz))
        .route("/healthz/{check}", get(healthz))
        .route("/pods", get(pods))
        .route("/pods/", get(pods))
        .route("/metrics", get(metrics))
        .route("/metrics/probes", get(probe_metrics))
        .route("/configz", get(configz))
        .merge(debugging)
        .layer(middleware::from_fn_with_state(endpoints.clone(), admit))
        .with_state(endpoints)
}

/// Who, and may they: before anything else is looked at, unknown paths included.
async fn admit(
    State(endpoints): Shared,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
    next: Next,
) -> Response {
    endpoints.counters.requests.fetch_add(1, Ordering::Relaxed);
    let path = request.uri().path();
    match endpoints.gate.admit(peer.0.as_ref(), request.method(), path, request.headers()).await {
        Ok(_) => {
            endpoints.counters.in_flight.fetch_add(1, Ordering::Relaxed);
            let response = next.run(request).await;
            endpoints.counters.in_flight.fetch_sub(1, Ordering::Relaxed);
            response
        }
        Err(refusal) => {
            endpoints.counters.refused.fetch_add(1, Ordering::Relaxed);
            refusal.into_response()
        }
    }
}

async fn debugging_only(State(endpoints): Shared, request: Request, next: Next) -> Response {
    if endpoints.debugging {
        return next.run(request).await;
    }
    text(StatusCode::METHOD_NOT_ALLOWED, "Debug endpoints are disabled.\n")
}

async fn healthz(State(endpoints): Shared) -> Response {
    health_answer(&*endpoints.view)
}

/// `ok`, or why not; the same on the port for health checks.
pub(crate) fn health_answer(view: &dyn NodeView) -> Response {
    match view.health() {
        Ok(()) => text(StatusCode::OK, "ok"),
        Err(why) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("healthz check failed: {why}\n")),
    }
}

fn pod_list(pods: Vec<Arc<Pod>>) -> Response {
    let items: Vec<&Pod> = pods.iter().map(|pod| &**pod).collect();
    json(&serde_json::json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))
}

async fn pods(State(endpoints): Shared) -> Response {
    pod_list(endpoints.view.pods())
}

async fn running_pods(State(endpoints): Shared) -> Response {
    let mut pods = endpoints.view.pods();
    pods.retain(|pod| pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running"));
    pod_list(pods)
}

async fn metrics(State(endpoints): Shared) -> Response {
    let node = &endpoints.gate.node_name;
    text(StatusCode::OK, metrics_text(node, &endpoints.counters, &endpoints.view.metrics()))
}

async fn probe_metrics(State(endpoints): Shared) -> Response {
    text(StatusCode::OK, endpoints.view.metrics().text(is_of_probes))
}

async fn configz(State(endpoints): Shared) -> Response {
    json(&serde_json::json!({"kubeletconfig": endpoints.config}))
}

/// Waits for another part of the agent, but not for ever.
async fn answered<T, E: Into<Refusal>>(
    deadline: Duration,
    asked: impl Future<Output = Result<T, E>>,
) -> Result<T, Refusal> {
    match tokio::time::timeout(deadline, asked).await {
        Ok(result) => result.map_err(Into::into),
        Err(_) => Err(Refusal::new(
            StatusCode::GATEWAY_TIMEOUT,
            format!("no answer within {} s; the container runtime may be stuck", deadline.as_secs()),
        )),
    }
}

type ContainerPath = (String, String, String);

/// Whom a stream is for; the addresses with a uid mean that pod and none of the same name.
#[derive(serde::Deserialize)]
struct Target {
    namespace: String,
    pod: String,
    uid: Option<String>,
    #[serde(default)]
    container: String,
}

async fn container_logs(
    State(endpoints): Shared,
    Path((namespace, pod, container)): Path<ContainerPath>,
    request: Request,
) -> Result<Response, Refusal> {
    let query = Query::parse(request.uri().query());
    let options = parse_options(&query, Timestamp::now()).map_err(Refusal::bad_request)?;
    let found =
        answered(VIEW_DEADLINE, endpoints.view.container(&namespace, &pod, None, &container, options.previous)).await?;
    let running = liveness(endpoints.view.clone(), (namespace, pod, container.clone()), found.clone());
    // What runs no more says no more: its log is read to the end.
    let options = crate::logs::LogOptions { follow: options.follow && found.running, ..options };
    let source = LogSource { path: found.log_path.clone(), options, running };
    let pieces = stream_log(source).await.map_err(|error| {
        let name = format!("log of container {container:?}");
        match error.kind() {
            std::io::ErrorKind::NotFound => {
                Refusal::new(StatusCode::NOT_FOUND, format!("the {name} is not there (any more)"))
            }
            _ => Refusal::internal(format!("the {name} can't be read: {error}")),
        }
    })?;
    let pieces = stream::unfold(pieces, |mut pieces| async move { pieces.recv().await.map(|piece| (piece, pieces)) });
    Ok(text(StatusCode::OK, Body::from_stream(pieces)))
}

/// Whether the instance of a container that `found` is still runs.
fn liveness(view: Arc<dyn NodeView>, path: ContainerPath, found: ContainerRef) -> Liveness {
    let path = Arc::new((path, found.id));
    Arc::new(move || {
        let (view, path) = (view.clone(), path.clone());
        Box::pin(async move {
            let ((namespace, pod, container), id) = &*path;
            let asked = view.container(namespace, pod, None, container, false);
            // No answer is no reason to stop: the next look will tell.
            tokio::time::timeout(VIEW_DEADLINE, asked)
                .await
                .map_or(true, |now| now.is_ok_and(|now| now.id == *id && now.running))
        })
    })
}

/// Streams that a query asks for, by both of the names that are in use.
fn stream_options(query: &Query) -> Result<StreamOptions, Refusal> {
    let tty = query.any(&["tty"]);
    let options = StreamOptions {
        stdin: query.any(&["stdin", "input"]),
        stdout: query.any(&["stdout", "output"]),
        // A terminal has one output.
        stderr: query.any(&["stderr", "error"]) && !tty,
        tty,
    };
    if !options.stdin && !options.stdout && !options.stderr {
        return Err(Refusal::bad_request("you must specify at least 1 of stdin, stdout, stderr".to_owned()));
    }
    Ok(options)
}

async fn find_container(endpoints: &Endpoints, target: &Target) -> Result<ContainerRef, Refusal> {
    let Target { namespace, pod, uid, container } = target;
    answered(VIEW_DEADLINE, endpoints.view.container(namespace, pod, uid.as_deref(), container, false)).await
}

async fn exec(State(endpoints): Shared, Path(target): Path<Target>, request: Request) -> Result<Response, Refusal> {
    let query = Query::parse(request.uri().query());
    let (options, command) = (stream_options(&query)?, query.all("command"));
    if command.is_empty() {
        return Err(Refusal::bad_request("you must specify a command".to_owned()));
    }
    let found = find_container(&endpoints, &target).await?;
    let url = answered(VIEW_DEADLINE, endpoints.view.exec_url(&found.id, command, options)).await?;
    join(request, &url, endpoints.idle_timeout, endpoints.counters.clone()).await
}

async fn attach(State(endpoints): Shared, Path(target): Path<Target>, request: Request) -> Result<Response, Refusal> {
    let mut options = stream_options(&Query::parse(request.uri().query()))?;
    let found = find_container(&endpoints, &target).await?;
    // A terminal is the container's property, not the client's wish.
    options.tty = found.tty;
    options.stderr &= !found.tty;
    let url = answered(VIEW_DEADLINE, endpoints.view.attach_url(&found.id, options)).await?;
    join(request, &url, endpoints.idle_timeout, endpoints.counters.clone()).await
}

async fn port_forward(
    State(endpoints): Shared,
    Path(target): Path<Target>,
    request: Request,
) -> Result<Response, Refusal> {
    let mut ports = Vec::new();
    for list in Query::parse(request.uri().query()).all("port") {
        for text in list.split(',').filter(|text| !text.is_empty()) {
            let port: u16 = text
                .parse()
                .ok()
                .filter(|port| *port > 0)
                .ok_or_else(|| Refusal::bad_request(format!("port: {text:?} is no port number from 1 to 65535")))?;
            ports.push(i32::from(port));
        }
    }
    let asked = endpoints.view.port_forward_url(&target.namespace, &target.pod, target.uid.as_deref(), ports);
    let url = answered(VIEW_DEADLINE, asked).await?;
    join(request, &url, endpoints.idle_timeout, endpoints.counters.clone()).await
}

async fn run(State(endpoints): Shared, Path(target): Path<Target>, request: Request) -> Result<Response, Refusal> {
    let query = Query::parse(request.uri().query());
    let command: Vec<String> =
        query.get("cmd").unwrap_or_default().split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect();
    if command.is_empty() {
        return Err(Refusal::bad_request("cmd: name a command".to_owned()));
    }
    let found = find_container(&endpoints, &target).await?;
    let (code, output) = answered(RUN_DEADLINE, endpoints.view.run(&found.id, command)).await?;
    if code == 0 {
        return Ok(text(StatusCode::OK, output));
    }
    let output = String::from_utf8_lossy(&output);
    Err(Refusal::internal(format!("the command exited with {code}: {}", output.trim_end())))
}
