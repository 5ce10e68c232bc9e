//! Artifacts: files of any kind under a manifest, pulled, listed, held and removed as images are.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use orlop_image::digest::Digest;
use serde_json::{Value, json};

use crate::real_registry::Registry;
use crate::scripted::{Reply, ScriptedRegistry, from_layout};
use crate::support::{Bench, chain, noise, quick, run};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// Writes a layout with one artifact; returns the digest of its manifest.
fn write_layout(directory: &Path, files: &[(Option<&str>, &[u8])], change: impl FnOnce(&mut Value)) -> String {
    let blobs = directory.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let add = |bytes: &[u8]| {
        let digest = Digest::of(bytes);
        fs::write(blobs.join(digest.hex()), bytes).unwrap();
        (digest.to_string(), bytes.len())
    };
    let layers: Vec<Value> = files
        .iter()
        .map(|(title, bytes)| {
            let (digest, size) = add(bytes);
            let mut layer = json!({"mediaType": "text/plain", "digest": digest, "size": size});
            if let Some(title) = title {
                layer["annotations"] = json!({"org.opencontainers.image.title": title});
            }
            layer
        })
        .collect();
    let (config, size) = add(b"{}");
    let mut manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": "application/vnd.example.model",
        "config": {"mediaType": EMPTY, "digest": config, "size": size}, "layers": layers,
    });
    change(&mut manifest);
    let (digest, size) = add(manifest.to_string().as_bytes());
    let entry = json!({"mediaType": MANIFEST, "digest": digest, "size": size,
        "annotations": {"org.opencontainers.image.ref.name": "1"}});
    let index =
        json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [entry]});
    fs::write(directory.join("index.json"), index.to_string()).unwrap();
    fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    digest
}

fn assert_files(bench: &Bench, name: &str, weights: &[u8]) {
    let record = bench.image(name);
    let folder = record.artifact_folder().unwrap();
    assert_eq!(record.lower_dirs, [folder]);
    assert_eq!(fs::read(folder.join("model/weights.bin")).unwrap(), weights);
    assert_eq!(fs::read(folder.join("README.md")).unwrap(), b"read me");
    let mode = |path: &str| fs::metadata(folder.join(path)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode(""), mode("model"), mode("README.md")), (0o755, 0o755, 0o644));
}

#[tokio::test]
async fn an_artifact_of_a_real_registry_is_files_by_their_titles() {
    let directory = tempfile::tempdir().unwrap();
    let weights = noise(500_000);
    let layout = directory.path().join("layout");
    let files: [(Option<&str>, &[u8]); 2] = [(Some("model/weights.bin"), &weights), (Some("README.md"), b"read me")];
    let digest = write_layout(&layout, &files, |_| {});
    let registry = Registry::start(directory.path(), "", "");
    let to = format!("docker://{}/lib/model:1", registry.host());
    let from = format!("oci:{}:1", layout.display());
    run(
        "skopeo",
        &["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false", "--preserve-digests", &from, &to],
    );
    let bench = Bench::new(quick());
    let name = format!("{}/lib/model:1", registry.host());
    assert_eq!(bench.images.pull(&name, None).await.unwrap(), digest);
    assert_files(&bench, &name, &weights);
    let record = bench.image(&name);
    assert_eq!((record.id.as_str(), record.size_bytes), (digest.as_str(), 500_007));
    assert_eq!(record.artifact_type.as_deref(), Some("application/vnd.example.model"));
    assert_eq!(record.repo_tags, std::slice::from_ref(&name));
    assert_eq!(record.repo_digests, [format!("{}/lib/model@{digest}", registry.host())]);
    assert!(bench.images.usage()[&digest].own_disk_bytes >= 500_007);
    assert_eq!(bench.images.configuration_json(&digest).unwrap()["artifactType"], "application/vnd.example.model");

    bench.images.hold("volume", &digest).await.unwrap();
    let bench = bench.reopen();
    assert_eq!(bench.images.list(), std::slice::from_ref(&record));
    let folder = record.artifact_folder().unwrap();
    bench.images.remove(&name).await.unwrap();
    assert!(bench.images.list().is_empty() && folder.join("README.md").exists(), "held files stay");
    let bench = bench.reopen();
    assert!(folder.join("README.md").exists(), "held files stay over a restart");
    bench.images.release("volume").await.unwrap();
    bench.assert_empty();
    assert!(!folder.exists());
}

