//! Registries by folders: mirrors, servers, certificates, and what each of them gets to see.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use orlop_image::{Credentials, HostConfig, RegistriesConfig};

use crate::real_registry::{Registry, certificates, filled};
use crate::scripted::{Reply, ScriptedRegistry, Seen, from_layout};
use crate::support::{Bench, chain, free_port, noise, quick, small_image};

/// A registry that only mirrors can stand in for: nobody has this name.
const NOWHERE: &str = "registry.invalid:5000";

/// Folders in containerd's layout.
struct Folders(tempfile::TempDir);

impl Folders {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, registry: &str, text: &str) -> PathBuf {
        let folder = self.0.path().join(registry);
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("hosts.toml");
        fs::write(&path, text).unwrap();
        path
    }

    fn config(&self) -> RegistriesConfig {
        RegistriesConfig { hosts_dirs: vec![self.0.path().into()], ..quick() }
    }
}

fn layout() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    small_image().write_layout_dir(directory.path(), "test:1").unwrap();
    directory
}

fn url(registry: &ScriptedRegistry) -> String {
    format!("http://127.0.0.1:{}", registry.port)
}

#[tokio::test]
async fn a_mirror_gives_the_image_under_the_registrys_own_name() {
    let (layout, folders) = (layout(), Folders::new());
    let mirror = ScriptedRegistry::start(layout.path(), |_, _| None);
    folders.write(
        NOWHERE,
        &format!("[host.\"{}\"]\n[host.\"{}\".header]\nx-asked-by = \"us\"", url(&mirror), url(&mirror)),
    );
    let bench = Bench::new(folders.config());
    let name = format!("{NOWHERE}/test/app:1");
    bench.images.pull(&name, None).await.unwrap();
    let record = bench.image(&name);
    assert_eq!(record.repo_tags, [name]);
    assert!(record.repo_digests[0].starts_with(&format!("{NOWHERE}/test/app@sha256:")), "{record:?}");
    let seen = mirror.seen.lock().unwrap();
    assert!(seen.len() >= 4 && seen.iter().all(|seen| seen.path.ends_with("?ns=registry.invalid%3A5000")), "{seen:?}");
    assert!(seen.iter().all(|seen| seen.headers.get("x-asked-by").is_some_and(|value| value == "us")));
}

