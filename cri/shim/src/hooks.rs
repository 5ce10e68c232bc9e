//! Hooks of containers of the built-in runtime: when they begin, and what waits for them.
//!
//! They are run by children, so the loop goes on. A runtime program runs those of its containers itself.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use orlop_container::hook;
use orlop_container::pod_hooks::{self, HookRun, Point, Subject};
use orlop_container::protocol::{FailureKind, Reply};
use orlop_container::stage::{self, Message};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::container::Phase;
use crate::poller::Token;
use crate::shim::{Shim, Source, chain};

/// What the end of a pod allows beside what its hooks may take.
const SPARE_TIME: Duration = Duration::from_secs(5);

/// Hooks of a container that are being run.
pub struct Hooking {
    point: Point,
    token: Token,
    /// Closing it ends them.
    sync: OwnedFd,
    /// What is said to whom when they have run.
    replies: Vec<(Token, Reply)>,
}

impl Shim {
    /// A container's root is built: what it says next waits for these.
    pub(crate) fn hooks_of_creation(&mut self, id: &str) {
        if let Err((error, _)) = self.begin_hooks(id, Point::Create, Vec::new()) {
            self.fail_container(id, error);
        }
    }

    /// A container's program runs; whoever started it is told after these.
    pub(crate) fn hooks_of_start(&mut self, id: &str, caller: Token, reply: Reply) {
        let asked = |id| {
            let container = self.containers.get(id)?;
            (container.driven.is_none() && Point::Start.is_asked(&container.config)).then_some(())
        };
        if asked(id).is_none() {
            return self.reply(caller, &reply);
        }
        if let Err((error, _)) = self.begin_hooks(id, Point::Start, vec![(caller, reply)]) {
            self.hooks_of_start_failed(id, caller, error);
        }
    }

    /// Runs the hooks that a container which has ended still owes; returns what is to be replied when there is nothing to
    /// wait for, else replies later.
    pub(crate) fn hooks_of_end(&mut self, id: &str, replies: Vec<(Token, Reply)>) -> Option<Vec<(Token, Reply)>> {
        let Some(container) = self.containers.get_mut(id).filter(|container| container.owes_hooks) else {
            return Some(replies);
        };
        if let Some(running) = container.hooks.as_mut().filter(|running| running.point == Point::Stop) {
            running.replies.extend(replies);
            return None;
        }
        // They are told of a container that is gone; one that can't be removed keeps them for the next time.
        if self.remove_cgroup(id).is_err() {
            return Some(replies);
        }
        match self.begin_hooks(id, Point::Stop, replies) {
            Ok(()) => None,
            Err((error, replies)) => {
                eprintln!("container {id}: {error}");
                Some(replies)
            }
        }
    }

    /// Removes a container's cgroup; fine when it is gone.
    pub(crate) fn remove_cgroup(&self, id: &str) -> Result<(), String> {
        let Some(container) = self.containers.get(id) else { return Ok(()) };
        let removed = self.cgroups.remove(&container.config.linux.cgroups_path, || {});
        removed.map_err(|error| format!("container {}: {}", container.spec.name, chain(&error)))
    }

    /// Begins those of a point; those that are still being run for the container are given up.
    fn begin_hooks(
        &mut self,
        id: &str,
        point: Point,
        replies: Vec<(Token, Reply)>,
    ) -> Result<(), (String, Vec<(Token, Reply)>)> {
        self.drop_hooks(id, "the container ended before its hooks did");
        let begun = self.containers.get(id).ok_or_else(|| "it is not known".to_string()).and_then(|container| {
            let pid = if point == Point::Stop { 0 } else { container.pid };
            let subject = Subject { id, folder: &container.folder, config: &container.config, pid };
            pod_hooks::begin_run(subject, point).map_err(|error| error.to_string())
        });
        let watched = begun.and_then(|HookRun { sync, .. }| {
            let token = self.watch(&sync, Source::Hooks { container: id.into() });
            token.map(|token| (token, sync)).map_err(|error| format!("watch the hooks: {error}"))
        });
        match (watched, self.containers.get_mut(id)) {
            (Ok((token, sync)), Some(container)) => {
                container.hooks = Some(Hooking { point, token, sync, replies });
                Ok(())
            }
            (Err(error), _) => Err((error, replies)),
            (Ok(_), None) => Err(("it is not known".into(), replies)),
        }
    }

