//! Making a container up to the point where only the exec is missing.

use std::os::fd::{AsFd, OwnedFd};

use orlop_kernel::cgroup::Cgroups;
use orlop_kernel::namespace::{self, Kinds};
use orlop_kernel::procfs::Procfs;
use orlop_kernel::{process, socket};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use crate::config::Config;
use crate::confine::{self, Confinement};
use crate::protocol::ContainerSpec;
use crate::stage::{self, Message, StageError, Step};
use crate::{devices, rootfs};

/// The pod that a container joins.
pub struct PodNamespaces<'a> {
    /// The pause process, whose network, IPC and UTS namespaces are joined.
    pub pause: &'a OwnedFd,
    /// The PID namespace to join; none for one of its own, the machine's when it is the shim's.
    pub pid: Option<&'a OwnedFd>,
    /// The shim's own PID namespace, to come back to.
    pub own_pid: &'a OwnedFd,
}

/// A container's first process and the shim's ends of its streams.
#[derive(Debug)]
pub struct Created {
    /// In the machine's PID namespace.
    pub pid: i32,
    /// A descriptor of the process.
    pub pidfd: OwnedFd,
    /// Where its messages come from and the start goes to.
    pub sync: OwnedFd,
    /// Writing end of its stdin, without a terminal and when it reads stdin.
    pub stdin: Option<OwnedFd>,
    /// Reading end of its stdout, without a terminal.
    pub stdout: Option<OwnedFd>,
    /// Reading end of its stderr, without a terminal.
    pub stderr: Option<OwnedFd>,
}

/// The container's own streams, until they are its stdio.
struct Streams {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

/// Clones the container's first process. The cgroup exists already. The result is known when [`Message::Created`]
/// or [`Message::Failed`] comes in on the socket.
///
/// # Errors
/// When something that the parent does fails; no process is left then.
pub fn create(spec: &ContainerSpec, config: &Config, cgroups: &Cgroups, pod: &PodNamespaces<'_>) -> Result<Created, StageError> {
    std::fs::create_dir_all(&config.root.path).step("make the root's place")?;
    let confinement = Confinement::prepare(&config.process, config.linux.seccomp.as_ref())?;
    let sources = rootfs::open_sources(spec, config)?;
    let (sync, theirs) = socket::message_pair().step("make a socket")?;
    let (ours, streams) = open_streams(spec)?;

    let mut namespaces = process::new::MOUNT;
    match pod.pid {
        Some(pid) => namespace::join(pid, LinkNameSpaceType::ProcessID).step("join the pod's PID namespace")?,
        None => namespaces |= process::new::PID,
    }
    let cloned = process::clone(namespaces);
    if pod.pid.is_some() {
        let back = namespace::join(pod.own_pid, LinkNameSpaceType::ProcessID);
        if !matches!(cloned, Ok(process::Side::Child)) {
            back.step("leave the pod's PID namespace")?;
        }
    }
    match cloned.step("clone")? {
        process::Side::Parent { pid, pidfd } => {
            Ok(Created { pid, pidfd, sync, stdin: ours.stdin, stdout: ours.stdout, stderr: ours.stderr })
        }
        process::Side::Child => {
            drop((sync, ours));
            let error = run(config, cgroups, pod, &confinement, sources, streams, &theirs);
            let _ = stage::send(&theirs, &Message::Failed(error.to_string()));
            std::process::exit(127)
        }
    }
}

/// Pipes for the streams: ours, theirs. With a terminal there are none.
fn open_streams(spec: &ContainerSpec) -> Result<(Streams, Streams), StageError> {
    let none = || Streams { stdin: None, stdout: None, stderr: None };
    if spec.tty {
        return Ok((none(), none()));
    }
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).step("make a pipe");
    let (mut ours, mut theirs) = (none(), none());
    if spec.stdin {
        let (read, write) = pipe()?;
        (theirs.stdin, ours.stdin) = (Some(read), Some(write));
    }
    let (read, write) = pipe()?;
    (ours.stdout, theirs.stdout) = (Some(read), Some(write));
    let (read, write) = pipe()?;
    (ours.stderr, theirs.stderr) = (Some(read), Some(write));
    Ok((ours, theirs))
}

/// Everything that the child does; it returns only when something failed.
fn run(
    config: &Config,
    cgroups: &Cgroups,
    pod: &PodNamespaces<'_>,
    confinement: &Confinement,
    sources: rootfs::Sources,
    streams: Streams,
    sync: &OwnedFd,
) -> StageError {
    match set_up(config, cgroups, pod, confinement, sources, streams, sync) {
        Err(error) => error,
        Ok(()) => confine::exec(&config.process),
    }
}

fn set_up(
    config: &Config,
    cgroups: &Cgroups,
    pod: &PodNamespaces<'_>,
    confinement: &Confinement,
    sources: rootfs::Sources,
    streams: Streams,
    sync: &OwnedFd,
) -> Result<(), StageError> {
    // Nobody may look into this process before it has become the container.
    process::set_dumpable(false).step("hide the runtime")?;
    unblock_signals()?;
    process::join_new_keyring();
    let procfs = Procfs::open().step("open /proc")?;
    confine::set_oom_score(&procfs, config.process.oom_score_adj);
    cgroups.join(&config.linux.cgroups_path, 0).step("join the cgroup")?;
    if let Cgroups::V2(_) = cgroups {
        #[allow(deprecated)]
        rustix::thread::unshare(UnshareFlags::NEWCGROUP).step("make a cgroup namespace")?;
    }
    let kinds = Kinds::NETWORK | Kinds::INTER_PROCESS_COMMUNICATION | Kinds::HOST_NAME_AND_NIS_DOMAIN_NAME;
    namespace::join_process(pod.pause, kinds).step("join the pod's namespaces")?;

    let root = rootfs::build(sources, config)?;
    let null = devices::fill(&root, config)?;
    let terminal = match config.process.terminal {
        true => Some(devices::open_terminal(&root, true)?),
        false => None,
    };
    rootfs::mask(&root, config, null.as_fd())?;
    drop(procfs);
    let null_stdin = rustix::fs::open("/dev/null", rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC, rustix::fs::Mode::empty())
        .step("open /dev/null")?;
    rootfs::enter(&root, config)?;

    let master = match terminal {
        Some((master, slave)) => {
            confine::use_terminal(&slave)?;
            Some(master)
        }
        None => {
            rustix::process::setsid().step("start a session")?;
            for (place, stream) in [streams.stdin, streams.stdout, streams.stderr].into_iter().enumerate() {
                process::set_stdio(stream.as_ref().unwrap_or(&null_stdin), place as u8).step("set the streams")?;
            }
            None
        }
    };
    confinement.apply(&config.process)?;
    confine::enter_folder(&config.process.cwd)?;
    stage::send(sync, &Message::Created(master)).step("tell that the container is made")?;
    match stage::receive(sync).step("wait for the start")? {
        Some(Message::Start) => Ok(()),
        _ => Err("the runtime is gone").step("wait for the start"),
    }
}

/// Undoes what the shim has done to its own signals.
pub(crate) fn unblock_signals() -> Result<(), StageError> {
    use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).step("unblock signals")?;
    orlop_kernel::process::default_signal(Signal::SIGPIPE as i32).step("restore SIGPIPE")?;
    Ok(())
}
