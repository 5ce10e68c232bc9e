//! A container as the shim knows it.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

use orlop_container::Confinement;
use orlop_container::config::Config;
use orlop_container::protocol::{ContainerPhase, ContainerSpec, ContainerState, ExitRecord, Reply};
use orlop_kernel::cgroup::Cgroups;
use orlop_kernel::file::{self, Outlives};
use orlop_kernel::procfs;

use crate::attach::{Session, Sink};
use crate::hooks::Hooking;
use crate::log::{Log, Stream};
use crate::poller::Token;

use orlop_container::clock;

/// Where a container stands.
#[derive(Debug, PartialEq, Eq)]
pub enum Phase {
    /// Its first process sets itself up; the connection waits for the result.
    Creating(Token),
    /// It waits for the start.
    Created,
    /// It was told to start; the connection waits for the exec.
    Starting(Token),
    /// Its program runs.
    Running,
    /// It has ended.
    Exited,
}

/// A container.
pub struct Container {
    /// Its folder.
    pub folder: PathBuf,
    /// What the server wrote.
    pub spec: ContainerSpec,
    /// The OCI specification.
    pub config: Config,
    /// Where it stands.
    pub phase: Phase,
    /// Its first process.
    pub pid: i32,
    /// A descriptor of it.
    pub pidfd: OwnedFd,
    /// Its socket while it is being made and started.
    pub sync: Option<(Token, OwnedFd)>,
    /// Its output.
    pub outputs: Vec<(Token, Stream, OwnedFd)>,
    /// Its input.
    pub input: Option<Sink>,
    /// The terminal, which is also the one output.
    pub terminal: Option<OwnedFd>,
    /// Its log.
    pub log: Log,
    /// Attached sessions.
    pub sessions: Vec<Session>,
    /// Nanoseconds since the epoch; 0 before the start.
    pub started_at: i64,
    /// Why it could not be started.
    pub failure: Option<String>,
    /// Filter and capabilities, for every exec.
    pub confinement: Confinement,
    /// Who waits for its removal, and until when.
    pub deleting: Option<(Token, Instant)>,
    /// What belongs to a container that a runtime program makes; none for one of the built-in runtime.
    pub driven: Option<Driven>,
    /// Hooks of it that are being run.
    pub hooks: Option<Hooking>,
    /// Hooks are to be run when it is gone.
    pub owes_hooks: bool,
}

/// Where the runtime program stands with a container.
#[derive(Default)]
pub struct Driven {
    /// The driver that is at work: for the creation or the start by the phase, for the removal where there is one.
    pub driver: Option<i32>,
    /// How the container ended while its start was still under way.
    pub exit_code: Option<i32>,
    /// Who is told of the removal that is under way, and what.
    pub removal: Option<Vec<(Token, Reply)>>,
    /// The program has forgotten the container.
    pub forgotten: bool,
}

/// Ends a driver with the program that it runs.
pub fn kill_driver(pid: i32) {
    if let Some(group) = rustix::process::Pid::from_raw(pid) {
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        // It leads the group only once it has come so far.
        let _ = rustix::process::kill_process(group, rustix::process::Signal::KILL);
    }
}

impl Container {
    /// Reads what the server wrote.
    pub fn read_spec(folder: &Path) -> Result<(ContainerSpec, Config), String> {
        let read = |name: &str| {
            let file = folder.join(name);
            std::fs::read(&file).map_err(|error| format!("read {}: {error}", file.display()))
        };
        let spec: ContainerSpec =
            serde_json::from_slice(&read("container.json")?).map_err(|error| format!("container.json: {error}"))?;
        let config: Config =
            serde_json::from_slice(&read("config.json")?).map_err(|error| format!("config.json: {error}"))?;
        config.check().map_err(|error| format!("config.json: {error}"))?;
        if spec.tty != config.process.terminal {
            return Err("container.json: tty and process.terminal of config.json differ".into());
        }
        Ok((spec, config))
    }

    /// What others are told of its phase.
    pub fn public_phase(&self) -> ContainerPhase {
        match self.phase {
            Phase::Creating(_) | Phase::Created | Phase::Starting(_) => ContainerPhase::Created { pid: self.pid },
            Phase::Running => ContainerPhase::Running { pid: self.pid, started_at: self.started_at },
            Phase::Exited => ContainerPhase::Exited,
        }
    }

    /// What to say when SIGKILL does not end it.
    pub fn hangs(&self) -> String {
        format!(
            "container {}: process {} has not ended 10 s after SIGKILL; it hangs in the kernel",
            self.spec.name, self.pid
        )
    }

    /// Kills all that is known of it, and a driver that is at work.
    pub fn kill_all(&self, cgroups: &Cgroups) {
        if let Some(driver) = self.driven.as_ref().and_then(|driven| driven.driver) {
            kill_driver(driver);
        }
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, rustix::process::Signal::KILL);
        cgroups.kill(&self.config.linux.cgroups_path);
    }

    /// Writes `state.json`.
    pub fn write_state(&self) -> std::io::Result<()> {
        let state = ContainerState {
            version: 1,
            pid: self.pid,
            pid_start_ticks: procfs::start_ticks(self.pid).unwrap_or(0),
            started_at: self.started_at,
        };
        file::replace(&self.folder.join("state.json"), &serde_json::to_vec(&state)?, 0o644, Outlives::Process)
    }

    /// The record of its end, written to `exit.json` before anybody is told.
    pub fn write_exit(&self, exit_code: i32, oom_killed: bool) -> ExitRecord {
        // A failed start has its own exit code, which the interface fixes.
        let exit_code = if self.failure.is_some() { 128 } else { exit_code };
        let record = ExitRecord {
            version: 1,
            id: self.spec.id.clone(),
            exit_code,
            started_at: self.started_at,
            finished_at: clock::now(),
            oom_killed,
            message: self.failure.clone(),
        };
        let written = serde_json::to_vec(&record).map_err(std::io::Error::from).and_then(|bytes| {
            let file = self.folder.join("exit.json");
            file::replace(&file, &bytes, 0o644, Outlives::Process)
        });
        if let Err(error) = written {
            eprintln!("container {}: the exit record could not be written: {error}", self.spec.name);
        }
        record
    }
}
