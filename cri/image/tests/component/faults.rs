//! A registry that refuses, limits, fails, cuts, stalls, redirects or lies.

use std::sync::Arc;

use orlop_image::digest::Digest;
use orlop_image::{Credentials, HostConfig};

use crate::scripted::{Reply, ScriptedRegistry, Seen, from_layout};
use crate::support::{Bench, chain, noise, quick, small_image};

/// A layout directory with the small image, and its largest layer.
fn layout() -> (tempfile::TempDir, Digest) {
    let directory = tempfile::tempdir().unwrap();
    small_image().write_layout_dir(directory.path(), "test:1").unwrap();
    let blobs = std::fs::read_dir(directory.path().join("blobs/sha256")).unwrap();
    let largest = blobs.map(Result::unwrap).max_by_key(|entry| entry.metadata().unwrap().len()).unwrap();
    let digest = format!("sha256:{}", largest.file_name().to_str().unwrap()).parse().unwrap();
    (directory, digest)
}

async fn failure(bench: &Bench, registry: &ScriptedRegistry) -> String {
    chain(&*bench.images.pull(&registry.reference("1"), None).await.unwrap_err())
}

#[tokio::test]
async fn faults_that_pass_are_waited_for() {
    let (layout, layer) = layout();
    let hook = move |seen: &Seen, earlier: usize| match (earlier, seen.path.contains("/manifests/")) {
        (0, true) => Some(Reply::new(429, "").header("Retry-After", "0")),
        (1, true) => Some(Reply::new(500, "")),
        (2, true) => Some(Reply::new(503, "")),
        (0, false) if seen.path.contains(&layer.hex()) => Some(Reply::new(502, "")),
        _ => None,
    };
    let registry = ScriptedRegistry::start(layout.path(), hook);
    let bench = Bench::new(quick());
    bench.images.pull(&registry.reference("1"), None).await.unwrap();
    assert_eq!(registry.count("/manifests/1"), 4);
    assert_eq!(bench.image(&registry.reference("1")).lower_dirs.len(), 2);
}

