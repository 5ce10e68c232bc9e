//! `create`: a container up to the point where only its program is missing.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use orlop_container::alone::{self, Making, Plan};
use orlop_container::config::Config;
use orlop_container::hook;
use orlop_container::stage::{self, Message, Step};
use orlop_container::{Confinement, clock};
use orlop_kernel::cgroup::{Cgroups, DeviceRule};
use orlop_kernel::file::Outlives;
use orlop_kernel::{process, procfs, socket};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::arguments::Arguments;
use crate::failure::{Failure, failed};
use crate::kill;
use crate::log::Log;
use crate::store::{Held, Place, Record, Store, absolute};

/// How long the steps of a creation may take, hooks apart.
const TIME: Duration = Duration::from_secs(120);

/// What a command line asks of a process that is made: shared by `create`, `run` and `exec`.
#[derive(Debug)]
pub struct Request {
    /// Where its terminal goes.
    pub console: Option<PathBuf>,
    /// Where a descriptor of it goes.
    pub pidfd_socket: Option<PathBuf>,
    /// File of its number.
    pub pid_file: Option<PathBuf>,
    /// Descriptors that it gets.
    pub kept: Vec<OwnedFd>,
    /// How many of those are named by `LISTEN_FDS`.
    pub listened: u32,
}

impl Request {
    /// Reads it. Must come before anything is opened: inherited descriptors are taken over by their numbers.
    pub fn read(arguments: &Arguments) -> Result<Request, Failure> {
        let path = |name: &str| arguments.get(name).filter(|path| !path.is_empty()).map(PathBuf::from);
        let listened = std::env::var("LISTEN_FDS").ok().and_then(|text| text.parse().ok()).unwrap_or(0u32);
        let count = arguments.number::<u32>("preserve-fds")?.unwrap_or(0).saturating_add(listened);
        let kept = process::take_inherited(count).step("keep the descriptors (--preserve-fds, LISTEN_FDS)")?;
        Ok(Request {
            console: path("console-socket"),
            pidfd_socket: path("pidfd-socket"),
            pid_file: path("pid-file"),
            kept,
            listened,
        })
    }

    /// A terminal needs somebody who takes it, and nobody else does.
    pub fn check_console(&self, terminal: bool, detached: bool) -> Result<(), Failure> {
        match (terminal && detached, &self.console) {
            (true, None) => Err(Failure::Usage("process.terminal: a detached container needs --console-socket".into())),
            (false, Some(_)) => {
                Err(Failure::Usage("--console-socket is for a detached process with process.terminal alone".into()))
            }
            _ => Ok(()),
        }
    }

    /// Tells the process of the sockets that it gets.
    pub fn tell_sockets(&self, environment: &mut Vec<String>) {
        if self.listened > 0 {
            environment.push(format!("LISTEN_FDS={}", self.listened));
            environment.push("LISTEN_PID=1".into());
        }
    }

    /// Hands the process out to whoever asked for it.
    pub fn hand_out(&self, pid: i32, pidfd: &OwnedFd) -> Result<(), Failure> {
        if let Some(path) = &self.pidfd_socket {
            send_descriptor(path, b"pidfd", pidfd)?;
        }
        let Some(file) = &self.pid_file else { return Ok(()) };
        let replaced = orlop_kernel::file::replace(file, pid.to_string().as_bytes(), 0o644, Outlives::Process);
        Ok(replaced.step(format!("write {file:?}"))?)
    }
}

/// Sends a descriptor to a socket that somebody listens at.
pub fn send_descriptor(path: &Path, words: &[u8], descriptor: &OwnedFd) -> Result<(), Failure> {
    let what = || format!("send to the socket {path:?}");
    let socket = socket::connect(path).step(what())?;
    socket::send(&socket, words, &[descriptor.as_fd()]).step(what())?;
    Ok(())
}

/// A container that was just made.
#[derive(Debug)]
pub struct Created {
    /// Its folder.
    pub place: Place,
    /// The lock on it.
    pub held: Held,
    /// Its record.
    pub record: Record,
    /// Its first process.
    pub pidfd: OwnedFd,
    /// Its terminal, unless that was sent away.
    pub terminal: Option<OwnedFd>,
}

