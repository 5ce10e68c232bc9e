//! Containers that a runtime program makes: what their drivers say, and how their ends come in.
//!
//! A driver speaks before it ends, but the end of what its program made may be seen first. So exits of children that
//! nobody knows are kept while a driver is at work.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use orlop_container::config::Config;
use orlop_container::hook;
use orlop_container::program::{self, ProgramPod};
use orlop_container::protocol::{ContainerSpec, FailureKind, PidSource, Reply};
use orlop_container::{Created, protocol::RuntimeProgram};
use orlop_kernel::process::Ended;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::container::{Container, Driven, Phase, kill_driver};
use crate::poller::Token;
use crate::requests::{Failure, internal};
use crate::shim::{Shim, Source};

/// Ends of unknown children that are kept.
const STRAYS_MAX: usize = 1024;
/// How long programs may take to forget all containers of a pod: more than one of them may.
const FORGET_TIME: Duration = Duration::from_secs(12);

impl Shim {
    fn runtime(&self) -> Result<&RuntimeProgram, Failure> {
        self.spec.runtime.as_ref().ok_or_else(|| internal("the pod has no runtime program"))
    }

    /// Lets the program make a container.
    pub(crate) fn drive_creation(&self, spec: &ContainerSpec, config: &Config) -> Result<Created, Failure> {
        let target = match &spec.pid {
            PidSource::Target(id) => Some(self.target(id)?.pid),
            _ => None,
        };
        let place = ProgramPod { pod: self.pod(), sandbox: &self.spec, runtime: self.runtime()? };
        program::create(spec, config, place, target).map_err(|error| (FailureKind::Start, error.to_string()))
    }

