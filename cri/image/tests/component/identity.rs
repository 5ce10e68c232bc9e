//! What an image is called: ids, tags and digests by CRI's rules, short names, pins, usage.

use orlop_image::ShortNames;
use orlop_image::build::{ImageBuilder, LayerBuilder};
use orlop_image::digest::Digest;

use crate::scripted::{Reply, ScriptedRegistry, Seen};
use crate::support::{Bench, chain, quick, small_image};

fn registry() -> (tempfile::TempDir, ScriptedRegistry) {
    let layout = tempfile::tempdir().unwrap();
    small_image().write_layout_dir(layout.path(), "test:1").unwrap();
    let registry = ScriptedRegistry::start(layout.path(), |_, _| None);
    (layout, registry)
}

#[tokio::test]
async fn an_image_is_one_by_whatever_name_and_registry() {
    let ((_a, first), (_b, second)) = (registry(), registry());
    let bench = Bench::new(quick());
    let id = bench.images.pull(&first.reference("1"), None).await.unwrap();
    for name in [first.reference("2"), second.reference("1")] {
        assert_eq!(bench.images.pull(&name, None).await.unwrap(), id);
    }
    let record = bench.image(&id);
    let mut tags = vec![first.reference("1"), first.reference("2"), second.reference("1")];
    tags.sort();
    assert_eq!((record.repo_tags.clone(), record.repo_digests.len()), (tags, 2));
    assert_eq!(bench.images.list(), std::slice::from_ref(&record));
    let short = id[7..20].to_owned();
    let names = record.repo_tags.iter().chain(&record.repo_digests).chain([&id, &short]);
    for name in names.clone() {
        assert_eq!(bench.image(name), record, "{name}");
    }
    for name in [&record.repo_tags[1], &record.repo_digests[0], &id, &short] {
        for tag in &record.repo_tags {
            bench.images.pull(tag, None).await.unwrap();
        }
        assert!(bench.images.remove(name).await.unwrap(), "{name}");
        for gone in names.clone() {
            assert!(bench.images.resolve(gone).unwrap().is_none(), "{gone} after {name}");
        }
        assert!(bench.images.list().is_empty());
    }
}

