//! Making a container up to the point where only the exec is missing.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use orlop_kernel::cgroup::Cgroups;
use orlop_kernel::mount::{self, Propagation};
use orlop_kernel::namespace::{self, Kinds};
use orlop_kernel::procfs::Procfs;
use orlop_kernel::{path, process, socket};
use rustix::fs::Mode;
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use crate::config::{Config, Hooks};
use crate::confine::{self, Confinement};
use crate::hook::OwnHooks;
use crate::protocol::ContainerSpec;
use crate::sandbox::Pause;
use crate::stage::{self, Message, StageError, Step};
use crate::user_namespace::{UserMappings, UserNamespace};
use crate::{devices, rootfs};

/// The pod that a container joins.
#[derive(Clone, Copy)]
pub struct Pod<'a> {
    /// The sandbox's folder.
    pub folder: &'a Path,
    /// The pause process, whose network, IPC and UTS namespaces are joined, and whose mount namespace holds the
    /// pod's shared memory.
    pub pause: &'a Pause,
    /// The machine's cgroups.
    pub cgroups: &'a Cgroups,
    /// The shim's own PID namespace, to come back to.
    pub own_pid: &'a OwnedFd,
}

/// Whose PID namespace a container gets.
#[derive(Clone, Copy)]
pub enum PidNamespace<'a> {
    /// One of its own.
    New,
    /// That of the machine.
    Host,
    /// That of a process, by its descriptor.
    Of(&'a OwnedFd),
    /// That of a file.
    File(&'a OwnedFd),
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

/// Ends of pipes: the shim's, or those that become the container's stdio.
#[derive(Default)]
pub(crate) struct Streams {
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
}

/// What the child works with.
struct Child<'a> {
    spec: &'a ContainerSpec,
    config: &'a Config,
    confinement: &'a Confinement,
    pod: Pod<'a>,
    /// Its folder, which is the bundle that hooks are told of.
    folder: PathBuf,
    sync: OwnedFd,
}

/// Clones the container's first process. The cgroup exists already. The result is known when [`Message::Created`]
/// or [`Message::Failed`] comes in on the socket.
///
/// # Errors
/// When something that the parent does fails; no process is left then.
pub fn create(
    spec: &ContainerSpec,
    config: &Config,
    confinement: &Confinement,
    pod: Pod<'_>,
    pid: PidNamespace<'_>,
) -> Result<Created, StageError> {
    check_user(config, pod.pause.user.as_ref(), pid)?;
    let (sync, theirs) = socket::message_pair().step("make a socket")?;
    let (ours, streams) = open_streams(spec)?;
    // The mount namespace comes later: the child first opens its sources among the machine's mounts, where a file
    // system that hangs holds up nobody else.
    let namespaces = if let PidNamespace::New = pid { process::new::PID } else { 0 };
    match clone_into(namespaces, pid, pod.own_pid)? {
        process::Side::Parent { pid, pidfd } => {
            Ok(Created { pid, pidfd, sync, stdin: ours.stdin, stdout: ours.stdout, stderr: ours.stderr })
        }
        process::Side::Child => {
            let folder = pod.folder.join("containers").join(&spec.id);
            let child = Child { spec, config, confinement, pod, folder, sync: theirs };
            let error = child.run(streams);
            let _ = stage::send(&child.sync, &Message::Failed(error.to_string()));
            std::process::exit(127)
        }
    }
}

/// A container has the user namespace of its pod, or none as its pod.
pub(crate) fn check_user(
    config: &Config,
    user: Option<&UserNamespace>,
    pid: PidNamespace<'_>,
) -> Result<(), StageError> {
    let asked = UserMappings {
        uid_mappings: config.linux.uid_mappings.clone(),
        gid_mappings: config.linux.gid_mappings.clone(),
    };
    let what = "use the pod's user namespace";
    if asked != user.map(|user| user.mappings.clone()).unwrap_or_default() {
        return Err("linux.uidMappings and linux.gidMappings are not those of the pod").step(what);
    }
    match (user, pid) {
        (Some(_), PidNamespace::Host) => Err("its containers can't have the machine's process numbers").step(what),
        _ => Ok(()),
    }
}

/// Clones a process, born into the PID namespace of another one where asked: children of this process are until it
/// comes back.
pub(crate) fn clone_into(
    namespaces: u64,
    pid: PidNamespace<'_>,
    own_pid: &OwnedFd,
) -> Result<process::Side, StageError> {
    let joined = match pid {
        PidNamespace::New | PidNamespace::Host => return process::clone(namespaces).step("clone"),
        PidNamespace::Of(target) => namespace::join_process(target, Kinds::PROCESS_ID),
        PidNamespace::File(file) => namespace::join(file, LinkNameSpaceType::ProcessID),
    };
    joined.step("join the PID namespace")?;
    let cloned = process::clone(namespaces);
    if !matches!(cloned, Ok(process::Side::Child)) {
        namespace::join(own_pid, LinkNameSpaceType::ProcessID).step("leave the PID namespace")?;
    }
    match cloned {
        // The kernel's word for a PID namespace whose first process is gone.
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NOMEM.raw_os_error()) => {
            Err("its first process has ended").step("clone into the PID namespace")
        }
        other => other.step("clone"),
    }
}

