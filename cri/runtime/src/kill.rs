//! `kill` and `delete`: signals to a container, and the end of all that it has.

use std::path::Path;

use orlop_container::hook;
use orlop_container::stage::Step;
use orlop_kernel::cgroup::Cgroups;
use orlop_kernel::{process, procfs};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::arguments::Arguments;
use crate::create;
use crate::failure::{Failure, Outcome, failed};
use crate::log::Log;
use crate::store::{Place, Record, Status, Store};

/// Names of signals in the order of their numbers, from 1.
const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
];
/// The number of KILL.
const KILL: i32 = 9;
/// Real-time signals as libc numbers them.
const REAL_TIME: std::ops::RangeInclusive<i32> = 34..=64;
/// How long a killed process may take to end, in seconds.
const END_TIME: i64 = 10;

/// The number of a signal by its name, with or without `SIG`, or by its number.
fn signal(text: &str) -> Result<i32, Failure> {
    let wrong = || Failure::Usage(format!("unknown signal {text:?}"));
    if let Ok(number) = text.parse::<i32>() {
        return if (1..=64).contains(&number) { Ok(number) } else { Err(wrong()) };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = |from: i32, rest: &str, sign: i32| match rest {
        "" => Some(from),
        rest => rest.get(1..)?.parse::<i32>().ok().map(|more| from + sign * more),
    };
    let found = SIGNALS.iter().position(|known| *known == name).map(|at| at as i32 + 1).or_else(|| {
        let low = name.strip_prefix("RTMIN").and_then(|rest| real_time(*REAL_TIME.start(), rest, 1));
        let high = || name.strip_prefix("RTMAX").and_then(|rest| real_time(*REAL_TIME.end(), rest, -1));
        low.or_else(high).filter(|number| REAL_TIME.contains(number))
    });
    found.ok_or_else(wrong)
}

/// `kill`.
pub fn kill(store: &Store, arguments: &Arguments) -> Outcome {
    let (id, number) = match &arguments.rest[..] {
        [id] => (id, signal("TERM")?),
        [id, name] => (id, signal(name)?),
        _ => return Err(Failure::Usage("kill wants a container id and perhaps a signal".into())),
    };
    let place = store.find(id)?;
    let (record, status) = place.look(id)?;
    let cgroups = Cgroups::detect().step("find the cgroups")?;
    let all = arguments.has("all");
    match status {
        Status::Created | Status::Running | Status::Paused => {}
        // What a first process has left behind can still be told.
        Status::Stopped if all => {}
        Status::Stopped => return Err(Failure::NotRunning),
        Status::Creating => {
            return Err(Failure::WrongState {
                command: "kill",
                id: id.clone(),
                status: status.word().into(),
                advice: "; delete --force removes a creation that was killed",
            });
        }
    }
    if status != Status::Stopped {
        send(&record, number)?;
    }
    match number {
        KILL if all || !record.own_pids => cgroups.kill(&record.cgroup),
        other if all => {
            // The first one has it already.
            let others = cgroups.processes(&record.cgroup).into_iter().filter(|pid| *pid != record.pid);
            others.for_each(|pid| drop(process::kill(pid, other)));
        }
        _ => {}
    }
    // A frozen process dies when it may go on.
    if number == KILL && status == Status::Paused {
        cgroups.freeze(&record.cgroup, false).step("let it go on")?;
    }
    Ok(0)
}

/// Sends a signal to the first process, and never to another one that has its number now.
pub fn send(record: &Record, number: i32) -> Result<(), Failure> {
    let pid = Pid::from_raw(record.pid).ok_or(Failure::NotRunning)?;
    let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else { return Err(Failure::NotRunning) };
    if !procfs::is_alive(record.pid, record.pid_start_ticks) {
        return Err(Failure::NotRunning);
    }
    match process::signal_by(&pidfd, number) {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => Err(Failure::NotRunning),
        sent => Ok(sent.step(format!("send signal {number} to process {}", record.pid))?),
    }
}

/// `delete`.
pub fn delete(store: &Store, arguments: &Arguments, log: &Log) -> Outcome {
    let (id, force) = (arguments.id()?, arguments.has("force"));
    let place = match store.find(id) {
        Err(Failure::Missing) if force => return Ok(0),
        place => place?,
    };
    let cgroups = Cgroups::detect().step("find the cgroups")?;
    if force {
        // A start that hangs holds the lock, and ends with the process.
        match place.read() {
            Ok(Some(record)) => end(&record, &cgroups),
            Ok(None) => {}
            Err(error) => {
                log.warn(&error.to_string());
                end(&salvage(&place, id), &cgroups);
            }
        }
    }
    let held = match place.lock(id) {
        Err(Failure::Missing) if force => return Ok(0),
        held => held?,
    };
    let (record, status) = match place.look(id) {
        Err(Failure::Step(_)) if force => (salvage(&place, id), Status::Creating),
        looked => looked?,
    };
    let allowed = force || matches!(status, Status::Created | Status::Stopped);
    if !allowed {
        return Err(Failure::WrongState {
            command: "cannot delete",
            id: id.into(),
            status: format!("{} and not stopped", status.word()),
            advice: "; --force kills it",
        });
    }
    remove(&place, &record, &cgroups, log)?;
    drop(held);
    Ok(0)
}

/// What is still known of a container whose record can't be read: its specification names its cgroup and its hooks.
fn salvage(place: &Place, id: &str) -> Record {
    let record = Record { id: id.into(), ..Record::default() };
    let Ok(mut config) = place.config() else { return record };
    create::first_record(id, Path::new("/"), &mut config).unwrap_or(record)
}

/// Kills all that is known of a container, and doesn't wait.
fn end(record: &Record, cgroups: &Cgroups) {
    if record.cgroup.is_empty() {
        return;
    }
    let _ = send(record, KILL);
    if !record.foreign_cgroup || record.pid != 0 {
        cgroups.kill(&record.cgroup);
    }
    if cgroups.is_frozen(&record.cgroup) {
        let _ = cgroups.freeze(&record.cgroup, false);
    }
}

/// Ends a container and takes away all that it has; hooks are told last. May be repeated.
pub fn remove(place: &Place, record: &Record, cgroups: &Cgroups, log: &Log) -> Result<(), Failure> {
    end(record, cgroups);
    wait(record)?;
    if !record.cgroup.is_empty() && !record.foreign_cgroup {
        let reap = || while process::reap().is_some() {};
        cgroups.remove(&record.cgroup, reap).step("remove the cgroup")?;
    }
    place.remove()?;
    for one in &record.hooks.poststop {
        if let Err(error) = hook::run(one, &record.hook_state("stopped", 0), Path::new("/")) {
            log.warn(&format!("run the poststop hook {}: {error}", one.path.display()));
        }
    }
    Ok(())
}

/// Waits for the end of the first process.
fn wait(record: &Record) -> Result<(), Failure> {
    let opened = Pid::from_raw(record.pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    let Some(pidfd) = opened.filter(|_| procfs::is_alive(record.pid, record.pid_start_ticks)) else { return Ok(()) };
    let time = Timespec { tv_sec: END_TIME, tv_nsec: 0 };
    match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&time)).step("wait for the container's end")? {
        0 => {
            let why =
                format!("process {} has not ended {END_TIME} s after SIGKILL; it hangs in the kernel", record.pid);
            Err(failed("end the container", why))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_by_name_and_number() {
        for (text, number) in [
            ("TERM", 15),
            ("SIGKILL", 9),
            ("kill", 9),
            ("10", 10),
            ("RTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
            ("SYS", 31),
        ] {
            assert_eq!(signal(text).unwrap(), number, "{text}");
        }
        for text in ["", "0", "65", "-9", "NOPE", "SIG", "RTMIN+99"] {
            assert!(signal(text).is_err(), "{text}");
        }
    }
}
