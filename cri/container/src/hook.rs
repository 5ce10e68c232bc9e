//! Hooks: programs of others that are run at points of a container's life.
//!
//! A hook gets the container's state on its stdin, the environment of the specification and nothing else of whoever runs
//! it; what it prints is part of the message when it fails.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::MemfdFlags;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use serde::Serialize;

use crate::config::{Config, Hook, Hooks};
use crate::stage::{self, Message, StageError, Step};

/// How long a hook may take that has no limit of its own.
const TIME: Duration = Duration::from_secs(600);
/// Bytes of what a hook printed that become part of a message.
const PRINTED_BYTES: usize = 2048;

/// The state of a container, as the specification has it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HookState<'a> {
    /// Version of the specification.
    pub oci_version: &'a str,
    /// The container.
    pub id: &'a str,
    /// `creating`, `created`, `running` or `stopped`.
    pub status: &'a str,
    /// Its first process; absent when there is none.
    #[serde(skip_serializing_if = "is_none")]
    pub pid: i32,
    /// Its bundle.
    pub bundle: &'a Path,
    /// Its annotations.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: &'a BTreeMap<String, String>,
}

fn is_none(pid: &i32) -> bool {
    *pid == 0
}

/// Runs hooks one after the other, in a folder of the mount namespace that this process is in.
///
/// # Errors
/// Names the first that fails; those after it are not run.
pub fn run_all(kind: &str, hooks: &[Hook], state: &HookState<'_>, folder: &Path) -> Result<(), StageError> {
    hooks.iter().enumerate().try_for_each(|(at, hook)| run(hook, state, folder).step(title(kind, at, hook)))
}

/// What is said of a hook that fails.
pub(crate) fn title(kind: &str, at: usize, hook: &Hook) -> String {
    format!("run the {kind} hook {} ({})", at + 1, hook.path.display())
}

/// Gives each hook a limit, for programs of others that know none of ours.
pub(crate) fn bound(hooks: &mut Hooks) {
    for list in hooks.lists_mut() {
        list.iter_mut().for_each(|hook| hook.timeout = hook.timeout.or(Some(TIME.as_secs() as i64)));
    }
}

/// The hooks that the process which becomes the container meets.
pub(crate) struct OwnHooks<'a> {
    /// The container.
    pub(crate) id: &'a str,
    /// Its bundle.
    pub(crate) bundle: &'a Path,
    /// Its specification.
    pub(crate) config: &'a Config,
    /// This process, by its number on the machine.
    pub(crate) pid: i32,
}

impl OwnHooks<'_> {
    /// Lets those run on the machine that have to before the root is entered, then runs those of the container's
    /// namespaces.
    pub(crate) fn before_root(&self, sync: &OwnedFd) -> Result<(), StageError> {
        let Some(hooks) = &self.config.hooks else { return Ok(()) };
        if !hooks.prestart.is_empty() || !hooks.create_runtime.is_empty() {
            stage::send(sync, &Message::Ready).step("tell that hooks may run")?;
            stage::hear_start(sync, "wait for the hooks")?;
        }
        run_all("createContainer", &hooks.create_container, &self.state("creating"), self.bundle)
    }

    /// Runs those that come just before the program.
    pub(crate) fn before_program(&self) -> Result<(), StageError> {
        let Some(hooks) = &self.config.hooks else { return Ok(()) };
        run_all("startContainer", &hooks.start_container, &self.state("created"), Path::new("/"))
    }

    fn state<'a>(&'a self, status: &'a str) -> HookState<'a> {
        let Config { oci_version, annotations, .. } = self.config;
        HookState { oci_version, id: self.id, status, pid: self.pid, bundle: self.bundle, annotations }
    }
}

/// How long a list of hooks may take.
#[must_use]
pub fn time_of(hooks: &[Hook]) -> Duration {
    hooks.iter().map(limit).sum()
}

fn limit(hook: &Hook) -> Duration {
    hook.timeout.map_or(TIME, |seconds| Duration::from_secs(seconds.max(0).unsigned_abs()))
}

/// Runs one.
///
/// # Errors
/// When it can't be run, fails or takes too long; it is killed then.
pub fn run(hook: &Hook, state: &HookState<'_>, folder: &Path) -> Result<(), StageError> {
    run_until(hook, state, folder, None)
}