/// Makes a container; whatever fails, nothing of it is left.
pub fn create(
    store: &Store,
    arguments: &Arguments,
    request: &Request,
    detached: bool,
    log: &Log,
) -> Result<Created, Failure> {
    let id = arguments.id()?;
    crate::store::check_id(id)?;
    let bundle = absolute(Path::new(arguments.get("bundle").unwrap_or(".")))?;
    let file = bundle.join("config.json");
    let text = std::fs::read(&file).step(format!("read {file:?}"))?;
    let mut config: Config = serde_json::from_slice(&text).step(format!("read {file:?}"))?;
    config.check_alone().step(file.display().to_string())?;
    request.check_console(config.process.terminal, detached)?;
    // Whoever calls has its own idea of modes; those of a container's files are its own.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let (place, held) = store.make(id)?;
    let mut job = Job {
        place,
        record: first_record(id, &bundle, &mut config)?,
        config,
        cgroups: Cgroups::detect().step("find the cgroups")?,
        request,
        log,
    };
    let made = job.make(arguments, &text);
    match made {
        Ok((pidfd, terminal)) => Ok(Created { place: job.place, held, record: job.record, pidfd, terminal }),
        Err(error) => {
            job.undo();
            Err(error)
        }
    }
}

/// The first record, and the specification with what every container gets.
pub fn first_record(id: &str, bundle: &Path, config: &mut Config) -> Result<Record, Failure> {
    let rootfs = alone::root_of(bundle, config);
    let linux = &mut config.linux;
    linux.cgroups_path = match linux.cgroups_path.as_str() {
        "" => format!("/orlop-runtime-{id}"),
        path if path.starts_with('/') => path.to_string(),
        path => format!("/{path}"),
    };
    linux.devices.extend(alone::missing_devices(&linux.devices));
    linux.resources.devices = device_rules(std::mem::take(&mut linux.resources.devices));
    let own = |kind: &str| linux.namespaces.iter().any(|namespace| namespace.kind == kind);
    let new = |kind: &str| linux.namespaces.iter().any(|space| space.kind == kind && space.path.is_none());
    Ok(Record {
        version: 1,
        oci_version: config.oci_version.clone(),
        id: id.into(),
        rootfs,
        bundle: bundle.into(),
        created: clock::now(),
        pid: 0,
        pid_start_ticks: 0,
        cgroup: linux.cgroups_path.clone(),
        foreign_cgroup: false,
        own_pids: new("pid"),
        own_cgroups: own("cgroup"),
        user_namespace: own("user"),
        annotations: config.annotations.clone(),
        hooks: config.hooks.clone().unwrap_or_default(),
    })
}

/// Nothing, then what the specification says, then what every container may use.
fn device_rules(asked: Vec<DeviceRule>) -> Vec<DeviceRule> {
    let rule = |allow, kind: &str, major: Option<i64>, minor: Option<i64>, access: &str| DeviceRule {
        allow,
        kind: Some(kind.into()),
        major,
        minor,
        access: Some(access.into()),
    };
    let own = [
        (1, Some(3)),
        (1, Some(5)),
        (1, Some(7)),
        (1, Some(8)),
        (1, Some(9)),
        (5, Some(0)),
        (5, Some(1)),
        (5, Some(2)),
        (136, None),
    ];
    let own = own.map(|(major, minor)| rule(true, "c", Some(major), minor, "rwm"));
    let nodes = ["c", "b"].map(|kind| rule(true, kind, None, None, "m"));
    [rule(false, "a", None, None, "rwm")].into_iter().chain(asked).chain(nodes).chain(own).collect()
}

/// A creation at work.
struct Job<'a> {
    place: Place,
    record: Record,
    config: Config,
    cgroups: Cgroups,
    request: &'a Request,
    log: &'a Log,
}

