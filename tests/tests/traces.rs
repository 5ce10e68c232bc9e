//! Traces of `orlop cri`: what reaches a collector of OTLP, and below whose span it stands.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::trace::v1::Span;
use orlop_kernel::namespace;
use orlop_proto::cri::runtime_service_client::RuntimeServiceClient;
use orlop_proto::cri::{
    PodSandboxConfig, PodSandboxMetadata, RemovePodSandboxRequest, RunPodSandboxRequest, VersionRequest,
};
use orlop_tests::world::{Daemon, World, until};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};

/// The caller's trace and span, as W3C writes them; the call is followed.
const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
/// The same, and the call is not followed.
const UNSAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319d-b7ad6b7169203332-00";

/// Takes in spans.
struct Collector(Sender<Span>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let resources = request.into_inner().resource_spans.into_iter();
        for span in resources.flat_map(|resource| resource.scope_spans).flat_map(|scope| scope.spans) {
            let _ = self.0.send(span);
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// A collector in the world's network.
async fn collect(world: &World) -> (SocketAddr, Receiver<Span>) {
    let place = format!("/proc/{}/ns/net", world.pid());
    let listener = namespace::in_network(Path::new(&place), || TcpListener::bind("127.0.0.1:0")).unwrap().unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let incoming = TcpListenerStream::new(tokio::net::TcpListener::from_std(listener).unwrap());
    let (sender, spans) = channel();
    let service = TraceServiceServer::new(Collector(sender));
    tokio::spawn(Server::builder().add_service(service).serve_with_incoming(incoming));
    (address, spans)
}

async fn connect(world: &World) -> RuntimeServiceClient<Channel> {
    let socket = world.socket();
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(tokio::net::UnixStream::connect(socket).await?)) }
    });
    let channel = Endpoint::from_static("http://cri").connect_with_connector(connector).await;
    RuntimeServiceClient::new(channel.expect("connect to the server"))
}

fn serve(world: &World, tracing: &str) -> Daemon {
    let file = world.folder().join("cri.toml");
    std::fs::write(&file, format!("version = 1\n{tracing}")).unwrap();
    let mut command = world.orlop();
    command.args(["cri", "--cri-config"]).arg(&file);
    let mut daemon = Daemon::start(command, world.folder().join("cri.log"));
    until("the server answers", || {
        daemon.check();
        world.crictl().arg("version").output().unwrap().status.success().then_some(())
    });
    daemon
}

/// A request of a caller who traces.
fn traced<T>(message: T, parent: &'static str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("traceparent", parent.parse().unwrap());
    request
}

/// The next spans, until one is such.
fn spans_up_to(last: fn(&Span) -> bool, spans: &Receiver<Span>) -> Vec<Span> {
    let until = Instant::now() + Duration::from_secs(30);
    let mut seen: Vec<Span> = Vec::new();
    while !seen.iter().any(last) {
        let left = until.saturating_duration_since(Instant::now());
        seen.push(spans.recv_timeout(left).unwrap_or_else(|_| panic!("something is missing in {seen:?}")));
    }
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_stands_below_the_span_of_its_caller() {
    let world = World::new();
    let (address, spans) = collect(&world).await;
    let daemon = serve(&world, &format!("[tracing]\nendpoint = 'http://{address}'\n"));
    let mut client = connect(&world).await;
    let metadata = PodSandboxMetadata { name: "p".into(), namespace: "n".into(), uid: "u".into(), attempt: 0 };
    let config = PodSandboxConfig { metadata: Some(metadata), ..PodSandboxConfig::default() };
    client.version(traced(VersionRequest::default(), UNSAMPLED)).await.unwrap();
    client.version(VersionRequest::default()).await.unwrap();
    let run = RunPodSandboxRequest { config: Some(config), ..RunPodSandboxRequest::default() };
    let ran = client.run_pod_sandbox(traced(run.clone(), PARENT)).await.unwrap().into_inner();
    client.run_pod_sandbox(traced(run, PARENT)).await.expect_err("the name is taken");

    let seen = spans_up_to(is_failure, &spans);
    let call = seen.iter().find(|span| span.name == "runtime.v1.RuntimeService/RunPodSandbox").unwrap();
    assert_eq!(hex::encode(&call.trace_id), "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(hex::encode(&call.parent_span_id), "b7ad6b7169203331");
    for name in ["network", "shim"] {
        let step = seen.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("{name}: {seen:?}"));
        assert_eq!((&step.trace_id, &step.parent_span_id), (&call.trace_id, &call.span_id), "{name}");
        assert!(
            step.end_time_unix_nano <= call.end_time_unix_nano && step.end_time_unix_nano > step.start_time_unix_nano
        );
    }
    assert!(!seen.iter().any(|span| span.name.ends_with("/Version")), "nobody asked for it: {seen:?}");
    client.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: ran.pod_sandbox_id }).await.unwrap();
    drop(daemon);
}

/// The second call is refused.
fn is_failure(span: &Span) -> bool {
    span.status.as_ref().is_some_and(|status| status.code == 2)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_not_there_holds_up_nobody() {
    let world = World::new();
    let _daemon = serve(&world, "[tracing]\nendpoint = 'http://127.0.0.1:9'\nsampling_rate_per_million = 1000000\n");
    let mut client = connect(&world).await;
    for _ in 0..100 {
        client.version(traced(VersionRequest::default(), PARENT)).await.unwrap();
    }
}
