//! A container that a program of the machine makes, by the command line that all runtimes of the OCI share: `runc`,
//! `crun` and their like.
//!
//! The pod stays the shim's: it makes pause, and what the program makes becomes its child. Each step is done by a driver, a
//! child of the shim that runs the program, waits for it, not for ever, and says in one message what came out:
//!
//! ```text
//!  shim        driver                              program
//!  clone ────> own mount namespace: root, binds, ids
//!              config.json of the bundle
//!              ─────────────────────────────────> create, with the container's streams
//!                                                  makes the first process, ends
//!        <──── Made (pid, terminal)
//!  clone ────> ─────────────────────────────────> start
//!        <──── Done, or Failed(text)
//! ```
//!
//! What the container is mounted from is seen by the driver and by the program alone: the machine's mount table never
//! changes, and nothing has to be unmounted, however a step ends.

mod bundle;
mod invocation;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use orlop_kernel::{process, procfs, socket};
use rustix::fs::Uid;
use rustix::io::Errno;

use crate::config::{Config, Hooks, Process};
use crate::create::{Created, PidNamespace, Pod, begin, check_user, open_streams};
use crate::exec::ExecProcess;
use crate::hook;
use crate::protocol::{ContainerSpec, PidSource, RuntimeProgram, SandboxSpec};
use crate::stage::{self, Message, StageError, Step};
use crate::user_namespace::UserNamespace;
use bundle::Bundle;
use invocation::{Invocation, Stdio};

/// How long a program may take for a step that makes something.
const STEP_TIME: Duration = Duration::from_secs(30);
/// How long it may take to forget a container.
const DELETE_TIME: Duration = Duration::from_secs(10);

/// Beginning of the name of the file that tells of a driver at work; its number follows.
const MARK: &str = "driver-";

/// A child that drives the program through one step.
#[derive(Debug)]
pub struct Driver {
    /// In the machine's PID namespace; it leads a process group with the program.
    pub pid: i32,
    /// A descriptor of it.
    pub pidfd: OwnedFd,
    /// Where its one message comes from.
    pub sync: OwnedFd,
}

/// Clones a driver. Its work may hold nothing but what it borrows, since the descriptors behind that are gone, apart from
/// the kept ones. While it works a file in the folder tells of it.
fn drive(
    folder: &Path,
    kept: &[BorrowedFd<'_>],
    work: impl FnOnce() -> Result<Message, StageError>,
) -> Result<Driver, StageError> {
    let (sync, theirs) = socket::message_pair().step("make a socket")?;
    match process::clone(0).step("clone the driver")? {
        process::Side::Parent { pid, pidfd } => Ok(Driver { pid, pidfd, sync }),
        process::Side::Child => {
            let kept: Vec<BorrowedFd<'_>> = kept.iter().copied().chain([theirs.as_fd()]).collect();
            let mark = folder.join(format!("{MARK}{}", std::process::id()));
            let message = begin(&kept).and_then(|()| lead(&mark)).and_then(|()| work());
            let message = message.unwrap_or_else(|error| Message::Failed(error.to_string()));
            let _ = std::fs::remove_file(&mark);
            let _ = stage::send(&theirs, &message);
            std::process::exit(i32::from(matches!(message, Message::Failed(_))))
        }
    }
}

/// The driver's own process group, so that it can be ended with its program; and the program may look at its descriptors,
/// which name the socket for terminals.
fn lead(mark: &Path) -> Result<(), StageError> {
    process::set_dumpable(true).step("show the driver's files")?;
    rustix::process::setsid().map(drop).step("start a session")?;
    let folder = mark.parent().ok_or("it has no folder").step("mark the driver")?;
    let ticks = procfs::start_ticks(std::process::id() as i32).unwrap_or(0);
    let made = std::fs::create_dir_all(folder).and_then(|()| std::fs::write(mark, ticks.to_string()));
    made.step(format!("write {mark:?}"))
}

/// Ends the drivers that a dead shim has left at work, with their programs.
fn end_drivers(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(MARK)?.parse::<i32>().ok());
        let ticks = std::fs::read_to_string(entry.path()).ok().and_then(|text| text.parse().ok());
        let (Some(pid), Some(ticks)) = (pid, ticks) else { continue };
        let alive = pid != std::process::id() as i32 && procfs::is_alive(pid, ticks);
        if let Some(group) = rustix::process::Pid::from_raw(pid).filter(|_| alive) {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
    }
}

