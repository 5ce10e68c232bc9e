//! `cargo xtask bench`: figures beside a peer on the same machine.

use anyhow::Result;

use crate::workspace::{cache, cargo, run as run_command, run_tests_as_root, say};
use crate::{foreign, packages, programs, youki};

/// What is measured.
#[derive(clap::Subcommand)]
pub enum What {
    /// Pod up, pod down, exec, pods at once, memory per pod and idle CPU, beside containerd and runc, with the floor.
    Pod(Profile),
    /// Pull of an image with one large gzip layer, beside containerd, with igzip as the floor.
    Unpack(Profile),
    /// Pods as a watcher of a real control plane sees them, and probes, beside a Go kubelet on containerd.
    Node(Profile),
    /// Single containers by orlop-runtime, beside runc, crun and youki.
    Runtime(Profile),
}

/// How orlop is built.
#[derive(clap::Args)]
pub struct Profile {
    /// Profile of orlop: `ship` is what is released and takes ten minutes to build.
    #[arg(long, default_value = "ship")]
    profile: String,
}

/// Builds what is measured and its peer, and prints the table.
pub fn run(what: &What) -> Result<()> {
    let (name, Profile { profile }) = match what {
        What::Pod(profile) => ("pod", profile),
        What::Unpack(profile) => ("unpack", profile),
        What::Node(profile) => ("node", profile),
        What::Runtime(profile) => ("runtime", profile),
    };
    packages::ensure(packages::TEST)?;
    packages::ensure(packages::BENCH)?;
    let programs = programs::build_with(profile)?;
    foreign::build(&["cri-tools", "cni", "containerd", "runc"].map(String::from))?;
    if let What::Node(_) = what {
        foreign::build(&["kubernetes", "etcd"].map(String::from))?;
    }
    if let What::Runtime(_) = what {
        youki::build()?;
    }
    say("measuring");
    let mut command = cargo();
    command.args(["bench", "--quiet", "--package", "orlop-tests", "--bench", name, "--profile", "dev"]);
    command.env("ORLOP_PROGRAMS", &programs).env("ORLOP_CACHE", cache()?);
    if let What::Unpack(_) = what {
        // A tmpfs on any Linux: files are what is measured, not a disk.
        command.env("TMPDIR", "/dev/shm");
    }
    run_tests_as_root(&mut command);
    run_command(&mut command)
}