/// Pipes for the streams: ours, theirs. With a terminal there are none.
pub(crate) fn open_streams(spec: &ContainerSpec) -> Result<(Streams, Streams), StageError> {
    let (mut ours, mut theirs) = (Streams::default(), Streams::default());
    if spec.tty {
        return Ok((ours, theirs));
    }
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).step("make a pipe");
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

impl Child<'_> {
    /// Everything that the child does; it returns only when something failed.
    fn run(&self, streams: Streams) -> StageError {
        match self.set_up(streams).and_then(|number| self.hooks(number).before_program()) {
            Err(error) => error,
            Ok(()) => self.confinement.exec(&self.config.process),
        }
    }

    fn hooks(&self, pid: i32) -> OwnHooks<'_> {
        OwnHooks { id: &self.spec.id, bundle: &self.folder, config: self.config, pid }
    }

    /// Whether hooks look for the container's root while it is made.
    fn shows_root(&self) -> bool {
        self.config.hooks.as_ref().is_some_and(Hooks::at_creation)
    }

    /// Makes everything but the exec, tells so, waits for the start, and returns this process's number on the machine.
    fn set_up(&self, streams: Streams) -> Result<i32, StageError> {
        let Pause { pidfd, shm, user, .. } = self.pod.pause;
        let kept: Vec<BorrowedFd<'_>> = [Some(&self.sync), Some(pidfd), Some(shm)]
            .into_iter()
            .chain([user.as_ref().map(|user| &user.namespace)])
            .chain([&streams.stdin, &streams.stdout, &streams.stderr].map(Option::as_ref))
            .flatten()
            .map(AsFd::as_fd)
            .collect();
        begin(&kept)?;
        let process = &self.config.process;
        let cgroups = self.pod.cgroups;
        let procfs = Procfs::open().step("open /proc")?;
        let number = procfs.own_number().step("read the own number")?;
        confine::set_oom_score(&procfs, process.oom_score_adj);
        confine::set_labels(&procfs, process)?;
        cgroups.join(&self.config.linux.cgroups_path, 0).step("join the cgroup")?;
        if let Cgroups::V2(_) = cgroups {
            unshare(UnshareFlags::NEWCGROUP).step("make a cgroup namespace")?;
        }
        let sources = rootfs::open_sources(self.spec, self.config, &self.pod)?;
        let shm = self.join_pod()?;
        let mappings = user.as_ref().map(|user| &user.mappings);
        if let Some(mappings) = mappings {
            // Whatever is made from here on is made for the container, whose root owns it.
            process::make_files_as(mappings.host_uid(0)?, mappings.host_gid(0)?)
                .step("make files for the pod's root")?;
        }
        let root = rootfs::build_at(&self.root_place(), sources, Some(shm), self.config, mappings)?;
        let null = devices::fill(&root, self.config, mappings)?;
        let terminal = process.terminal.then(|| devices::open_terminal(&root, true)).transpose()?;
        self.hooks(number).before_root(&self.sync)?;
        rootfs::mask(&root, self.config, null.as_fd())?;
        if process.cwd.starts_with('/') {
            let mode = Mode::from_raw_mode(0o755);
            path::make_folder_in_root(&root, Path::new(&process.cwd), mode)
                .step(format!("make the working folder {:?}", process.cwd))?;
        }
        rootfs::enter(&root, self.config)?;
        let master = self.use_streams(terminal, streams, &null)?;
        self.confinement.apply(process, user.as_ref(), |user| hand_over(user, master.as_ref()))?;
        stage::send(&self.sync, &Message::Created(master)).step("tell that the container is made")?;
        stage::hear_start(&self.sync, "wait for the start")?;
        Ok(number)
    }

    /// Where the root is built: over the pod's shared memory, or where hooks look for it.
    fn root_place(&self) -> PathBuf {
        if self.shows_root() { self.folder.join(&self.config.root.path) } else { "/".into() }
    }

    /// Joins the pod's namespaces, with a copy of the mount namespace of pause, which holds nothing but the pod's
    /// shared memory: copying the machine's own costs time with each of its mounts, so only a container whose hooks need
    /// those gets that. Returns the shared memory, ready to be attached.
    fn join_pod(&self) -> Result<OwnedFd, StageError> {
        let machine = self.shows_root().then(|| self.prepare_root()).transpose()?;
        let kinds =
            Kinds::NETWORK | Kinds::INTER_PROCESS_COMMUNICATION | Kinds::HOST_NAME_AND_NIS_DOMAIN_NAME | Kinds::MOUNT;
        namespace::join_process(&self.pod.pause.pidfd, kinds).step("join the pod's namespaces")?;
        let shm = mount::clone_fd(&self.pod.pause.shm, false).step("open the pod's shared memory")?;
        if let Some(machine) = &machine {
            namespace::join(machine, LinkNameSpaceType::Mount).step("leave the pod's mount namespace")?;
        }
        unshare(UnshareFlags::NEWNS).step("make a mount namespace")?;
        if machine.is_some() {
            mount::set_propagation(c"/", Propagation::Slave).step("keep mounts from the machine")?;
        }
        Ok(shm)
    }

    /// Makes the folder that the root covers, and opens the machine's mount namespace.
    fn prepare_root(&self) -> Result<OwnedFd, StageError> {
        let place = self.root_place();
        std::fs::create_dir_all(&place).step(format!("make {place:?}"))?;
        namespace::open(Path::new("/proc/self/ns/mnt")).step("open the machine's mount namespace")
    }

    /// Makes the terminal or the pipes this process's stdio; returns the terminal's master.
    fn use_streams(
        &self,
        terminal: Option<devices::Terminal>,
        streams: Streams,
        null: &OwnedFd,
    ) -> Result<Option<OwnedFd>, StageError> {
        if let Some(terminal) = terminal {
            confine::use_terminal(&terminal.slave)?;
            return Ok(Some(terminal.master));
        }
        rustix::process::setsid().step("start a session")?;
        for (place, stream) in [streams.stdin, streams.stdout, streams.stderr].into_iter().enumerate() {
            process::set_stdio(stream.as_ref().unwrap_or(null), place as u8).step("set the streams")?;
        }
        Ok(None)
    }
}

