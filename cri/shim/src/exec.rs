//! Additional processes: their start, their start's result, their end.

use std::os::fd::{AsFd, OwnedFd};

use nix::sys::signal::Signal;
use orlop_container::protocol::{FailureKind, Reply};
use orlop_container::stage::{self, Message};
use orlop_container::{Place, exec};
use orlop_kernel::process;

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
        let started = exec(&process, place, streams).map_err(|error| (FailureKind::Start, error.to_string()))?;
        let token = self.watch(&started.sync, Source::ExecSync { connection: caller }).map_err(|error| {
            let _ = process::kill(started.pid, Signal::SIGKILL as i32);
            internal(error)
        })?;
        self.execs.insert(caller, Exec { pid: started.pid, sync: Some((token, started.sync)), told: false });
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
                if !std::mem::replace(&mut exec.told, true) {
                    self.reply(caller, &reply);
                }
            }
        }
    }

    /// An additional process has ended.
    pub(crate) fn exec_ended(&mut self, caller: Token, exit_code: i32) {
        // What it said last (the terminal, or why it could not start) comes before its end. Its end of the socket is
        // closed, so it is all there.
        for _ in 0..3 {
            self.advance_exec(caller);
        }
        if self.execs.remove(&caller).is_some() {
            self.reply(caller, &Reply::ExecExited { exit_code });
        }
    }
}
