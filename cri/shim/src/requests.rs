//! What each request does.

use std::os::fd::OwnedFd;

use nix::sys::signal::Signal;
use orlop_container::protocol::{FailureKind, NamespaceSource, PidSource, Reply, Request};
use orlop_container::{PodNamespaces, create, exec, sandbox, stage};
use orlop_kernel::{namespace, process};

use crate::attach::{Session, Sink, set_nonblocking};
use crate::container::{Container, Phase};
use crate::log::{Log, Stream};
use crate::poller::Token;
use crate::shim::{Exec, Shim, Source, chain};

/// A failure with its kind.
type Failure = (FailureKind, String);

fn internal(error: impl std::fmt::Display) -> Failure {
    (FailureKind::Internal, error.to_string())
}

impl Shim {
    /// Carries out a request of a caller.
    pub(crate) fn serve(&mut self, caller: Token, request: Request) {
        let descriptors =
            self.connections.get_mut(&caller).map(|connection| std::mem::take(&mut connection.descriptors)).unwrap_or_default();
        let done = match request {
            Request::Create { id } => self.create(caller, &id),
            Request::Start { id } => self.start_container(caller, &id),
            Request::Kill { id, signal, all } => self.kill(&id, signal, all).map(|()| Some(Reply::Done)),
            Request::Delete { id } => self.delete(&id).map(|()| Some(Reply::Done)),
            Request::Exec { id, args, env, tty } => self.exec(caller, &id, args, env, tty, descriptors),
            Request::Attach { id, stdin, stdout, stderr } => {
                self.attach(caller, &id, [stdin, stdout, stderr], descriptors).map(|()| Some(Reply::Done))
            }
            Request::Resize { id, width, height } => self
                .container(&id)
                .and_then(|container| container.resize(width, height).map_err(|error| (FailureKind::WrongState, error)))
                .map(|()| Some(Reply::Done)),
            Request::ReopenLog { id } => {
                self.container(&id).and_then(|container| container.log.reopen().map_err(internal)).map(|()| Some(Reply::Done))
            }
            Request::List => Ok(Some(self.listing())),
            Request::Subscribe => {
                if let Some(connection) = self.connections.get_mut(&caller) {
                    connection.subscribed = true;
                }
                Ok(Some(self.listing()))
            }
            Request::Shutdown => {
                self.shut_down();
                Ok(Some(Reply::Done))
            }
        };
        match done {
            Ok(Some(reply)) => self.reply(caller, &reply),
            Ok(None) => {}
            Err((kind, message)) => self.fail(caller, kind, message),
        }
    }

    fn container(&mut self, id: &str) -> Result<&mut Container, Failure> {
        self.containers.get_mut(id).ok_or_else(|| (FailureKind::NotFound, format!("container {id} is not known to its shim")))
    }

