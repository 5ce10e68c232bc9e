//! Image verifiers: programs that say yes or no before a layer is fetched.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use orlop_image::ImageConfig;
use orlop_image::digest::Digest;

use crate::scripted::ScriptedRegistry;
use crate::support::{Bench, chain, quick, small_image};

/// A folder of verifiers and a registry with the small image.
struct Case {
    directory: tempfile::TempDir,
    registry: ScriptedRegistry,
}

impl Case {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        small_image().write_layout_dir(&directory.path().join("layout"), "test:1").unwrap();
        let registry = ScriptedRegistry::start(&directory.path().join("layout"), |_, _| None);
        Self { directory, registry }
    }

    fn folder(&self) -> PathBuf {
        self.directory.path().join("verifiers")
    }

    fn add(&self, name: &str, script: &str) {
        fs::create_dir_all(self.folder()).unwrap();
        let path = self.folder().join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    async fn pull(&self, change: impl FnOnce(&mut ImageConfig)) -> Result<Bench, String> {
        let bench = Bench::with(|config| {
            config.registries = quick();
            config.verifier_dir = Some(self.folder());
            change(config);
        });
        match bench.images.pull(&self.registry.reference("1"), None).await {
            Ok(_) => Ok(bench),
            Err(error) => {
                assert_eq!(self.registry.count("/blobs/"), 0, "nothing is fetched");
                bench.assert_empty();
                Err(chain(&*error))
            }
        }
    }
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

#[tokio::test]
async fn all_verifiers_are_told_what_is_pulled_and_must_agree() {
    let case = Case::new();
    case.pull(|_| {}).await.unwrap_or_else(|error| panic!("a missing folder asks nobody: {error}"));
    let case = Case::new();
    let told = case.directory.path().join("told");
    case.add("a", &format!("echo \"$@\" > {0}; cat >> {0}; echo fine", told.display()));
    case.add("b", "exit 0");
    let bench = case.pull(|_| {}).await.unwrap();
    let name = case.registry.reference("1");
    let digest = bench.image(&name).manifest_digest.unwrap();
    let size = fs::metadata(case.directory.path().join("layout/blobs/sha256").join(&digest[7..])).unwrap().len();
    let text = read(&told);
    let (arguments, input) = text.split_once('\n').unwrap();
    let descriptor_type = "application/vnd.oci.descriptor.v1+json";
    assert_eq!(arguments, format!("-name {name} -digest {digest} -stdin-media-type {descriptor_type}"));
    let input: serde_json::Value = serde_json::from_str(input).unwrap();
    let manifest_type = "application/vnd.oci.image.manifest.v1+json";
    assert_eq!(input, serde_json::json!({"mediaType": manifest_type, "digest": digest, "size": size}));
    assert!(digest.parse::<Digest>().is_ok());
}

#[tokio::test]
async fn one_no_refuses_before_any_layer() {
    type Change = fn(&mut ImageConfig);
    let cases: [(&str, &str, Change, &[&str]); 5] = [
        ("no", "echo not signed by us; exit 1", |_| {}, &["verifiers/no: not signed by us"]),
        ("mute", "exit 2", |_| {}, &["verifiers/mute: it gave no reason", "2"]),
        (
            "slow",
            "sleep 1000",
            |config| config.verifier_timeout_seconds = 1,
            &["verifiers/slow", "no answer within 1s"],
        ),
        ("second", "exit 0", |config| config.verifiers_max = 1, &["2 programs, 1 at most"]),
        ("loud", "yes no | head -c 10000000; exit 1", |_| {}, &["verifiers/loud: no no no"]),
    ];
    for (name, script, change, parts) in cases {
        let case = Case::new();
        case.add("good", "exit 0");
        case.add(name, script);
        let error = case.pull(change).await.err().unwrap_or_else(|| panic!("{name} was passed over"));
        assert!(parts.iter().all(|part| error.contains(part)), "{name}: {error}");
        assert!(error.contains(&case.registry.reference("1")) && error.len() < 1000, "{name}: {error}");
    }
    let case = Case::new();
    case.add("good", "exit 0");
    fs::write(case.folder().join("README"), "text").unwrap();
    let error = case.pull(|_| {}).await.err().unwrap();
    assert!(error.contains("README is no executable file"), "{error}");
}