#[tokio::test]
async fn case_07_faults_that_stay_end_with_a_clear_error_and_nothing_kept() {
    let (layout, layer) = layout();
    type Case = (&'static str, Box<dyn Fn(&Seen) -> Option<Reply> + Send + Sync>, &'static [&'static str]);
    let hex = layer.hex();
    let (a, b, c, d, e) = (hex.clone(), hex.clone(), hex.clone(), hex.clone(), hex.clone());
    let is_manifest = |seen: &Seen| seen.path.contains("/manifests/");
    let cases: Vec<Case> = vec![
        (
            "500",
            Box::new(move |seen| is_manifest(seen).then(|| Reply::new(500, ""))),
            &["unavailable after 5 tries", "500"],
        ),
        (
            "429",
            Box::new(move |seen| is_manifest(seen).then(|| Reply::new(429, "").header("Retry-After", "3600"))),
            &["limits the rate", "429"],
        ),
        (
            "404",
            Box::new(move |seen| is_manifest(seen).then(|| Reply::new(404, ""))),
            &["has no manifests 1 of test/app"],
        ),
        (
            "403",
            Box::new(move |seen| {
                is_manifest(seen).then(|| Reply::new(403, r#"{"errors":[{"message":"no\u0000pe"}]}"#))
            }),
            &["denies access (nope)"],
        ),
        (
            "401",
            Box::new(move |seen| {
                is_manifest(seen).then(|| Reply::new(401, "").header("WWW-Authenticate", "Basic realm=\"x\""))
            }),
            &["wants credentials", "imagePullSecret"],
        ),
        (
            "html",
            Box::new(move |seen| {
                is_manifest(seen).then(|| Reply::new(200, "<html>").header("Content-Type", "text/html"))
            }),
            &["not valid JSON"],
        ),
        (
            "huge manifest",
            Box::new(move |seen| is_manifest(seen).then(|| Reply::new(200, vec![b' '; 5 << 20]))),
            &["larger than 4194304 bytes"],
        ),
        (
            "other manifest",
            Box::new(move |seen| {
                is_manifest(seen).then(|| {
                    Reply::new(200, "{}").header("Docker-Content-Digest", format!("sha256:{}", "0".repeat(64)))
                })
            }),
            &["wrong content for sha256:0000"],
        ),
        (
            "wrong bytes",
            Box::new(move |seen| seen.path.contains(&a).then(|| Reply::new(200, vec![1; blob_size(&seen.path)]))),
            &["wrong content for sha256:", "digest"],
        ),
        (
            "too short",
            Box::new(move |seen| seen.path.contains(&b).then(|| Reply::new(200, "x"))),
            &["wrong content for", "1 bytes instead of"],
        ),
        (
            "too long",
            Box::new(move |seen| seen.path.contains(&e).then(|| Reply::new(200, vec![1; blob_size(&seen.path) + 1]))),
            &["wrong content for sha256:"],
        ),
        (
            "cut for ever",
            Box::new(move |seen| {
                seen.path
                    .contains(&c)
                    .then(|| Reply { cut_after: Some(0), ..Reply::new(200, vec![0; blob_size(&seen.path)]) })
            }),
            &["unavailable after", "at byte 0 of"],
        ),
        (
            "no such blob",
            Box::new(move |seen| seen.path.contains(&d).then(|| Reply::new(404, ""))),
            &["has no blobs sha256"],
        ),
    ];
    SIZE.set(std::fs::metadata(layout.path().join("blobs/sha256").join(&hex)).unwrap().len() as usize).unwrap();
    for (name, hook, parts) in cases {
        let bench = Bench::new(quick());
        let misbehave = Arc::new(std::sync::atomic::AtomicBool::new(true));
        let on = Arc::clone(&misbehave);
        let registry = ScriptedRegistry::start(layout.path(), move |seen, _| {
            on.load(std::sync::atomic::Ordering::SeqCst).then(|| hook(seen)).flatten()
        });
        let error = failure(&bench, &registry).await;
        for part in parts {
            assert!(error.contains(part), "{name}: {error}");
        }
        assert!(bench.images.list().is_empty(), "{name}");
        bench.wait_for_clean_staging().await;
        assert!(!bench.files("layers").contains(&hex), "{name}");
        misbehave.store(false, std::sync::atomic::Ordering::SeqCst);
        bench
            .images
            .pull(&registry.reference("1"), None)
            .await
            .unwrap_or_else(|error| panic!("{name}: the next good pull: {error}"));
    }
}

static SIZE: std::sync::OnceLock<usize> = std::sync::OnceLock::new();

fn blob_size(_: &str) -> usize {
    *SIZE.get().unwrap()
}

/// One big incompressible layer, so that it can be cut in the middle.
fn big_layout() -> (tempfile::TempDir, Digest) {
    let directory = tempfile::tempdir().unwrap();
    let layer = orlop_image::build::LayerBuilder::new().file("/noise", noise(400_000), 0o644);
    orlop_image::build::ImageBuilder::new().layer(layer).write_layout_dir(directory.path(), "test:1").unwrap();
    let blobs = std::fs::read_dir(directory.path().join("blobs/sha256")).unwrap();
    let largest = blobs.map(Result::unwrap).max_by_key(|entry| entry.metadata().unwrap().len()).unwrap();
    (directory, format!("sha256:{}", largest.file_name().to_str().unwrap()).parse().unwrap())
}

#[tokio::test]
async fn a_cut_or_stalled_stream_is_resumed_where_it_ended() {
    let (layout, layer) = big_layout();
    let path = layout.path().to_path_buf();
    let hook = move |seen: &Seen, earlier: usize| {
        let honest = seen.path.contains(&layer.hex()).then(|| from_layout(&path, seen))?;
        match earlier {
            0 => Some(Reply { cut_after: Some(100_000), ..honest }),
            1 => Some(Reply { stall_after: Some(50_000), ..honest }),
            2 => Some(Reply { cut_after: Some(1), ..honest }),
            _ => None,
        }
    };
    let registry = ScriptedRegistry::start(layout.path(), hook);
    let bench = Bench::new(quick());
    bench.images.pull(&registry.reference("1"), None).await.unwrap();
    let ranges: Vec<Option<String>> = registry
        .seen
        .lock()
        .unwrap()
        .iter()
        .filter(|seen| seen.path.contains(&layer.hex()))
        .map(|seen| seen.headers.get("range").cloned())
        .collect();
    assert_eq!(ranges.len(), 4, "{ranges:?}");
    assert_eq!(ranges[0], None);
    assert!(ranges[1..].iter().all(Option::is_some), "{ranges:?}");
}

#[tokio::test]
async fn a_server_without_ranges_is_read_again_from_the_start() {
    let (layout, layer) = big_layout();
    let path = layout.path().to_path_buf();
    let hook = move |seen: &Seen, earlier: usize| {
        let mut without = seen.clone();
        without.headers.remove("range");
        let whole = seen.path.contains(&layer.hex()).then(|| from_layout(&path, &without))?;
        Some(if earlier < 2 { Reply { cut_after: Some(100_000 * (earlier + 1)), ..whole } } else { whole })
    };
    let registry = ScriptedRegistry::start(layout.path(), hook);
    let bench = Bench::new(quick());
    bench.images.pull(&registry.reference("1"), None).await.unwrap();
    assert_eq!(registry.count(&layer.hex()), 3);
}

#[tokio::test]
async fn case_09_credentials_never_follow_a_redirect() {
    let (layout, layer) = layout();
    let other = ScriptedRegistry::start(layout.path(), |_, _| None);
    let port = other.port;
    let hook = move |seen: &Seen, _: usize| {
        if !seen.headers.contains_key("authorization") {
            return Some(Reply::new(401, "").header("WWW-Authenticate", "Basic realm=\"x\""));
        }
        seen.path
            .contains(&layer.hex())
            .then(|| Reply::new(307, "").header("Location", format!("http://127.0.0.1:{port}{}", seen.path)))
    };
    let registry = ScriptedRegistry::start(layout.path(), hook);
    let bench = Bench::new(quick());
    bench.images.pull(&registry.reference("1"), Some(Credentials::basic("me", "secret"))).await.unwrap();
    assert_eq!(other.count(&layer.hex()), 1);
    assert!(other.seen.lock().unwrap().iter().all(|seen| !seen.headers.contains_key("authorization")));
}

#[tokio::test]
async fn case_09_token_servers_elsewhere_get_nothing() {
    let (layout, _) = layout();
    let realms = [
        "http://192.0.2.1/token",
        "https://192.0.2.1/token",
        "https://169.254.169.254/token",
        "http://169.254.169.254/latest",
        "ftp://x/",
        "nonsense",
    ];
    for realm in realms {
        let hook = move |_: &Seen, _: usize| {
            Some(Reply::new(401, "").header("WWW-Authenticate", format!("Bearer realm=\"{realm}\",service=\"s\"")))
        };
        let registry = ScriptedRegistry::start(layout.path(), hook);
        let bench = Bench::new(quick());
        let error =
            bench.images.pull(&registry.reference("1"), Some(Credentials::basic("me", "secret"))).await.unwrap_err();
        let text = chain(&*error);
        assert!(text.contains("refused"), "{realm}: {text}");
        assert!(!text.contains("secret"), "{text}");
    }
}

#[tokio::test]
async fn a_token_server_that_is_allowed_gets_the_credentials_and_its_token_is_used() {
    let (layout, _) = layout();
    let tokens = ScriptedRegistry::start(layout.path(), |seen, _| {
        let known = seen.headers.get("authorization").is_some_and(|value| value == "Basic bWU6c2VjcmV0");
        Some(if known { Reply::new(200, r#"{"token":"t0ken"}"#) } else { Reply::new(401, "") })
    });
    let port = tokens.port;
    let hook = move |seen: &Seen, _: usize| {
        let good = seen.headers.get("authorization").is_some_and(|value| value == "Bearer t0ken");
        let challenge = format!(
            "Bearer realm=\"http://127.0.0.1:{port}/token\",service=\"reg\",scope=\"repository:test/app:pull\""
        );
        (!good).then(|| Reply::new(401, "").header("WWW-Authenticate", challenge))
    };
    let registry = ScriptedRegistry::start(layout.path(), hook);
    let bench = Bench::new(quick());
    bench.images.pull(&registry.reference("1"), Some(Credentials::basic("me", "secret"))).await.unwrap();
    let asked = tokens.seen.lock().unwrap()[0].path.clone();
    assert!(asked.contains("service=reg") && asked.contains("scope=repository%3Atest%2Fapp%3Apull"), "{asked}");
    let error = bench.images.pull(&registry.reference("2"), Some(Credentials::basic("me", "wrong"))).await.unwrap_err();
    assert!(chain(&*error).contains("wants credentials"), "{error}");
}

#[tokio::test]
async fn nobody_there_is_said_so() {
    let mut registries = quick();
    registries.tries_max = 2;
    let reference = format!("127.0.0.1:{}/a:1", crate::support::free_port());
    registries.hosts.insert(
        "missing.example".into(),
        HostConfig { ca_file: Some("/nonexistent/ca.pem".into()), ..HostConfig::default() },
    );
    let bench = Bench::new(registries);
    let error = chain(&*bench.images.pull(&reference, None).await.unwrap_err());
    assert!(error.contains("unavailable after 2 tries") && error.contains("refused"), "{error}");
    let error = chain(&*bench.images.pull("missing.example/a", None).await.unwrap_err());
    assert!(error.contains("caFile /nonexistent/ca.pem"), "{error}");
}

#[tokio::test]
async fn case_08_an_index_leads_to_our_platform_and_confusion_is_refused() {
    let (layout, _) = layout();
    let index: serde_json::Value =
        serde_json::from_slice(&std::fs::read(layout.path().join("index.json")).unwrap()).unwrap();
    let own = index["manifests"][0].clone();
    let mut foreign = own.clone();
    foreign["platform"]["architecture"] = "s390x".into();
    foreign["digest"] = format!("sha256:{}", "1".repeat(64)).into();
    let list = "application/vnd.docker.distribution.manifest.list.v2+json";
    let good =
        serde_json::json!({"schemaVersion": 2, "mediaType": list, "manifests": [foreign.clone(), own]}).to_string();
    let without = serde_json::json!({"schemaVersion": 2, "mediaType": list, "manifests": [foreign]}).to_string();
    let digest = Digest::of(good.as_bytes());
    let served = good.clone();
    let hook = move |seen: &Seen, _: usize| match seen.path.rsplit('/').next()? {
        "1" => Some(Reply::new(200, served.clone()).header("Content-Type", list)),
        "without" => Some(Reply::new(200, without.clone()).header("Content-Type", list)),
        "confused" => {
            Some(Reply::new(200, served.clone()).header("Content-Type", "application/vnd.oci.image.manifest.v1+json"))
        }
        _ => None,
    };
    let registry = ScriptedRegistry::start(layout.path(), hook);
    let bench = Bench::new(quick());
    bench.images.pull(&registry.reference("1"), None).await.unwrap();
    let record = bench.image(&registry.reference("1"));
    assert_eq!(
        record.repo_digests,
        [format!("127.0.0.1:{}/test/app@{digest}", registry.port)],
        "the digest of the index names the image"
    );
    let manifest = record.manifest_digest.clone().unwrap();
    assert_eq!(bench.image(&format!("127.0.0.1:{}/test/app@{manifest}", registry.port)).id, record.id);
    let error = chain(&*bench.images.pull(&registry.reference("without"), None).await.unwrap_err());
    assert!(error.contains("no manifest for linux/") && error.contains("s390x"), "{error}");
    let error = chain(&*bench.images.pull(&registry.reference("confused"), None).await.unwrap_err());
    assert!(error.contains("served as"), "{error}");
}

#[tokio::test]
async fn no_byte_for_long_enough_ends_the_pull_and_names_the_layer() {
    let (layout, layer) = big_layout();
    let path = layout.path().to_path_buf();
    // Never an answer at all, or one that ends in the middle each time.
    for silent in [true, false] {
        let (hex, path) = (layer.hex(), path.clone());
        let registry = ScriptedRegistry::start(layout.path(), move |seen, _| {
            let honest = seen.path.contains(&hex).then(|| from_layout(&path, seen))?;
            Some(if silent {
                Reply { stall_before: true, ..honest }
            } else {
                Reply { stall_after: Some(if seen.headers.contains_key("range") { 0 } else { 1000 }), ..honest }
            })
        });
        let mut registries = quick();
        registries.progress_timeout_seconds = 2;
        registries.tries_max = 4;
        let bench = Bench::new(registries);
        let began = std::time::Instant::now();
        let error = failure(&bench, &registry).await;
        assert!(error.contains(&layer.to_string()) && error.contains(" s"), "{error}");
        let seconds = began.elapsed().as_secs_f32();
        assert!((1.5..8.0).contains(&seconds), "{seconds}");
    }
}

#[tokio::test]
async fn a_registry_that_stalls_holds_nobody_else_up() {
    let layout = tempfile::tempdir().unwrap();
    let layer = |number: usize| orlop_image::build::LayerBuilder::new().file(&format!("/{number}"), "x", 0o644);
    let image = (0..6).fold(orlop_image::build::ImageBuilder::new(), |image, number| image.layer(layer(number)));
    image.write_layout_dir(layout.path(), "test:1").unwrap();
    let path = layout.path().to_path_buf();
    let stalls = ScriptedRegistry::start(layout.path(), move |seen, _| {
        let honest = from_layout(&path, seen);
        (!honest.body.starts_with(b"{")).then_some(Reply { stall_before: true, ..honest })
    });
    let other = tempfile::tempdir().unwrap();
    let layer = orlop_image::build::LayerBuilder::new().file("/other", "x", 0o644);
    orlop_image::build::ImageBuilder::new().layer(layer).write_layout_dir(other.path(), "test:1").unwrap();
    let works = ScriptedRegistry::start(other.path(), |_, _| None);
    let bench = Bench::new(orlop_image::RegistriesConfig { progress_timeout_seconds: 600, ..quick() });
    let (slow, quick) = (stalls.reference("1"), works.reference("1"));
    let stuck = bench.images.pull(&slow, None);
    let other = async {
        while stalls.count("/blobs/") < 1 + bench.config.parallel_layers {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        bench.images.pull(&quick, None).await.unwrap();
    };
    tokio::select! {
        _ = stuck => panic!("the stalled pull ended"),
        () = other => {}
    }
}

#[tokio::test]
async fn case_07_a_manifest_with_a_wrong_size_of_a_right_blob() {
    let (layout, layer) = layout();
    let index: serde_json::Value =
        serde_json::from_slice(&std::fs::read(layout.path().join("index.json")).unwrap()).unwrap();
    let own = index["manifests"][0]["digest"].as_str().unwrap().trim_start_matches("sha256:").to_owned();
    let manifest: serde_json::Value =
        serde_json::from_slice(&std::fs::read(layout.path().join("blobs/sha256").join(own)).unwrap()).unwrap();
    let registry = {
        let manifest = manifest.clone();
        ScriptedRegistry::start(layout.path(), move |seen, _| {
            let change: i64 = match seen.path.rsplit('/').next()? {
                "more" => 1,
                "less" => -1,
                _ => return None,
            };
            let mut wrong = manifest.clone();
            for descriptor in wrong["layers"].as_array_mut().unwrap() {
                descriptor["size"] = (descriptor["size"].as_i64().unwrap() + change).into();
            }
            let kind = wrong["mediaType"].as_str().unwrap().to_owned();
            Some(Reply::new(200, wrong.to_string()).header("Content-Type", kind))
        })
    };
    let bench = Bench::new(quick());
    for tag in ["more", "less"] {
        let error = chain(&*bench.images.pull(&registry.reference(tag), None).await.unwrap_err());
        assert!(error.contains("sha256:") && error.contains("bytes"), "{tag}: {error}");
        assert!(bench.images.list().is_empty(), "{tag}");
        bench.wait_for_clean_staging().await;
        assert!(!bench.files("layers").contains(&layer.hex()), "{tag}");
    }
    bench.images.pull(&registry.reference("1"), None).await.unwrap();
}

#[tokio::test]
async fn case_08_documents_that_are_two_things_or_too_much() {
    const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    let (layout, _) = layout();
    let blob = |kind: &str, number: usize| serde_json::json!({"mediaType": kind, "digest": Digest::of(number.to_string().as_bytes()), "size": 1});
    let config = blob("application/vnd.oci.image.config.v1+json", 0);
    let layers = |count: usize| {
        (1..=count).map(|number| blob("application/vnd.oci.image.layer.v1.tar", number)).collect::<Vec<_>>()
    };
    // Each index of the chain names the next; the last names one that is not there.
    let mut chain_of = vec![serde_json::json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [blob(INDEX, 9)]})];
    for _ in 0..20 {
        let text = chain_of.last().unwrap().to_string();
        let entry = serde_json::json!({"mediaType": INDEX, "digest": Digest::of(text.as_bytes()), "size": text.len()});
        chain_of.push(serde_json::json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}));
    }
    let nested: Vec<String> = chain_of.iter().map(ToString::to_string).collect();
    let documents = [
        (
            "both",
            serde_json::json!({"schemaVersion": 2, "config": config, "layers": layers(1), "manifests": []}),
            MANIFEST,
        ),
        (
            "type",
            serde_json::json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers(1)}),
            INDEX,
        ),
        (
            "other",
            serde_json::json!({"schemaVersion": 2, "mediaType": "text/plain", "config": config, "layers": []}),
            "text/plain",
        ),
        (
            "old",
            serde_json::json!({"schemaVersion": 1, "name": "x", "fsLayers": []}),
            "application/vnd.docker.distribution.manifest.v1+prettyjws",
        ),
        (
            "layers",
            serde_json::json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers(10_000)}),
            MANIFEST,
        ),
        ("choice", serde_json::json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": layers(10_000)}), INDEX),
        (
            "deep",
            serde_json::json!({"schemaVersion": 2, "config": (0..100).fold(serde_json::json!({}), |inner, _| serde_json::json!({"a": inner})), "layers": []}),
            MANIFEST,
        ),
    ];
    let words = [
        ("both", "both manifests and config"),
        ("type", "served as"),
        ("other", "text/plain"),
        ("old", "schemaVersion 1"),
        ("layers", "10000 layers, 500 at most"),
        ("choice", "10000 entries"),
        ("deep", "not valid JSON"),
        ("big", "larger than 4194304 bytes"),
        ("nested", "index"),
    ];
    let registry = ScriptedRegistry::start(layout.path(), move |seen, _| {
        let name = seen.path.rsplit('/').next()?;
        if let Some((_, document, kind)) = documents.iter().find(|(tag, ..)| *tag == name) {
            return Some(Reply::new(200, document.to_string()).header("Content-Type", *kind));
        }
        let found = nested.iter().find(|text| Digest::of(text.as_bytes()).to_string() == name);
        let found = if name == "nested" { nested.last() } else { found };
        match found {
            Some(text) => Some(Reply::new(200, text.clone()).header("Content-Type", INDEX)),
            None => (name == "big").then(|| Reply::new(200, vec![b' '; 5 << 20]).header("Content-Type", MANIFEST)),
        }
    });
    let bench = Bench::new(quick());
    for (tag, part) in words {
        let began = std::time::Instant::now();
        let error = chain(&*bench.images.pull(&registry.reference(tag), None).await.unwrap_err());
        assert!(error.contains(part), "{tag}: {error}");
        assert!(began.elapsed().as_secs() < 5, "{tag}: {:?}", began.elapsed());
        bench.assert_empty();
    }
    assert!(registry.count("/manifests/sha256:") < 4, "indexes are followed further and further");
}