/// The pod and its program.
#[derive(Clone, Copy)]
pub struct ProgramPod<'a> {
    /// The pod.
    pub pod: Pod<'a>,
    /// What the pod was made of.
    pub sandbox: &'a SandboxSpec,
    /// The program.
    pub runtime: &'a RuntimeProgram,
}

/// Folder of what the program reads and writes for a container.
fn bundle_folder(folder: &Path, id: &str) -> PathBuf {
    folder.join("containers").join(id).join("bundle")
}

/// Lets the program make a container; `target` is the process whose PID namespace it joins when it says so. The result is
/// known when [`Message::Made`] or [`Message::Failed`] comes in on the socket.
///
/// # Errors
/// When the driver can't be made; nothing is left then.
pub fn create(
    spec: &ContainerSpec,
    config: &Config,
    place: ProgramPod<'_>,
    target: Option<i32>,
) -> Result<Created, StageError> {
    let pause = place.pod.pause;
    let pid = if spec.pid == PidSource::Host { PidNamespace::Host } else { PidNamespace::New };
    check_user(config, pause.user.as_ref(), pid)?;
    let (ours, theirs) = open_streams(spec)?;
    own_streams([&theirs.stdin, &theirs.stdout, &theirs.stderr], &config.process, pause.user.as_ref())?;
    let kept: Vec<BorrowedFd<'_>> = [Some(&pause.pidfd), Some(&pause.shm)]
        .into_iter()
        .chain([pause.user.as_ref().map(|user| &user.namespace)])
        .chain([&theirs.stdin, &theirs.stdout, &theirs.stderr].map(Option::as_ref))
        .flatten()
        .map(AsFd::as_fd)
        .collect();
    let folder = bundle_folder(place.pod.folder, &spec.id);
    let stdio = if spec.tty { Stdio::Terminal } else { Stdio::Given([&theirs.stdin, &theirs.stdout, &theirs.stderr]) };
    let Driver { pid, pidfd, sync } = drive(&folder, &kept, || {
        let bundle = Bundle { folder: folder.clone(), spec, config, place };
        bundle.build(target)?;
        let invocation = Invocation::new(place.runtime, &folder, "create");
        let bundle = folder.as_os_str();
        let limit = STEP_TIME + time_of(config, &["prestart", "createRuntime", "createContainer"]);
        invocation.make(&["create".as_ref(), "--bundle".as_ref(), bundle], &spec.id, stdio, limit)
    })?;
    Ok(Created { pid, pidfd, sync, stdin: ours.stdin, stdout: ours.stdout, stderr: ours.stderr })
}

/// Makes the streams the user's own where the program, as the root of the pod, has no right to.
fn own_streams(
    streams: [&Option<OwnedFd>; 3],
    process: &Process,
    user: Option<&UserNamespace>,
) -> Result<(), StageError> {
    let Some(user) = user else { return Ok(()) };
    let owner = Uid::from_raw(user.mappings.host_uid(process.user.uid)?);
    for stream in streams.into_iter().flatten() {
        match rustix::fs::fchown(stream, Some(owner), None) {
            // What is no pipe need not take an owner.
            Ok(()) | Err(Errno::INVAL | Errno::PERM | Errno::ROFS) => {}
            Err(errno) => return Err(errno).step("own the streams"),
        }
    }
    Ok(())
}

