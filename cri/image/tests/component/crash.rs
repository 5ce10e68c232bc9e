//! The process is killed at any moment: what is listed afterwards is whole, and nothing else is left.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use orlop_image::build::{ImageBuilder, LayerBuilder};
use orlop_image::{ImageConfig, Images};

use crate::scripted::ScriptedRegistry;
use crate::support::{Bench, noise, quick};

/// Tells the child where to work.
const STATE: &str = "ORLOP_IMAGE_CRASH_STATE";
const PORTS: &str = "ORLOP_IMAGE_CRASH_PORTS";
/// How often it is killed.
const KILLS: usize = 24;
/// Files of a layer, and layers of an image.
const FILES: usize = 40;
const LAYERS: usize = 3;

/// One of two images, which have all but their topmost layers in common.
fn image(variant: usize) -> ImageBuilder {
    (0..LAYERS).fold(ImageBuilder::new(), |image, layer| {
        let name = if layer + 1 < LAYERS { layer } else { layer + variant };
        let files = (0..FILES).fold(LayerBuilder::new(), |files, number| {
            files.file(&format!("/layer{name}/{number}"), noise(3000 + number), 0o644)
        });
        image.layer(files)
    })
}

/// Pulls one image, removes the other and so on. Run by the case below, which kills it.
#[test]
#[ignore = "the other process of another case"]
fn pulls_until_it_is_killed() {
    let (Ok(state), Ok(ports)) = (std::env::var(STATE), std::env::var(PORTS)) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut config = ImageConfig::new(state);
        config.registries = quick();
        let images = Arc::new(Images::open(config).unwrap());
        let mut names: Vec<String> = ports.split(',').map(|port| format!("127.0.0.1:{port}/test/app:1")).collect();
        loop {
            let id = images.pull(&names[0], None).await.unwrap();
            println!("step: pulled");
            images.hold("container", &id).await.unwrap();
            images.remove(&names[1]).await.unwrap();
            images.release("container").await.unwrap();
            println!("step: removed");
            names.swap(0, 1);
        }
    });
}

/// Kills the process some part of a step after it has done some steps.
fn run_and_kill(state: &Path, ports: &str, steps: usize, part: f32) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::pulls_until_it_is_killed", "--ignored", "--nocapture"])
        .env(STATE, state)
        .env(PORTS, ports)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let began = Instant::now();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut done = lines.filter(|line| line.contains("step:"));
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

/// All files of all layers are there, with their contents; the layers are returned.
fn assert_whole(bench: &Bench) -> BTreeSet<PathBuf> {
    let mut layers = BTreeSet::new();
    for record in bench.images.list() {
        assert_eq!(record.lower_dirs.len(), LAYERS);
        for directory in &record.lower_dirs {
            let folder = std::fs::read_dir(directory).unwrap().next().unwrap().unwrap().path();
            for number in 0..FILES {
                let path = folder.join(number.to_string());
                let found = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                assert!(found == noise(3000 + number), "{}", path.display());
            }
        }
        layers.extend(record.lower_dirs);
    }
    layers
}

#[test]
fn a_kill_at_any_moment_leaves_whole_images_and_nothing_else() {
    let layouts = tempfile::tempdir().unwrap();
    let registries: Vec<ScriptedRegistry> = (0..2)
        .map(|variant| {
            let layout = layouts.path().join(variant.to_string());
            image(variant).write_layout_dir(&layout, "test:1").unwrap();
            ScriptedRegistry::start(&layout, |_, _| None)
        })
        .collect();
    let ports = format!("{},{}", registries[0].port, registries[1].port);
    let mut bench = Bench::new(quick());
    let (mut listed, mut unfinished) = (0, 0);
    for kill in 0..KILLS {
        let (directory, config) = bench.close();
        run_and_kill(&config.state_dir, &ports, kill % 6, kill as f32 / KILLS as f32);
        let staging = config.state_dir.join("image/staging");
        unfinished += std::fs::read_dir(staging).map_or(0, Iterator::count);
        bench = Bench::open(directory, config);
        let layers = assert_whole(&bench);
        let images = bench.images.list().len();
        listed += images;
        assert!(bench.files("staging").is_empty() && bench.files("quarantine").is_empty());
        if bench.images.holders().is_empty() {
            assert_eq!(bench.files("layers").len(), layers.len());
        }
        assert_eq!(bench.files("blobs/sha256").len(), 2 * images, "a manifest and a configuration each");
    }
    assert!(
        listed > 0 && unfinished > 0,
        "all kills came too early or too late: {listed} listed, {unfinished} unfinished"
    );
}