impl Job<'_> {
    fn make(&mut self, arguments: &Arguments, text: &[u8]) -> Result<(OwnedFd, Option<OwnedFd>), Failure> {
        let cgroup = self.record.cgroup.clone();
        self.record.foreign_cgroup = self.cgroups.exists(&cgroup);
        let others = self.cgroups.processes(&cgroup);
        if !others.is_empty() {
            let why = format!("it holds processes that are not this container's: {others:?}");
            return Err(failed(format!("use the cgroup {cgroup}"), why));
        }
        // From here on there is something that a killed creation leaves, so the record comes first.
        self.place.write(&self.record)?;
        let file = self.place.folder.join("config.json");
        std::fs::write(&file, text).step(format!("write {file:?}"))?;
        self.cgroups.create(&cgroup, &self.config.linux.resources).step("make the cgroup")?;
        let start = socket::listen(&self.place.start_socket()).step("make the socket of the start")?;
        self.request.tell_sockets(&mut self.config.process.env);
        let confinement = Confinement::prepare(&self.config.process, self.config.linux.seccomp.as_ref())?;
        let making = alone::create(&Plan {
            id: &self.record.id,
            bundle: &self.record.bundle,
            config: &self.config,
            cgroups: &self.cgroups,
            confinement: &confinement,
            start: &start,
            kept: &self.request.kept,
            pivot: !arguments.has("no-pivot"),
            keyring: !arguments.has("no-new-keyring"),
        })?;
        let followed = self.follow(&making);
        if followed.is_err() {
            let _ = rustix::process::pidfd_send_signal(&making.pidfd, rustix::process::Signal::KILL);
            process::wait_for(&making.pidfd);
        }
        Ok((making.pidfd, followed?))
    }

    /// Answers the child until it waits for its start.
    fn follow(&mut self, making: &Making) -> Result<Option<OwnedFd>, Failure> {
        let hooks = self.record.hooks.clone();
        let end = Instant::now() + TIME + hook::time_of(&hooks.create_container);
        let mut message = receive(&making.sync, end)?;
        if let Message::Ready = message {
            let state = self.record.hook_state("creating", making.pid);
            hook::run_all("prestart", &hooks.prestart, &state, &self.record.bundle)?;
            hook::run_all("createRuntime", &hooks.create_runtime, &state, &self.record.bundle)?;
            stage::send(&making.sync, &Message::Start).step("let the container go on")?;
            message = receive(&making.sync, Instant::now() + TIME + hook::time_of(&hooks.create_container))?;
        }
        let terminal = match message {
            Message::Created(terminal) => terminal,
            other => return Err(unexpected(&other)),
        };
        let terminal = match (&self.request.console, terminal) {
            (Some(path), Some(terminal)) => {
                send_descriptor(path, b"/dev/ptmx", &terminal)?;
                None
            }
            (_, terminal) => terminal,
        };
        self.record.pid = making.pid;
        self.record.pid_start_ticks = procfs::start_ticks(making.pid).unwrap_or(0);
        self.place.write(&self.record)?;
        self.request.hand_out(making.pid, &making.pidfd)?;
        stage::send(&making.sync, &Message::Start).step("let the container wait for its start")?;
        self.log.debug(&format!("container {} is made: process {}", self.record.id, making.pid));
        Ok(terminal)
    }

    /// Takes back what was made; what that fails at is told and stays for `delete --force`.
    fn undo(&mut self) {
        if let Err(error) = kill::remove(&self.place, &self.record, &self.cgroups, self.log) {
            self.log.warn(&format!("container {}: {error}; delete --force removes the rest", self.record.id));
        }
        if let Some(file) = &self.request.pid_file {
            let _ = std::fs::remove_file(file);
        }
    }
}

/// The next message of a process that is being made.
pub fn receive(sync: &OwnedFd, end: Instant) -> Result<Message, Failure> {
    let why = "it has ended without a word: killed, perhaps for its memory limit";
    hear(sync, end)?.ok_or_else(|| failed("make the container's process", why))
}

/// The next message of a process, or the end of its socket.
pub fn hear(sync: &OwnedFd, end: Instant) -> Result<Option<Message>, Failure> {
    let what = "wait for the container's process";
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let time = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        match poll(&mut [PollFd::new(sync, PollFlags::IN)], Some(&time)) {
            Ok(0) => return Err(failed(what, "it has not come further in time")),
            Ok(_) => break,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(failed(what, errno)),
        }
    }
    match stage::receive(sync) {
        Ok(Some(Message::Failed(text))) => Err(Failure::Usage(text)),
        // Killed with a message of ours unread.
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(None),
        heard => Ok(heard.step(what)?),
    }
}

/// A message that has no place here.
pub fn unexpected(message: &Message) -> Failure {
    Failure::Usage(format!("the container's process has said {message:?}"))
}

/// Whether a descriptor is a terminal.
pub fn is_terminal(fd: impl AsRawFd + AsFd) -> bool {
    rustix::termios::isatty(fd)
}
