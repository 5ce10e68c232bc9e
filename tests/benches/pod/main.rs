//! Pod up, pod down, exec, memory and idle CPU of `orlop cri` beside containerd with runc, driven by the same requests
//! in turns, and the floor: what the kernel alone takes. `cargo xtask bench pod` builds what it needs and runs it.

mod floor;
mod peer;
mod process;
mod report;

use std::path::Path;
use std::time::{Duration, Instant};

use orlop_tests::world::World;

use crate::peer::Peer;
use crate::process::{Cpu, Memory, available};

/// Pods that are made one after the other and measured, after one that fills the caches.
const ROUNDS: usize = 40;
/// Pods that stand while memory and idle CPU are measured.
const STANDING: usize = 30;
/// How long idle CPU is measured.
const IDLE: Duration = Duration::from_secs(20);

/// What was measured of one runtime. Times in milliseconds, memory in KiB.
#[derive(Default)]
pub struct Figures {
    /// RunPodSandbox, CreateContainer and StartContainer.
    pub up: Vec<f64>,
    /// StopPodSandbox and RemovePodSandbox.
    pub down: Vec<f64>,
    /// ExecSync of `true`.
    pub exec: Vec<f64>,
    /// What the daemon grew by, and what its helpers take, per pod.
    pub pod: f64,
    /// What the machine has less, per pod.
    pub pod_available: f64,
    /// The daemon with its standing pods.
    pub daemon: f64,
    /// CPU of daemon and helpers with its standing pods, in per cent of a core.
    pub idle: f64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    // cargo passes `--bench`; the floor is measured by a process of its own, inside a world.
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, flag, folder] = &arguments[..]
        && flag == "--floor"
    {
        return floor::measure(Path::new(folder));
    }
    let worlds = (World::new(), World::new());
    eprintln!("starting orlop cri, and containerd with runc");
    let mut peers = [Peer::orlop(&worlds.0).await, Peer::containerd(&worlds.1).await];
    let mut figures = [Figures::default(), Figures::default()];
    for round in 0..=ROUNDS {
        eprint!("\rpod {round} of {ROUNDS}");
        for (peer, figures) in peers.iter_mut().zip(&mut figures) {
            cycle(peer, figures, round).await;
        }
    }
    for (peer, figures) in peers.iter_mut().zip(&mut figures) {
        eprint!("\r{STANDING} pods of {}      ", peer.name);
        stand(peer, figures).await;
    }
    eprintln!();
    let floor = floor::run(&World::new());
    print!("{}", report::table(&figures[0], &figures[1], &floor));
}

/// One pod: up, an exec, down. The first round is not counted.
async fn cycle(peer: &mut Peer, figures: &mut Figures, round: usize) {
    let began = Instant::now();
    let pod = peer.up(&format!("round-{round}")).await;
    let up = began.elapsed();
    let began = Instant::now();
    peer.exec(&pod).await;
    let exec = began.elapsed();
    let began = Instant::now();
    peer.down(&pod).await;
    if round > 0 {
        for (list, time) in [(&mut figures.up, up), (&mut figures.exec, exec), (&mut figures.down, began.elapsed())] {
            list.push(time.as_secs_f64() * 1e3);
        }
    }
}

/// Memory and idle CPU of many pods that do nothing.
async fn stand(peer: &mut Peer, figures: &mut Figures) {
    let (before, free) = (Memory::of(&peer.processes()), available());
    let mut pods = Vec::new();
    for number in 0..STANDING {
        pods.push(peer.up(&format!("standing-{number}")).await);
    }
    let processes = peer.processes();
    let after = Memory::of(&processes);
    figures.pod = (after.total - before.total) / STANDING as f64;
    figures.pod_available = (free - available()) / STANDING as f64;
    figures.daemon = Memory::of(&[peer.pid()]).total;
    let begun = Cpu::of(&processes);
    tokio::time::sleep(IDLE).await;
    figures.idle = Cpu::of(&processes).since(&begun).as_secs_f64() / IDLE.as_secs_f64() * 100.0;
    for pod in pods {
        peer.down(&pod).await;
    }
}
