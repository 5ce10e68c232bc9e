//! The program CRIU: where it is, whether it can work here, and one dump by it.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use crate::error::{RpcError, file};
use crate::server::blocking;

/// The program.
const PROGRAM: &str = "criu";
/// Where it and the programs that it runs are.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How long it may take to look at the kernel.
const CHECK_TIME: Duration = Duration::from_secs(30);
/// How long it may take to stop a container's processes, in seconds.
const FREEZE_TIME: &str = "30";
/// Bytes of a log that are read for its last error.
const LOG_BYTES: u64 = 64 << 20;
/// Errors that are told, and letters of each.
const ERRORS_MAX: usize = 2;
const WORDS_MAX: usize = 400;

/// One that can work on this machine.
pub(super) struct Criu {
    program: PathBuf,
}

/// What it is told of a container.
pub(super) struct Plan {
    /// The first process.
    pub(super) pid: i32,
    /// Number of the pod's network namespace, which is not the container's to be saved.
    pub(super) network: u64,
    /// Folder of the images.
    pub(super) images: PathBuf,
    /// Mount points of what was handed in.
    pub(super) mounts: Vec<String>,
}

impl Criu {
    /// Finds it and lets it look at the kernel.
    pub(super) async fn find() -> Result<Criu, RpcError> {
        let folders = std::env::var("PATH").unwrap_or_default();
        let program = folders
            .split(':')
            .chain(PATH.split(':'))
            .map(|folder| Path::new(folder).join(PROGRAM))
            .find(|program| program.is_absolute() && program.is_file())
            .ok_or_else(|| RpcError::NoCriu { reason: "the program is missing; install the package criu".into() })?;
        let criu = Criu { program };
        let output = tokio::time::timeout(CHECK_TIME, criu.run(&["check".into()])).await;
        let failed = |words: String| RpcError::NoCriu {
            reason: format!("{} check: {words}; another kernel or a newer CRIU may do", criu.program.display()),
        };
        match output {
            Ok(Ok(output)) if output.status.success() => Ok(criu),
            Ok(Ok(output)) => {
                let words = errors(&String::from_utf8_lossy(&output.stderr));
                Err(failed(words.unwrap_or_else(|| output.status.to_string())))
            }
            Ok(Err(error)) => Err(failed(error.to_string())),
            Err(_) => Err(failed(format!("no answer within {} s", CHECK_TIME.as_secs()))),
        }
    }

    /// Saves a container, which goes on. Log and statistics go to the folder `work`. When this is given up, so is the
    /// program, and the kernel lets the processes go on.
    pub(super) async fn dump(&self, object: &str, plan: &Plan, work: &Path) -> Result<(), RpcError> {
        let output = self.run(&arguments(plan, work)).await.map_err(file("run", &self.program))?;
        if output.status.success() {
            return Ok(());
        }
        let log = work.join("dump.log");
        let text = blocking(move || {
            let mut text = Vec::new();
            if let Ok(file) = std::fs::File::open(&log) {
                let _ = file.take(LOG_BYTES).read_to_end(&mut text);
            }
            Ok(String::from_utf8_lossy(&text).into_owned())
        });
        let words = errors(&text.await?).or_else(|| errors(&String::from_utf8_lossy(&output.stderr)));
        let reason = format!("CRIU: {}", words.unwrap_or_else(|| output.status.to_string()));
        Err(RpcError::Checkpoint { object: object.into(), reason })
    }

    async fn run(&self, arguments: &[String]) -> std::io::Result<Output> {
        let mut command = tokio::process::Command::new(&self.program);
        command.args(arguments).env_clear().env("PATH", PATH).current_dir("/").kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).output().await
    }
}

fn arguments(plan: &Plan, work: &Path) -> Vec<String> {
    let mut all: Vec<String> = ["dump", "--no-default-config", "--leave-running", "--tcp-established"]
        .into_iter()
        .chain(["--ext-unix-sk", "--file-locks", "--link-remap", "--manage-cgroups=ignore", "-v4"])
        .chain(["--timeout", FREEZE_TIME, "--log-file", "dump.log"])
        .map(String::from)
        .collect();
    let pairs = [
        ("--tree", plan.pid.to_string()),
        ("--images-dir", plan.images.display().to_string()),
        ("--work-dir", work.display().to_string()),
        ("--external", format!("net[{}]:extRootNetNS", plan.network)),
    ];
    all.extend(pairs.into_iter().flat_map(|(name, value)| [name.to_string(), value]));
    all.extend(plan.mounts.iter().flat_map(|point| ["--external".to_string(), format!("mnt[{point}]:{point}")]));
    all
}

/// The last errors of a log: without times, places and the one that says that it failed.
fn errors(log: &str) -> Option<String> {
    let words = |line: &str| {
        let (_, rest) = line.split_once("Error (")?;
        let (_, text) = rest.split_once("): ")?;
        Some(text.trim().chars().take(WORDS_MAX).collect::<String>())
    };
    let all: Vec<String> = log.lines().filter_map(words).filter(|text| !text.ends_with("FAILED.")).collect();
    let last = &all[all.len().saturating_sub(ERRORS_MAX)..];
    (!last.is_empty()).then(|| last.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_errors_are_told() {
        let log = "(00.001) Warn  (criu/x.c:1): w\n(00.002) Error (criu/a.c:1): first\n\
                   (00.003) Error (criu/mount.c:981): mnt: Mount 7 is unsupported\n\
                   (00.004) Error (criu/b.c:2): last one \n(00.005) Error (criu/cr-dump.c:2098): Dumping FAILED.\n";
        assert_eq!(errors(log).as_deref(), Some("mnt: Mount 7 is unsupported; last one"));
        assert_eq!(errors("nothing\n"), None);
    }

    #[test]
    fn what_is_outside_is_named() {
        let plan = Plan { pid: 7, network: 42, images: "/i".into(), mounts: vec!["/dev/shm".into()] };
        let all = arguments(&plan, Path::new("/w")).join(" ");
        for part in [
            "dump --no-default-config",
            "--leave-running",
            "--tree 7 --images-dir /i --work-dir /w",
            "--external net[42]:extRootNetNS --external mnt[/dev/shm]:/dev/shm",
        ] {
            assert!(all.contains(part), "{all}");
        }
    }
}
