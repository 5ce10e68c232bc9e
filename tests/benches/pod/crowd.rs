//! Many pods: several asked for at once, and many that stand and do nothing.

use std::time::{Duration, Instant};

use orlop_tests::peer::Peer;
use orlop_tests::process::{Cpu, Memory, available};

use crate::Figures;

/// Pods that are asked for at the same time.
pub const AT_ONCE: usize = 8;
/// Pods that are asked for in all.
pub const IN_ALL: usize = 48;
/// How many pods stand while memory and idle CPU are measured.
pub const SIZES: [usize; 2] = [30, 100];
/// Pods that are made and measured beside the last crowd.
pub const BESIDE: usize = 100;
/// How long idle CPU is measured.
pub const IDLE: Duration = Duration::from_secs(20);

/// What was measured with a number of pods standing. Memory in KiB.
pub struct Crowd {
    /// What the daemon grew by, and what its helpers take, per pod.
    pub pod: f64,
    /// What the machine has less, per pod.
    pub pod_available: f64,
    /// The daemon and its helpers.
    pub all: f64,
    /// CPU of daemon and helpers, in per cent of a core.
    pub idle: f64,
}

/// Pods that come up per second.
pub async fn rate(peer: &Peer) -> f64 {
    let began = Instant::now();
    let next = std::cell::Cell::new(0);
    let worker = || async {
        let mut pods = Vec::new();
        while next.get() < IN_ALL {
            let number = next.replace(next.get() + 1);
            pods.push(peer.up(&format!("at-once-{number}")).await);
        }
        pods
    };
    let workers: [_; AT_ONCE] = std::array::from_fn(|_| worker());
    let pods = futures::future::join_all(workers).await;
    let taken = began.elapsed();
    for pod in pods.into_iter().flatten() {
        peer.down(&pod).await;
    }
    IN_ALL as f64 / taken.as_secs_f64()
}

/// Memory and idle CPU of pods that do nothing, then pods that come up beside the last crowd.
pub async fn stand(peer: &Peer, figures: &mut Figures) {
    let (before, free) = (Memory::of(&peer.processes()), available());
    let mut pods = Vec::new();
    for size in SIZES {
        while pods.len() < size {
            eprint!("\r{} of {size} pods of {} stand      ", pods.len(), peer.name);
            pods.push(peer.up(&format!("standing-{}", pods.len())).await);
        }
        let processes = peer.processes();
        let all = Memory::of(&processes).total;
        let (pod, pod_available) = ((all - before.total) / size as f64, (free - available()) / size as f64);
        let begun = Cpu::of(&processes);
        tokio::time::sleep(IDLE).await;
        let idle = Cpu::of(&processes).since(&begun).as_secs_f64() / IDLE.as_secs_f64() * 100.0;
        figures.crowds.push(Crowd { pod, pod_available, all, idle });
    }
    for number in 0..BESIDE {
        eprint!("\rpod {number} of {BESIDE} beside {} of {}      ", pods.len(), peer.name);
        let began = Instant::now();
        let pod = peer.up(&format!("beside-{number}")).await;
        figures.up_in_crowd.push(began.elapsed().as_secs_f64() * 1e3);
        peer.down(&pod).await;
    }
    for pod in pods {
        peer.down(&pod).await;
    }
}