/// The same, given up as soon as the other end of a socket is closed.
pub(crate) fn run_until(
    hook: &Hook,
    state: &HookState<'_>,
    folder: &Path,
    stop: Option<BorrowedFd<'_>>,
) -> Result<(), StageError> {
    let mut input = memory_file()?;
    input.write_all(&serde_json::to_vec(state).step("encode the state")?).step("write the state")?;
    input.rewind().step("rewind the state")?;
    let printed = memory_file()?;
    let copy = || printed.try_clone().map(Stdio::from).step("prepare its streams");
    let mut command = Command::new(&hook.path);
    if let Some((name, arguments)) = hook.args.split_first() {
        command.arg0(name).args(arguments);
    }
    let environment = hook.env.iter().map(|entry| entry.split_once('=').unwrap_or((entry, "")));
    command.env_clear().envs(environment).current_dir(folder).process_group(0);
    command.stdin(input).stdout(copy()?).stderr(copy()?);
    let mut child = command.spawn().step("start it")?;
    let ended = wait(&mut child, limit(hook), stop);
    if ended.is_err() {
        if let Some(group) = Pid::from_raw(child.id() as i32) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = child.kill();
        let _ = child.wait();
    }
    let status = ended?;
    if status.success() {
        return Ok(());
    }
    let words = words(&printed);
    let separator = if words.is_empty() { "" } else { ": " };
    Err(format!("{status}{separator}{words}")).step("wait for it")
}

/// A file in memory: a hook that doesn't read its stdin or prints without end blocks nobody.
fn memory_file() -> Result<File, StageError> {
    let fd: OwnedFd = rustix::fs::memfd_create("hook", MemfdFlags::CLOEXEC).step("make a file in memory")?;
    Ok(fd.into())
}

fn wait(child: &mut Child, limit: Duration, stop: Option<BorrowedFd<'_>>) -> Result<ExitStatus, StageError> {
    let pid = Pid::from_raw(child.id() as i32).ok_or("it has no number").step("wait for it")?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).step("wait for it")?;
    let mut fds = vec![PollFd::new(&pidfd, PollFlags::IN)];
    fds.extend(stop.as_ref().map(|stop| PollFd::new(stop, PollFlags::IN)));
    let time = Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: i64::from(limit.subsec_nanos()) };
    loop {
        match poll(&mut fds, Some(&time)) {
            Ok(0) => return Err(format!("it has not ended within {} s", limit.as_secs())).step("wait for it"),
            Ok(_) if fds[0].revents().is_empty() => return Err("nobody needs it any more").step("wait for it"),
            Ok(_) => return child.wait().step("wait for it"),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno).step("wait for it"),
        }
    }
}

/// The end of what it printed.
fn words(printed: &File) -> String {
    let length = printed.metadata().map_or(0, |meta| meta.len());
    let mut bytes = vec![0; PRINTED_BYTES];
    let from = length.saturating_sub(PRINTED_BYTES as u64);
    let count = printed.read_at(&mut bytes, from).unwrap_or(0);
    String::from_utf8_lossy(&bytes[..count]).trim().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(script: &str, timeout: Option<i64>) -> Hook {
        let args = ["sh", "-c", script].map(String::from).to_vec();
        Hook { path: "/bin/sh".into(), args, env: vec!["A=b".into()], timeout }
    }

    #[test]
    fn hooks_get_the_state_and_nothing_else_and_have_a_limit() {
        let annotations = [("k".to_string(), "v".to_string())].into();
        let bundle = Path::new("/b");
        let state =
            HookState { oci_version: "1.2.0", id: "c", status: "creating", pid: 7, bundle, annotations: &annotations };
        let file = std::env::temp_dir().join(format!("orlop-hook-{}", std::process::id()));
        let script = format!("cat > {0}; echo \" $A $HOME $PWD\" >> {0}", file.display());
        run(&hook(&script, None), &state, Path::new("/")).unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        let (json, rest) = text.split_once("} ").map(|(json, rest)| (format!("{json}}}"), rest)).unwrap();
        let read: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(
            (read["id"].as_str(), read["pid"].as_i64(), &read["annotations"]["k"]),
            (Some("c"), Some(7), &"v".into())
        );
        assert_eq!(rest.trim(), "b  /");
        let list = [hook("exit 0", None), hook("echo why; exit 3", None), hook("exit 4", None)];
        let said = run_all("prestart", &list, &state, Path::new("/")).unwrap_err().to_string();
        assert!(said.contains("prestart hook 2") && said.contains("exit status: 3") && said.contains("why"), "{said}");
        let said = run(&hook("sleep 60", Some(1)), &state, Path::new("/")).unwrap_err().to_string();
        assert!(said.contains("within 1 s"), "{said}");
    }
}
