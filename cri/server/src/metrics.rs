//! Counts of what the server does, for Prometheus: requests under the names that dashboards of gRPC servers know, and
//! what the runtime adds.

use std::sync::atomic::AtomicU64;
use std::task::{Context, Poll};
use std::time::Instant;

use futures::future::BoxFuture;
use orlop_proto::cri::ContainerEventType;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tonic::Code;
use tower::{Layer, Service};

/// Bounds of the histograms, in seconds: from what a local answer takes to a slow pull.
const BOUNDS: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0];

/// One RPC.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Method {
    grpc_service: String,
    grpc_method: String,
}

/// One RPC and its end.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Handled {
    grpc_service: String,
    grpc_method: String,
    grpc_code: String,
}

/// How a pull ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    status: &'static str,
}

/// What happened to a container or sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Event {
    r#type: &'static str,
}

/// All counts of a server. Cheap to clone; all clones count together.
#[derive(Clone)]
pub(crate) struct Metrics {
    registry: std::sync::Arc<Registry>,
    started: Family<Method, Counter>,
    handled: Family<Handled, Counter>,
    seconds: Family<Method, Histogram, fn() -> Histogram>,
    pulls: Family<Outcome, Counter>,
    pulling: Gauge,
    pull_seconds: Histogram,
    events: Family<Event, Counter>,
    oom_kills: Counter<u64, AtomicU64>,
}

fn histogram() -> Histogram {
    Histogram::new(BOUNDS)
}

impl Default for Metrics {
    fn default() -> Metrics {
        let mut registry = Registry::default();
        let mut metrics = Metrics {
            registry: Default::default(),
            started: Family::default(),
            handled: Family::default(),
            seconds: Family::new_with_constructor(histogram),
            pulls: Family::default(),
            pulling: Gauge::default(),
            pull_seconds: histogram(),
            events: Family::default(),
            oom_kills: Counter::default(),
        };
        registry.register("grpc_server_started", "RPCs that were begun", metrics.started.clone());
        registry.register("grpc_server_handled", "RPCs that ended, by their code", metrics.handled.clone());
        registry.register("grpc_server_handling_seconds", "Time that RPCs took", metrics.seconds.clone());
        let own = registry.sub_registry_with_prefix("orlop_cri");
        own.register("image_pulls", "Image pulls by their end", metrics.pulls.clone());
        own.register("in_progress_image_pulls", "Image pulls that are under way", metrics.pulling.clone());
        own.register("image_pull_seconds", "Time that image pulls took", metrics.pull_seconds.clone());
        own.register("container_events", "Events of containers and sandboxes", metrics.events.clone());
        own.register("containers_oom_killed", "Containers that ran out of memory", metrics.oom_kills.clone());
        metrics.registry = registry.into();
        metrics
    }
}

impl Metrics {
    /// All counts in the text form of OpenMetrics.
    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a string fails never.
        let _ = text::encode(&mut out, &self.registry);
        out
    }

    /// A pull begins; its end is told to what is returned.
    pub(crate) fn begin_pull(&self) -> PullCount<'_> {
        self.pulling.inc();
        PullCount { metrics: self, began: Instant::now(), good: false }
    }

    /// An event was announced.
    pub(crate) fn count_event(&self, kind: ContainerEventType) {
        let r#type = match kind {
            ContainerEventType::ContainerCreatedEvent => "created",
            ContainerEventType::ContainerStartedEvent => "started",
            ContainerEventType::ContainerStoppedEvent => "stopped",
            ContainerEventType::ContainerDeletedEvent => "deleted",
        };
        self.events.get_or_create(&Event { r#type }).inc();
    }

    /// A container was killed for want of memory.
    pub(crate) fn count_oom_kill(&self) {
        self.oom_kills.inc();
    }
}

/// A pull that is under way; counted as failed unless it is told otherwise.
pub(crate) struct PullCount<'a> {
    metrics: &'a Metrics,
    began: Instant,
    good: bool,
}

