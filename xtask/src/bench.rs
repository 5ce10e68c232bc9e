//! `cargo xtask bench`: measurements side by side with a peer, reported and never judged.

use anyhow::Result;
use clap::Subcommand;

/// What to measure.
#[derive(Subcommand)]
pub enum What {
    /// Pod up, pod down, exec, memory per pod and idle CPU, beside containerd + runc and the floor.
    Pod {
        /// Pods started and stopped one after the other for the medians.
        #[arg(long, default_value_t = 20)]
        rounds: usize,
        /// Pods that run at once for memory and idle CPU.
        #[arg(long, default_value_t = 30)]
        pods: usize,
    },
}

/// Runs a benchmark.
pub fn run(what: What) -> Result<()> {
    match what {
        What::Pod { rounds, pods } => {
            let _ = (rounds, pods);
            anyhow::bail!("the pod benchmark is not here yet")
        }
    }
}
