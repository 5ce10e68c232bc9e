//! Hooks of a container of a pod that are run on the machine: by a child of the shim, which waits for nobody.
//!
//! ```text
//!  shim        child                              hooks
//!  clone ────> ─────────────────────────────────> one after the other, each with its limit
//!        <──── Done, or Failed(text)
//! ```
//!
//! The child ends the hook that runs as soon as the shim's end of the socket is closed: when the container goes before its
//! hooks have run, or with the shim itself. Those of the end are owed from the making of a container on; a file in its
//! folder says so, and who cleans up after a shim that died runs them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use orlop_kernel::{process, socket};

use crate::config::{Config, Hook, Hooks};
use crate::create::begin;
use crate::hook::{self, HookState};
use crate::stage::{self, Message, StageError, Step};

/// The file that tells of hooks that are owed.
const OWED: &str = "poststop";

/// When hooks are run on the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// The container is made and its root not entered: prestart and createRuntime.
    Create,
    /// Its program runs: poststart.
    Start,
    /// It is gone: poststop.
    Stop,
}

impl Point {
    /// The hooks of this point, by their names.
    fn lists(self, hooks: &Hooks) -> Vec<(&'static str, &Vec<Hook>)> {
        match self {
            Point::Create => vec![("prestart", &hooks.prestart), ("createRuntime", &hooks.create_runtime)],
            Point::Start => vec![("poststart", &hooks.poststart)],
            Point::Stop => vec![("poststop", &hooks.poststop)],
        }
    }

    fn status(self) -> &'static str {
        match self {
            Point::Create => "creating",
            Point::Start => "running",
            Point::Stop => "stopped",
        }
    }

    /// Whether a container has hooks for it.
    #[must_use]
    pub fn is_asked(self, config: &Config) -> bool {
        config.hooks.as_ref().is_some_and(|hooks| self.lists(hooks).iter().any(|(_, list)| !list.is_empty()))
    }
}

/// The container whose hooks are run.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// Its id.
    pub id: &'a str,
    /// Its folder, which is its bundle.
    pub folder: &'a Path,
    /// Its specification.
    pub config: &'a Config,
    /// Its first process; 0 when there is none.
    pub pid: i32,
}

/// A child that runs hooks.
#[derive(Debug)]
pub struct HookRun {
    /// In the machine's PID namespace.
    pub pid: i32,
    /// Where its one message comes from; closing it ends the hooks.
    pub sync: OwnedFd,
}

/// Runs the hooks of a point in a child; [`Message::Done`] or [`Message::Failed`] comes.
///
/// # Errors
/// When the child can't be made.
pub fn begin_run(subject: Subject<'_>, point: Point) -> Result<HookRun, StageError> {
    let (sync, theirs) = socket::message_pair().step("make a socket")?;
    match process::clone(0).step("clone a child for hooks")? {
        process::Side::Parent { pid, .. } => Ok(HookRun { pid, sync }),
        process::Side::Child => {
            let ran = begin(&[theirs.as_fd()]).and_then(|()| run(subject, point, Some(theirs.as_fd())));
            let message = ran.map_or_else(|error| Message::Failed(error.to_string()), |()| Message::Done);
            let _ = stage::send(&theirs, &message);
            std::process::exit(0)
        }
    }
}

fn run(subject: Subject<'_>, point: Point, stop: Option<BorrowedFd<'_>>) -> Result<(), StageError> {
    let Subject { id, folder, config, pid } = subject;
    let Some(hooks) = &config.hooks else { return Ok(()) };
    let Config { oci_version, annotations, .. } = config;
    let state = HookState { oci_version, id, status: point.status(), pid, bundle: folder, annotations };
    let mut failed = Ok(());
    for (kind, list) in point.lists(hooks) {
        for (at, one) in list.iter().enumerate() {
            let ran = hook::run_until(one, &state, folder, stop).step(hook::title(kind, at, one));
            match point {
                // Nothing that the container had may stay because of another thing that does.
                Point::Stop => failed = failed.and(ran),
                _ => ran?,
            }
        }
    }
    failed
}

fn owed(folder: &Path) -> PathBuf {
    folder.join(OWED)
}

/// Notes that a container's hooks of the end are owed from now on; nothing when it has none.
///
/// # Errors
/// When the file can't be written.
pub fn owe(folder: &Path, config: &Config) -> Result<(), StageError> {
    match Point::Stop.is_asked(config) {
        true => std::fs::write(owed(folder), []).step(format!("write {:?}", owed(folder))),
        false => Ok(()),
    }
}

/// They have been run, whatever came of it.
pub fn settle(folder: &Path) {
    let _ = std::fs::remove_file(owed(folder));
}

/// Runs the hooks of the end that a shim that died still owes, in this process.
///
/// # Errors
/// Names the first that fails; all are run, and none is owed any more.
pub(crate) fn pay(id: &str, folder: &Path, config: &Config) -> Result<(), StageError> {
    if !owed(folder).exists() {
        return Ok(());
    }
    let ran = run(Subject { id, folder, config, pid: 0 }, Point::Stop, None);
    settle(folder);
    ran
}
