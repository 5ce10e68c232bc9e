//! The ImageService as a client sees it, on images made on the spot. Needs root.

use std::sync::Arc;

use futures::StreamExt;
use orlop_cri_server::image_service::ImageRpc;
use orlop_image::build::{ImageBuilder, LayerBuilder};
use orlop_image::{ImageConfig, Images};
use orlop_proto::cri;
use orlop_proto::cri::image_service_server::ImageService;
use tonic::{Code, Request};

struct Bench {
    _directory: tempfile::TempDir,
    rpc: ImageRpc,
    ids: Vec<String>,
}

/// A store with `example.com/a:1` (also `:2`), of user 1002, and `example.com/b:1`, of user www-data.
async fn bench() -> Bench {
    let directory = tempfile::tempdir().unwrap();
    let mut config = ImageConfig::new(directory.path().join("cri"));
    config.registries.tries_max = 1;
    config.pinned = vec!["example.com/b:1".into()];
    let images = Arc::new(Images::open(config).unwrap());
    let mut ids = Vec::new();
    for (names, user) in
        [(&["example.com/a:1", "example.com/a:2"][..], "1002:1003"), (&["example.com/b:1"], "www-data")]
    {
        let archive = directory.path().join("image.tar");
        let layer = LayerBuilder::new().file("/bin/app", "app", 0o755);
        ImageBuilder::new().layer(layer).user(user).label("l", user).write_layout_tar(&archive, names[0]).unwrap();
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        ids.extend(images.import(&archive, names).await.unwrap());
    }
    Bench { _directory: directory, rpc: ImageRpc::new(images), ids }
}

fn spec(image: &str) -> Option<cri::ImageSpec> {
    Some(cri::ImageSpec { image: image.into(), ..Default::default() })
}

impl Bench {
    async fn status(&self, image: &str) -> Option<cri::Image> {
        let request = cri::ImageStatusRequest { image: spec(image), verbose: false };
        self.rpc.image_status(Request::new(request)).await.unwrap().into_inner().image
    }

    async fn list(&self, filter: &str) -> Vec<cri::Image> {
        let filter = Some(cri::ImageFilter { image: spec(filter) });
        self.rpc.list_images(Request::new(cri::ListImagesRequest { filter })).await.unwrap().into_inner().images
    }
}

#[tokio::test]
async fn an_image_is_the_same_by_every_name() {
    let bench = bench().await;
    let first = bench.status("example.com/a:1").await.unwrap();
    assert_eq!(first.id, bench.ids[0]);
    assert_eq!(first.repo_tags, ["example.com/a:1", "example.com/a:2"]);
    assert_eq!((first.uid.unwrap().value, first.username.as_str(), first.pinned), (1002, "", false));
    assert!(first.size > 0);
    for name in ["example.com/a:2", &bench.ids[0], &bench.ids[0][7..], &bench.ids[0][7..19]] {
        assert_eq!(bench.status(name).await.unwrap(), first, "{name}");
    }
    let second = bench.status("example.com/b:1").await.unwrap();
    assert_eq!((second.uid, second.username.as_str(), second.pinned), (None, "www-data", true));
    for unknown in ["example.com/a:3", "nothing", "Not A Reference", &"0".repeat(64)] {
        assert_eq!(bench.status(unknown).await, None, "{unknown}");
    }
    let request = cri::ImageStatusRequest { image: spec("example.com/a:1"), verbose: true };
    let info = bench.rpc.image_status(Request::new(request)).await.unwrap().into_inner().info;
    let info: serde_json::Value = serde_json::from_str(&info["info"]).unwrap();
    assert_eq!(info["imageSpec"]["config"]["User"], "1002:1003");
    assert!(info["chainID"].as_str().unwrap().starts_with("sha256:"));
}

#[tokio::test]
async fn lists_and_streams_agree() {
    let bench = bench().await;
    let all = bench.list("").await;
    assert_eq!(all.len(), 2);
    assert_eq!(bench.list("example.com/a:2").await.len(), 1);
    assert!(bench.list("example.com/none").await.is_empty());
    let stream =
        bench.rpc.stream_images(Request::new(cri::StreamImagesRequest { filter: None })).await.unwrap().into_inner();
    let streamed: Vec<cri::Image> = stream.map(|response| response.unwrap().images).collect::<Vec<_>>().await.concat();
    assert_eq!(streamed, all);
    let usage = bench.rpc.image_fs_info(Request::new(cri::ImageFsInfoRequest {})).await.unwrap().into_inner();
    let images = &usage.image_filesystems[0];
    assert!(images.used_bytes.unwrap().value > 0 && images.inodes_used.unwrap().value > 0 && images.timestamp > 0);
    assert!(std::path::Path::new(&images.fs_id.as_ref().unwrap().mountpoint).is_dir());
}

#[tokio::test]
async fn removal_takes_all_names_and_may_be_repeated() {
    let bench = bench().await;
    let remove = |image: &str| {
        let request = Request::new(cri::RemoveImageRequest { image: spec(image) });
        let rpc = bench.rpc.clone();
        async move { rpc.remove_image(request).await }
    };
    for done in futures::future::join_all((0..5).map(|_| remove("example.com/a:2"))).await {
        done.unwrap();
    }
    assert_eq!(bench.status("example.com/a:1").await, None);
    assert_eq!(bench.list("").await.len(), 1);
    remove(&bench.ids[1]).await.unwrap();
    remove("example.com/never:1").await.unwrap();
    assert!(bench.list("").await.is_empty());
    assert_eq!(remove("").await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn failures_have_a_code_and_say_what_to_do() {
    let bench = bench().await;
    let pull = |image: &str| {
        let request = Request::new(cri::PullImageRequest { image: spec(image), ..Default::default() });
        let rpc = bench.rpc.clone();
        async move { rpc.pull_image(request).await.unwrap_err() }
    };
    assert_eq!(pull("").await.code(), Code::InvalidArgument);
    let error = pull("a:b:c").await;
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().contains("a:b:c"), "{error}");
    let error = pull("127.0.0.1:1/nobody:1").await;
    assert_eq!(error.code(), Code::Unavailable);
    assert!(error.message().contains("127.0.0.1:1/nobody:1"), "{error}");
}