    /// Gives up the hooks that are being run for a container, and tells who waits for them.
    pub(crate) fn drop_hooks(&mut self, id: &str, why: &str) {
        let Some(hooks) = self.containers.get_mut(id).and_then(|container| container.hooks.take()) else { return };
        self.poller.forget(&hooks.sync);
        self.sources.remove(&hooks.token);
        for (caller, _) in hooks.replies {
            self.fail(caller, FailureKind::WrongState, why);
        }
    }

    /// Hooks that were being run have something to say, which is the last of them.
    pub(crate) fn advance_hooks(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some(hooks) = &container.hooks else { return };
        let result = match stage::receive(&hooks.sync) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
            Ok(Some(Message::Done)) => Ok(()),
            Ok(Some(Message::Failed(text))) => Err(text),
            Ok(_) | Err(_) => Err("the process that runs the hooks ended without a word".into()),
        };
        let Some(Hooking { point, token, sync, replies }) = container.hooks.take() else { return };
        self.poller.forget(&sync);
        self.sources.remove(&token);
        match (point, result) {
            (Point::Create, Ok(())) => self.go_on(id),
            (Point::Create, Err(error)) => self.fail_container(id, error),
            (Point::Start, Ok(())) => replies.iter().for_each(|(caller, reply)| self.reply(*caller, reply)),
            (Point::Start, Err(error)) => {
                replies.iter().for_each(|(caller, _)| self.hooks_of_start_failed(id, *caller, error.clone()));
            }
            (Point::Stop, result) => {
                if let Err(error) = result {
                    // The container is gone all the same.
                    eprintln!("container {}: {error}", container.spec.name);
                }
                container.owes_hooks = false;
                pod_hooks::settle(&container.folder);
                self.remove_container(id, replies);
            }
        }
    }

    /// Lets a container that is being made go on.
    fn go_on(&mut self, id: &str) {
        let Some((_, sync)) = self.containers.get(id).and_then(|container| container.sync.as_ref()) else { return };
        if let Err(error) = stage::send(sync, &Message::Start) {
            self.fail_container(id, format!("let the container go on after its hooks: {error}"));
        }
    }

    /// Ends a container that can't be made or started; its end tells the reason.
    fn fail_container(&mut self, id: &str, error: String) {
        let Some(container) = self.containers.get_mut(id) else { return };
        container.failure.get_or_insert(error);
        container.kill_all(&self.cgroups);
    }

    /// Ends a container whose program runs and should not.
    fn hooks_of_start_failed(&mut self, id: &str, caller: Token, error: String) {
        match self.containers.get_mut(id) {
            Some(container) if container.phase == Phase::Running => {
                container.phase = Phase::Starting(caller);
                self.fail_container(id, error);
            }
            _ => self.fail(caller, FailureKind::Start, error),
        }
    }

    /// Runs the hooks that containers of a pod that ends still owe, and waits for them.
    pub(crate) fn finish_hooks(&mut self) {
        let ids: Vec<String> = self.containers.keys().cloned().collect();
        for id in &ids {
            self.drop_hooks_unless_last(id);
            if self.containers.get(id).is_some_and(|container| container.owes_hooks) {
                self.remove_container(id, Vec::new());
            }
        }
        for id in ids {
            let Some(container) = self.containers.get(&id) else { continue };
            let Some(hooks) = &container.hooks else { continue };
            let lists = container.config.hooks.as_ref();
            let until = Instant::now() + SPARE_TIME + lists.map_or(Duration::ZERO, |all| hook::time_of(&all.poststop));
            if let Err(error) = wait(&hooks.sync, until) {
                eprintln!("container {id}: {error}");
            }
            self.advance_hooks(&id);
        }
    }

    /// Only those of the end still count when the pod ends.
    fn drop_hooks_unless_last(&mut self, id: &str) {
        let hooks = self.containers.get(id).and_then(|container| container.hooks.as_ref());
        if hooks.is_some_and(|hooks| hooks.point != Point::Stop) {
            self.drop_hooks(id, "the pod was ended");
        }
    }
}

/// Waits for a socket's word.
fn wait(sync: &OwnedFd, until: Instant) -> Result<(), String> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let time = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        match poll(&mut [PollFd::new(sync, PollFlags::IN)], Some(&time)) {
            Ok(0) => return Err("its hooks have not ended in time".into()),
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.to_string()),
        }
    }
}
