//! The shim's loop: what it waits for, and what it does when it comes.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use orlop_container::protocol::{ContainerPhase, FailureKind, NamespaceSource, Reply, SandboxSpec, SandboxState};
use orlop_container::sandbox::{self, Pause};
use orlop_container::stage::{self, Message};
use orlop_kernel::cgroup::Cgroups;
use orlop_kernel::file::{self, Outlives};
use orlop_kernel::{capability, namespace, process, procfs, socket};

use crate::connection::Connection;
use crate::container::{Container, Phase};
use crate::exec::Exec;
use crate::log::Stream;
use crate::oom::OomKills;
use crate::poller::{Poller, Token};

use orlop_container::clock;

/// Callers at once.
const CONNECTIONS_MAX: usize = 512;

/// What a token stands for.
#[derive(Clone, Debug)]
pub enum Source {
    /// New callers.
    Listener,
    /// Children that ended.
    Signals,
    /// A caller.
    Connection,
    /// A container that is being made or started.
    Sync { container: String },
    /// An exec that is being made; the token of its connection.
    ExecSync { connection: Token },
    /// Hooks of a container that are being run.
    Hooks { container: String },
    /// A container's output.
    Output { container: String },
    /// Room in a container's input.
    InputRoom { container: String },
    /// A session's input.
    SessionInput { container: String, connection: Token },
    /// Room in a session's output.
    SessionRoom { container: String, connection: Token, stream: Stream },
}

/// What every token stands for.
pub type Sources = HashMap<Token, Source>;

/// The shim.
pub struct Shim {
    pub(crate) folder: PathBuf,
    pub(crate) spec: SandboxSpec,
    pub(crate) cgroups: Cgroups,
    pub(crate) own_pid: OwnedFd,
    pub(crate) pause: Pause,
    pub(crate) pause_alive: bool,
    pub(crate) poller: Poller,
    pub(crate) sources: Sources,
    pub(crate) connections: HashMap<Token, Connection>,
    pub(crate) containers: BTreeMap<String, Container>,
    /// Execs by the token of their connection.
    pub(crate) execs: HashMap<Token, Exec>,
    /// Children that ended before a driver could name them: what a runtime program makes may be gone before it is.
    pub(crate) strays: HashMap<i32, i32>,
    pub(crate) buffer: Vec<u8>,
    oom_kills: OomKills,
    listener: OwnedFd,
    signals: SignalFd,
    pub(crate) ending: bool,
}

