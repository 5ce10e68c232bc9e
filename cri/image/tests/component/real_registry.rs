//! Debian's docker-registry on loopback, filled by skopeo: http, https with our own authority, basic and token auth.

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use orlop_image::build::{ImageBuilder, LayerBuilder, LayerCompression};
use orlop_image::{Credentials, HostConfig};

use crate::scripted::{Reply, ScriptedRegistry};
use crate::support::{Bench, chain, free_port, quick, run, umoci_busybox};

/// A running registry on a storage directory.
pub struct Registry {
    child: Child,
    port: u16,
}

impl Registry {
    /// Starts one; `extra` is YAML for `http:` (indented by two) and for the top level.
    pub fn start(directory: &Path, http: &str, top: &str) -> Self {
        let port = free_port();
        let storage = directory.join("storage");
        let config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n{http}{top}",
            storage.display()
        );
        let file = directory.join(format!("registry-{port}.yml"));
        fs::write(&file, config).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(fs::File::create(directory.join(format!("registry-{port}.log"))).unwrap())
            .spawn()
            .expect("install docker-registry");
        let mut registry = Self { child, port };
        let began = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let log = || fs::read_to_string(directory.join(format!("registry-{port}.log"))).unwrap_or_default();
            assert!(registry.child.try_wait().unwrap().is_none(), "docker-registry ended: {}", log());
            assert!(began.elapsed() < Duration::from_secs(20), "docker-registry does not listen: {}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
        registry
    }

    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A directory with a storage that holds `busybox:1` (OCI), `busybox:docker` (schema 2) and `busybox:zstd`.
pub fn filled() -> (tempfile::TempDir, Registry) {
    let directory = tempfile::tempdir().unwrap();
    let registry = Registry::start(directory.path(), "", "");
    let image = umoci_busybox(directory.path());
    let to = |tag: &str| format!("docker://{}/lib/busybox:{tag}", registry.host());
    let copy = ["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"];
    let from = format!("oci:{image}");
    run("skopeo", &[&copy[..], &["--format", "oci", &from, &to("1")]].concat());
    run("skopeo", &[&copy[..], &["--format", "v2s2", &from, &to("docker")]].concat());
    let archive = directory.path().join("zstd.tar");
    let layer = LayerBuilder::new().file("/data", vec![b'z'; 100_000], 0o600).compression(LayerCompression::Zstd);
    let plain = LayerBuilder::new().file("/plain", "plain", 0o600).compression(LayerCompression::None);
    ImageBuilder::new().layer(layer).layer(plain).write_layout_tar(&archive, "docker.io/lib/z:1").unwrap();
    // As it is: skopeo would pack it anew.
    let from = format!("oci-archive:{}", archive.display());
    run("skopeo", &[&copy[..], &["--preserve-digests", &from, &to("zstd")]].concat());
    (directory, registry)
}

#[tokio::test]
async fn images_are_pulled_over_http_by_tag_and_by_digest() {
    let (_directory, registry) = filled();
    let bench = Bench::new(quick());
    let name = format!("{}/lib/busybox:1", registry.host());
    let id = bench.images.pull(&name, None).await.unwrap();
    let record = bench.image(&name);
    assert_eq!(record.id, id);
    assert_eq!(record.repo_tags, std::slice::from_ref(&name));
    assert_eq!(
        (record.config.user.as_str(), record.config.entrypoint.as_slice()),
        ("1002:1003", &["/bin/sh".to_owned()][..])
    );
    assert!(record.config.env.contains(&"A=b".to_owned()) && record.config.labels["l"] == "v");
    let shown = run("skopeo", &["inspect", "--tls-verify=false", "--raw", &format!("docker://{name}")]);
    assert_eq!(record.manifest_digest, Some(orlop_image::Digest::of(shown.as_bytes()).to_string()));
    // The files are those of the image: the shell runs.
    let (top, below) = (&record.lower_dirs[0], &record.lower_dirs[1]);
    assert_eq!(fs::read_link(top.join("bin/sh")).unwrap(), Path::new("busybox"));
    let said = Command::new("chroot").arg(below).args(["/bin/busybox", "echo", "hello"]).output().unwrap();
    assert_eq!(said.stdout, b"hello\n");

    for tag in ["docker", "zstd"] {
        bench.images.pull(&format!("{}/lib/busybox:{tag}", registry.host()), None).await.unwrap();
    }
    assert_eq!(
        bench.image(&format!("{}/lib/busybox:docker", registry.host())).lower_dirs,
        record.lower_dirs,
        "equal layers are shared"
    );
    let packed = bench.image(&format!("{}/lib/busybox:zstd", registry.host()));
    assert_eq!(fs::read(packed.lower_dirs[1].join("data")).unwrap(), vec![b'z'; 100_000]);

    let other = Bench::new(quick());
    let by_digest = format!("{}/lib/busybox:ignored@{}", registry.host(), record.manifest_digest.unwrap());
    assert_eq!(other.images.pull(&by_digest, None).await.unwrap(), id);
    let record = other.image(&id);
    assert!(record.repo_tags.is_empty() && record.repo_digests.len() == 1, "{record:?}");
}

/// A certificate authority with a server certificate for 127.0.0.1: files of authority, certificate and key.
pub fn certificates(directory: &Path) -> (PathBuf, PathBuf, PathBuf) {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_certificate = ca.self_signed(&ca_key).unwrap();
    let issuer = Issuer::new(ca, ca_key);
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    let write = |name: &str, text: String| {
        let path = directory.join(name);
        fs::File::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
        path
    };
    (
        write("ca.pem", ca_certificate.pem()),
        write("server.pem", certificate.pem()),
        write("server.key", key.serialize_pem()),
    )
}

#[tokio::test]
async fn https_is_trusted_by_our_own_authority_only() {
    let (directory, open) = filled();
    drop(open);
    let (ca, certificate, key) = certificates(directory.path());
    let tls = format!("  tls:\n    certificate: {}\n    key: {}\n", certificate.display(), key.display());
    let registry = Registry::start(directory.path(), &tls, "");
    let name = format!("{}/lib/busybox:1", registry.host());
    let mut registries = quick();
    registries.tries_max = 1;
    registries.hosts.insert(registry.host(), HostConfig { ca_file: Some(ca), ..HostConfig::default() });
    let bench = Bench::new(registries.clone());
    bench.images.pull(&name, None).await.unwrap();

    registries.hosts.insert(registry.host(), HostConfig { plain_http: Some(false), ..HostConfig::default() });
    let distrusting = Bench::new(registries);
    let error = chain(&*distrusting.images.pull(&name, None).await.unwrap_err());
    assert!(error.contains("certificate"), "{error}");
}

#[tokio::test]
async fn basic_credentials_open_the_registry() {
    let (directory, open) = filled();
    drop(open);
    let passwords = run("htpasswd", &["-nbB", "me", "secret"]);
    let file = directory.path().join("htpasswd");
    fs::write(&file, passwords).unwrap();
    let registry = Registry::start(
        directory.path(),
        "",
        &format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", file.display()),
    );
    let name = format!("{}/lib/busybox:1", registry.host());
    let bench = Bench::new(quick());
    let wrong = [None, Some(Credentials::basic("me", "wrong")), Some(Credentials::basic("nobody", "secret"))];
    for credentials in wrong {
        let error = chain(&*bench.images.pull(&name, credentials).await.unwrap_err());
        assert!(error.contains("wants credentials") && error.contains("imagePullSecret"), "{error}");
    }
    bench.images.pull(&name, Some(Credentials::basic("me", "secret"))).await.unwrap();

    let mut registries = quick();
    registries.hosts.insert(
        registry.host(),
        HostConfig { credentials: Some(Credentials::basic("me", "secret")), ..HostConfig::default() },
    );
    Bench::new(registries).images.pull(&name, None).await.unwrap();
}

/// A token that the registry believes: signed by the key of a certificate that it trusts.
fn token(key: &rcgen::KeyPair, certificate: &[u8], service: &str) -> String {
    use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
    let random = ring::rand::SystemRandom::new();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &key.serialize_der(), &random).unwrap();
    let now = jiff::Timestamp::now().as_second();
    let header = serde_json::json!({"typ": "JWT", "alg": "ES256", "x5c": [STANDARD.encode(certificate)]});
    let claims = serde_json::json!({
        "iss": "tokens", "sub": "me", "aud": service, "exp": now + 600, "nbf": now - 10, "iat": now, "jti": "1",
        "access": [{"type": "repository", "name": "lib/busybox", "actions": ["pull"]}],
    });
    let signed =
        format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims.to_string()));
    let signature = pair.sign(&random, signed.as_bytes()).unwrap();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
}

