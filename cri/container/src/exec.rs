//! One more process in a running container. The shim forks and joins; no second program is loaded.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use orlop_kernel::cgroup::Cgroups;
use orlop_kernel::namespace::{self, Kinds};
use orlop_kernel::procfs::Procfs;
use orlop_kernel::{path, process, socket, terminal};

use crate::config::{Personality, Process};
use crate::confine::{self, Confinement};
use crate::create::{PidNamespace, begin, clone_into};
use crate::devices;
use crate::stage::{self, Message, StageError, Step};
use crate::user_namespace::UserNamespace;

/// A process that is about to run.
#[derive(Debug)]
pub struct ExecProcess {
    /// In the machine's PID namespace.
    pub pid: i32,
    /// Where [`Message::Created`] (with the terminal) comes from, then its end, or [`Message::Failed`].
    pub sync: OwnedFd,
}

/// The container in which a process is to run.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    /// The machine's cgroups.
    pub cgroups: &'a Cgroups,
    /// Path of the container's cgroup.
    pub cgroups_path: &'a str,
    /// The container's first process.
    pub container: &'a OwnedFd,
    /// Filter and capabilities of the container.
    pub confinement: &'a Confinement,
    /// The pod's user namespace, where it has one.
    pub user: Option<&'a UserNamespace>,
    /// The shim's own PID namespace, to come back to.
    pub own_pid: &'a OwnedFd,
}

/// Runs `process` in a container. Without a terminal `streams` become its stdin, stdout and stderr.
///
/// # Errors
/// When something that the parent does fails; no process is left then.
pub fn exec(process: &Process, place: Place<'_>, streams: [Option<OwnedFd>; 3]) -> Result<ExecProcess, StageError> {
    exec_alone(process, place, &Alone { streams: Some(streams), ..Alone::default() })
}

/// What a process of a container that stands alone has beside.
#[derive(Debug, Default)]
pub struct Alone<'a> {
    /// Its streams; none are those of this process.
    pub streams: Option<[Option<OwnedFd>; 3]>,
    /// Descriptors that it gets.
    pub kept: &'a [OwnedFd],
    /// The container has a cgroup namespace of its own.
    pub own_cgroups: bool,
    /// Its execution domain.
    pub personality: Option<&'a Personality>,
}

/// Runs `process` in a container that stands alone.
///
/// # Errors
/// When something that the parent does fails; no process is left then.
pub fn exec_alone(process: &Process, place: Place<'_>, alone: &Alone<'_>) -> Result<ExecProcess, StageError> {
    let (sync, theirs) = socket::message_pair().step("make a socket")?;
    match clone_into(0, PidNamespace::Of(place.container), place.own_pid)? {
        process::Side::Parent { pid, .. } => Ok(ExecProcess { pid, sync }),
        process::Side::Child => {
            let error = match set_up(process, place, alone, &theirs) {
                Err(error) => error,
                Ok(()) => place.confinement.exec_with(process, alone.kept),
            };
            let _ = stage::send(&theirs, &Message::Failed(error.to_string()));
            std::process::exit(127)
        }
    }
}

fn set_up(process: &Process, place: Place<'_>, alone: &Alone<'_>, sync: &OwnedFd) -> Result<(), StageError> {
    let user = place.user.map(|user| &user.namespace);
    let streams = alone.streams.iter().flatten().flatten();
    let kept: Vec<BorrowedFd<'_>> =
        streams.chain([sync, place.container]).chain(user).chain(alone.kept).map(AsFd::as_fd).collect();
    begin(&kept)?;
    let procfs = Procfs::open().step("open /proc")?;
    confine::set_oom_score(&procfs, process.oom_score_adj);
    confine::set_labels(&procfs, process)?;
    place.cgroups.join(place.cgroups_path, 0).step("join the cgroup")?;
    let mut kinds =
        Kinds::NETWORK | Kinds::INTER_PROCESS_COMMUNICATION | Kinds::HOST_NAME_AND_NIS_DOMAIN_NAME | Kinds::MOUNT;
    if matches!(place.cgroups, Cgroups::V2(_)) || alone.own_cgroups {
        kinds |= Kinds::CONTROL_GROUP;
    }
    namespace::join_process(place.container, kinds).step("join the container's namespaces")?;
    let master = if process.terminal {
        let root = path::open_root(std::path::Path::new("/")).step("open the root")?;
        let terminal = devices::open_terminal(&root, false)?;
        if let Some(size) = process.console_size {
            terminal::set_size(&terminal.master, size.width, size.height).step("set consoleSize")?;
        }
        confine::use_terminal(&terminal.slave)?;
        Some(terminal.master)
    } else {
        rustix::process::setsid().step("start a session")?;
        for (at, stream) in alone.streams.iter().flatten().enumerate() {
            let stream = stream.as_ref().ok_or("a stream is missing").step("set the streams")?;
            process::set_stdio(stream, at as u8).step("set the streams")?;
        }
        None
    };
    confine::set_personality(alone.personality)?;
    // The user namespace comes last: until then this process has the machine's rights over what it joins.
    place.confinement.apply(process, place.user, UserNamespace::enter)?;
    // The terminal must be on its way before the program can write to it.
    stage::send(sync, &Message::Created(master)).step("tell that the process is made")
}
