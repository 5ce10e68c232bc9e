//! The store across restarts, damage, removal and concurrent use.

use std::fs;

use orlop_image::build::{ImageBuilder, LayerBuilder};
use orlop_image::{ImageError, Images};

use crate::scripted::{Reply, ScriptedRegistry, from_layout};
use crate::support::{Bench, quick, small_image};

async fn load(bench: &Bench, name: &str, builder: ImageBuilder) -> String {
    let archive = bench.directory.path().join("load.tar");
    builder.write_layout_tar(&archive, name).unwrap();
    bench.images.import(&archive, Vec::new()).await.unwrap().remove(0)
}

#[tokio::test]
async fn a_second_instance_is_told_who_owns_the_store() {
    let bench = Bench::new(quick());
    let error = Images::open(bench.config.clone()).err().unwrap();
    assert!(matches!(error, ImageError::Locked { .. }));
    assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
    bench.reopen();
}

#[tokio::test]
async fn images_and_holds_survive_a_restart_and_layers_go_with_the_last_user() {
    let bench = Bench::new(quick());
    let id = load(&bench, "example.com/app:1", small_image()).await;
    let other = load(&bench, "example.com/other:1", small_image().label("a", "b")).await;
    bench.images.hold("container/../1", &id).await.unwrap();
    bench.images.hold("container/../1", &id).await.unwrap();
    let before = bench.images.list();
    let bench = bench.reopen();
    assert_eq!(bench.images.list(), before);
    assert!(bench.images.fs_info().used_bytes > 300_000 && bench.images.fs_info().inodes_used > 4);

    let lower = bench.image(&id).lower_dirs;
    assert!(bench.images.remove("example.com/app:1").await.unwrap());
    assert!(!bench.images.remove("example.com/app:1").await.unwrap());
    assert!(bench.images.remove(&other).await.unwrap());
    assert!(bench.images.list().is_empty());
    assert!(lower.iter().all(|directory| directory.is_dir()), "held layers stay");
    let bench = bench.reopen();
    assert!(lower.iter().all(|directory| directory.is_dir()), "held layers stay over a restart");
    assert_eq!(bench.images.holders(), ["container/../1"]);
    bench.images.release("container/../1").await.unwrap();
    bench.images.release("container/../1").await.unwrap();
    bench.assert_empty();
    assert!(bench.files("blobs/sha256").is_empty());
    assert!(bench.images.hold("c", &id).await.is_err());
}

#[tokio::test]
async fn a_moved_tag_leaves_the_old_image_by_digest() {
    let bench = Bench::new(quick());
    let old = load(&bench, "example.com/app:1", small_image()).await;
    let new = load(&bench, "example.com/app:1", small_image().label("new", "yes")).await;
    assert_ne!(old, new);
    assert_eq!(bench.image("example.com/app:1").id, new);
    let bench = bench.reopen();
    assert_eq!(bench.image("example.com/app:1").id, new);
    assert!(bench.images.resolve(&old).unwrap().is_none());
}

#[tokio::test]
async fn damage_costs_one_image_and_never_the_start() {
    type Damage = fn(&std::path::Path);
    let damages: [(&str, Damage); 5] = [
        ("empty", |path| fs::write(path, "").unwrap()),
        ("cut", |path| fs::write(path, &fs::read(path).unwrap()[..20]).unwrap()),
        ("flipped", |path| {
            let mut bytes = fs::read(path).unwrap();
            bytes[5] ^= 0xff;
            fs::write(path, bytes).unwrap();
        }),
        ("a directory", |path| {
            fs::remove_file(path).unwrap();
            fs::create_dir(path).unwrap();
        }),
        ("missing", |path| fs::remove_file(path).unwrap()),
    ];
    for (what, damage) in damages {
        for folder in ["names", "blobs/sha256", "leases", "layers"] {
            let bench = Bench::new(quick());
            let id = load(&bench, "example.com/app:1", small_image()).await;
            load(&bench, "example.com/sound:1", ImageBuilder::new().layer(LayerBuilder::new().file("/a", "a", 0o600)))
                .await;
            bench.images.hold("c", &id).await.unwrap();
            let victim = match folder {
                "names" => {
                    let named =
                        |path: &std::path::Path| fs::read_to_string(path).unwrap().contains("example.com/app:1");
                    fs::read_dir(bench.state("names"))
                        .unwrap()
                        .map(|entry| entry.unwrap().path())
                        .find(|path| named(path))
                        .unwrap()
                }
                "blobs/sha256" => bench.state("blobs/sha256").join(&id[7..]),
                "layers" => bench.image(&id).lower_dirs[0].parent().unwrap().join("layer.json"),
                _ => fs::read_dir(bench.state("leases")).unwrap().next().unwrap().unwrap().path(),
            };
            damage(&victim);
            let bench = bench.reopen();
            assert!(bench.images.resolve("example.com/sound:1").unwrap().is_some(), "{folder} {what}");
            assert_eq!(
                bench.images.resolve("example.com/app:1").unwrap().is_some(),
                folder == "leases",
                "{folder} {what}"
            );
            assert!(bench.files("staging").is_empty(), "{folder} {what}");
            load(&bench, "example.com/app:1", small_image()).await;
            let bench = bench.reopen();
            assert_eq!(bench.image("example.com/app:1").id, id, "{folder} {what}: loaded again");
        }
    }
}

