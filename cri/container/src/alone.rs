//! A container that stands alone: made of a bundle, in no pod, by the command line that all runtimes of the OCI share.
//!
//! Its stages are those of a container of a pod, with these differences: the root is a folder and not an overlay, the
//! namespaces are those that the specification asks for, the streams are those of whoever runs the program, and between
//! creation and start nobody of ours is there. So the process waits at a socket in the container's folder:
//!
//! ```text
//!  create                                   child                                        start
//!  holder of a user namespace
//!  clone3 (pid) ──────────────────────────> closes files, cgroup, opens sources
//!                                           joins and makes namespaces, builds the root
//!        <──────────── Ready ────────────── where hooks run on the machine
//!  prestart, createRuntime ─── Start ─────> createContainer
//!                                           masks, pivot_root, identity, capabilities, seccomp
//!        <──────────── Created (+ terminal)
//!  writes the record ───────── Start ─────> accepts connections <─────────────────────── connects
//!  ends                                     <─────────────────────────────────── Start ─ says so
//!                                           startContainer
//!                                           ─── Failed(text), or the end by exec ──────> poststart
//! ```
//!
//! Whoever of the two dies, the other gets the end of its socket. A connection that ends without a word leaves the process
//! waiting.

pub(crate) mod namespaces;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use orlop_kernel::cgroup::Cgroups;
use orlop_kernel::mount::{self, Propagation};
use orlop_kernel::procfs::Procfs;
use orlop_kernel::{namespace, path, process, socket, terminal};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::Mode;

use crate::config::{Config, Device};
use crate::confine::{self, Confinement};
use crate::create::{begin_with, clone_into, hand_over};
use crate::hook::OwnHooks;
use crate::stage::{self, Message, StageError, Step};
use crate::{devices, rootfs};
use namespaces::{Holder, Namespaces, Space};

pub use namespaces::user_of;

/// What a container is made of.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    /// Its name.
    pub id: &'a str,
    /// The folder of its specification.
    pub bundle: &'a Path,
    /// Its specification, checked; `linux.cgroupsPath` is the path of its cgroup, which exists.
    pub config: &'a Config,
    /// The machine's cgroups.
    pub cgroups: &'a Cgroups,
    /// Its filter and capabilities.
    pub confinement: &'a Confinement,
    /// The socket at which it waits for its start.
    pub start: &'a OwnedFd,
    /// Descriptors that it gets.
    pub kept: &'a [OwnedFd],
    /// Its root is pivoted to; else moved over the machine's.
    pub pivot: bool,
    /// It gets a keyring of its own.
    pub keyring: bool,
}

/// The first process of a container that is being made.
#[derive(Debug)]
pub struct Making {
    /// In the PID namespace of the caller.
    pub pid: i32,
    /// A descriptor of it.
    pub pidfd: OwnedFd,
    /// Where its messages come from and those to it go to.
    pub sync: OwnedFd,
    /// Held until the container has joined its namespaces.
    _holder: Option<Holder>,
}

/// The devices that every container has and this one does not list.
#[must_use]
pub fn missing_devices(listed: &[Device]) -> Vec<Device> {
    devices::usual().into_iter().filter(|usual| !listed.iter().any(|device| device.path == usual.path)).collect()
}

/// The absolute path of a container's root.
#[must_use]
pub fn root_of(bundle: &Path, config: &Config) -> PathBuf {
    bundle.join(&config.root.path)
}

/// Clones the container's first process.
///
/// # Errors
/// When something that the parent does fails; no process is left then.
pub fn create(plan: &Plan<'_>) -> Result<Making, StageError> {
    let spaces = Namespaces::open(&plan.config.linux.namespaces)?;
    let holder = spaces.hold(plan.config)?;
    let (sync, theirs) = socket::message_pair().step("make a socket")?;
    let own_pid = namespace::open(Path::new("/proc/self/ns/pid")).step("open the own PID namespace")?;
    let pid = spaces.pid();
    let flags = if let crate::PidNamespace::New = pid { process::new::PID } else { 0 };
    match clone_into(flags, pid, &own_pid)? {
        process::Side::Parent { pid, pidfd } => Ok(Making { pid, pidfd, sync, _holder: holder }),
        process::Side::Child => {
            let child = Child { plan: *plan, spaces: &spaces, holder: holder.as_ref(), sync: theirs };
            let error = child.run();
            let _ = stage::send(&child.sync, &Message::Failed(error.to_string()));
            std::process::exit(127)
        }
    }
}

/// What the child works with.
struct Child<'a> {
    plan: Plan<'a>,
    spaces: &'a Namespaces,
    holder: Option<&'a Holder>,
    sync: OwnedFd,
}

