//! A real kube-apiserver on a real etcd, on loopback, for one test.
#![allow(dead_code)]

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

/// How long the control plane may take to be ready.
const START_DEADLINE: Duration = Duration::from_secs(90);
/// Range of the addresses of its Services.
pub const SERVICE_SUBNET: &str = "10.97.0.0/24";

/// A program of the cache that `cargo xtask foreign` fills.
pub fn foreign(name: &str) -> PathBuf {
    let cache = std::env::var_os("ORLOP_CACHE")
        .map(PathBuf::from)
        .unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").expect("HOME is set")).join(".cache/orlop"));
    let path = cache.join("bin").join(name);
    assert!(path.exists(), "{} is not there; run `cargo xtask foreign etcd kubernetes`", path.display());
    path
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The two programs, their folder, and a client of a master.
pub struct RealServer {
    folder: tempfile::TempDir,
    children: Vec<Child>,
    pub url: String,
    pub admin: reqwest::Client,
}

impl RealServer {
    /// Starts both and waits until they answer.
    pub async fn start() -> RealServer {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let (authority, authority_pem) = make_authority();
        write(folder.path(), "ca.crt", &authority_pem);
        let key = KeyPair::generate().unwrap();
        write(folder.path(), "sa.key", &key.serialize_pem());
        write(folder.path(), "sa.pub", &key.public_key_pem());
        issue(folder.path(), &authority, "server", "kube-apiserver", &[]);
        issue(folder.path(), &authority, "admin", "admin", &["system:masters"]);
        let (etcd_port, port) = (free_port(), free_port());
        let children = vec![start_etcd(folder.path(), etcd_port), start_apiserver(folder.path(), etcd_port, port)];
        let pem = [
            std::fs::read(folder.path().join("admin.crt")).unwrap(),
            std::fs::read(folder.path().join("admin.key")).unwrap(),
        ]
        .concat();
        let admin = reqwest::Client::builder()
            .tls_certs_only([reqwest::Certificate::from_pem(authority_pem.as_bytes()).unwrap()])
            .identity(reqwest::Identity::from_pem(&pem).unwrap())
            .build()
            .unwrap();
        let mut server = RealServer { folder, children, url: format!("https://127.0.0.1:{port}"), admin };
        server.wait_until_ready().await;
        server
    }

    async fn wait_until_ready(&mut self) {
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            if let Ok(answer) =
                self.admin.get(format!("{}/readyz", self.url)).timeout(Duration::from_secs(2)).send().await
                && answer.status().is_success()
            {
                return;
            }
            for child in &mut self.children {
                if let Some(status) = child.try_wait().unwrap() {
                    panic!("a program of the control plane ended with {status}: {}", self.log());
                }
            }
            assert!(Instant::now() < deadline, "kube-apiserver is not ready: {}", self.log());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn log(&self) -> String {
        let text = std::fs::read_to_string(self.folder.path().join("apiserver.log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for RealServer {
    fn drop(&mut self) {
        for child in self.children.iter_mut().rev() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn write(folder: &Path, name: &str, text: &str) {
    std::fs::write(folder.join(name), text).unwrap();
}

fn make_authority() -> (Issuer<'static, KeyPair>, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    params.distinguished_name.push(DnType::CommonName, "test-ca");
    let pem = params.self_signed(&key).unwrap().pem();
    (Issuer::new(params, key), pem)
}

fn issue(folder: &Path, authority: &Issuer<'static, KeyPair>, file: &str, name: &str, groups: &[&str]) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    for group in groups {
        params.distinguished_name.push(DnType::OrganizationName, *group);
    }
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = params.signed_by(&key, authority).unwrap();
    write(folder, &format!("{file}.crt"), &certificate.pem());
    write(folder, &format!("{file}.key"), &key.serialize_pem());
}

fn start_etcd(folder: &Path, port: u16) -> Child {
    let (client, peer) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{}", free_port()));
    let arguments = [
        format!("--data-dir={}", folder.join("etcd").display()),
        "--unsafe-no-fsync".to_owned(),
        format!("--listen-client-urls={client}"),
        format!("--advertise-client-urls={client}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=default={peer}"),
    ];
    spawn(folder, "etcd", "etcd.log", &arguments)
}

fn start_apiserver(folder: &Path, etcd_port: u16, port: u16) -> Child {
    let path = |name: &str| folder.join(name).display().to_string();
    let arguments = [
        format!("--etcd-servers=http://127.0.0.1:{etcd_port}"),
        "--bind-address=127.0.0.1".to_owned(),
        // Never used: nothing reaches this server by a service. Loopback itself would be refused.
        "--advertise-address=192.0.2.1".to_owned(),
        "--endpoint-reconciler-type=none".to_owned(),
        format!("--secure-port={port}"),
        format!("--tls-cert-file={}", path("server.crt")),
        format!("--tls-private-key-file={}", path("server.key")),
        format!("--client-ca-file={}", path("ca.crt")),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        format!("--service-account-key-file={}", path("sa.pub")),
        format!("--service-account-signing-key-file={}", path("sa.key")),
        format!("--service-cluster-ip-range={SERVICE_SUBNET}"),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        "--allow-privileged=true".to_owned(),
    ];
    spawn(folder, "kube-apiserver", "apiserver.log", &arguments)
}

fn spawn(folder: &Path, program: &str, log: &str, arguments: &[String]) -> Child {
    let log = File::options().create(true).append(true).open(folder.join(log)).unwrap();
    let empty = folder.join("empty");
    std::fs::create_dir_all(&empty).unwrap();
    Command::new(foreign(program))
        .args(arguments)
        .current_dir(empty)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}
