//! Pull of an image with one large gzip layer by `orlop cri` beside containerd: from a registry on loopback to files,
//! with the digest of the layer and of what it unpacks to checked. `cargo xtask bench unpack` builds what it needs
//! and runs it, on tmpfs: on ext4 whoever makes as many files as were just removed waits for the file system, which keeps
//! away from their inodes for a minute. The floor is ISA-L's `igzip`, which unpacks the same bytes to nowhere.

mod layer;

use std::process::{Command, Stdio};
use std::time::Instant;

use orlop_tests::images;
use orlop_tests::peer::Peer;
use orlop_tests::place::debian;
use orlop_tests::process::cpu_of;
use orlop_tests::world::{Daemon, World, run};

use crate::layer::Layer;

/// How often each pulls, in turns, after once that is not counted.
const ROUNDS: usize = 5;
/// Port of the image's registry, in every world.
const PORT: u16 = 5003;

/// Seconds that each pull took, and seconds of CPU.
#[derive(Default)]
struct Figures {
    time: Vec<f64>,
    cpu: Vec<f64>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let igzip = debian("igzip", "isal");
    let worlds = (World::new(), World::new());
    let folder = tempfile::tempdir().expect("make a folder");
    eprintln!("making the layer");
    let layer = layer::make(folder.path());
    let storage = folder.path().join("registry");
    push(&worlds.0, &layer, &storage);
    let serve = |world: &World| {
        Daemon::of(images::serve(&storage, PORT, world.folder(), world.command("docker-registry"), true))
    };
    let _registries = (serve(&worlds.0), serve(&worlds.1));
    let peers = [Peer::orlop(&worlds.0).await, Peer::containerd(&worlds.1).await];
    let mut figures = [Figures::default(), Figures::default()];
    for round in 0..=ROUNDS {
        for (peer, figures) in peers.iter().zip(&mut figures) {
            eprintln!("pull {round} of {ROUNDS} by {}", peer.name);
            pull(peer, figures, round).await;
        }
    }
    let floor: Vec<f64> = (0..ROUNDS).map(|_| unpack_nowhere(&igzip, &layer)).collect();
    report(&layer, &figures, &floor);
}

/// Pushes the image into a registry's storage.
fn push(world: &World, layer: &Layer, storage: &std::path::Path) {
    let work = world.folder();
    let _registry = Daemon::of(images::serve(storage, PORT, work, world.command("docker-registry"), false));
    let mut copy = world.command(debian("skopeo", "skopeo"));
    copy.args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"]);
    run(copy.args([&format!("oci:{}:big", layer.layout.display()), &format!("docker://localhost:{PORT}/big:1")]));
}

/// One pull, and the removal. The first round is not counted.
async fn pull(peer: &Peer, figures: &mut Figures, round: usize) {
    let name = format!("localhost:{PORT}/big:1");
    rustix::fs::sync();
    let (cpu, began) = (cpu_of(peer.pid()), Instant::now());
    peer.pull(&name).await;
    let (time, cpu) = (began.elapsed(), cpu_of(peer.pid()) - cpu);
    peer.remove(&name).await;
    if round > 0 {
        figures.time.push(time.as_secs_f64());
        figures.cpu.push(cpu.as_secs_f64());
    }
}

/// Seconds that igzip takes for the layer.
fn unpack_nowhere(igzip: &std::path::Path, layer: &Layer) -> f64 {
    let began = Instant::now();
    let status = Command::new(igzip).args(["-d", "-c"]).arg(&layer.packed).stdout(Stdio::null()).status();
    assert!(status.expect("run igzip").success(), "igzip fails");
    began.elapsed().as_secs_f64()
}

fn report(layer: &Layer, figures: &[Figures; 2], floor: &[f64]) {
    let megabytes = layer.bytes as f64 / 1e6;
    println!("| | orlop | containerd | ratio | igzip |\n|---|--:|--:|--:|--:|");
    for (kind, of) in [("median", 0.5), ("minimum", 0.0)] {
        let [ours, theirs, floor] = [&figures[0].time, &figures[1].time, floor].map(|times| percentile(times, of));
        println!(
            "| pull and unpack, {kind} | {ours:.2} s ({:.0} MB/s) | {theirs:.2} s ({:.0} MB/s) | {:.1}x | {floor:.2} s ({:.0} MB/s) |",
            megabytes / ours,
            megabytes / theirs,
            theirs / ours,
            megabytes / floor
        );
    }
    let [ours, theirs] = [&figures[0].cpu, &figures[1].cpu].map(|times| percentile(times, 0.5));
    println!("| its CPU, median | {ours:.2} s | {theirs:.2} s | {:.1}x | - |", theirs / ours);
    println!(
        "\n{ROUNDS} pulls each in turns of one gzip layer from a registry on loopback: {megabytes:.0} MB in {} entries, \
         {:.0} MB packed.",
        layer.entries,
        layer.packed_bytes as f64 / 1e6
    );
}

fn percentile(values: &[f64], of: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[((sorted.len() - 1) as f64 * of) as usize]
}