impl Child<'_> {
    /// Everything that the child does up to the exec; it returns only when something failed before the start.
    fn run(&self) -> StageError {
        let number = match self.set_up() {
            Ok(number) => number,
            Err(error) => return error,
        };
        let (connection, error) = match self.wait() {
            Err(error) => return error,
            Ok(connection) => match self.hooks(number).before_program() {
                Err(error) => (connection, error),
                Ok(()) => {
                    let error = self.plan.confinement.exec_with(&self.plan.config.process, self.plan.kept);
                    (connection, error)
                }
            },
        };
        let _ = stage::send(&connection, &Message::Failed(error.to_string()));
        std::process::exit(127)
    }

    /// Makes everything but the exec, tells so, and returns this process's number on the machine.
    fn set_up(&self) -> Result<i32, StageError> {
        let Plan { config, cgroups, .. } = self.plan;
        let kept: Vec<BorrowedFd<'_>> = [self.sync.as_fd(), self.plan.start.as_fd()]
            .into_iter()
            .chain(self.plan.kept.iter().map(AsFd::as_fd))
            .chain(self.spaces.descriptors())
            .chain(self.holder.into_iter().flat_map(Holder::descriptors))
            .collect();
        begin_with(&kept, self.plan.keyring)?;
        let procfs = Procfs::open().step("open /proc")?;
        let number = procfs.own_number().step("read the own number")?;
        confine::set_oom_score(&procfs, config.process.oom_score_adj);
        confine::set_labels(&procfs, &config.process)?;
        cgroups.join(&config.linux.cgroups_path, 0).step("join the cgroup")?;
        let user = self.holder.and_then(Holder::user);
        let own_cgroups = !matches!(self.spaces.cgroup, Space::Machine);
        let folder = root_of(self.plan.bundle, config);
        let sources = rootfs::open_alone(&folder, config, user, cgroups, own_cgroups)?;
        self.spaces.enter(self.holder)?;
        mount::set_propagation(c"/", Propagation::Slave).step("keep mounts from the machine")?;
        self.spaces.furnish(config, &procfs, self.holder)?;
        let mappings = user.map(|user| &user.mappings);
        if let Some(mappings) = mappings {
            process::make_files_as(mappings.host_uid(0)?, mappings.host_gid(0)?)
                .step("make files for the container's root")?;
        }
        let root = rootfs::build_at(&folder, sources, None, config, mappings)?;
        let null = devices::fill(&root, config, mappings)?;
        let process = &config.process;
        let terminal = process.terminal.then(|| devices::open_terminal(&root, true)).transpose()?;
        self.hooks(number).before_root(&self.sync)?;
        rootfs::mask(&root, config, null.as_fd())?;
        if process.cwd.starts_with('/') {
            let what = || format!("make the working folder {:?}", process.cwd);
            path::make_folder_in_root(&root, Path::new(&process.cwd), Mode::from_raw_mode(0o755)).step(what())?;
        }
        rootfs::enter_by(&root, config, self.plan.pivot)?;
        let master = self.use_terminal(terminal)?;
        confine::set_personality(config.linux.personality.as_ref())?;
        self.plan.confinement.apply(process, user, |user| hand_over(user, master.as_ref()))?;
        if !process.args.is_empty() {
            confine::check_program(process)?;
        }
        stage::send(&self.sync, &Message::Created(master)).step("tell that the container is made")?;
        stage::hear_start(&self.sync, "wait for the record")?;
        Ok(number)
    }

    fn hooks(&self, pid: i32) -> OwnHooks<'_> {
        let Plan { id, bundle, config, .. } = self.plan;
        OwnHooks { id, bundle, config, pid }
    }

    /// Makes the terminal this process's own, or starts a session with the streams that it has; returns the master.
    fn use_terminal(&self, terminal: Option<devices::Terminal>) -> Result<Option<OwnedFd>, StageError> {
        let Some(terminal) = terminal else {
            rustix::process::setsid().step("start a session")?;
            return Ok(None);
        };
        if let Some(size) = self.plan.config.process.console_size {
            terminal::set_size(&terminal.master, size.width, size.height).step("set process.consoleSize")?;
        }
        confine::use_terminal(&terminal.slave)?;
        Ok(Some(terminal.master))
    }

    /// Waits for the connection that says the start.
    fn wait(&self) -> Result<OwnedFd, StageError> {
        let what = "wait for the start";
        loop {
            let mut fds = [PollFd::new(self.plan.start, PollFlags::IN)];
            match poll(&mut fds, None) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(errno) => return Err(errno).step(what),
            }
            use rustix::io::Errno;
            let connection = match rustix::net::accept_with(self.plan.start, rustix::net::SocketFlags::CLOEXEC) {
                Ok(connection) => connection,
                Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => continue,
                Err(errno) => return Err(errno).step(what),
            };
            if let Ok(Some(Message::Start)) = stage::receive(&connection) {
                return Ok(connection);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_that_are_listed_are_not_made_twice() {
        let own = Device { path: "/dev/zero".into(), kind: "c".into(), major: 1, minor: 5, ..Device::default() };
        let missing = missing_devices(&[own]);
        assert_eq!(missing.len(), devices::usual().len() - 1);
        assert!(missing.iter().all(|device| device.path != Path::new("/dev/zero") && device.major > 0));
    }
}
