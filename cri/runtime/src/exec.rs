//! `exec`: one more process in a container.

use std::time::{Duration, Instant};

use orlop_container::config::{ConsoleSize, Process};
use orlop_container::stage::{Message, Step};
use orlop_container::{Alone, Confinement, ExecProcess, Place as In, alone, exec_alone};
use orlop_kernel::cgroup::Cgroups;
use orlop_kernel::{namespace, process};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::arguments::Arguments;
use crate::create::{Request, hear, is_terminal, receive, send_descriptor, unexpected};
use crate::failure::{Failure, Outcome, failed};
use crate::foreground::Watch;
use crate::store::{Record, Status, Store};

/// How long a process may take up to its exec.
const TIME: Duration = Duration::from_secs(60);

/// `exec`.
pub fn exec(store: &Store, arguments: &Arguments) -> Outcome {
    run(store, arguments).map_err(|failure| match failure {
        usage @ (Failure::Missing | Failure::Id(_)) => usage,
        other => Failure::Exec(Box::new(other)),
    })
}

fn run(store: &Store, arguments: &Arguments) -> Outcome {
    let request = Request::read(arguments)?;
    let id = arguments.rest.first().ok_or_else(|| Failure::Usage("container id cannot be empty".into()))?;
    let place = store.find(id)?;
    let (record, status) = place.look(id)?;
    match status {
        Status::Created | Status::Running => {}
        Status::Paused if arguments.has("ignore-paused") => {}
        other => {
            let status = other.word().to_string();
            let advice = if other == Status::Paused { "; resume it, or give --ignore-paused" } else { "" };
            return Err(Failure::WrongState { command: "cannot exec in", id: id.clone(), status, advice });
        }
    }
    if arguments.given("cgroup") {
        return Err(Failure::Unsupported("exec --cgroup".into()));
    }
    let config = place.config()?;
    let mut process = describe(arguments, config.process)?;
    request.tell_sockets(&mut process.env);
    let detached = arguments.has("detach");
    request.check_console(process.terminal, detached)?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let (pid, terminal) = make(&record, &process, config.linux, &request)?;
    let pidfd = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    let pidfd = pidfd.ok_or_else(|| failed("look at the process", format!("{pid} is gone")))?;
    request.hand_out(pid, &pidfd)?;
    if detached {
        return Ok(0);
    }
    Watch::new(terminal)?.run(&pidfd)
}

/// Runs the process and waits for its exec; gives its number and its terminal, unless that was sent away.
fn make(
    record: &Record,
    process: &Process,
    linux: orlop_container::config::Linux,
    request: &Request,
) -> Result<(i32, Option<std::os::fd::OwnedFd>), Failure> {
    let cgroups = Cgroups::detect().step("find the cgroups")?;
    let confinement = Confinement::prepare(process, linux.seccomp.as_ref())?;
    let what = "look at the container's process";
    let container = Pid::from_raw(record.pid).ok_or(Failure::NotRunning)?;
    let container = pidfd_open(container, PidfdFlags::empty()).step(what)?;
    if !orlop_kernel::procfs::is_alive(record.pid, record.pid_start_ticks) {
        return Err(Failure::NotRunning);
    }
    let user = record.user_namespace.then(|| alone::user_of(record.pid)).transpose()?;
    let own_pid = namespace::open("/proc/self/ns/pid".as_ref()).step("open the own PID namespace")?;
    let within = In {
        cgroups: &cgroups,
        cgroups_path: &record.cgroup,
        container: &container,
        confinement: &confinement,
        user: user.as_ref(),
        own_pid: &own_pid,
    };
    let beside = Alone {
        streams: None,
        kept: &request.kept,
        own_cgroups: record.own_cgroups,
        personality: linux.personality.as_ref(),
    };
    let ExecProcess { pid, sync } = exec_alone(process, within, &beside)?;
    let made = receive(&sync, Instant::now() + TIME).and_then(|message| match message {
        Message::Created(terminal) => Ok(terminal),
        other => Err(unexpected(&other)),
    });
    let terminal = made.and_then(|terminal| match (&request.console, terminal) {
        (Some(path), Some(terminal)) => send_descriptor(path, b"/dev/ptmx", &terminal).map(|()| None),
        (_, terminal) => Ok(terminal),
    });
    // The end of the socket is the exec.
    let ran = terminal.and_then(|terminal| match hear(&sync, Instant::now() + TIME)? {
        None => Ok(terminal),
        Some(other) => Err(unexpected(&other)),
    });
    if ran.is_err() {
        let _ = process::kill(pid, 9);
        // Nobody else might for a while, and a container doesn't end before its last process is gone.
        if let Some(pidfd) = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) {
            process::wait_for(&pidfd);
        }
    }
    Ok((pid, ran?))
}