#[tokio::test]
async fn a_token_opens_the_registry() {
    let (directory, open) = filled();
    drop(open);
    let key = rcgen::KeyPair::generate().unwrap();
    let mut parameters = rcgen::CertificateParams::new(vec!["tokens".to_owned()]).unwrap();
    parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let certificate = parameters.self_signed(&key).unwrap();
    let bundle = directory.path().join("tokens.pem");
    fs::write(&bundle, certificate.pem()).unwrap();
    let der = certificate.der().to_vec();
    let tokens = ScriptedRegistry::start(directory.path(), move |seen, _| {
        let known = seen.headers.get("authorization").is_some_and(|value| value == "Basic bWU6c2VjcmV0");
        let body = serde_json::json!({"access_token": token(&key, &der, "registry")}).to_string();
        Some(if known {
            Reply::new(200, body)
        } else {
            Reply::new(401, r#"{"details":"incorrect username or password"}"#)
        })
    });
    let auth = format!(
        "auth:\n  token:\n    realm: http://127.0.0.1:{}/token\n    service: registry\n    issuer: tokens\n    rootcertbundle: {}\n",
        tokens.port,
        bundle.display()
    );
    let registry = Registry::start(directory.path(), "", &auth);
    let name = format!("{}/lib/busybox:1", registry.host());
    let bench = Bench::new(quick());
    let error = chain(&*bench.images.pull(&name, Some(Credentials::basic("me", "wrong"))).await.unwrap_err());
    assert!(error.contains("incorrect username or password"), "{error}");
    bench.images.pull(&name, Some(Credentials::basic("me", "secret"))).await.unwrap();
}
