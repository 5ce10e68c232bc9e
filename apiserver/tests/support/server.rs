//! A server in a folder of its own and clients for it.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use orlop_apiserver::pki::{Client, Pki, PkiOptions};
use orlop_apiserver::{ApiServerConfig, serve};
use serde_json::Value;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Longest wait for something to come true.
const PATIENCE: Duration = Duration::from_secs(10);

/// A running server.
pub struct Server {
    pub dir: tempfile::TempDir,
    pub pki: Pki,
    pub url: String,
    pub admin: reqwest::Client,
    pub node: reqwest::Client,
    pub nobody: reqwest::Client,
    cancel: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    /// Starts a server with CSI drivers.
    pub async fn start(csi_sockets: BTreeMap<String, PathBuf>) -> Server {
        Server::start_in(tempfile::tempdir().unwrap(), csi_sockets).await
    }

    /// Starts a server whose configuration is changed before.
    pub async fn start_with(change: impl FnOnce(&mut ApiServerConfig)) -> Server {
        Server::start_as(tempfile::tempdir().unwrap(), change).await
    }

    /// Starts a server in a folder that may have been used before.
    pub async fn start_in(dir: tempfile::TempDir, csi_sockets: BTreeMap<String, PathBuf>) -> Server {
        Server::start_as(dir, |config| config.csi_sockets = csi_sockets).await
    }

    async fn start_as(dir: tempfile::TempDir, change: impl FnOnce(&mut ApiServerConfig)) -> Server {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let pki = Pki::ensure(&dir.path().join("pki"), &PkiOptions { node_name: "n1".into(), ..PkiOptions::default() })
            .unwrap();
        let mut config = ApiServerConfig::new(dir.path().join("api"), &pki, ([127, 0, 0, 1], port).into());
        let ready = Arc::new(Notify::new());
        config.ready = Some(ready.clone());
        change(&mut config);
        let cancel = CancellationToken::new();
        let ending = cancel.clone();
        let task = tokio::spawn(async move { serve(config, ending).await.unwrap() });
        tokio::time::timeout(PATIENCE, ready.notified()).await.expect("the server is ready");
        let client = |identity: Option<Client>| {
            let ca = reqwest::Certificate::from_pem(&std::fs::read(pki.ca_certificate()).unwrap()).unwrap();
            let mut builder = reqwest::Client::builder().tls_certs_only([ca]);
            if let Some(identity) = identity {
                let (certificate, key) = pki.client(identity);
                let pem = [std::fs::read(certificate).unwrap(), std::fs::read(key).unwrap()].concat();
                builder = builder.identity(reqwest::Identity::from_pem(&pem).unwrap());
            }
            builder.build().unwrap()
        };
        let (admin, node, nobody) = (client(Some(Client::Admin)), client(Some(Client::Node)), client(None));
        Server { url: format!("https://127.0.0.1:{port}"), dir, pki, admin, node, nobody, cancel, task }
    }

    /// Ends the server; its folder is kept.
    pub async fn stop(self) -> tempfile::TempDir {
        self.cancel.cancel();
        self.task.await.unwrap();
        self.dir
    }

    /// Sends a request as a client; returns code and document.
    pub async fn call(
        &self,
        client: &reqwest::Client,
        method: &str,
        path: &str,
        media: &str,
        body: Option<&Value>,
    ) -> (u16, Value) {
        let mut request = client.request(method.parse().unwrap(), format!("{}{path}", self.url));
        if let Some(body) = body {
            request = request.header("content-type", media).body(body.to_string());
        }
        let response = request.send().await.unwrap();
        let code = response.status().as_u16();
        let text = response.text().await.unwrap();
        (code, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    pub async fn get(&self, path: &str) -> (u16, Value) {
        self.call(&self.admin, "GET", path, "", None).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        self.call(&self.admin, "POST", path, "application/json", Some(body)).await
    }

    pub async fn put(&self, path: &str, body: &Value) -> (u16, Value) {
        self.call(&self.admin, "PUT", path, "application/json", Some(body)).await
    }

    pub async fn patch(&self, path: &str, kind: &str, body: &Value) -> (u16, Value) {
        self.call(&self.admin, "PATCH", path, &format!("application/{kind}+json"), Some(body)).await
    }

    pub async fn delete(&self, path: &str) -> (u16, Value) {
        self.call(&self.admin, "DELETE", path, "", None).await
    }

    /// Waits until a document is as wanted.
    pub async fn wait_for(&self, path: &str, what: &str, wanted: impl Fn(u16, &Value) -> bool) -> Value {
        let end = tokio::time::Instant::now() + PATIENCE;
        loop {
            let (code, document) = self.get(path).await;
            if wanted(code, &document) {
                return document;
            }
            assert!(tokio::time::Instant::now() < end, "{what}: {path} is still {code} {document}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// The lines of a watch, one document each.
pub struct Watch {
    response: reqwest::Response,
    rest: Vec<u8>,
}

impl Watch {
    pub async fn open(server: &Server, path: &str) -> Watch {
        let response = server.admin.get(format!("{}{path}", server.url)).send().await.unwrap();
        assert_eq!(response.status().as_u16(), 200);
        Watch { response, rest: Vec::new() }
    }

    /// The next document; `None` at the end.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            match tokio::time::timeout(PATIENCE, self.response.chunk()).await.expect("a line in time").unwrap() {
                Some(chunk) => self.rest.extend_from_slice(&chunk),
                None => return None,
            }
        }
    }
}
