//! What each request does.

use std::os::fd::OwnedFd;
use std::time::Instant;

use nix::sys::signal::Signal;
use orlop_container::config::Config;
use orlop_container::pod_hooks::{self, Point};
use orlop_container::protocol::{ContainerSpec, FailureKind, PidSource, Reply, Request};
use orlop_container::{Confinement, Created, PidNamespace, Pod, create, sandbox, stage};
use orlop_kernel::process;

use crate::attach::{Session, Sink, set_nonblocking};
use crate::container::{Container, Driven, Phase};
use crate::log::{Log, Stream};
use crate::poller::Token;
use crate::shim::{Shim, Source, chain};

/// How long killed processes may take to end.
const KILL_WAIT: std::time::Duration = std::time::Duration::from_secs(10);

/// A failure with its kind.
pub(crate) type Failure = (FailureKind, String);

pub(crate) fn internal(error: impl std::fmt::Display) -> Failure {
    (FailureKind::Internal, error.to_string())
}

impl Shim {
    /// Carries out a request of a caller.
    pub(crate) fn serve(&mut self, caller: Token, request: Request) {
        let descriptors = self
            .connections
            .get_mut(&caller)
            .map(|connection| std::mem::take(&mut connection.descriptors))
            .unwrap_or_default();
        let done = match request {
            Request::Create { id } => self.create(caller, &id),
            Request::Start { id } => self.start_container(caller, &id),
            Request::Kill { id, signal, all } => self.kill(&id, signal, all).map(|()| Some(Reply::Done)),
            Request::Delete { id } => self.delete(caller, &id),
            Request::Exec { id, args, env, tty } => self.exec(caller, &id, args, env, tty, descriptors),
            Request::Attach { id, stdin, stdout, stderr } => {
                self.attach(caller, &id, [stdin, stdout, stderr], descriptors).map(|()| Some(Reply::Done))
            }
            Request::Resize { id, width, height } => self
                .container(&id)
                .and_then(|container| container.resize(width, height).map_err(|error| (FailureKind::WrongState, error)))
                .map(|()| Some(Reply::Done)),
            Request::ReopenLog { id } => self
                .container(&id)
                .and_then(|container| container.log.reopen().map_err(internal))
                .map(|()| Some(Reply::Done)),
            Request::List => Ok(Some(self.listing())),
            Request::Subscribe => {
                if let Some(connection) = self.connections.get_mut(&caller) {
                    connection.subscribed = true;
                }
                Ok(Some(self.listing()))
            }
            Request::Shutdown => self.shut_down().map(|()| Some(Reply::Done)),
        };
        match done {
            Ok(Some(reply)) => self.reply(caller, &reply),
            Ok(None) => {}
            Err((kind, message)) => self.fail(caller, kind, message),
        }
    }

    fn container(&mut self, id: &str) -> Result<&mut Container, Failure> {
        self.containers
            .get_mut(id)
            .ok_or_else(|| (FailureKind::NotFound, format!("container {id} is not known to its shim")))
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
        let (spec, mut config) = Container::read_spec(&folder).map_err(internal)?;
        let seccomp = config.linux.seccomp.take();
        let confinement = Confinement::prepare(&config.process, seccomp.as_ref())
            .map_err(|error| (FailureKind::Start, error.to_string()))?;
        let log = Log::open(spec.log_path.as_deref())
            .map_err(|error| internal(format!("open the log {:?}: {error}", spec.log_path)))?;
        let driven = self.spec.runtime.is_some();
        if driven {
            config.linux.seccomp = seccomp;
        }
        let owes_hooks = !driven && Point::Stop.is_asked(&config);
        if owes_hooks {
            pod_hooks::owe(&folder, &config).map_err(internal)?;
        }
        let created = match driven {
            true => self.drive_creation(&spec, &config)?,
            false => self.make(&spec, &config, &confinement).inspect_err(|_| pod_hooks::settle(&folder))?,
        };
        let mut container = Container {
            folder,
            spec,
            config,
            phase: Phase::Creating(caller),
            pid: created.pid,
            pidfd: created.pidfd,
            sync: None,
            outputs: Vec::new(),
            input: None,
            terminal: None,
            log,
            sessions: Vec::new(),
            started_at: 0,
            failure: None,
            confinement,
            deleting: None,
            driven: driven.then(|| Driven { driver: Some(created.pid), ..Driven::default() }),
            hooks: None,
            owes_hooks,
        };
        let watched =
            self.watch_container(&mut container, created.sync, created.stdin, [created.stdout, created.stderr]);
        if let Err(error) = watched {
            // Its end will tell the caller.
            container.failure = Some(format!("watch the container: {error}"));
            container.kill_all(&self.cgroups);
        }
        self.containers.insert(id.into(), container);
        Ok(None)
    }