#[tokio::test]
async fn leftovers_of_a_killed_process_are_removed() {
    let bench = Bench::new(quick());
    fs::create_dir_all(bench.state("staging/half/fs/a/b")).unwrap();
    fs::create_dir_all(bench.state("layers").join("0".repeat(64)).join("fs")).unwrap();
    fs::write(bench.state("names/.x.orlop-new"), "half").unwrap();
    fs::write(bench.state("blobs/sha256/.x.orlop-new"), "half").unwrap();
    let bench = bench.reopen();
    bench.assert_empty();
    assert!(bench.files("blobs/sha256").is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pulls_of_the_same_content_share_the_work() {
    let layout = tempfile::tempdir().unwrap();
    small_image().write_layout_dir(layout.path(), "test:1").unwrap();
    let registry = ScriptedRegistry::start(layout.path(), |_, _| None);
    let bench = Bench::new(quick());
    // The same image by one name, and the same layers by other names.
    let names: Vec<String> = (0..20).map(|number| registry.reference(if number < 10 { "1" } else { "2" })).collect();
    let pulls = names.iter().map(|name| bench.images.pull(name, None));
    let ids = futures::future::try_join_all(pulls).await.unwrap();
    assert!(ids.iter().all(|id| *id == ids[0]));
    assert_eq!(registry.count("/manifests/"), 2, "one pull per name");
    let index: serde_json::Value =
        serde_json::from_slice(&fs::read(layout.path().join("index.json")).unwrap()).unwrap();
    let manifest = &index["manifests"][0]["digest"].as_str().unwrap()[7..];
    let manifest: serde_json::Value =
        serde_json::from_slice(&fs::read(layout.path().join("blobs/sha256").join(manifest)).unwrap()).unwrap();
    for layer in manifest["layers"].as_array().unwrap() {
        assert_eq!(registry.count(layer["digest"].as_str().unwrap()), 1, "each layer is fetched once");
    }
    assert_eq!(bench.image(&ids[0]).repo_tags.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_pull_stops_and_leaves_nothing() {
    let layout = tempfile::tempdir().unwrap();
    small_image().write_layout_dir(layout.path(), "test:1").unwrap();
    let path = layout.path().to_path_buf();
    // The configuration arrives, the large layer does not.
    let registry = ScriptedRegistry::start(layout.path(), move |seen, _| {
        let honest = from_layout(&path, seen);
        (honest.body.len() > 100_000).then_some(Reply { stall_after: Some(10), ..honest })
    });
    let mut registries = quick();
    registries.progress_timeout_seconds = 600;
    let bench = Bench::new(registries);
    let name = registry.reference("1");
    let pull = bench.images.pull(&name, None);
    assert!(tokio::time::timeout(std::time::Duration::from_millis(200), pull).await.is_err());
    bench.wait_for_clean_staging().await;
    assert!(bench.images.list().is_empty());
}

#[tokio::test]
async fn progress_reaches_the_end() {
    let layout = tempfile::tempdir().unwrap();
    small_image().write_layout_dir(layout.path(), "test:1").unwrap();
    let registry = ScriptedRegistry::start(layout.path(), |_, _| None);
    let bench = Bench::new(quick());
    let pull = bench.images.start_pull(&registry.reference("1"), None).unwrap();
    let progress = pull.progress();
    pull.finish().await.unwrap();
    let last = progress.borrow().clone();
    assert_eq!(last.layers.len(), 2);
    assert!(last.layers.iter().all(|layer| layer.stage == orlop_image::LayerStage::Done
        && layer.done_bytes == layer.total_bytes
        && layer.total_bytes > 0));
}

#[tokio::test]
async fn layers_of_a_failed_pull_wait_for_the_next_try_but_not_for_ever() {
    let layout = tempfile::tempdir().unwrap();
    small_image().write_layout_dir(layout.path(), "test:1").unwrap();
    let path = layout.path().to_path_buf();
    let registry = ScriptedRegistry::start(layout.path(), move |seen, _| {
        (from_layout(&path, seen).body.len() > 100_000).then(|| Reply::new(404, ""))
    });
    let bench = Bench::new(quick());
    // The upper layer fails: the lower one may be complete by then, or not.
    while bench.files("layers").is_empty() {
        bench.images.pull(&registry.reference("1"), None).await.unwrap_err();
    }
    bench.images.pull(&registry.reference("1"), None).await.unwrap_err();
    let layers = bench.files("layers");
    assert_eq!(layers.len(), 1);
    let layer = fs::File::open(bench.state("layers").join(&layers[0])).unwrap();
    layer.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(3600)).unwrap();
    bench.images.pull(&registry.reference("1"), None).await.unwrap_err();
    bench.assert_empty();
}
