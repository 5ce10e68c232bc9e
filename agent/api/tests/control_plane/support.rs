//! A real kube-apiserver on a real etcd, on loopback, for one test.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

/// How long the control plane may take to be ready.
const START_DEADLINE: Duration = Duration::from_secs(60);

pub struct ControlPlane {
    folder: tempfile::TempDir,
    etcd: Child,
    api: Option<Child>,
    etcd_port: u16,
    port: u16,
    authority: Authority,
}

struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A program of the cache that `cargo xtask foreign` fills.
fn foreign(name: &str) -> PathBuf {
    let cache = std::env::var_os("ORLOP_CACHE")
        .map(PathBuf::from)
        .unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").expect("HOME is set")).join(".cache/orlop"));
    let path = cache.join("bin").join(name);
    assert!(path.exists(), "{name} is not there; run `cargo xtask foreign etcd kubernetes`");
    path
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl ControlPlane {
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = make_authority();
        write(folder.path(), "ca.crt", &authority.pem);
        let key = KeyPair::generate().unwrap();
        write(folder.path(), "sa.key", &key.serialize_pem());
        write(folder.path(), "sa.pub", &key.public_key_pem());
        issue(folder.path(), &authority, "server", "kube-apiserver", &[]);
        let etcd_port = free_port();
        let etcd = start_etcd(folder.path(), etcd_port);
        let mut plane = Self { folder, etcd, api: None, etcd_port, port: free_port(), authority };
        plane.start_api().await;
        plane
    }

    pub async fn start_api(&mut self) {
        self.api = Some(start_apiserver(self.folder.path(), self.etcd_port, self.port));
        let client = self.client("admin-probe", &["system:masters"]).await;
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            let request = http::Request::get("/readyz").body(Vec::new()).unwrap();
            if let Ok(Ok(text)) =
                tokio::time::timeout(Duration::from_secs(2), client.requests.request_text(request)).await
                && text == "ok"
            {
                return;
            }
            if let Some(status) = self.api.as_mut().unwrap().try_wait().unwrap() {
                panic!("kube-apiserver ended with {status}: {}", self.log("apiserver.log"));
            }
            assert!(Instant::now() < deadline, "kube-apiserver is not ready: {}", self.log("apiserver.log"));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    pub fn stop_api(&mut self) {
        end(self.api.take().as_mut().unwrap());
    }

    /// Clients of a user, by a kubeconfig file as a node has it.
    pub async fn client(&self, name: &str, groups: &[&str]) -> orlop_agent_api::ApiClients {
        orlop_agent_api::ApiClients::from_kubeconfig(&self.kubeconfig(name, groups)).await.unwrap()
    }

    pub fn kubeconfig(&self, name: &str, groups: &[&str]) -> PathBuf {
        let folder = self.folder.path();
        let file = name.replace(':', "-");
        issue(folder, &self.authority, &file, name, groups);
        let folder = folder.display();
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
             clusters: [{{name: c, cluster: {{server: 'https://127.0.0.1:{}', certificate-authority: {folder}/ca.crt}}}}]\n\
             users: [{{name: u, user: {{client-certificate: {folder}/{file}.crt, client-key: {folder}/{file}.key}}}}]\n\
             contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n",
            self.port
        );
        write(self.folder.path(), &format!("{file}.kubeconfig"), &text)
    }

    fn log(&self, name: &str) -> String {
        let text = std::fs::read_to_string(self.folder.path().join(name)).unwrap_or_default();
        text.lines().rev().take(20).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        if let Some(api) = &mut self.api {
            end(api);
        }
        end(&mut self.etcd);
    }
}

fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

fn write(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

fn make_authority() -> Authority {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    params.distinguished_name.push(DnType::CommonName, "test-ca");
    let pem = params.self_signed(&key).unwrap().pem();
    Authority { pem, issuer: Issuer::new(params, key) }
}

fn issue(folder: &Path, authority: &Authority, file: &str, name: &str, groups: &[&str]) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    for group in groups {
        params.distinguished_name.push(DnType::OrganizationName, *group);
    }
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = params.signed_by(&key, &authority.issuer).unwrap();
    write(folder, &format!("{file}.crt"), &certificate.pem());
    write(folder, &format!("{file}.key"), &key.serialize_pem());
}

fn start_etcd(folder: &Path, port: u16) -> Child {
    let (client, peer) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{}", free_port()));
    spawn(
        folder,
        "etcd",
        "etcd.log",
        &[
            format!("--data-dir={}", folder.join("etcd").display()),
            "--unsafe-no-fsync".to_owned(),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=default={peer}"),
        ],
    )
}

fn start_apiserver(folder: &Path, etcd_port: u16, port: u16) -> Child {
    let path = |name: &str| folder.join(name).display().to_string();
    spawn(
        folder,
        "kube-apiserver",
        "apiserver.log",
        &[
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
            "--service-cluster-ip-range=10.97.0.0/24".to_owned(),
            "--authorization-mode=Node,RBAC".to_owned(),
            "--enable-admission-plugins=NodeRestriction".to_owned(),
            "--allow-privileged=true".to_owned(),
            "--watch-cache=true".to_owned(),
        ],
    )
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
