//! Archives: OCI layouts as directory and tar, compressed ones, and `docker save` archives made by skopeo.

use std::fs;

use orlop_image::build::{ImageBuilder, LayerBuilder};

use crate::support::{Bench, chain, noise, quick, run, small_image, umoci_busybox};

#[tokio::test]
async fn every_form_of_archive_gives_the_same_image() {
    let bench = Bench::new(quick());
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let built = small_image().write_layout_tar(&at("layout.tar"), "example.com/app:1").unwrap();
    small_image().write_layout_dir(&at("layout"), "example.com/app:dir").unwrap();
    run("gzip", &["-k", at("layout.tar").to_str().unwrap()]);
    let id = built.id.to_string();
    assert_eq!(bench.images.import(&at("layout.tar"), Vec::new()).await.unwrap(), std::slice::from_ref(&id));
    assert_eq!(bench.images.import(&at("layout"), Vec::new()).await.unwrap(), std::slice::from_ref(&id));
    assert_eq!(
        bench.images.import(&at("layout.tar.gz"), vec!["other:2".into()]).await.unwrap(),
        std::slice::from_ref(&id)
    );
    let record = bench.image("other:2");
    assert_eq!(record.repo_tags, ["docker.io/library/other:2", "example.com/app:1", "example.com/app:dir"]);
    assert_eq!(record.config.entrypoint, ["/bin/app"]);
    assert!(record.size_bytes > 0);
    assert_eq!(bench.files("layers").len(), 2);
    assert_eq!(fs::read(record.lower_dirs[0].join("bin/app")).unwrap(), noise(300_000));

    let saved = at("saved.tar");
    run(
        "skopeo",
        &[
            "--insecure-policy",
            "copy",
            "--quiet",
            &format!("oci-archive:{}", at("layout.tar").display()),
            &format!("docker-archive:{}:example.com/saved:3", saved.display()),
        ],
    );
    bench.images.import(&saved, Vec::new()).await.unwrap();
    let saved = bench.image("example.com/saved:3");
    assert_eq!(saved.lower_dirs, record.lower_dirs, "the layers are the same");
    assert_eq!(saved.config.entrypoint, ["/bin/app"]);
}

#[tokio::test]
async fn a_layout_without_names_is_kept_under_its_id() {
    let bench = Bench::new(quick());
    let directory = tempfile::tempdir().unwrap();
    umoci_busybox(directory.path());
    let ids = bench.images.import(&directory.path().join("layout"), Vec::new()).await.unwrap();
    let record = bench.image(&ids[0]);
    assert!(record.repo_tags.is_empty());
    assert_eq!(bench.image(&record.id[7..20]).id, record.id, "found by the beginning of its id");
    assert!(bench.images.remove(&record.id).await.unwrap());
    bench.assert_empty();
}

#[tokio::test]
async fn damaged_archives_are_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let layout = directory.path().join("layout");
    small_image().write_layout_dir(&layout, "example.com/app:1").unwrap();
    for entry in fs::read_dir(layout.join("blobs/sha256")).unwrap() {
        let path = entry.unwrap().path();
        let bench = Bench::new(quick());
        let good = fs::read(&path).unwrap();
        let mut bad = good.clone();
        let middle = bad.len() / 2;
        bad[middle] ^= 1;
        fs::write(&path, &bad).unwrap();
        let error = chain(&bench.images.import(&layout, Vec::new()).await.unwrap_err());
        assert!(error.contains("layout") && (error.contains("digest") || error.contains("layer sha256:")), "{error}");
        fs::remove_file(&path).unwrap();
        let error = chain(&bench.images.import(&layout, Vec::new()).await.unwrap_err());
        assert!(error.contains(path.file_name().unwrap().to_str().unwrap()), "{error}");
        fs::write(&path, &good).unwrap();
        assert!(bench.images.list().is_empty() && bench.files("staging").is_empty());
    }
    let bench = Bench::new(quick());
    let text = directory.path().join("text");
    fs::write(&text, "no archive").unwrap();
    let error = chain(&bench.images.import(&text, Vec::new()).await.unwrap_err());
    assert!(error.contains("an OCI layout or a docker save archive is expected"), "{error}");
    let error = chain(&bench.images.import(&directory.path().join("missing"), Vec::new()).await.unwrap_err());
    assert!(error.contains("missing"), "{error}");
    bench.images.import(&layout, Vec::new()).await.unwrap();
}

#[test]
fn equal_files_make_equal_images() {
    let directory = tempfile::tempdir().unwrap();
    let tree = directory.path().join("tree");
    fs::create_dir_all(tree.join("etc")).unwrap();
    fs::write(tree.join("etc/a"), "a").unwrap();
    std::os::unix::fs::symlink("a", tree.join("etc/b")).unwrap();
    let build = |name: &str| {
        let layer = LayerBuilder::new().tree(&tree, "/opt").unwrap().host_file("/copied", tree.join("etc/a"), 0o600);
        ImageBuilder::new()
            .layer(layer)
            .user("1:2")
            .expose("80/tcp")
            .env("A", "b")
            .write_layout_tar(&directory.path().join(name), "a/b:1")
            .unwrap()
    };
    assert_eq!(build("one.tar"), build("two.tar"));
    assert_eq!(
        fs::read(directory.path().join("one.tar")).unwrap(),
        fs::read(directory.path().join("two.tar")).unwrap()
    );
}
