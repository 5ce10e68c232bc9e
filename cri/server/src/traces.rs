//! Traces for OpenTelemetry: a span for each RPC, below the one that the caller's metadata names, and spans of the steps
//! that wait for others.
//!
//! Where no trace is asked for there is nothing: no queue, no thread, no look at metadata.

use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{FutureExt, SpanKind, Status as SpanStatus, TraceContextExt, Tracer, TracerProvider};
use opentelemetry::{Context, KeyValue, global};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider};
use tonic::Code;
use tower::{Layer, Service};

use crate::metrics::code_of;

/// Name of the spans' maker, and of the service.
const NAME: &str = "orlop-cri";
/// How long a collector may take for one message.
const EXPORT_TIME: Duration = Duration::from_secs(10);
/// How long the end of the server waits for spans that are still here.
const LAST_EXPORT_TIME: Duration = Duration::from_secs(2);

/// Where traces go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TracingConfig {
    /// A collector that takes OTLP by gRPC: `http://HOST:PORT`.
    pub endpoint: String,
    /// How many of a million calls are followed whose caller does not say whether they are.
    pub samples_per_million: u32,
}

/// The spans of a server.
pub(crate) struct Traces(Option<SdkTracerProvider>);

impl Traces {
    /// Starts what carries spans away; it connects when there are some.
    pub(crate) fn start(config: Option<&TracingConfig>) -> Result<Traces, ExporterBuildError> {
        let Some(config) = config else { return Ok(Traces(None)) };
        let exporter = SpanExporter::builder().with_tonic().with_endpoint(&config.endpoint).with_timeout(EXPORT_TIME);
        let ratio = Sampler::TraceIdRatioBased(f64::from(config.samples_per_million) / 1e6);
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter.build()?)
            .with_sampler(Sampler::ParentBased(Box::new(ratio)))
            .with_resource(Resource::builder_empty().with_service_name(NAME).with_attribute(version).build())
            .build();
        global::set_tracer_provider(provider.clone());
        Ok(Traces(Some(provider)))
    }

    /// The layer that makes spans of RPCs.
    pub(crate) fn layer(&self) -> TraceRpcs {
        TraceRpcs(self.0.as_ref().map(|provider| provider.tracer(NAME)))
    }

    /// Carries away what is still here.
    pub(crate) async fn end(self) {
        let Some(provider) = self.0 else { return };
        let ended = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(LAST_EXPORT_TIME)).await;
        if let Ok(Err(error)) = ended {
            tracing::warn!(%error, "the last spans did not reach the collector of traces");
        }
    }
}

/// Makes a span of a step inside of an RPC that has one.
pub(crate) async fn step<T>(name: &'static str, work: impl Future<Output = T>) -> T {
    let around = Context::current();
    if !around.span().is_recording() {
        return work.await;
    }
    let span = global::tracer(NAME).start_with_context(name, &around);
    work.with_context(around.with_span(span)).await
}

/// Lets work that goes on in a task of its own have the span that is here.
pub(crate) fn carry<F: Future>(work: F) -> impl Future<Output = F::Output> {
    work.with_current_context()
}

/// Makes a span of each RPC.
#[derive(Clone)]
pub(crate) struct TraceRpcs(Option<SdkTracer>);

impl<S> Layer<S> for TraceRpcs {
    type Service = Traced<S>;

    fn layer(&self, inner: S) -> Traced<S> {
        Traced { inner, tracer: self.0.clone() }
    }
}

/// A service whose RPCs have spans.
#[derive(Clone)]
pub(crate) struct Traced<S> {
    inner: S,
    tracer: Option<SdkTracer>,
}

impl<S, Q, R> Service<http::Request<Q>> for Traced<S>
where
    S: Service<http::Request<Q>, Response = http::Response<R>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut TaskContext<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Q>) -> Self::Future {
        let span = self.tracer.as_ref().map(|tracer| begin(tracer, &request));
        let answer = self.inner.call(request);
        let Some(context) = span else { return Box::pin(answer) };
        Box::pin(async move {
            let answer = answer.with_context(context.clone()).await;
            let code = answer.as_ref().map_or(Code::Ok, code_of);
            let span = context.span();
            span.set_attribute(KeyValue::new("rpc.grpc.status_code", code as i64));
            if code != Code::Ok {
                span.set_status(SpanStatus::error(code.description()));
            }
            span.end();
            answer
        })
    }
}

/// The span of an RPC, below that of its caller.
fn begin<Q>(tracer: &SdkTracer, request: &http::Request<Q>) -> Context {
    let parent = TraceContextPropagator::new().extract_with_context(&Context::new(), &Headers(request.headers()));
    let name = request.uri().path().trim_start_matches('/').to_string();
    let (service, method) = name.split_once('/').unwrap_or((&name, ""));
    let attributes = [("rpc.system", "grpc"), ("rpc.service", service), ("rpc.method", method)]
        .map(|(key, value)| KeyValue::new(key, value.to_string()));
    let span = tracer.span_builder(name.clone()).with_kind(SpanKind::Server).with_attributes(attributes);
    parent.with_span(tracer.build_with_context(span, &parent))
}

/// The metadata of a call.
struct Headers<'a>(&'a http::HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}