    /// The program has made a container's first process.
    pub(crate) fn made(&mut self, id: &str, pid: i32, terminal: Option<OwnedFd>) {
        let Some(container) = self.containers.get_mut(id) else { return };
        if let Some((token, sync)) = container.sync.take() {
            self.poller.forget(sync);
            self.sources.remove(&token);
        }
        let opened = Pid::from_raw(pid).ok_or(rustix::io::Errno::SRCH);
        let opened = opened.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()));
        container.pid = pid;
        match opened {
            Ok(pidfd) => container.pidfd = pidfd,
            Err(error) => container.failure = Some(format!("the process {pid} that was made is gone: {error}")),
        }
        if container.failure.is_none() {
            self.created(id, terminal);
        }
        if let Some(exit_code) = self.strays.remove(&pid) {
            self.container_ended(id, exit_code);
        } else if let Some(container) = self.containers.get(id).filter(|container| container.deleting.is_some()) {
            // It was told to go while it was being made.
            container.kill_all(&self.cgroups);
        }
    }

    /// Lets the program start a container.
    pub(crate) fn drive_start(&mut self, caller: Token, id: &str) -> Result<Option<Reply>, Failure> {
        let container = self.containers.get(id).ok_or_else(|| internal("the container is gone"))?;
        let driver = program::start(self.runtime()?, &self.folder, id, &container.config).map_err(internal)?;
        let watched = self.watch(&driver.sync, Source::Sync { container: id.into() });
        let token = watched.map_err(|error| {
            kill_driver(driver.pid);
            internal(error)
        })?;
        if let Some(container) = self.containers.get_mut(id) {
            container.sync = Some((token, driver.sync));
            container.phase = Phase::Starting(caller);
            container.driven = Some(Driven { driver: Some(driver.pid), ..Driven::default() });
        }
        Ok(None)
    }

    /// The program has started a container, which may have ended meanwhile.
    pub(crate) fn driven_started(&mut self, id: &str) {
        self.started(id);
        let driven = self.containers.get_mut(id).and_then(|container| container.driven.as_mut());
        if let Some(exit_code) = driven.and_then(|driven| driven.exit_code.take()) {
            self.container_ended(id, exit_code);
        }
    }

    /// Takes in an end that has to do with a driver; false when it has not.
    pub(crate) fn reap_driven(&mut self, ended: Ended) -> bool {
        let driver = |container: &Container| container.driven.as_ref().and_then(|driven| driven.driver);
        let of = |(id, container): (&String, &Container)| (driver(container) == Some(ended.pid)).then(|| id.clone());
        if let Some(id) = self.containers.iter().find_map(of) {
            self.driver_ended(&id, ended.exit_code);
            return true;
        }
        let starting =
            |container: &&mut Container| container.pid == ended.pid && matches!(container.phase, Phase::Starting(_));
        let driven = self.containers.values_mut().find(starting).and_then(|container| container.driven.as_mut());
        let Some(driven) = driven else { return false };
        // Whether it has ever run is for the driver to say.
        driven.exit_code = Some(ended.exit_code);
        true
    }

    fn driver_ended(&mut self, id: &str, exit_code: i32) {
        if self.containers.get(id).is_some_and(|container| container.sync.is_some()) {
            for _ in 0..3 {
                self.advance_container(id);
            }
        }
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some(driven) = &mut container.driven else { return };
        driven.driver = None;
        if let Some(replies) = driven.removal.take() {
            driven.forgotten = true;
            if exit_code != 0 {
                eprintln!("container {}: its runtime program did not forget it", container.spec.name);
            }
            return self.remove_container(id, replies);
        }
        let early = driven.exit_code.take();
        match container.phase {
            Phase::Creating(_) => {
                let silent = "the runtime program's driver ended without a word";
                container.failure.get_or_insert_with(|| silent.into());
                self.container_ended(id, exit_code);
            }
            Phase::Starting(_) => {
                let silent = "the runtime program's driver ended without a word";
                container.failure.get_or_insert_with(|| silent.into());
                match early {
                    Some(exit_code) => self.container_ended(id, exit_code),
                    // Its end tells the caller.
                    None => container.kill_all(&self.cgroups),
                }
            }
            _ => {}
        }
    }

    /// Keeps the end of a child that nobody knows, for as long as a driver may come to name it.
    pub(crate) fn keep_stray(&mut self, ended: Ended) {
        let at_work = |container: &Container| container.driven.as_ref().is_some_and(|driven| driven.driver.is_some());
        if !self.containers.values().any(at_work) && !self.execs.values().any(|exec| exec.driver) {
            self.strays.clear();
        } else if self.strays.len() < STRAYS_MAX {
            self.strays.insert(ended.pid, ended.exit_code);
        }
    }

    /// Lets the program forget a container that has ended; returns what is to be replied when there is nothing to wait
    /// for, else replies later.
    pub(crate) fn drive_removal(&mut self, id: &str, replies: Vec<(Token, Reply)>) -> Option<Vec<(Token, Reply)>> {
        let Some(container) = self.containers.get_mut(id) else { return Some(replies) };
        let Some(driven) = &mut container.driven else { return Some(replies) };
        if let Some(waiting) = &mut driven.removal {
            waiting.extend(replies);
            return None;
        }
        if driven.forgotten {
            return Some(replies);
        }
        let Some(runtime) = &self.spec.runtime else { return Some(replies) };
        match program::delete(runtime, &self.folder, id, &container.config) {
            Ok(driver) => {
                (driven.driver, driven.removal) = (Some(driver.pid), Some(replies));
                None
            }
            Err(error) => {
                eprintln!("container {id}: {error}");
                Some(replies)
            }
        }
    }

    /// Lets the program forget all containers, and waits for it.
    pub(crate) fn forget_driven(&mut self) {
        let driven = |container: &Container| container.driven.is_some();
        let ids: Vec<String> =
            self.containers.iter().filter(|(_, container)| driven(container)).map(|(id, _)| id.clone()).collect();
        for id in ids {
            self.remove_container(&id, Vec::new());
        }
        let hooks = self.containers.values().filter_map(|container| container.config.hooks.as_ref());
        let until = Instant::now() + FORGET_TIME + hooks.map(|hooks| hook::time_of(&hooks.poststop)).sum();
        while self.containers.values().any(driven) && Instant::now() < until {
            self.reap();
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