/// The process: of a file, or that of the container with what the command line changes.
fn describe(arguments: &Arguments, container: Process) -> Result<Process, Failure> {
    let mut process = match arguments.get("process") {
        Some(file) => {
            let text = std::fs::read(file).step(format!("read {file:?}"))?;
            serde_json::from_slice::<Process>(&text).step(format!("read {file:?}"))?
        }
        None => {
            let args: Vec<String> = arguments.rest[1..].to_vec();
            let apparmor = container.apparmor_profile.clone();
            let mut process = Process { args, terminal: false, console_size: None, ..container };
            change(arguments, &mut process)?;
            process.apparmor_profile = arguments.get("apparmor").map(String::from).or(apparmor);
            process
        }
    };
    if process.args.is_empty() {
        return Err(Failure::Usage("exec args cannot be empty: give a command, or --process FILE".into()));
    }
    if process.cwd.is_empty() {
        process.cwd = "/".into();
    }
    if process.terminal && process.console_size.is_none() && is_terminal(std::io::stdin()) {
        let size = rustix::termios::tcgetwinsize(std::io::stdin()).ok();
        process.console_size = size.map(|size| ConsoleSize { height: size.ws_row, width: size.ws_col });
    }
    for (field, set) in [
        ("process.scheduler", process.scheduler.is_some()),
        ("process.ioPriority", process.io_priority.is_some()),
        ("process.execCPUAffinity", process.exec_cpu_affinity.is_some()),
    ] {
        if set {
            return Err(Failure::Unsupported(field.into()));
        }
    }
    Ok(process)
}

fn change(arguments: &Arguments, process: &mut Process) -> Result<(), Failure> {
    process.terminal = arguments.has("tty");
    if let Some(cwd) = arguments.get("cwd") {
        process.cwd = cwd.into();
    }
    process.env.extend(arguments.all("env").map(String::from));
    if let Some(user) = arguments.get("user") {
        let wrong = || Failure::Usage(format!("flag --user: {user:?} is not UID or UID:GID"));
        let (uid, gid) = user.split_once(':').map_or((user, None), |(uid, gid)| (uid, Some(gid)));
        process.user.uid = uid.parse().map_err(|_| wrong())?;
        if let Some(gid) = gid {
            process.user.gid = gid.parse().map_err(|_| wrong())?;
        }
    }
    for gid in arguments.all("additional-gids") {
        let wrong = |_| Failure::Usage(format!("flag --additional-gids: {gid:?} is no number"));
        process.user.additional_gids.push(gid.parse().map_err(wrong)?);
    }
    if let Some(label) = arguments.get("process-label") {
        process.selinux_label = Some(label.into());
    }
    if arguments.given("no-new-privs") {
        process.no_new_privileges = arguments.has("no-new-privs");
    }
    for name in arguments.all("cap") {
        let sets = &mut process.capabilities;
        for set in [&mut sets.bounding, &mut sets.effective, &mut sets.permitted] {
            set.push(name.into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::EXEC;

    #[test]
    fn flags_change_the_containers_own_process() {
        let line = "-e A=2 --user 7:8 -g 9 -g 10 --cwd /w --cap CAP_KILL --no-new-privs c ls -l";
        let words: Vec<String> = line.split(' ').map(String::from).collect();
        let arguments = Arguments::read(EXEC, &words, true).unwrap();
        let own = Process { env: vec!["A=1".into()], args: vec!["init".into()], cwd: "/".into(), ..Process::default() };
        let process = describe(&arguments, own).unwrap();
        assert_eq!(process.args, ["ls", "-l"]);
        assert_eq!(process.env, ["A=1", "A=2"]);
        assert_eq!((process.user.uid, process.user.gid, &process.user.additional_gids[..]), (7, 8, &[9, 10][..]));
        assert_eq!((process.cwd.as_str(), process.no_new_privileges), ("/w", true));
        assert_eq!(process.capabilities.bounding, ["CAP_KILL"]);
        for line in ["c", "--user x c ls", "-g x c ls"] {
            let words: Vec<String> = line.split(' ').map(String::from).collect();
            let arguments = Arguments::read(EXEC, &words, true).unwrap();
            assert!(describe(&arguments, Process::default()).is_err(), "{line}");
        }
    }
}
