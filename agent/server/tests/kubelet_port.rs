//! The kubelet port over real TLS: who gets in, logs, and streams to a runtime.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use orlop_agent_core::metrics::{Metrics, names};
use orlop_agent_core::ports::{
    Access, ContainerRef, NodeView, NodeViewError, PortError, PortFuture, StreamOptions, User,
};
use orlop_agent_server::{Authorization, KubeletServer, KubeletServerConfig, KubeletServerPorts, ServerIdentity};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

/// One running container, whose runtime streams at an address.
struct View {
    log: PathBuf,
    running: AtomicBool,
    runtime: SocketAddr,
}

type Answer<'a, T> = PortFuture<'a, Result<T, NodeViewError>>;

fn done<'a, T: Send + 'a>(value: Result<T, NodeViewError>) -> Answer<'a, T> {
    Box::pin(std::future::ready(value))
}

impl NodeView for View {
    fn pods(&self) -> Vec<Arc<Pod>> {
        let pod = serde_json::json!({"metadata": {"name": "p", "namespace": "ns"}, "status": {"phase": "Running"}});
        vec![Arc::new(serde_json::from_value(pod).unwrap())]
    }

    fn container<'a>(
        &'a self,
        namespace: &'a str,
        pod: &'a str,
        uid: Option<&'a str>,
        container: &'a str,
        previous: bool,
    ) -> Answer<'a, ContainerRef> {
        if (namespace, pod, container) != ("ns", "p", "c") || uid.is_some_and(|uid| uid != "u") {
            return done(Err(NodeViewError::NotFound(format!("pod \"{pod}_{namespace}\" does not exist"))));
        }
        if previous {
            return done(Err(NodeViewError::BadRequest("previous terminated container \"c\" not found".into())));
        }
        let running = self.running.load(Ordering::SeqCst);
        done(Ok(ContainerRef { id: "id".into(), log_path: self.log.clone(), running, tty: false, stdin: true }))
    }

    fn exec_url<'a>(&'a self, _: &'a str, command: Vec<String>, options: StreamOptions) -> Answer<'a, String> {
        assert!(options.stdin && options.stdout && !options.stderr && !options.tty, "{options:?}");
        done(Ok(format!("http://{}/{}", self.runtime, command.join("-"))))
    }

    fn attach_url<'a>(&'a self, _: &'a str, _: StreamOptions) -> Answer<'a, String> {
        done(Ok(format!("http://{}/refuse", self.runtime)))
    }

    fn port_forward_url<'a>(
        &'a self,
        _: &'a str,
        _: &'a str,
        _: Option<&'a str>,
        ports: Vec<i32>,
    ) -> Answer<'a, String> {
        assert_eq!(ports, [80, 443]);
        done(Ok(format!("http://{}/forward", self.runtime)))
    }

    fn run<'a>(&'a self, _: &'a str, command: Vec<String>) -> Answer<'a, (i32, Vec<u8>)> {
        let code = i32::from(command == ["false"]);
        done(Ok((code, command.join(" ").into_bytes())))
    }

    fn health(&self) -> Result<(), String> {
        if self.running.load(Ordering::SeqCst) { Ok(()) } else { Err("the runtime is away".into()) }
    }

    fn metrics(&self) -> Arc<Metrics> {
        let metrics = Arc::new(Metrics::default());
        metrics.count(&names::PROBES, &["Liveness", "failed", "c", "p", "ns", "u"]);
        metrics
    }
}

/// `root` may everything, `reader` may read.
struct Rights;

impl Access for Rights {
    fn authenticate<'a>(&'a self, token: &'a str) -> PortFuture<'a, Result<Option<User>, PortError>> {
        let user = User { name: token.to_owned(), uid: String::new(), groups: Vec::new() };
        Box::pin(async move { Ok((token != "bad").then_some(user)) })
    }

    fn authorize<'a>(&'a self, user: &'a User, verb: &'a str, _: &'a str) -> PortFuture<'a, Result<bool, PortError>> {
        let root = user.groups.iter().any(|group| group == "system:masters") || user.name == "root";
        Box::pin(async move { Ok(root || (user.name == "reader" && verb == "get")) })
    }
}

/// A streaming server of a runtime: it agrees to upgrade, says which path was asked for, then echoes.
async fn fake_runtime() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                let head = String::from_utf8(head).unwrap();
                assert!(!head.to_lowercase().contains("authorization"), "no credentials: {head}");
                if head.contains("/refuse") {
                    let text = "HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\ngone\n";
                    return stream.write_all(text.as_bytes()).await.unwrap();
                }
                assert!(head.to_lowercase().contains("x-stream-protocol-version: v4.channel.k8s.io"), "{head}");
                let first = head.lines().next().unwrap();
                let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
                              X-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n";
                stream.write_all(format!("{answer}{first}\n").as_bytes()).await.unwrap();
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await.unwrap();
            });
        }
    });
    address
}

