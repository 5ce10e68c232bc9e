//! Additional processes: their start, their start's result, their end.

use std::os::fd::{AsFd, OwnedFd};

use nix::sys::signal::Signal;
use orlop_container::protocol::{FailureKind, Reply};
use orlop_container::stage::{self, Message};
use orlop_container::{ExecProcess, Place, exec, program};
use orlop_kernel::process::{self, Ended};

use crate::container::Phase;
use crate::poller::Token;
use crate::requests::{Failure, internal};
use crate::shim::{Shim, Source};

/// A process run by exec.
pub struct Exec {
    /// Its number.
    pub pid: i32,
    /// Its socket until it runs.
    pub sync: Option<(Token, OwnedFd)>,
    /// Whether the caller knows that it has started.
    pub told: bool,
    /// It is the driver of a runtime program that makes the process.
    pub driver: bool,
    /// The caller is gone before the driver was done.
    pub abandoned: bool,
}

impl Shim {
    /// Clones a process into a running container; the replies come with its words.
    pub(crate) fn exec(
        &mut self,
        caller: Token,
        id: &str,
        args: Vec<String>,
        env: Vec<String>,
        tty: bool,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Option<Reply>, Failure> {
        let container =
            self.containers.get(id).ok_or_else(|| (FailureKind::NotFound, format!("container {id} is not known")))?;
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
        let name = |entry: &String| entry.split('=').next().unwrap_or_default().to_string();
        process.env.retain(|known| env.iter().all(|new| name(new) != name(known)));
        process.env.extend(env);
        process.terminal = tty;
        let place = Place {
            cgroups: &self.cgroups,
            cgroups_path: &container.config.linux.cgroups_path,
            container: &container.pidfd,
            confinement: &container.confinement,
            user: self.pause.user.as_ref(),
            own_pid: &self.own_pid,
        };
        let started = match &self.spec.runtime {
            Some(runtime) => program::exec(runtime, &self.folder, id, &process, streams, place.user),
            None => exec(&process, place, streams),
        };
        let ExecProcess { pid, sync } = started.map_err(|error| (FailureKind::Start, error.to_string()))?;
        let token = self.watch(&sync, Source::ExecSync { connection: caller }).map_err(|error| {
            let _ = process::kill(pid, Signal::SIGKILL as i32);
            internal(error)
        })?;
        let driver = self.spec.runtime.is_some();
        self.execs.insert(caller, Exec { pid, sync: Some((token, sync)), told: false, driver, abandoned: false });
        Ok(None)
    }

    /// An exec that is being made has said something. Without a terminal its start is told once it has succeeded; with
    /// one it is told before, since somebody must read the terminal from the first byte on.
    pub(crate) fn advance_exec(&mut self, caller: Token) {
        let Some(exec) = self.execs.get_mut(&caller) else { return };
        let Some((token, sync)) = &exec.sync else { return };
        let reply = Reply::ExecStarted { pid: exec.pid };
        match stage::receive(sync) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Ok(Some(Message::Created(None))) => {}
            Ok(Some(Message::Created(Some(terminal)))) => {
                exec.told = true;
                let Some(connection) = self.connections.get_mut(&caller) else { return };
                let alive = connection.reply(&reply, Some(terminal.as_fd()));
                self.settle(caller, alive);
            }
            Ok(Some(Message::Made { pid, terminal })) => {
                self.poller.forget(sync);
                self.sources.remove(token);
                (exec.sync, exec.pid) = (None, pid);
                self.exec_made(caller, pid, terminal);
            }
            Ok(Some(Message::Failed(text))) => {
                self.poller.forget(sync);
                self.sources.remove(token);
                self.execs.remove(&caller);
                self.fail(caller, FailureKind::Start, text);
            }
            Ok(_) | Err(_) => {
                self.poller.forget(sync);
                self.sources.remove(token);
                exec.sync = None;
                // A driver without a word has failed; its end tells.
                if !exec.driver && !std::mem::replace(&mut exec.told, true) {
                    self.reply(caller, &reply);
                }
            }
        }
    }

    /// A runtime program has made an additional process.
    fn exec_made(&mut self, caller: Token, pid: i32, terminal: Option<OwnedFd>) {
        let Some(exec) = self.execs.get_mut(&caller) else { return };
        (exec.driver, exec.told) = (false, true);
        if exec.abandoned {
            let _ = process::kill(pid, Signal::SIGKILL as i32);
        }
        if let Some(connection) = self.connections.get_mut(&caller) {
            let alive = connection.reply(&Reply::ExecStarted { pid }, terminal.as_ref().map(AsFd::as_fd));
            self.settle(caller, alive);
        }
        if let Some(exit_code) = self.strays.remove(&pid) {
            self.exec_ended(caller, Ended { pid, exit_code });
        }
    }

    /// An additional process, or its driver, has ended.
    pub(crate) fn exec_ended(&mut self, caller: Token, ended: Ended) {
        // What it said last (the terminal, or why it could not start) comes before its end. Its end of the socket is
        // closed, so it is all there.
        for _ in 0..3 {
            self.advance_exec(caller);
        }
        let Some(exec) = self.execs.get(&caller).filter(|exec| exec.pid == ended.pid) else { return };
        let driver = exec.driver;
        self.execs.remove(&caller);
        match driver {
            true => self.fail(caller, FailureKind::Internal, "the runtime program's driver ended without a word"),
            false => self.reply(caller, &Reply::ExecExited { exit_code: ended.exit_code }),
        }
    }
}
