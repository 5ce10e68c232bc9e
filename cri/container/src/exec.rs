//! One more process in a running container. The shim forks and joins; no second program is loaded.

use std::os::fd::OwnedFd;

use orlop_kernel::cgroup::Cgroups;
use orlop_kernel::namespace::{self, Kinds};
use orlop_kernel::procfs::Procfs;
use orlop_kernel::{process, socket};
use rustix::thread::LinkNameSpaceType;

use crate::config::{Config, Process};
use crate::confine::{self, Confinement};
use crate::create::unblock_signals;
use crate::devices;
use crate::stage::{self, Message, StageError, Step};

/// A process that is about to run.
#[derive(Debug)]
pub struct ExecProcess {
    /// In the machine's PID namespace.
    pub pid: i32,
    /// Where [`Message::Created`] (with the terminal) comes from, then its end, or [`Message::Failed`].
    pub sync: OwnedFd,
}

/// Where a process is to run.
struct Place<'a> {
    cgroups: &'a Cgroups,
    container: &'a OwnedFd,
    cgroups_path: &'a str,
}

/// Runs `process` in the container whose first process is `container`. Without a terminal `streams` become its
/// stdin, stdout and stderr.
///
/// # Errors
/// When something that the parent does fails; no process is left then.
pub fn exec(
    config: &Config,
    process: &Process,
    cgroups: &Cgroups,
    container: &OwnedFd,
    own_pid: &OwnedFd,
    streams: [Option<OwnedFd>; 3],
) -> Result<ExecProcess, StageError> {
    let confinement = Confinement::prepare(process, config.linux.seccomp.as_ref())?;
    let (sync, theirs) = socket::message_pair().step("make a socket")?;
    let place = Place { cgroups, container, cgroups_path: &config.linux.cgroups_path };
    // Children of this process are born into the container's PID namespace until it comes back.
    namespace::join_process(container, Kinds::PROCESS_ID).step("join the container's PID namespace")?;
    let cloned = process::clone(0);
    if !matches!(cloned, Ok(process::Side::Child)) {
        namespace::join(own_pid, LinkNameSpaceType::ProcessID).step("leave the container's PID namespace")?;
    }
    match cloned.step("clone")? {
        process::Side::Parent { pid, .. } => Ok(ExecProcess { pid, sync }),
        process::Side::Child => {
            drop(sync);
            let error = match set_up(process, &place, &confinement, streams, &theirs) {
                Err(error) => error,
                Ok(()) => confine::exec(process),
            };
            let _ = stage::send(&theirs, &Message::Failed(error.to_string()));
            std::process::exit(127)
        }
    }
}

fn set_up(
    process: &Process,
    place: &Place<'_>,
    confinement: &Confinement,
    streams: [Option<OwnedFd>; 3],
    sync: &OwnedFd,
) -> Result<(), StageError> {
    process::set_dumpable(false).step("hide the runtime")?;
    unblock_signals()?;
    process::join_new_keyring();
    let procfs = Procfs::open().step("open /proc")?;
    confine::set_oom_score(&procfs, process.oom_score_adj);
    place.cgroups.join(place.cgroups_path, 0).step("join the cgroup")?;
    let mut kinds = Kinds::NETWORK | Kinds::INTER_PROCESS_COMMUNICATION | Kinds::HOST_NAME_AND_NIS_DOMAIN_NAME | Kinds::MOUNT;
    if let Cgroups::V2(_) = place.cgroups {
        kinds |= Kinds::CONTROL_GROUP;
    }
    namespace::join_process(place.container, kinds).step("join the container's namespaces")?;
    rustix::process::chdir("/").step("enter the container's root")?;
    let master = if process.terminal {
        let root = orlop_kernel::path::open_root(std::path::Path::new("/")).step("open the root")?;
        let (master, slave) = devices::open_terminal(&root, false)?;
        confine::use_terminal(&slave)?;
        Some(master)
    } else {
        rustix::process::setsid().step("start a session")?;
        for (at, stream) in streams.iter().enumerate() {
            let stream = stream.as_ref().ok_or("a stream is missing").step("set the streams")?;
            process::set_stdio(stream, at as u8).step("set the streams")?;
        }
        None
    };
    confinement.apply(process)?;
    confine::enter_folder(&process.cwd)?;
    // The terminal must be on its way before the program can write to it.
    stage::send(sync, &Message::Created(master)).step("tell that the process is made")
}