#[tokio::test]
async fn a_digest_is_what_decides() {
    let (layout, registry) = registry();
    let bench = Bench::new(quick());
    bench.images.pull(&registry.reference("1"), None).await.unwrap();
    let digest = bench.image(&registry.reference("1")).manifest_digest.unwrap();
    let other = Bench::new(quick());
    let name = format!("127.0.0.1:{}/test/app", registry.port);
    let id = other.images.pull(&format!("{name}:no-such-tag@{digest}"), None).await.unwrap();
    let record = other.image(&id);
    assert_eq!((record.repo_tags.len(), record.repo_digests.clone()), (0, vec![format!("{name}@{digest}")]));
    assert_eq!(other.image(&format!("{name}:any@{digest}")), record);
    assert_eq!(registry.count("/manifests/no-such-tag"), 0);

    // A tag that moves takes itself along, the digest stays with the image.
    let moved = tempfile::tempdir().unwrap();
    small_image().label("new", "yes").write_layout_dir(moved.path(), "test:1").unwrap();
    let index: serde_json::Value =
        serde_json::from_slice(&std::fs::read(moved.path().join("index.json")).unwrap()).unwrap();
    for entry in std::fs::read_dir(moved.path().join("blobs/sha256")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, layout.path().join("blobs/sha256").join(path.file_name().unwrap())).unwrap();
    }
    std::fs::write(layout.path().join("index.json"), index.to_string()).unwrap();
    let new = bench.images.pull(&registry.reference("1"), None).await.unwrap();
    assert_eq!(bench.image(&registry.reference("1")).id, new);
    let old = bench.image(&id);
    assert_eq!((old.repo_tags.len(), old.repo_digests), (0, vec![format!("{name}@{digest}")]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn removals_at_the_same_time_all_go_well() {
    let (_layout, registry) = registry();
    let bench = Bench::new(quick());
    for _ in 0..20 {
        let id = bench.images.pull(&registry.reference("1"), None).await.unwrap();
        bench.images.pull(&registry.reference("2"), None).await.unwrap();
        let removals = (0..5).map(|_| async {
            bench.images.remove(&id).await.unwrap();
            assert!(bench.images.resolve(&id).unwrap().is_none(), "gone as soon as one of them is answered");
        });
        futures::future::join_all(removals).await;
    }
    bench.assert_empty();
}

#[tokio::test]
async fn only_pulls_need_a_registry_in_the_name() {
    let bench = Bench::new(quick());
    let archive = bench.directory.path().join("load.tar");
    small_image().write_layout_tar(&archive, "docker.io/library/app:1").unwrap();
    bench.images.import(&archive, Vec::new()).await.unwrap();
    assert_eq!(bench.image("app:1").repo_tags, ["docker.io/library/app:1"]);
    let error = chain(&*bench.images.pull("app:1", None).await.unwrap_err());
    let advice = "\"app:1\" names no registry: write docker.io/library/app:1, or set short_names = \"docker.io\"";
    assert_eq!(error, advice);
    assert!(bench.images.remove("app:1").await.unwrap());

    // As containerd takes it: Docker's registry, here a stand-in.
    let hub = tempfile::tempdir().unwrap();
    small_image().write_layout_dir(hub.path(), "test:1").unwrap();
    let hub = ScriptedRegistry::start(hub.path(), |seen: &Seen, _| {
        (!seen.path.starts_with("/v2/library/app/")).then(|| Reply::new(404, ""))
    });
    let folder = bench.directory.path().join("hosts/docker.io");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("hosts.toml"), format!("server = \"http://127.0.0.1:{}\"", hub.port)).unwrap();
    let short = Bench::with(|config| {
        config.registries = quick();
        config.registries.hosts_dirs = vec![bench.directory.path().join("hosts")];
        config.short_names = ShortNames::DockerHub;
    });
    short.images.pull("app:1", None).await.unwrap();
    assert_eq!(short.image("app:1").repo_tags, ["docker.io/library/app:1"]);
}

#[tokio::test]
async fn pins_and_usage_are_told() {
    let bench = Bench::with(|config| config.pinned = vec!["a.example/pause:*".into(), "b.example/x".into()]);
    let base = || LayerBuilder::new().file("/base", vec![b'b'; 100_000], 0o644);
    let own = |name: &str| LayerBuilder::new().file(&format!("/{name}"), vec![b'o'; 50_000], 0o644);
    let mut ids = Vec::new();
    for (name, layers) in [
        ("a.example/pause:3", vec![base(), own("a")]),
        ("b.example/x:latest", vec![base(), own("b"), own("c")]),
        ("b.example/x:2", vec![base()]),
    ] {
        let archive = bench.directory.path().join("load.tar");
        let image = layers.into_iter().fold(ImageBuilder::new(), ImageBuilder::layer);
        image.write_layout_tar(&archive, name).unwrap();
        ids.extend(bench.images.import(&archive, Vec::new()).await.unwrap());
    }
    let pinned: Vec<bool> = ids.iter().map(|id| bench.image(id).pinned).collect();
    assert_eq!(pinned, [true, true, false]);
    let bench = bench.reopen();
    let usage = bench.images.usage();
    let of = |number: usize| usage[&ids[number]];
    assert!(of(0).disk_bytes >= 150_000 && of(1).disk_bytes > of(0).disk_bytes, "{usage:?}");
    assert!((50_000..100_000).contains(&of(0).own_disk_bytes) && of(0).own_inodes == of(0).inodes - of(2).inodes);
    assert!(of(1).own_disk_bytes >= 100_000 && of(2).own_disk_bytes == 0 && of(2).own_inodes == 0, "{usage:?}");
    // Together they are what the store has, once each.
    let shared = of(2);
    let own: u64 = usage.values().map(|usage| usage.own_inodes).sum();
    assert_eq!(bench.images.fs_info().inodes_used, own + shared.inodes);
    assert!(ids.iter().all(|id| id.parse::<Digest>().is_ok()));
}
