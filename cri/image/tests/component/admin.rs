//! `orlop image …` with a daemon and without.

use std::sync::Arc;

use orlop_image::cli::{self, CliConfig};
use tokio_util::sync::CancellationToken;

use crate::scripted::ScriptedRegistry;
use crate::support::{Bench, quick, small_image};

async fn use_it(config: &CliConfig, bench_directory: &std::path::Path) {
    let archive = bench_directory.join("cli.tar");
    small_image().write_layout_tar(&archive, "example.com/app:1").unwrap();
    let ids = cli::load(config, &archive, Vec::new()).await.unwrap();
    let layout = bench_directory.join("cli-layout");
    small_image().label("pulled", "yes").write_layout_dir(&layout, "x:1").unwrap();
    let registry = ScriptedRegistry::start(&layout, |_, _| None);
    let pulled = cli::pull(config, &registry.reference("1"), None).await.unwrap();
    let images = cli::list(config).await.unwrap();
    assert_eq!(images.len(), 2);
    assert!(images.iter().any(|image| image.id == ids[0]) && images.iter().any(|image| image.id == pulled));
    let table = cli::table(&images);
    assert!(table.contains("example.com/app:1") && table.contains(&ids[0][7..20]), "{table}");
    cli::remove(config, "example.com/app:1").await.unwrap();
    let error = cli::remove(config, "example.com/app:1").await.unwrap_err().to_string();
    assert!(error.contains("not found"), "{error}");
    let error = cli::pull(config, "127.0.0.1:1/a:b:c", None).await.unwrap_err().to_string();
    assert!(error.contains("is no image reference"), "{error}");
    cli::remove(config, &pulled).await.unwrap();
    assert!(cli::list(config).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_works_through_the_daemon_and_without_one() {
    let bench = Bench::new(quick());
    // Longer than a socket address may be.
    let run = bench.directory.path().join("r".repeat(120));
    std::fs::create_dir(&run).unwrap();
    let config = CliConfig { socket: run.join("image.sock"), images: bench.config.clone() };
    let cancel = CancellationToken::new();
    let (images, socket, stop) = (Arc::clone(&bench.images), config.socket.clone(), cancel.clone());
    let server = tokio::spawn(async move { orlop_image::admin::serve(images, &socket, stop).await });
    while !config.socket.exists() {
        tokio::task::yield_now().await;
    }
    use_it(&config, bench.directory.path()).await;
    cancel.cancel();
    server.await.unwrap().unwrap();
    assert!(!config.socket.exists());

    let error = cli::list(&config).await.unwrap_err().to_string();
    assert!(error.contains("in use by process"), "without the daemon's socket, its store is not touched: {error}");
    let Bench { directory, images, .. } = bench;
    drop(images);
    use_it(&config, directory.path()).await;
}