impl Shim {
    /// Makes pause, writes `state.json` and listens.
    pub fn start(folder: &Path, spec: SandboxSpec) -> Result<Shim, String> {
        let cgroups = Cgroups::detect().map_err(|error| chain(&error))?;
        let own_pid = namespace::open(Path::new("/proc/self/ns/pid"))
            .map_err(|error| format!("open the PID namespace: {error}"))?;
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGCHLD);
        mask.thread_block().map_err(|error| format!("block SIGCHLD: {error}"))?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
            .map_err(|error| format!("make a signal descriptor: {error}"))?;
        let pause = sandbox::start_pause(&spec, &cgroups).map_err(|error| chain(&error))?;
        let undo = |error: String| {
            let _ = process::kill(pause.pid, Signal::SIGKILL as i32);
            sandbox::remove(&spec, &cgroups, || while process::reap().is_some() {});
            let _ = std::fs::remove_file(folder.join("state.json"));
            if let NamespaceSource::Bound(path) = &spec.network {
                let _ = namespace::remove_network(path);
            }
            error
        };
        if spec.oom_score_adj < 0 && !capability::permitted().is_ok_and(|ours| ours.has("SYS_RESOURCE")) {
            eprintln!(
                "without CAP_SYS_RESOURCE oom_score_adj can't be lowered: processes of this pod keep the inherited one"
            );
        }
        let set_up = || -> std::io::Result<(OwnedFd, Poller, Sources)> {
            let state = SandboxState {
                version: 1,
                shim_pid: std::process::id() as i32,
                shim_start_ticks: procfs::start_ticks(std::process::id() as i32).unwrap_or(0),
                pause_pid: pause.pid,
                pause_start_ticks: procfs::start_ticks(pause.pid).unwrap_or(0),
            };
            file::replace(&folder.join("state.json"), &serde_json::to_vec(&state)?, 0o644, Outlives::Process)?;
            let listener = socket::listen(&folder.join("shim.sock"))?;
            let mut poller = Poller::new()?;
            let sources = [
                (poller.watch_reading(&listener)?, Source::Listener),
                (poller.watch_reading(&signals)?, Source::Signals),
            ]
            .into();
            Ok((listener, poller, sources))
        };
        let oom_kills = OomKills::begin(&cgroups, &spec.cgroup);
        let (listener, poller, sources) = set_up().map_err(|error| undo(format!("listen for the daemon: {error}")))?;
        Ok(Shim {
            folder: folder.to_path_buf(),
            spec,
            cgroups,
            own_pid,
            pause,
            pause_alive: true,
            poller,
            sources,
            connections: HashMap::new(),
            containers: BTreeMap::new(),
            execs: HashMap::new(),
            strays: HashMap::new(),
            buffer: Vec::new(),
            oom_kills,
            listener,
            signals,
            ending: false,
        })
    }

    /// Serves until told to shut down.
    pub fn run(&mut self) {
        while !self.ending {
            let until =
                self.containers.values().filter_map(|container| container.deleting).map(|(_, until)| until).min();
            for token in self.poller.wait(until) {
                self.handle(token);
            }
            if until.is_some_and(|until| until <= Instant::now()) {
                self.give_up_deleting();
            }
        }
    }

    /// Tells those who wait for a removal that takes too long.
    fn give_up_deleting(&mut self) {
        let late = |container: &mut Container| {
            let (caller, _) = container.deleting.take_if(|(_, until)| *until <= Instant::now())?;
            Some((caller, container.hangs()))
        };
        for (caller, message) in self.containers.values_mut().filter_map(late).collect::<Vec<_>>() {
            self.fail(caller, FailureKind::Internal, message);
        }
    }

    fn handle(&mut self, token: Token) {
        let Some(source) = self.sources.get(&token).cloned() else { return };
        match source {
            Source::Listener => self.accept(),
            Source::Signals => self.reap(),
            Source::Connection => self.read_connection(token),
            Source::Sync { container } => self.advance_container(&container),
            Source::ExecSync { connection } => self.advance_exec(connection),
            Source::Hooks { container } => self.advance_hooks(&container),
            Source::Output { container } => self.with(&container, |c, buffer, poller, sources| {
                c.read_output(token, buffer, poller, sources);
            }),
            Source::InputRoom { container } => {
                self.with(&container, |c, _, poller, sources| c.flush_input(poller, sources))
            }
            Source::SessionInput { container, connection } => {
                self.with(&container, |c, buffer, poller, sources| c.read_input(connection, buffer, poller, sources));
            }
            Source::SessionRoom { container, connection, stream } => {
                self.with(&container, |c, _, poller, sources| c.flush_session(connection, stream, poller, sources));
            }
        }
    }

    fn with(&mut self, container: &str, act: impl FnOnce(&mut Container, &mut Vec<u8>, &mut Poller, &mut Sources)) {
        if let Some(container) = self.containers.get_mut(container) {
            act(container, &mut self.buffer, &mut self.poller, &mut self.sources);
        }
    }

    fn accept(&mut self) {
        use rustix::net::SocketFlags;
        while let Ok(socket) = rustix::net::accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            if self.connections.len() >= CONNECTIONS_MAX {
                eprintln!("{CONNECTIONS_MAX} callers at once; one more was refused");
                continue;
            }
            if let Ok(token) = self.poller.watch_reading(&socket) {
                self.sources.insert(token, Source::Connection);
                self.connections.insert(token, Connection::new(socket));
            }
        }
    }

    fn read_connection(&mut self, token: Token) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        match connection.read() {
            Ok(Some(request)) => self.serve(token, request),
            Ok(None) => {
                let alive = connection.flush();
                self.settle(token, alive);
            }
            Err(_) => self.close(token),
        }
    }

    /// After something was sent: forgets a caller that is gone, waits for room where something is left.
    pub(crate) fn settle(&mut self, token: Token, alive: bool) {
        let Some(connection) = self.connections.get(&token) else { return };
        if !alive || self.poller.change(token, connection, connection.is_waiting()).is_err() {
            self.close(token);
        }
    }

    /// Forgets a caller; what ran for it alone ends.
    pub(crate) fn close(&mut self, token: Token) {
        if let Some(connection) = self.connections.remove(&token) {
            self.poller.forget(&connection);
        }
        self.sources.remove(&token);
        // A driver ends by itself; what it makes is killed then.
        if let Some(exec) = self.execs.get_mut(&token).filter(|exec| exec.driver) {
            exec.abandoned = true;
        } else if let Some(exec) = self.execs.remove(&token) {
            let _ = process::kill(exec.pid, Signal::SIGKILL as i32);
            if let Some((sync, fd)) = exec.sync {
                self.poller.forget(&fd);
                self.sources.remove(&sync);
            }
        }
        for container in self.containers.values_mut() {
            container.end_session(token, &mut self.poller, &mut self.sources);
        }
    }

    /// Sends a reply; a caller that is gone is forgotten.
    pub(crate) fn reply(&mut self, token: Token, reply: &Reply) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        let alive = connection.reply(reply, None);
        if !alive || connection.is_waiting() {
            self.settle(token, alive);
        }
    }

    /// Sends a failure.
    pub(crate) fn fail(&mut self, token: Token, kind: FailureKind, message: impl Into<String>) {
        self.reply(token, &Reply::Failed { kind, message: message.into() });
    }

    /// A container that is being made or started has said something.
    pub(crate) fn advance_container(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some((token, sync)) = &container.sync else { return };
        match stage::receive(sync) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Ok(Some(Message::Created(terminal))) => self.created(id, terminal),
            Ok(Some(Message::Made { pid, terminal })) => self.made(id, pid, terminal),
            Ok(Some(Message::Failed(text))) => container.failure = Some(text),
            Ok(Some(Message::Ready)) => self.hooks_of_creation(id),
            Ok(Some(Message::Done)) if matches!(container.phase, Phase::Starting(_)) => {
                self.poller.forget(sync);
                self.sources.remove(token);
                self.driven_started(id);
            }
            Ok(None)
                if container.driven.is_none()
                    && container.failure.is_none()
                    && matches!(container.phase, Phase::Starting(_)) =>
            {
                self.poller.forget(sync);
                self.sources.remove(token);
                self.started(id);
            }
            // The process ends; its exit says the rest.
            Ok(_) | Err(_) => {
                self.poller.forget(sync);
                self.sources.remove(token);
                container.sync = None;
            }
        }
    }

    pub(crate) fn created(&mut self, id: &str, terminal: Option<OwnedFd>) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Phase::Creating(caller) = container.phase else { return };
        if let Some(terminal) = terminal {
            let adopted = adopt_terminal(container, terminal, &mut self.poller, &mut self.sources);
            if let Err(error) = adopted {
                container.failure = Some(format!("use the terminal: {error}"));
                let _ = process::kill(container.pid, Signal::SIGKILL as i32);
                return;
            }
        }
        container.phase = Phase::Created;
        if let Err(error) = container.write_state() {
            eprintln!("container {}: {error}", container.spec.name);
        }
        let pid = container.pid;
        self.reply(caller, &Reply::Created { pid });
    }

    pub(crate) fn started(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Phase::Starting(caller) = container.phase else { return };
        (container.phase, container.sync) = (Phase::Running, None);
        container.started_at = clock::now();
        if let Err(error) = container.write_state() {
            eprintln!("container {}: {error}", container.spec.name);
        }
        let reply = Reply::Started { id: id.into(), started_at: container.started_at };
        // The caller may be gone, and the server that replaced it has listed the container as created.
        self.publish(&reply);
        self.hooks_of_start(id, caller, reply);
    }

    /// Children have ended.
    pub(crate) fn reap(&mut self) {
        while let Ok(Some(_)) = self.signals.read_signal() {}
        while let Some(ended) = process::reap() {
            if ended.pid == self.pause.pid && self.pause_alive {
                self.pause_ended(ended.exit_code);
                continue;
            }
            if let Some(caller) = self.execs.iter().find(|(_, exec)| exec.pid == ended.pid).map(|(token, _)| *token) {
                self.exec_ended(caller, ended);
                continue;
            }
            if self.reap_driven(ended) {
                continue;
            }
            let of = |(id, container): (&String, &Container)| {
                (container.pid == ended.pid && container.phase != Phase::Exited).then(|| id.clone())
            };
            match self.containers.iter().find_map(of) {
                Some(id) => self.container_ended(&id, ended.exit_code),
                None => self.keep_stray(ended),
            }
        }
    }

    pub(crate) fn container_ended(&mut self, id: &str, exit_code: i32) {
        // First of all: the cgroup may be gone soon.
        let path = self.containers.get(id).map(|container| container.config.linux.cgroups_path.as_str());
        let oom_killed = path.is_some_and(|path| self.oom_kills.struck(&self.cgroups, path, exit_code));
        // Its last words come before its end; a start that nobody has heard of yet is one.
        for _ in 0..3 {
            if self.containers.get(id).is_some_and(|container| container.sync.is_some()) {
                self.advance_container(id);
            }
        }
        let Some(container) = self.containers.get_mut(id) else { return };
        // In a shared PID namespace the kernel doesn't end the others with the first.
        self.cgroups.kill(&container.config.linux.cgroups_path);
        container.drain_outputs(&mut self.buffer, &mut self.poller, &mut self.sources);
        container.close_input(&mut self.poller, &mut self.sources);
        let before = std::mem::replace(&mut container.phase, Phase::Exited);
        let record = container.write_exit(exit_code, oom_killed);
        let sessions: Vec<Token> = container.sessions.iter().map(|session| session.connection).collect();
        let failure = container.failure.clone();
        match before {
            Phase::Creating(caller) => {
                // Nothing half-made stays: a container that could not be made is no container.
                let deleting = self.containers.get_mut(id).and_then(|container| container.deleting.take());
                let message = failure.unwrap_or_else(|| format!("the process ended with {exit_code}"));
                let mut replies = vec![(caller, Reply::Failed { kind: FailureKind::Start, message })];
                replies.extend(deleting.map(|(caller, _)| (caller, Reply::Done)));
                self.remove_container(id, replies);
                return;
            }
            Phase::Starting(caller) => {
                self.fail(
                    caller,
                    FailureKind::Start,
                    failure.unwrap_or_else(|| format!("the process ended with {exit_code}")),
                );
            }
            _ => {}
        }
        for caller in sessions {
            self.reply(caller, &Reply::Exited { record: record.clone() });
        }
        self.publish(&Reply::Exited { record });
        let deleting = self.containers.get_mut(id).and_then(|container| container.deleting.take());
        if let Some((caller, _)) = deleting {
            self.remove_container(id, vec![(caller, Reply::Done)]);
        }
    }

    /// Forgets a container that has ended and then replies; where a runtime program made it, that forgets it first, else its
    /// hooks of the end are run first.
    pub(crate) fn remove_container(&mut self, id: &str, replies: Vec<(Token, Reply)>) {
        let Some(replies) = self.drive_removal(id, replies) else { return };
        let Some(replies) = self.hooks_of_end(id, replies) else { return };
        let forgotten = self.forget_container(id);
        if let Err(error) = &forgotten {
            eprintln!("{error}");
        }
        for (caller, reply) in replies {
            match (&forgotten, reply) {
                (Err(error), Reply::Done) => self.fail(caller, FailureKind::Internal, error.clone()),
                (_, reply) => self.reply(caller, &reply),
            }
        }
    }

    fn pause_ended(&mut self, exit_code: i32) {
        self.pause_alive = false;
        self.publish(&Reply::PauseExited { exit_code });
    }

    /// Tells all who have subscribed.
    fn publish(&mut self, reply: &Reply) {
        let subscribers: Vec<Token> =
            self.connections.iter().filter(|(_, connection)| connection.subscribed).map(|(token, _)| *token).collect();
        for token in subscribers {
            self.reply(token, reply);
        }
    }

    /// Removes a container's cgroup from the kernel and then the container from memory.
    pub(crate) fn forget_container(&mut self, id: &str) -> Result<(), String> {
        self.remove_cgroup(id)?;
        self.drop_hooks(id, "the container was removed");
        let Some(mut container) = self.containers.remove(id) else { return Ok(()) };
        container.close_input(&mut self.poller, &mut self.sources);
        for (token, _, fd) in &container.outputs {
            self.poller.forget(fd);
            self.sources.remove(token);
        }
        for stream in [Stream::Stdout, Stream::Stderr] {
            container.log.finish(stream);
        }
        for session in container.sessions.iter().map(|session| session.connection).collect::<Vec<_>>() {
            container.end_session(session, &mut self.poller, &mut self.sources);
        }
        Ok(())
    }

    /// What is there, for callers.
    pub(crate) fn listing(&self) -> Reply {
        let containers: BTreeMap<String, ContainerPhase> =
            self.containers.iter().map(|(id, container)| (id.clone(), container.public_phase())).collect();
        Reply::Listing { pause_alive: self.pause_alive, containers }
    }
}

/// Makes a terminal a container's one output and its input.
fn adopt_terminal(
    container: &mut Container,
    terminal: OwnedFd,
    poller: &mut Poller,
    sources: &mut Sources,
) -> std::io::Result<()> {
    crate::attach::set_nonblocking(&terminal)?;
    let output = terminal.try_clone()?;
    let token = poller.watch_reading(&output)?;
    sources.insert(token, Source::Output { container: container.spec.id.clone() });
    container.outputs.push((token, Stream::Stdout, output));
    if container.spec.stdin {
        container.input = Some(crate::attach::Sink::new(terminal.try_clone()?)?);
    }
    container.terminal = Some(terminal);
    Ok(())
}

/// An error with its causes, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}
