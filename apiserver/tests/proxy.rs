//! The way through the API to a kubelet: streams only after 101, refusals as errors, certificates both ways.

#[path = "support/server.rs"]
mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use orlop_apiserver::pki::{self, Client, Pki};
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use serde_json::json;
use support::Server;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

const PODS: &str = "/api/v1/namespaces/default/pods";

fn roots(pki: &Pki) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add(pki::read_certificates(&pki.ca_certificate()).unwrap().remove(0)).unwrap();
    roots
}

async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

/// A kubelet that echoes streams, has one log, and refuses the container `refuses`.
async fn kubelet(pki: &Pki) -> u16 {
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots(pki))).build().unwrap();
    let (certificate, key) = pki.kubelet_serving();
    let config = rustls::ServerConfig::builder()
        .with_client_cert_verifier(verifier)
        .with_single_cert(pki::read_certificates(&certificate).unwrap(), pki::read_key(&key).unwrap())
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut stream = acceptor.accept(stream).await.unwrap();
                let head = read_head(&mut stream).await;
                let answer = if head.starts_with("GET /containerLogs/default/p/c?tailLines=5 ") {
                    "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 6\r\n\r\nhello\n"
                } else if head.contains("/refuses?") {
                    "HTTP/1.1 302 Found\r\nLocation: https://192.0.2.1/\r\nContent-Length: 7\r\n\r\nno way\n"
                } else if head.starts_with("POST /exec/default/p/c?input=1&output=1&command=sh%20-c ") {
                    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n"
                } else {
                    panic!("{head}")
                };
                stream.write_all(answer.as_bytes()).await.unwrap();
                let (mut read, mut write) = tokio::io::split(stream);
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
        }
    });
    port
}

/// Sends an upgrade request; returns the connection behind the head of the answer.
async fn upgrade(server: &Server, path: &str) -> (String, tokio_rustls::client::TlsStream<TcpStream>) {
    let (certificate, key) = server.pki.client(Client::Admin);
    let config = rustls::ClientConfig::builder()
        .with_root_certificates(roots(&server.pki))
        .with_client_auth_cert(pki::read_certificates(&certificate).unwrap(), pki::read_key(&key).unwrap())
        .unwrap();
    let authority = server.url.strip_prefix("https://").unwrap();
    let tcp = TcpStream::connect(authority).await.unwrap();
    let name = rustls_pki_types::ServerName::try_from("localhost").unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap();
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\nAuthorization: Bearer secret\r\nContent-Length: 0\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let head = read_head(&mut stream).await;
    (head, stream)
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_and_streams_go_through_and_refusals_are_told() {
    let server = Server::start(BTreeMap::new()).await;
    let port = kubelet(&server.pki).await;
    let room = json!({"cpu": "4", "memory": "8Gi", "pods": "110"});
    let node = json!({"metadata": {"name": "n1"}, "status": {
        "allocatable": room, "conditions": [{"type": "Ready", "status": "True"}],
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}], "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
    }});
    assert_eq!(server.post("/api/v1/nodes", &node).await.0, 201);
    let containers = json!([{"name": "c", "image": "x"}, {"name": "refuses", "image": "x"}]);
    server.post(PODS, &json!({"metadata": {"name": "p"}, "spec": {"containers": containers}})).await;
    server.wait_for(&format!("{PODS}/p"), "bound", |_, pod| pod["spec"]["nodeName"] == "n1").await;

    let (code, log) = server.get(&format!("{PODS}/p/log?container=c&tailLines=5&other=x")).await;
    assert_eq!((code, log.as_str()), (200, Some("hello\n")));
    let (code, error) = server.get(&format!("{PODS}/p/log")).await;
    assert_eq!(code, 400);
    assert_eq!(error["message"], "a container name must be specified for pod p, choose one of: [c refuses]");
    let (code, error) = server.get(&format!("{PODS}/p/log?container=zz")).await;
    assert_eq!((code, error["message"].as_str()), (400, Some("container zz is not valid for pod p")));

    let exec = format!("{PODS}/p/exec?stdin=true&stdout=true&command=sh+-c");
    let (head, mut stream) = upgrade(&server, &format!("{exec}&container=c")).await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    assert!(head.to_lowercase().contains("x-stream-protocol-version: v4.channel.k8s.io"), "{head}");
    stream.write_all(b"there and back").await.unwrap();
    let mut back = [0; 14];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"there and back");

    let (head, _) = upgrade(&server, &format!("{exec}&container=refuses")).await;
    assert!(head.starts_with("HTTP/1.1 500"), "a redirect is not followed, nothing is joined: {head}");
    assert_eq!(server.get(&format!("{exec}&container=c")).await.0, 400, "no upgrade was asked for");
}