    /// Makes the cgroup and the first process of a container by the built-in runtime.
    fn make(&self, spec: &ContainerSpec, config: &Config, confinement: &Confinement) -> Result<Created, Failure> {
        let pid = match &spec.pid {
            PidSource::Container => PidNamespace::New,
            PidSource::Host => PidNamespace::Host,
            PidSource::Pod => PidNamespace::Of(&self.pause.pidfd),
            PidSource::Target(other) => PidNamespace::Of(&self.target(other)?.pidfd),
        };
        let path = &config.linux.cgroups_path;
        self.cgroups
            .provide(path, &config.linux.resources)
            .map_err(|error| internal(chain(&error)))
            .and_then(|()| {
                create(spec, config, confinement, self.pod(), pid)
                    .map_err(|error| (FailureKind::Start, error.to_string()))
            })
            .inspect_err(|_| {
                let _ = self.cgroups.remove(path, || {});
            })
    }

    /// The pod that containers join.
    pub(crate) fn pod(&self) -> Pod<'_> {
        Pod { folder: &self.folder, pause: &self.pause, cgroups: &self.cgroups, own_pid: &self.own_pid }
    }

    /// Waits for what a new container says.
    fn watch_container(
        &mut self,
        container: &mut Container,
        sync: OwnedFd,
        stdin: Option<OwnedFd>,
        outputs: [Option<OwnedFd>; 2],
    ) -> std::io::Result<()> {
        let id = container.spec.id.clone();
        let token = self.watch(&sync, Source::Sync { container: id.clone() })?;
        container.sync = Some((token, sync));
        for (stream, fd) in [Stream::Stdout, Stream::Stderr].into_iter().zip(outputs) {
            if let Some(fd) = fd {
                let token = self.watch(&fd, Source::Output { container: id.clone() })?;
                container.outputs.push((token, stream, fd));
            }
        }
        container.input = stdin.map(Sink::new).transpose()?;
        Ok(())
    }

    /// Watches a descriptor, which will not wait from now on.
    pub(crate) fn watch(&mut self, fd: &OwnedFd, source: Source) -> std::io::Result<Token> {
        set_nonblocking(fd)?;
        let token = self.poller.watch_reading(fd)?;
        self.sources.insert(token, source);
        Ok(token)
    }

    /// The container whose PID namespace another one joins.
    pub(crate) fn target(&self, id: &str) -> Result<&Container, Failure> {
        let target = self.containers.get(id).filter(|container| container.phase == Phase::Running);
        target.ok_or_else(|| (FailureKind::WrongState, format!("target container {id} does not run")))
    }

    fn start_container(&mut self, caller: Token, id: &str) -> Result<Option<Reply>, Failure> {
        let container = self.container(id)?;
        if container.phase != Phase::Created {
            return Err((
                FailureKind::WrongState,
                format!("container {} is not in the state created", container.spec.name),
            ));
        }
        if container.driven.is_some() {
            return self.drive_start(caller, id);
        }
        let (_, sync) = container.sync.as_ref().ok_or_else(|| internal("the container's first process is gone"))?;
        stage::send(sync, &stage::Message::Start)
            .map_err(|error| internal(format!("tell the container to start: {error}")))?;
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
        if signal == Signal::SIGKILL as i32 {
            self.cgroups.kill(&path)
        } else {
            self.cgroups.signal(&path, signal)
        }
        Ok(())
    }

    /// Forgets a container at once when it has ended, else once its killed processes have.
    fn delete(&mut self, caller: Token, id: &str) -> Result<Option<Reply>, Failure> {
        let Some(container) = self.containers.get_mut(id) else { return Ok(Some(Reply::Done)) };
        if container.phase == Phase::Exited {
            self.remove_container(id, vec![(caller, Reply::Done)]);
            return Ok(None);
        }
        container.kill_all(&self.cgroups);
        container.deleting = Some((caller, Instant::now() + KILL_WAIT));
        Ok(None)
    }

    fn attach(&mut self, caller: Token, id: &str, wanted: [bool; 3], descriptors: Vec<OwnedFd>) -> Result<(), Failure> {
        let [stdin, stdout, stderr] = <[OwnedFd; 3]>::try_from(descriptors)
            .map_err(|got| (FailureKind::Internal, format!("attach wants 3 descriptors, got {}", got.len())))?;
        let container = self
            .containers
            .get_mut(id)
            .ok_or_else(|| (FailureKind::NotFound, format!("container {id} is not known")))?;
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

    /// Ends everything that this shim owns, pause last, and the shim itself. When something doesn't end the shim stays,
    /// and can be told again.
    fn shut_down(&mut self) -> Result<(), Failure> {
        for container in self.containers.values().filter(|container| container.phase != Phase::Exited) {
            container.kill_all(&self.cgroups);
        }
        let until = Instant::now() + KILL_WAIT;
        loop {
            self.reap();
            let alive = self.containers.values().find(|container| container.phase != Phase::Exited);
            let Some(container) = alive else { break };
            if Instant::now() > until {
                return Err(internal(container.hangs()));
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        self.forget_driven();
        self.finish_hooks();
        for id in self.containers.keys().cloned().collect::<Vec<_>>() {
            self.forget_container(&id).map_err(internal)?;
        }
        let _ = rustix::process::pidfd_send_signal(&self.pause.pidfd, rustix::process::Signal::KILL);
        sandbox::remove(&self.spec, &self.cgroups, || while process::reap().is_some() {});
        let _ = std::fs::remove_file(self.folder.join("shim.sock"));
        self.ending = true;
        Ok(())
    }
}