    /// Starts the making of a container; the reply comes with its first word.
    fn create(&mut self, caller: Token, id: &str) -> Result<Option<Reply>, Failure> {
        let plain = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if !plain || self.containers.contains_key(id) {
            return Err((FailureKind::WrongState, format!("container {id:?} exists already or is no id")));
        }
        if !self.pause_alive {
            return Err((FailureKind::WrongState, "the sandbox is not ready: its pause process has ended".into()));
        }
        let folder = self.folder.join("containers").join(id);
        let (spec, config) = Container::read_spec(&folder).map_err(internal)?;
        let log = Log::open(spec.log_path.as_deref()).map_err(|error| internal(format!("open the log {:?}: {error}", spec.log_path)))?;
        let target = match &spec.pid {
            PidSource::Target(other) => Some(self.pid_namespace_of(other)?),
            PidSource::Host => None,
            PidSource::Pod if self.spec.pid == NamespaceSource::New => Some(self.pid_namespace(self.pause_pid)?),
            PidSource::Pod | PidSource::Container => None,
        };
        let host = spec.pid == PidSource::Host;
        let pid = if host { Some(&self.own_pid) } else { target.as_ref() };
        let pod = PodNamespaces { pause: &self.pause, pid, own_pid: &self.own_pid };
        let path = config.linux.cgroups_path.clone();
        let made = self
            .cgroups
            .create(&path, &config.linux.resources)
            .map_err(|error| internal(chain(&error)))
            .and_then(|()| create(&spec, &config, &self.cgroups, &pod).map_err(|error| (FailureKind::Start, error.to_string())));
        let created = match made {
            Ok(created) => created,
            Err(failure) => {
                let _ = self.cgroups.remove(&path, || {});
                return Err(failure);
            }
        };
        let watch = |shim: &mut Shim, fd: &OwnedFd, source: Source| -> std::io::Result<Token> {
            set_nonblocking(fd)?;
            let token = shim.poller.watch_reading(fd)?;
            shim.sources.insert(token, source);
            Ok(token)
        };
        let sync = watch(self, &created.sync, Source::Sync { container: id.into() }).map_err(internal)?;
        let mut outputs = Vec::new();
        for (stream, fd) in [(Stream::Stdout, created.stdout), (Stream::Stderr, created.stderr)] {
            if let Some(fd) = fd {
                let token = watch(self, &fd, Source::Output { container: id.into() }).map_err(internal)?;
                outputs.push((token, stream, fd));
            }
        }
        let input = created.stdin.map(Sink::new).transpose().map_err(internal)?;
        let container = Container {
            folder,
            spec,
            config,
            phase: Phase::Creating(caller),
            pid: created.pid,
            pidfd: created.pidfd,
            sync: Some((sync, created.sync)),
            outputs,
            input,
            terminal: None,
            log,
            sessions: Vec::new(),
            started_at: 0,
            failure: None,
        };
        self.containers.insert(id.into(), container);
        Ok(None)
    }

    fn pid_namespace(&self, pid: i32) -> Result<OwnedFd, Failure> {
        namespace::open(std::path::Path::new(&format!("/proc/{pid}/ns/pid"))).map_err(internal)
    }

    fn pid_namespace_of(&self, id: &str) -> Result<OwnedFd, Failure> {
        let target = self.containers.get(id).filter(|container| container.phase == Phase::Running);
        let target = target.ok_or_else(|| (FailureKind::WrongState, format!("target container {id} does not run")))?;
        self.pid_namespace(target.pid)
    }

    fn start_container(&mut self, caller: Token, id: &str) -> Result<Option<Reply>, Failure> {
        let container = self.container(id)?;
        if container.phase != Phase::Created {
            return Err((FailureKind::WrongState, format!("container {} is not in the state created", container.spec.name)));
        }
        let (_, sync) = container.sync.as_ref().ok_or_else(|| internal("the container's first process is gone"))?;
        stage::send(sync, &stage::Message::Start).map_err(|error| internal(format!("tell the container to start: {error}")))?;
        container.phase = Phase::Starting(caller);
        Ok(None)
    }

    fn kill(&mut self, id: &str, signal: i32, all: bool) -> Result<(), Failure> {
        let path = {
            let container = self.container(id)?;
            if container.phase == Phase::Exited {
                return Ok(());
            }
            if !all {
                // By the descriptor: the number may have been given to somebody else.
                let signal = rustix::process::Signal::from_named_raw(signal)
                    .ok_or_else(|| (FailureKind::WrongState, format!("{signal} is no signal")))?;
                return match rustix::process::pidfd_send_signal(&container.pidfd, signal) {
                    Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
                    Err(errno) => Err(internal(errno)),
                };
            }
            container.config.linux.cgroups_path.clone()
        };
        if signal == Signal::SIGKILL as i32 { self.cgroups.kill(&path) } else { self.cgroups.signal(&path, signal) }
        Ok(())
    }

