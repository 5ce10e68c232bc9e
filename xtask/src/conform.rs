//! `cargo xtask conform`: suites of others against our programs, and against a peer on the same machine.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::workspace::{cache, cargo, path, run as run_command, run_tests_as_root, say, target};
use crate::{foreign, packages, programs};

/// Which suite.
#[derive(clap::Subcommand)]
pub enum Suite {
    /// critest, of cri-tools, against `orlop cri`.
    Cri(Cri),
}

/// Options of the suite of the CRI.
#[derive(clap::Args, Default)]
pub struct Cri {
    /// Run it on containerd with runc instead.
    #[arg(long, conflicts_with = "compare")]
    peer: bool,
    /// Run it on both and show them side by side.
    #[arg(long)]
    compare: bool,
    /// Runtime handler of all pods.
    #[arg(long, value_name = "NAME")]
    handler: Option<String>,
    /// What exec, attach and port-forward go over.
    #[arg(long, value_enum, default_value = "spdy")]
    streaming: Streaming,
    /// Only the specs whose name this regular expression matches.
    #[arg(long, value_name = "REGEX")]
    focus: Option<String>,
    /// Another critest than the pinned one, such as one of a newer version.
    #[arg(long, value_name = "FILE")]
    critest: Option<PathBuf>,
}

impl Cri {
    /// What `cargo xtask test` runs: every spec, then streams once more over WebSockets.
    pub fn of_every_test() -> [Suite; 2] {
        let streams = Cri { streaming: Streaming::Websocket, focus: Some("Streaming".into()), ..Cri::default() };
        [Cri::default(), streams].map(Suite::Cri)
    }
}

/// A protocol of streams.
#[derive(Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
enum Streaming {
    /// SPDY/3.1.
    #[default]
    Spdy,
    /// WebSockets.
    Websocket,
}

/// Builds what is tested and the suite, runs it, and fails when a spec fails or is skipped for no known reason.
pub fn run(suite: &Suite) -> Result<()> {
    let Suite::Cri(options) = suite;
    packages::ensure(packages::TEST)?;
    packages::ensure(packages::BUILD)?;
    let programs = programs::build()?;
    let mut families = vec!["cri-tools".into(), "busybox".into()];
    if options.peer || options.compare {
        families.extend(["cni", "containerd", "runc"].map(String::from));
    }
    foreign::build(&families)?;
    run_built(suite, &programs)
}

/// The same with programs that are built.
pub fn run_built(suite: &Suite, programs: &Path) -> Result<()> {
    let Suite::Cri(options) = suite;
    let keep = target().join("conform/cri");
    say(format!("running critest; its output, report and the server's log will be in {}", keep.display()));
    let mut command = cargo();
    // The whole workspace decides about features, as in `cargo xtask test`: no library is compiled twice.
    command.args(["test", "--quiet", "--workspace", "--test", "critest", "--"]);
    command.arg("--keep").arg(keep);
    for (given, flag) in [
        (options.peer, "--peer"),
        (options.compare, "--compare"),
        (options.streaming == Streaming::Websocket, "--websocket"),
    ] {
        if given {
            command.arg(flag);
        }
    }
    for (flag, value) in [("--handler", &options.handler), ("--focus", &options.focus)] {
        if let Some(value) = value {
            command.args([flag, value]);
        }
    }
    if let Some(file) = &options.critest {
        let file = file.canonicalize().with_context(|| format!("find {}", file.display()))?;
        command.arg("--critest").arg(file);
    }
    command.env("PATH", path()).env("ORLOP_PROGRAMS", programs).env("ORLOP_CACHE", cache()?);
    run_tests_as_root(&mut command);
    run_command(&mut command)
}
