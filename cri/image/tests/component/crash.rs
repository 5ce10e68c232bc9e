//! The process is killed at any moment: what is listed afterwards is whole, and nothing else is left.

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use orlop_image::build::{ImageBuilder, LayerBuilder};
use orlop_image::{ImageConfig, Images};

use crate::scripted::ScriptedRegistry;
use crate::support::{Bench, noise, quick};

/// Tells the child where to work.
const STATE: &str = "ORLOP_IMAGE_CRASH_STATE";
const PORT: &str = "ORLOP_IMAGE_CRASH_PORT";
/// How often it is killed.
const KILLS: usize = 24;
/// Files of a layer, and layers of an image.
const FILES: usize = 40;
const LAYERS: usize = 3;

fn image() -> ImageBuilder {
    (0..LAYERS).fold(ImageBuilder::new(), |image, layer| {
        let files = (0..FILES).fold(LayerBuilder::new(), |files, number| {
            files.file(&format!("/layer{layer}/{number}"), noise(3000 + number), 0o644)
        });
        image.layer(files)
    })
}

/// Pulls and removes without end. Run by the case below, which kills it.
#[test]
#[ignore = "the other process of another case"]
fn pulls_until_it_is_killed() {
    let (Ok(state), Ok(port)) = (std::env::var(STATE), std::env::var(PORT)) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut config = ImageConfig::new(state);
        config.registries = quick();
        let images = Arc::new(Images::open(config).unwrap());
        loop {
            for tag in ["1", "2"] {
                let name = format!("127.0.0.1:{port}/test/app:{tag}");
                let id = images.pull(&name, None).await.unwrap();
                println!("pulled");
                images.hold("container", &id).await.unwrap();
                images.remove(&name).await.unwrap();
                println!("held");
                images.release("container").await.unwrap();
                println!("removed");
                images.pull(&name, None).await.unwrap();
                println!("pulled");
            }
        }
    });
}

/// Kills the process some part of a step after it has done some steps.
fn run_and_kill(state: &Path, port: u16, steps: usize, part: f32) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::pulls_until_it_is_killed", "--ignored", "--nocapture"])
        .env(STATE, state)
        .env(PORT, port.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let began = Instant::now();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut done = lines.filter(|line| line.contains("pulled") || line.contains("held") || line.contains("removed"));
    // Kept open afterwards: the process goes on to write.
    let count = done.by_ref().take(steps).count();
    assert_eq!(count, steps, "the pulling process ended by itself");
    let step = if steps == 0 { Duration::from_millis(200) } else { began.elapsed() / u32::try_from(steps).unwrap() };
    // The moment is what varies: there is nothing to wait for.
    std::thread::sleep(step.mul_f32(part));
    child.kill().unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.signal(), Some(9), "the pulling process ended by itself: {status}");
}

/// All files of all layers are there, with their contents.
fn assert_whole(bench: &Bench) {
    for record in bench.images.list() {
        assert_eq!(record.lower_dirs.len(), LAYERS);
        for (layer, directory) in record.lower_dirs.iter().rev().enumerate() {
            for number in 0..FILES {
                let path = directory.join(format!("layer{layer}/{number}"));
                let found = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                assert!(found == noise(3000 + number), "{}", path.display());
            }
        }
    }
}

#[test]
fn a_kill_at_any_moment_leaves_whole_images_and_nothing_else() {
    let layout = tempfile::tempdir().unwrap();
    image().write_layout_dir(layout.path(), "test:1").unwrap();
    let registry = ScriptedRegistry::start(layout.path(), |_, _| None);
    let mut bench = Bench::new(quick());
    let (mut listed, mut unfinished) = (0, 0);
    for kill in 0..KILLS {
        let (directory, config) = bench.close();
        run_and_kill(&config.state_dir, registry.port, kill % 6, kill as f32 / KILLS as f32);
        let staging = config.state_dir.join("image/staging");
        unfinished += std::fs::read_dir(staging).map_or(0, Iterator::count);
        bench = Bench::open(directory, config);
        assert_whole(&bench);
        let images = bench.images.list().len();
        listed += images;
        assert!(bench.files("staging").is_empty() && bench.files("quarantine").is_empty());
        let held = bench.images.holders().len();
        let layers = bench.files("layers").len();
        assert!(
            layers == if images + held == 0 { 0 } else { LAYERS },
            "{layers} layers, {images} images, {held} holds"
        );
        if images == 0 {
            assert!(bench.files("blobs/sha256").is_empty());
        }
    }
    assert!(
        listed > 0 && unfinished > 0,
        "the kills came too early or too late: {listed} images, {unfinished} unfinished"
    );
}