struct Port {
    folder: tempfile::TempDir,
    address: SocketAddr,
    view: Arc<View>,
    issuer: Issuer<'static, KeyPair>,
    cancel: CancellationToken,
}

impl Port {
    async fn open() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "ca");
        let client_ca = folder.path().join("ca.crt");
        std::fs::write(&client_ca, params.self_signed(&key).unwrap().pem()).unwrap();
        let issuer = Issuer::new(params, key);
        let log = folder.path().join("0.log");
        std::fs::write(&log, "2026-01-01T00:00:00Z stdout F one\n2026-01-01T00:00:01Z stderr F two\n").unwrap();
        let view = Arc::new(View { log, running: AtomicBool::new(true), runtime: fake_runtime().await });
        let config = KubeletServerConfig {
            listen: "127.0.0.1:0".parse().unwrap(),
            healthz: None,
            identity: ServerIdentity::SelfSigned {
                folder: folder.path().join("pki"),
                names: vec!["node".into()],
                addresses: vec!["127.0.0.1".parse().unwrap()],
            },
            client_ca: Some(client_ca),
            anonymous: false,
            authorization: Authorization::Webhook,
            debugging_handlers: true,
            idle_timeout: Duration::from_secs(60),
            node_name: "node".into(),
            config: serde_json::json!({"maxPods": 3}),
        };
        let ports = KubeletServerPorts { view: view.clone(), access: Some(Arc::new(Rights)) };
        let server = KubeletServer::bind(config, ports).await.unwrap();
        let (address, cancel) = (server.local_addr().unwrap(), CancellationToken::new());
        tokio::spawn(server.serve(cancel.clone()));
        Self { folder, address, view, issuer, cancel }
    }

    /// A TLS configuration that trusts the server, with a certificate of a user where asked for.
    fn tls(&self, user: Option<(&str, &str)>) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        let server = self.folder.path().join("pki/kubelet.crt");
        roots.add(CertificateDer::from_pem_file(server).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let builder = builder.with_root_certificates(roots);
        let Some((name, group)) = user else { return builder.with_no_client_auth() };
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.distinguished_name.push(DnType::OrganizationName, group);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let secret = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
        builder.with_client_auth_cert(vec![certificate.der().clone()], secret).unwrap()
    }

    async fn send(&self, tls: ClientConfig, request: Request<Empty<Bytes>>) -> Response<Incoming> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let stream = TlsConnector::from(Arc::new(tls)).connect(name, stream).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        sender.send_request(request).await.unwrap()
    }

    async fn ask(&self, token: &str, method: &str, path: &str) -> (StatusCode, String) {
        let mut request = Request::builder().method(method).uri(path).header("host", "node");
        if !token.is_empty() {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let response = self.send(self.tls(None), request.body(Empty::new()).unwrap()).await;
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

fn append(path: &Path, text: &str) {
    std::fs::File::options().append(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
}

#[tokio::test]
async fn requests_are_answered_as_a_kubelet_answers_them() {
    let port = Port::open().await;
    for (token, method, path, status, word) in [
        ("", "GET", "/pods", 401, "Unauthorized"),
        ("bad", "GET", "/pods", 401, "Unauthorized"),
        (
            "nobody",
            "GET",
            "/pods",
            403,
            "Forbidden (user=nobody, verb=get, resource=nodes/node, subresource(s)=[pods proxy])",
        ),
        ("", "GET", "/nothing/here", 401, "Unauthorized"),
        ("root", "GET", "/nothing/here", 404, ""),
        ("reader", "GET", "/pods", 200, "\"kind\":\"PodList\""),
        ("reader", "GET", "/runningpods/", 200, "\"name\":\"p\""),
        ("reader", "GET", "/healthz", 200, "ok"),
        ("reader", "GET", "/metrics", 200, "kubelet_started_pods_total 0"),
        ("reader", "GET", "/metrics/probes", 200, "prober_probe_total{probe_type=\"Liveness\",result=\"failed\","),
        ("reader", "GET", "/configz", 200, "{\"kubeletconfig\":{\"maxPods\":3}}"),
        ("reader", "GET", "/containerLogs/ns/p/c", 200, "one\ntwo\n"),
        ("reader", "GET", "/containerLogs/ns/p/c?tailLines=1&timestamps=true", 200, "2026-01-01T00:00:01Z two\n"),
        ("reader", "GET", "/containerLogs/ns/p/c?limitBytes=2", 200, "on"),
        ("reader", "GET", "/containerLogs/ns/p/c?previous=true", 400, "previous terminated container"),
        ("reader", "GET", "/containerLogs/ns/p/other", 404, "does not exist"),
        ("reader", "GET", "/containerLogs/ns/p/c?tailLines=x", 400, "tailLines"),
        ("reader", "GET", "/exec/ns/p/c?command=ls&output=1", 403, "verb=create"),
        ("root", "GET", "/exec/ns/p/c?command=ls&input=1&output=1", 400, "Upgrade request required"),
        ("root", "GET", "/exec/ns/p/c?command=ls", 400, "at least 1 of stdin, stdout, stderr"),
        ("root", "GET", "/exec/ns/p/c?output=1", 400, "command"),
        ("root", "POST", "/run/ns/p/c?cmd=echo%20hi", 200, "echo hi"),
        ("root", "POST", "/run/ns/p/u/c?cmd=false", 500, "exited with 1"),
        ("root", "POST", "/run/ns/p/wrong/c?cmd=true", 404, "does not exist"),
        ("root", "GET", "/portForward/ns/p?port=0", 400, "port"),
    ] {
        let (got, text) = port.ask(token, method, path).await;
        assert_eq!(got.as_u16(), status, "{method} {path} as {token:?}: {text}");
        assert!(text.contains(word), "{method} {path} as {token:?}: {text}");
    }
    port.view.running.store(false, Ordering::SeqCst);
    let (status, text) = port.ask("root", "GET", "/healthz/syncloop").await;
    assert!(status == 500 && text.contains("the runtime is away"), "{text}");
}

#[tokio::test]
async fn certificates_name_users() {
    let port = Port::open().await;
    let request = || Request::get("/pods").header("host", "node").body(Empty::new()).unwrap();
    let admin = port.send(port.tls(Some(("apiserver", "system:masters"))), request()).await;
    assert_eq!(admin.status(), 200);
    let other = port.send(port.tls(Some(("someone", "people"))), request()).await;
    assert_eq!(other.status(), 403);
}

#[tokio::test]
async fn logs_are_followed_until_the_container_ends() {
    let port = Port::open().await;
    let request = Request::get("/containerLogs/ns/p/c?follow=true&tailLines=1").header("authorization", "Bearer root");
    let mut body = port.send(port.tls(None), request.body(Empty::new()).unwrap()).await.into_body();
    let mut text = String::new();
    for (line, end) in [("", "two\n"), ("2026-01-01T00:00:02Z stdout F three\n", "three\n")] {
        append(&port.view.log, line);
        while !text.ends_with(end) {
            let frame = tokio::time::timeout(Duration::from_secs(10), body.frame()).await.expect("a line in time");
            text.push_str(std::str::from_utf8(&frame.unwrap().unwrap().into_data().unwrap()).unwrap());
        }
    }
    port.view.running.store(false, Ordering::SeqCst);
    let rest = tokio::time::timeout(Duration::from_secs(10), body.collect()).await.expect("the end in time");
    assert!(rest.unwrap().to_bytes().is_empty());
    assert_eq!(text, "two\nthree\n");
}

#[tokio::test]
async fn streams_are_joined_with_the_runtime() {
    let port = Port::open().await;
    let upgrade = |method: &str, path: &str| {
        Request::builder()
            .method(method)
            .uri(path)
            .header("authorization", "Bearer root")
            .header("connection", "Upgrade")
            .header("upgrade", "SPDY/3.1")
            .header("x-stream-protocol-version", "v4.channel.k8s.io")
            .body(Empty::new())
            .unwrap()
    };
    for (method, path, first) in [
        ("POST", "/exec/ns/p/c?command=cat&command=-n&input=1&output=1", "POST /cat--n HTTP/1.1\n"),
        ("GET", "/exec/ns/p/u/c?command=cat&stdin=true&stdout=true", "GET /cat HTTP/1.1\n"),
        ("POST", "/portForward/ns/p?port=80,443", "POST /forward HTTP/1.1\n"),
    ] {
        let mut response = port.send(port.tls(None), upgrade(method, path)).await;
        assert_eq!(response.status(), 101, "{path}");
        assert_eq!(response.headers()["x-stream-protocol-version"], "v4.channel.k8s.io");
        let mut stream = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
        stream.write_all(b"hello").await.unwrap();
        let mut got = vec![0; first.len() + 5];
        tokio::time::timeout(Duration::from_secs(10), stream.read_exact(&mut got)).await.unwrap().unwrap();
        assert_eq!(String::from_utf8(got).unwrap(), format!("{first}hello"), "{path}");
    }
    let refused = port.send(port.tls(None), upgrade("POST", "/attach/ns/p/c?output=1")).await;
    assert_eq!(refused.status(), 404, "what the runtime says is passed on");
    let text = refused.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(&text[..], b"gone\n");
}