#[tokio::test]
async fn a_mirror_that_has_not_or_fails_is_passed_over() {
    let (layout, folders) = (layout(), Folders::new());
    let server = ScriptedRegistry::start(layout.path(), |_, _| None);
    let without = ScriptedRegistry::start(layout.path(), |_, _| Some(Reply::new(404, "")));
    let broken = ScriptedRegistry::start(layout.path(), |_, _| Some(Reply::new(503, "")));
    let closed = ScriptedRegistry::start(layout.path(), |_, _| Some(Reply::new(403, "")));
    let nobody = format!("http://127.0.0.1:{}", free_port());
    for mirror in [url(&without), url(&broken), url(&closed), nobody] {
        folders.write(NOWHERE, &format!("server = \"{}\"\n[host.\"{mirror}\"]", url(&server)));
        let bench = Bench::new(folders.config());
        let name = format!("{NOWHERE}/test/app:1");
        bench.images.pull(&name, None).await.unwrap_or_else(|error| panic!("{mirror}: {}", chain(&*error)));
        assert_eq!(bench.image(&name).repo_tags, [name]);
    }
    // One that is down is asked once in a pull, not again for each layer.
    assert_eq!(broken.seen.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn when_nobody_has_it_all_of_them_are_named() {
    let (layout, folders) = (layout(), Folders::new());
    let server = ScriptedRegistry::start(layout.path(), |_, _| Some(Reply::new(404, "")));
    let mirror =
        ScriptedRegistry::start(layout.path(), |_, _| Some(Reply::new(403, r#"{"errors":[{"message":"shut"}]}"#)));
    folders.write(NOWHERE, &format!("server = \"{}\"\n[host.\"{}\"]", url(&server), url(&mirror)));
    let bench = Bench::new(folders.config());
    let error = chain(&*bench.images.pull(&format!("{NOWHERE}/test/app:1"), None).await.unwrap_err());
    for part in
        [&format!("127.0.0.1:{} denies access (shut)", mirror.port), &format!("127.0.0.1:{} (tried", server.port)]
    {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert!(error.contains("has no manifests 1 of test/app"), "{error}");
}

#[tokio::test]
async fn a_mirror_that_may_not_resolve_gives_content_only() {
    let (layout, folders) = (layout(), Folders::new());
    let server = ScriptedRegistry::start(layout.path(), |_, _| None);
    let mirror = ScriptedRegistry::start(layout.path(), |_, _| None);
    let only = |capability: &str| format!("[host.\"{}\"]\ncapabilities = [\"{capability}\"]", url(&mirror));
    folders.write(NOWHERE, &format!("server = \"{}\"\n{}", url(&server), only("pull")));
    Bench::new(folders.config()).images.pull(&format!("{NOWHERE}/test/app:1"), None).await.unwrap();
    assert_eq!((mirror.count("/manifests/"), server.count("/manifests/1")), (0, 1));
    assert_eq!((mirror.count("/blobs/"), server.count("/blobs/")), (3, 0));

    folders.write(NOWHERE, &format!("server = \"{}\"\ncapabilities = [\"pull\"]", url(&server)));
    let bench = Bench::new(folders.config());
    let error = chain(&*bench.images.pull(&format!("{NOWHERE}/test/app:1"), None).await.unwrap_err());
    assert!(error.contains("capabilities") && error.contains("resolve"), "{error}");
}

#[tokio::test]
async fn a_layer_cut_by_a_mirror_goes_on_at_the_server() {
    let folders = Folders::new();
    let layout = tempfile::tempdir().unwrap();
    let layer = orlop_image::build::LayerBuilder::new().file("/noise", noise(400_000), 0o644);
    orlop_image::build::ImageBuilder::new().layer(layer).write_layout_dir(layout.path(), "test:1").unwrap();
    let path = layout.path().to_path_buf();
    let mirror = ScriptedRegistry::start(layout.path(), move |seen, earlier| {
        let honest = from_layout(&path, seen);
        (honest.body.len() > 100_000).then(|| match earlier {
            0 => Reply { cut_after: Some(150_000), ..honest },
            _ => Reply::new(500, ""),
        })
    });
    let server = ScriptedRegistry::start(layout.path(), |_, _| None);
    folders.write(NOWHERE, &format!("server = \"{}\"\n[host.\"{}\"]", url(&server), url(&mirror)));
    let bench = Bench::new(folders.config());
    bench.images.pull(&format!("{NOWHERE}/test/app:1"), None).await.unwrap();
    let ranges: Vec<String> =
        server.seen.lock().unwrap().iter().filter_map(|seen| seen.headers.get("range").cloned()).collect();
    let start: u64 = ranges[0].trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap();
    assert!(ranges.len() == 1 && start > 0 && start <= 150_000, "{ranges:?}");
}

#[tokio::test]
async fn a_mirror_with_wrong_bytes_is_turned_from() {
    let (layout, folders) = (layout(), Folders::new());
    let path = layout.path().to_path_buf();
    // One byte of the configuration, or of each layer, is another one.
    for config in [true, false] {
        let path = path.clone();
        let mirror = ScriptedRegistry::start(layout.path(), move |seen, _| {
            let mut reply = from_layout(&path, seen);
            let lies = seen.path.contains("/blobs/") && config == reply.body.starts_with(b"{");
            let last = reply.body.len() - 1;
            reply.body[last] ^= 1;
            lies.then_some(reply)
        });
        let server = ScriptedRegistry::start(layout.path(), |_, _| None);
        folders.write(NOWHERE, &format!("server = \"{}\"\n[host.\"{}\"]", url(&server), url(&mirror)));
        let bench = Bench::new(folders.config());
        bench.images.pull(&format!("{NOWHERE}/test/app:1"), None).await.unwrap();
        assert!(server.count("/blobs/") > 0 && server.count("/manifests/") == 0);
        bench.wait_for_clean_staging().await;
    }
}

#[tokio::test]
async fn a_proxy_carries_the_requests_of_its_server() {
    let (layout, folders) = (layout(), Folders::new());
    let proxy = ScriptedRegistry::start(layout.path(), |_, _| None);
    folders.write(NOWHERE, &format!("server = \"http://far.invalid\"\nproxy = \"{}\"", url(&proxy)));
    Bench::new(folders.config()).images.pull(&format!("{NOWHERE}/test/app:1"), None).await.unwrap();
    let seen = proxy.seen.lock().unwrap();
    assert!(seen.len() >= 4 && seen.iter().all(|seen| seen.path.starts_with("http://far.invalid/v2/")), "{seen:?}");
}

#[tokio::test]
async fn a_mirror_sees_its_own_credentials_only() {
    let (layout, folders) = (layout(), Folders::new());
    let asks = |seen: &Seen, _: usize| {
        let asked = !seen.headers.contains_key("authorization");
        asked.then(|| Reply::new(401, "").header("WWW-Authenticate", "Basic realm=\"x\""))
    };
    let mirror = ScriptedRegistry::start(layout.path(), asks);
    let server = ScriptedRegistry::start(layout.path(), asks);
    folders.write(NOWHERE, &format!("server = \"{}\"\n[host.\"{}\"]", url(&server), url(&mirror)));
    let name = format!("{NOWHERE}/test/app:1");
    let pulls = Credentials::basic("me", "secret");
    let shown = |registry: &ScriptedRegistry| {
        let seen = registry.seen.lock().unwrap();
        let found = seen.iter().filter_map(|seen| seen.headers.get("authorization").cloned());
        found.collect::<std::collections::BTreeSet<String>>()
    };
    Bench::new(folders.config()).images.pull(&name, Some(pulls.clone())).await.unwrap();
    assert!(shown(&mirror).is_empty(), "{:?}", shown(&mirror));
    assert_eq!(shown(&server).into_iter().collect::<Vec<_>>(), ["Basic bWU6c2VjcmV0"]);

    let mut config = folders.config();
    let own = Credentials::basic("mirror", "own");
    config
        .hosts
        .insert(format!("127.0.0.1:{}", mirror.port), HostConfig { credentials: Some(own), ..HostConfig::default() });
    Bench::new(config.clone()).images.pull(&name, Some(pulls.clone())).await.unwrap();
    assert_eq!(shown(&mirror).into_iter().collect::<Vec<_>>(), ["Basic bWlycm9yOm93bg=="]);

    config.mirrors_get_credentials = true;
    Bench::new(config).images.pull(&name, Some(pulls)).await.unwrap();
    assert!(shown(&mirror).contains("Basic bWU6c2VjcmV0"));
}

#[tokio::test]
async fn folders_are_read_again_for_each_pull() {
    let (layout, folders) = (layout(), Folders::new());
    let mirror = ScriptedRegistry::start(layout.path(), |_, _| None);
    let bench = Bench::new(RegistriesConfig { tries_max: 1, ..folders.config() });
    let name = format!("{NOWHERE}/test/app:1");
    let error = chain(&*bench.images.pull(&name, None).await.unwrap_err());
    assert!(error.contains("unavailable"), "{error}");
    let file = folders.write(NOWHERE, "[host.\"https://m\"]\ncapabilities = [\"puII\"]");
    let error = chain(&*bench.images.pull(&name, None).await.unwrap_err());
    assert!(error.contains(file.to_str().unwrap()) && error.contains("host.\"https://m\".capabilities"), "{error}");
    folders.write(NOWHERE, "server = [");
    let error = chain(&*bench.images.pull(&name, None).await.unwrap_err());
    assert!(error.contains(file.to_str().unwrap()) && !error.contains('\n'), "{error}");
    folders.write(NOWHERE, "");
    folders.write("_default", "server = \"https://never-asked.invalid\"");
    let error = chain(&*bench.images.pull(&name, None).await.unwrap_err());
    assert!(error.contains(NOWHERE) && !error.contains("never-asked"), "{error}");
    fs::remove_dir_all(folders.0.path().join(NOWHERE)).unwrap();
    folders.write("_default", &format!("[host.\"{}/api\"]\noverride_path = true", url(&mirror)));
    bench.images.pull(&name, None).await.unwrap();
    assert!(mirror.seen.lock().unwrap().iter().all(|seen| seen.path.starts_with("/api/test/app/")));
}

/// A registry that speaks https and wants a certificate of ours, its authority, and our certificate with its key.
fn guarded(directory: &Path) -> (Registry, PathBuf, PathBuf, PathBuf) {
    let (ca, certificate, key) = certificates(directory);
    let clients = directory.join("clients");
    fs::create_dir(&clients).unwrap();
    let (client_ca, client, client_key) = certificates(&clients);
    let tls = format!(
        "  tls:\n    certificate: {}\n    key: {}\n    clientcas:\n      - {}\n",
        certificate.display(),
        key.display(),
        client_ca.display()
    );
    (Registry::start(directory, &tls, ""), ca, client, client_key)
}

#[tokio::test]
async fn certificates_of_folders_open_a_guarded_registry() {
    let (directory, open) = filled();
    drop(open);
    let (registry, ca, client, key) = guarded(directory.path());
    let folders = Folders::new();
    let name = format!("{}/lib/busybox:1", registry.host());
    let pull = async |what: &str| {
        let config = RegistriesConfig { tries_max: 1, ..folders.config() };
        Bench::new(config).images.pull(&name, None).await.map_err(|error| format!("{what}: {}", chain(&*error)))
    };
    let pair = format!("client = [[\"{}\", \"{}\"]]", client.display(), key.display());
    folders.write(&registry.host(), &format!("ca = \"{}\"\n{pair}", ca.display()));
    pull("authority and pair").await.unwrap();
    folders.write(&registry.host(), &format!("skip_verify = true\n{pair}"));
    pull("any server").await.unwrap();
    folders.write(&registry.host(), &pair);
    assert!(pull("no authority").await.unwrap_err().contains("certificate"));
    folders.write(&registry.host(), &format!("ca = \"{}\"", ca.display()));
    let error = pull("no pair").await.unwrap_err();
    assert!(error.contains("ertificate"), "{error}");

    // As a mirror of another registry, by the escaped name.
    folders.write("far.invalid_5000_", &format!("[host.\"{0}\"]\nca = \"{1}\"\n{pair}", registry.host(), ca.display()));
    let bench = Bench::new(folders.config());
    bench.images.pull("far.invalid:5000/lib/busybox:1", None).await.unwrap();
    assert_eq!(bench.image("far.invalid:5000/lib/busybox:1").repo_tags, ["far.invalid:5000/lib/busybox:1"]);

    // Docker's layout: no hosts.toml.
    let folder = folders.0.path().join(registry.host());
    fs::remove_file(folder.join("hosts.toml")).unwrap();
    for (from, to) in [(&ca, "ca.crt"), (&client, "me.cert"), (&key, "me.key")] {
        fs::copy(from, folder.join(to)).unwrap();
    }
    pull("docker's folder").await.unwrap();
    fs::remove_file(folder.join("me.key")).unwrap();
    let error = pull("no key").await.unwrap_err();
    assert!(error.contains("me.cert") && error.contains("private key"), "{error}");
}

#[tokio::test]
async fn an_expired_certificate_is_named_as_the_cause() {
    let (directory, open) = filled();
    drop(open);
    let (ca, certificate, key) =
        (directory.path().join("c.pem"), directory.path().join("e.pem"), directory.path().join("e.key"));
    let text = |path: &Path| path.display().to_string();
    let openssl = |arguments: &[&str]| {
        let output = Command::new("openssl").args(arguments).output().expect("install openssl");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let extension = directory.path().join("san");
    fs::write(&extension, "subjectAltName=IP:127.0.0.1").unwrap();
    let (ca_key, request) = (directory.path().join("c.key"), directory.path().join("e.csr"));
    let new = ["req", "-newkey", "rsa:2048", "-nodes", "-subj"];
    openssl(&[&new[..], &["/CN=ca", "-x509", "-keyout", &text(&ca_key), "-out", &text(&ca), "-days", "2"]].concat());
    openssl(&[&new[..], &["/CN=registry", "-keyout", &text(&key), "-out", &text(&request)]].concat());
    let sign = ["x509", "-req", "-in", &text(&request), "-CA", &text(&ca), "-CAkey", &text(&ca_key), "-CAcreateserial"];
    openssl(&[&sign[..], &["-days", "-1", "-extfile", &text(&extension), "-out", &text(&certificate)]].concat());
    let tls = format!("  tls:\n    certificate: {}\n    key: {}\n", certificate.display(), key.display());
    let registry = Registry::start(directory.path(), &tls, "");
    let folders = Folders::new();
    folders.write(&registry.host(), &format!("ca = \"{}\"", ca.display()));
    let bench = Bench::new(RegistriesConfig { tries_max: 1, ..folders.config() });
    let error = chain(&*bench.images.pull(&format!("{}/lib/busybox:1", registry.host()), None).await.unwrap_err());
    assert!(error.contains("xpired"), "{error}");
}
