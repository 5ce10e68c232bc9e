//! Pod up, pod down, exec, memory and idle CPU of `orlop cri` beside containerd with runc, driven by the same requests
//! in turns, and the floor: what the kernel alone takes. `cargo xtask bench pod` builds what it needs and runs it.

mod crowd;
mod floor;
mod report;

use std::path::Path;
use std::time::Instant;

use orlop_tests::peer::Peer;
use orlop_tests::process::Cpu;
use orlop_tests::world::World;

use crate::crowd::Crowd;

/// Pods that are made one after the other and measured, after one that fills the caches.
const ROUNDS: usize = 40;
/// Execs in a row whose CPU time is measured.
const EXECS: usize = 200;

/// What was measured of one runtime. Times in milliseconds.
#[derive(Default)]
pub struct Figures {
    /// RunPodSandbox, CreateContainer and StartContainer.
    pub up: Vec<f64>,
    /// StopPodSandbox and RemovePodSandbox.
    pub down: Vec<f64>,
    /// ExecSync of `true`.
    pub exec: Vec<f64>,
    /// CPU time of one exec: of the daemon, its helpers and what they ran.
    pub exec_cpu: f64,
    /// Pods that came up per second, when several are asked for at once.
    pub rate: f64,
    /// What was measured with pods standing.
    pub crowds: Vec<Crowd>,
    /// As `up`, with the last crowd standing.
    pub up_in_crowd: Vec<f64>,
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
    let peers = [Peer::orlop(&worlds.0).await, Peer::containerd(&worlds.1).await];
    let mut figures = [Figures::default(), Figures::default()];
    for round in 0..=ROUNDS {
        eprint!("\rpod {round} of {ROUNDS}");
        for (peer, figures) in peers.iter().zip(&mut figures) {
            cycle(peer, figures, round).await;
        }
    }
    for (peer, figures) in peers.iter().zip(&mut figures) {
        eprint!("\r{EXECS} execs by {}      ", peer.name);
        figures.exec_cpu = exec_cpu(peer).await;
        eprint!("\r{} pods at a time by {}      ", crowd::AT_ONCE, peer.name);
        figures.rate = crowd::rate(peer).await;
    }
    // One after the other, so that what the machine has less is one runtime's.
    for (peer, figures) in peers.iter().zip(&mut figures) {
        crowd::stand(peer, figures).await;
    }
    eprintln!();
    let floor = floor::run(&World::new());
    print!("{}", report::table(&figures[0], &figures[1], &floor));
}

/// One pod: up, an exec, down. The first round is not counted.
async fn cycle(peer: &Peer, figures: &mut Figures, round: usize) {
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

/// CPU time of one exec, in milliseconds.
async fn exec_cpu(peer: &Peer) -> f64 {
    let pod = peer.up("execs").await;
    peer.exec(&pod).await;
    let processes = peer.processes();
    let begun = Cpu::of(&processes);
    for _ in 0..EXECS {
        peer.exec(&pod).await;
    }
    let taken = Cpu::of(&processes).since(&begun);
    peer.down(&pod).await;
    taken.as_secs_f64() * 1e3 / EXECS as f64
}