/// Moves this process and its mounts into the pod's user namespace. The root was built with the machine's rights, which
/// makes device nodes and mounts of procfs possible; the copy that the container gets belongs to the user namespace, and
/// the kernel locks what is in it: not even a container with SYS_ADMIN can take away a mask or make a mount writable.
pub(crate) fn hand_over(user: &UserNamespace, terminal: Option<&OwnedFd>) -> Result<(), StageError> {
    user.enter()?;
    unshare(UnshareFlags::NEWNS).step("hand the mounts over to the user namespace")?;
    let Some(master) = terminal else { return Ok(()) };
    let slave = devices::reopen_terminal(master)?;
    (0..3).try_for_each(|place| process::set_stdio(&slave, place)).step("use the terminal")
}

/// The first steps of every process that the shim clones: nobody may look into it before it has become the
/// container, it holds no file of the shim's that it has no use for, and the shim's signals and keyring are not its
/// own.
pub(crate) fn begin(kept: &[BorrowedFd<'_>]) -> Result<(), StageError> {
    begin_with(kept, true)
}

/// The same, with the keyring that it has where it is to keep that.
pub(crate) fn begin_with(kept: &[BorrowedFd<'_>], keyring: bool) -> Result<(), StageError> {
    use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
    process::set_dumpable(false).step("hide the runtime")?;
    process::close_all_but(kept).step("close the runtime's files")?;
    for signal in [Signal::SIGPIPE, Signal::SIGHUP] {
        process::default_signal(signal as i32).step("restore the signals")?;
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).step("unblock signals")?;
    if keyring {
        process::join_new_keyring();
    }
    Ok(())
}

pub(crate) fn unshare(flags: UnshareFlags) -> rustix::io::Result<()> {
    // Deprecated because of UnshareFlags::FILES, which takes descriptors from under their owners; not used here.
    #[allow(deprecated)]
    rustix::thread::unshare(flags)
}
