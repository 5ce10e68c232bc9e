//! `cargo xtask`: the only task runner. Every set-up step that a fresh Debian 12 machine with rustup needs is here.

mod bench;
mod busybox;
mod conform;
mod down;
mod foreign;
mod guest;
mod lint;
mod packages;
mod programs;
mod test;
mod up;
mod workspace;
mod youki;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// Builds and tests Orlop.
#[derive(Parser)]
#[command(name = "cargo xtask", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// From nothing to a page served by a pod: build, start the node, load and apply the sample.
    Up {
        /// Keep all state of the instance below this folder, beside other instances.
        #[arg(long, value_name = "DIR")]
        root: Option<PathBuf>,
    },
    /// End what `up` started; nothing is left behind.
    Down {
        /// The folder that `up` was given.
        #[arg(long, value_name = "DIR")]
        root: Option<PathBuf>,
    },
    /// Run every test, with its set-up: Debian packages, foreign programs, our programs, lints, tests.
    Test {
        /// Only the tests whose name contains this.
        filter: Option<String>,
        /// Leave out formatting, clippy and the tidy checks.
        #[arg(long)]
        no_lint: bool,
    },
    /// Measure beside a peer on this machine and print a table.
    Bench {
        #[command(subcommand)]
        what: bench::What,
    },
    /// Run a suite of others and say what passed, failed and was skipped, and why.
    Conform {
        #[command(subcommand)]
        suite: conform::Suite,
    },
    /// Run tests in an emulated machine with cgroup v2, systemd and AppArmor.
    Guest {
        #[command(subcommand)]
        what: guest::What,
    },
    /// Check formatting, clippy and the rules of the house.
    Lint,
    /// Build our programs and say where they are.
    Build,
    /// Build the foreign programs that tests and benchmarks use into the cache.
    Foreign {
        /// Only these families (a folder below tests/conformance each).
        family: Vec<String>,
    },
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().task {
        Task::Test { filter, no_lint } => test::run(filter.as_deref(), !no_lint),
        Task::Up { root } => up::run(root.as_deref()),
        Task::Down { root } => down::run(root.as_deref()),
        Task::Bench { what } => bench::run(&what),
        Task::Conform { suite } => conform::run(&suite),
        Task::Guest { what } => guest::run(&what),
        Task::Lint => lint::run(),
        Task::Build => {
            let programs = programs::build()?;
            println!("programs are in {}", programs.display());
            Ok(())
        }
        Task::Foreign { family } => foreign::build(&family),
    }
}