/// Lets the program start a container that it has made; [`Message::Done`] or [`Message::Failed`] comes.
///
/// # Errors
/// When the driver can't be made.
pub fn start(runtime: &RuntimeProgram, folder: &Path, id: &str, config: &Config) -> Result<Driver, StageError> {
    let folder = bundle_folder(folder, id);
    let limit = STEP_TIME + time_of(config, &["startContainer", "poststart"]);
    drive(&folder, &[], || {
        Invocation::new(runtime, &folder, "start").tell(&["start".as_ref()], id, limit)?;
        Ok(Message::Done)
    })
}

/// Lets the program run one more process; [`Message::Made`] or [`Message::Failed`] comes. Without a terminal `streams`
/// become its stdin, stdout and stderr; `user` is the pod's user namespace.
///
/// # Errors
/// When the driver can't be made.
pub fn exec(
    runtime: &RuntimeProgram,
    folder: &Path,
    id: &str,
    process: &Process,
    streams: [Option<OwnedFd>; 3],
    user: Option<&UserNamespace>,
) -> Result<ExecProcess, StageError> {
    own_streams(streams.each_ref(), process, user)?;
    let folder = bundle_folder(folder, id);
    let kept: Vec<BorrowedFd<'_>> = streams.iter().flatten().map(AsFd::as_fd).collect();
    let stdio = if process.terminal { Stdio::Terminal } else { Stdio::Given(streams.each_ref()) };
    let driver = drive(&folder, &kept, || {
        let name = format!("exec-{}", std::process::id());
        let file = folder.join(format!("{name}.json"));
        let text = serde_json::to_vec(&bundle::process(process)).step("encode the process")?;
        std::fs::write(&file, text).step(format!("write {file:?}"))?;
        bundle::cover()?;
        let arguments = ["exec".as_ref(), "--detach".as_ref(), "--process".as_ref(), file.as_os_str()];
        let made = Invocation::new(runtime, &folder, &name).make(&arguments, id, stdio, STEP_TIME);
        let _ = std::fs::remove_file(&file);
        made
    })?;
    Ok(ExecProcess { pid: driver.pid, sync: driver.sync })
}

/// Lets the program forget a container that has ended, even one that is only half made; the driver's end is the end of it.
///
/// # Errors
/// When the driver can't be made.
pub fn delete(runtime: &RuntimeProgram, folder: &Path, id: &str, config: &Config) -> Result<Driver, StageError> {
    drive(&bundle_folder(folder, id), &[], || forget(runtime, folder, id, Some(config)).map(|()| Message::Done))
}

/// How long a container's hooks may take at some points.
fn time_of(config: &Config, kinds: &[&str]) -> Duration {
    let lists = config.hooks.as_ref().map(Hooks::lists);
    let asked = lists.iter().flatten().filter(|(kind, _)| kinds.contains(kind));
    asked.map(|(_, list)| hook::time_of(list)).sum()
}

/// The same, in this process. Drivers that are still at work on the container are ended.
///
/// # Errors
/// When something of the program's is left.
pub fn forget(runtime: &RuntimeProgram, folder: &Path, id: &str, config: Option<&Config>) -> Result<(), StageError> {
    let folder = bundle_folder(folder, id);
    let state = runtime.root.join(id);
    if !folder.exists() && !state.exists() {
        return Ok(());
    }
    end_drivers(&folder);
    let arguments = ["delete".as_ref(), "--force".as_ref()];
    let limit = DELETE_TIME + config.map_or(Duration::ZERO, |config| time_of(config, &["poststop"]));
    let told = Invocation::new(runtime, &folder, "delete").tell(&arguments, id, limit);
    match told {
        // It knows nothing of the container, or has lost the program's file: what it kept is a folder.
        Err(error) if state.exists() => {
            eprintln!("container {id}: {error}; its state is removed without the program");
            std::fs::remove_dir_all(&state).step(format!("remove {state:?}"))
        }
        _ => Ok(()),
    }
}