impl PullCount<'_> {
    /// The pull has succeeded.
    pub(crate) fn succeed(mut self) {
        self.good = true;
    }
}

impl Drop for PullCount<'_> {
    fn drop(&mut self) {
        self.metrics.pulling.dec();
        self.metrics.pull_seconds.observe(self.began.elapsed().as_secs_f64());
        let status = if self.good { "success" } else { "failure" };
        self.metrics.pulls.get_or_create(&Outcome { status }).inc();
    }
}

/// Counts every RPC on its way.
#[derive(Clone)]
pub(crate) struct CountRpcs(pub(crate) Metrics);

impl<S> Layer<S> for CountRpcs {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted { inner, metrics: self.0.clone() }
    }
}

/// A service whose RPCs are counted.
#[derive(Clone)]
pub(crate) struct Counted<S> {
    inner: S,
    metrics: Metrics,
}

impl<S, Q, R> Service<http::Request<Q>> for Counted<S>
where
    S: Service<http::Request<Q>, Response = http::Response<R>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Q>) -> Self::Future {
        let mut parts = request.uri().path().trim_start_matches('/').splitn(2, '/');
        let (grpc_service, grpc_method) =
            (parts.next().unwrap_or_default().to_string(), parts.next().unwrap_or_default().to_string());
        let (metrics, began) = (self.metrics.clone(), Instant::now());
        let answer = self.inner.call(request);
        Box::pin(async move {
            let response = answer.await?;
            let code = code_of(&response);
            // Names that we don't serve are the callers' invention: they must not grow the table.
            if code != Code::Unimplemented {
                let method = Method { grpc_service, grpc_method };
                metrics.started.get_or_create(&method).inc();
                metrics.seconds.get_or_create(&method).observe(began.elapsed().as_secs_f64());
                let Method { grpc_service, grpc_method } = method;
                let handled = Handled { grpc_service, grpc_method, grpc_code: name(code) };
                metrics.handled.get_or_create(&handled).inc();
            }
            Ok(response)
        })
    }
}

/// How an RPC ended. A failed one has its status in the first headers; one that succeeded says so in the trailers.
pub(crate) fn code_of<R>(response: &http::Response<R>) -> Code {
    let status = response.headers().get("grpc-status");
    Code::from_bytes(status.map_or(b"0", |status| status.as_bytes()))
}

/// A code as gRPC's own servers write it.
fn name(code: Code) -> String {
    if code == Code::Ok { "OK".into() } else { format!("{code:?}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pulls_are_counted_by_their_end() {
        let metrics = Metrics::default();
        metrics.begin_pull().succeed();
        drop(metrics.begin_pull());
        let text = metrics.text();
        for line in [
            "orlop_cri_image_pulls_total{status=\"success\"} 1",
            "orlop_cri_image_pulls_total{status=\"failure\"} 1",
            "orlop_cri_in_progress_image_pulls 0",
            "orlop_cri_image_pull_seconds_count 2",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }

    #[tokio::test]
    async fn rpcs_are_counted_by_their_code() {
        let metrics = Metrics::default();
        let inner = tower::service_fn(|request: http::Request<()>| async move {
            let code = if request.uri().path().ends_with("Bad") { "5" } else { "0" };
            Ok::<_, std::convert::Infallible>(http::Response::builder().header("grpc-status", code).body(()).unwrap())
        });
        let mut counted = CountRpcs(metrics.clone()).layer(inner);
        for path in ["/runtime.v1.RuntimeService/Good", "/runtime.v1.RuntimeService/Bad"] {
            counted.call(http::Request::builder().uri(path).body(()).unwrap()).await.unwrap();
        }
        let text = metrics.text();
        assert!(text.contains("grpc_method=\"Good\",grpc_code=\"OK\"} 1"), "{text}");
        assert!(text.contains("grpc_method=\"Bad\",grpc_code=\"NotFound\"} 1"), "{text}");
    }
}