    fn delete(&mut self, id: &str) -> Result<(), Failure> {
        let Some(container) = self.containers.get(id) else { return Ok(()) };
        if container.phase != Phase::Exited {
            let (pid, path) = (container.pid, container.config.linux.cgroups_path.clone());
            let _ = process::kill(pid, Signal::SIGKILL as i32);
            self.cgroups.kill(&path);
            self.await_exit(id);
        }
        self.forget_container(id);
        Ok(())
    }

    /// Waits a moment for a killed container, reaping everybody else as well.
    fn await_exit(&mut self, id: &str) {
        for _ in 0..5000 {
            self.reap();
            if self.containers.get(id).is_none_or(|container| container.phase == Phase::Exited) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        eprintln!("container {id} did not end within 5 s of SIGKILL; it hangs in the kernel");
    }

    fn exec(
        &mut self,
        caller: Token,
        id: &str,
        args: Vec<String>,
        env: Vec<String>,
        tty: bool,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Option<Reply>, Failure> {
        let container = self.containers.get(id).ok_or_else(|| (FailureKind::NotFound, format!("container {id} is not known")))?;
        if container.phase != Phase::Running {
            return Err((FailureKind::WrongState, format!("container {} does not run", container.spec.name)));
        }
        let mut streams = [None, None, None];
        if !tty {
            let [stdin, stdout, stderr] = <[OwnedFd; 3]>::try_from(descriptors)
                .map_err(|got| (FailureKind::Internal, format!("exec wants 3 descriptors, got {}", got.len())))?;
            streams = [Some(stdin), Some(stdout), Some(stderr)];
        }
        let mut process = container.config.process.clone();
        process.args = args;
        process.env.extend(env);
        process.terminal = tty;
        let started = exec(&container.config, &process, &self.cgroups, &container.pidfd, &self.own_pid, streams)
            .map_err(|error| (FailureKind::Start, error.to_string()))?;
        set_nonblocking(&started.sync).map_err(internal)?;
        let token = self.poller.watch_reading(&started.sync).map_err(internal)?;
        self.sources.insert(token, Source::ExecSync { connection: caller });
        self.execs.insert(caller, Exec { pid: started.pid, sync: Some((token, started.sync)), ended: None });
        Ok(None)
    }

    fn attach(&mut self, caller: Token, id: &str, wanted: [bool; 3], descriptors: Vec<OwnedFd>) -> Result<(), Failure> {
        let [stdin, stdout, stderr] = <[OwnedFd; 3]>::try_from(descriptors)
            .map_err(|got| (FailureKind::Internal, format!("attach wants 3 descriptors, got {}", got.len())))?;
        let container = self.containers.get_mut(id).ok_or_else(|| (FailureKind::NotFound, format!("container {id} is not known")))?;
        if container.phase != Phase::Running {
            return Err((FailureKind::WrongState, format!("container {} does not run", container.spec.name)));
        }
        let mut session = Session { connection: caller, stdin: None, stdout: None, stderr: None };
        if wanted[0] && container.input.is_some() {
            set_nonblocking(&stdin).map_err(internal)?;
            let token = self.poller.watch_reading(&stdin).map_err(internal)?;
            self.sources.insert(token, Source::SessionInput { container: id.into(), connection: caller });
            session.stdin = Some((token, stdin));
        }
        if wanted[1] {
            session.stdout = Some(Sink::new(stdout).map_err(internal)?);
        }
        if wanted[2] && !container.spec.tty {
            session.stderr = Some(Sink::new(stderr).map_err(internal)?);
        }
        container.sessions.push(session);
        Ok(())
    }

    /// Ends everything that this shim owns, pause last, and the shim itself.
    fn shut_down(&mut self) {
        let ids: Vec<String> = self.containers.keys().cloned().collect();
        for id in &ids {
            let _ = self.delete(id);
        }
        let _ = process::kill(self.pause_pid, Signal::SIGKILL as i32);
        sandbox::remove(&self.folder, &self.spec, &self.cgroups, || while process::reap().is_some() {});
        let _ = std::fs::remove_file(self.folder.join("shim.sock"));
        self.ending = true;
    }
}