#[tokio::test]
async fn what_a_manifest_is_decides_its_configuration_and_layers() {
    let cases: [(&str, Value, Option<&str>); 3] = [
        (
            "config of its own",
            json!({"artifactType": null, "mediaType": "application/vnd.cncf.helm.config.v1+json"}),
            Some("application/vnd.cncf.helm.config.v1+json"),
        ),
        ("both", json!({"artifactType": "application/x", "mediaType": "application/y"}), Some("application/x")),
        (
            "image config, other layers",
            json!({"artifactType": null, "mediaType": "application/vnd.oci.image.config.v1+json"}),
            None,
        ),
    ];
    for (what, types, expected) in cases {
        let layout = tempfile::tempdir().unwrap();
        let id = write_layout(layout.path(), &[(None, b"chart")], |manifest| {
            manifest["artifactType"] = types["artifactType"].clone();
            manifest["config"]["mediaType"] = types["mediaType"].clone();
        });
        let registry = ScriptedRegistry::start(layout.path(), |_, _| None);
        let bench = Bench::new(quick());
        let outcome = bench.images.pull(&registry.reference("1"), None).await;
        let Some(expected) = expected else {
            let error = chain(&*outcome.unwrap_err());
            assert!(error.contains("layers[0]") && error.contains("text/plain"), "{what}: {error}");
            continue;
        };
        assert_eq!(outcome.unwrap(), id, "{what}");
        let record = bench.image(&id);
        assert_eq!(record.artifact_type.as_deref(), Some(expected), "{what}");
        let name = format!("sha256-{}", Digest::of(b"chart").hex());
        assert_eq!(fs::read(record.artifact_folder().unwrap().join(name)).unwrap(), b"chart", "{what}");
    }
}

#[tokio::test]
async fn hostile_artifacts_leave_nothing_outside_their_folder() {
    let layout = tempfile::tempdir().unwrap();
    let canary = std::env::temp_dir().join(format!("orlop-artifact-{}", std::process::id()));
    let absolute = canary.to_str().unwrap();
    let above = format!("../../../../../../../..{absolute}");
    let id = write_layout(
        layout.path(),
        &[(Some(absolute), b"a"), (Some(&above), b"b"), (Some("x"), b"c"), (Some("x/y"), b"d")],
        |_| {},
    );
    let registry = ScriptedRegistry::start(layout.path(), |_, _| None);
    let bench = Bench::new(quick());
    bench.images.pull(&registry.reference("1"), None).await.unwrap();
    assert!(!canary.exists());
    let folder = bench.image(&id).artifact_folder().unwrap().to_path_buf();
    let mut names: Vec<String> =
        fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let by_digest = |content: &str| format!("sha256-{}", Digest::of(content.as_bytes()).hex());
    let mut expected = vec![by_digest("a"), by_digest("b"), by_digest("d"), "x".to_owned()];
    expected.sort();
    assert_eq!(names, expected);
}

#[tokio::test]
async fn wrong_or_too_many_bytes_leave_nothing() {
    let layout = tempfile::tempdir().unwrap();
    write_layout(layout.path(), &[(Some("good"), b"good"), (Some("bad"), b"as it should be")], |_| {});
    let bad = Digest::of(b"as it should be").hex();
    let hex = bad.clone();
    let registry = ScriptedRegistry::start(layout.path(), move |seen, earlier| {
        (seen.path.contains(&hex) && earlier == 0).then(|| Reply::new(200, "as it is, so ill"[..15].to_owned()))
    });
    let bench = Bench::new(quick());
    let error = chain(&*bench.images.pull(&registry.reference("1"), None).await.unwrap_err());
    assert!(error.contains("wrong content") && error.contains(&bad), "{error}");
    bench.wait_for_clean_staging().await;
    bench.assert_empty();
    bench.images.pull(&registry.reference("1"), None).await.unwrap();

    let small = Bench::with(|config| {
        config.registries = quick();
        config.limits.bytes_max = 10;
    });
    let error = chain(&*small.images.pull(&registry.reference("1"), None).await.unwrap_err());
    assert!(error.contains("19 bytes, 10 at most"), "{error}");
    let full = Bench::with(|config| {
        config.registries = quick();
        config.limits.free_bytes_min = u64::MAX / 2;
    });
    let error = chain(&*full.images.pull(&registry.reference("1"), None).await.unwrap_err());
    assert!(error.contains("free"), "{error}");
}

#[tokio::test]
async fn a_file_that_breaks_off_goes_on_where_it_ended() {
    let layout = tempfile::tempdir().unwrap();
    let weights = noise(400_000);
    write_layout(layout.path(), &[(Some("model/weights.bin"), &weights), (Some("README.md"), b"read me")], |_| {});
    let path = layout.path().to_path_buf();
    let registry = ScriptedRegistry::start(layout.path(), move |seen, earlier| {
        let honest = from_layout(&path, seen);
        (honest.body.len() > 100_000 && earlier == 0).then_some(Reply { cut_after: Some(200_000), ..honest })
    });
    let bench = Bench::new(quick());
    bench.images.pull(&registry.reference("1"), None).await.unwrap();
    assert_files(&bench, &registry.reference("1"), &weights);
    let seen = registry.seen.lock().unwrap();
    assert!(seen.iter().any(|seen| seen.headers.get("range").is_some_and(|range| range != "bytes=0-")));
}

#[tokio::test]
async fn an_archive_of_an_artifact_is_refused_by_name() {
    let layout = tempfile::tempdir().unwrap();
    write_layout(layout.path(), &[(Some("a"), b"a")], |_| {});
    let bench = Bench::new(quick());
    let error = bench.images.import(layout.path(), Vec::new()).await.unwrap_err().to_string();
    assert!(error.contains("is an artifact (application/vnd.example.model)"), "{error}");
}
