//! The commands and their flags: those of runc.

use crate::arguments::{Flag, switch, value};

/// Flags before the command.
pub const GLOBAL: &[Flag] = &[
    value("root", "", "DIR", "folder of the containers' state [default: /run/orlop/runtime]"),
    value("log", "", "FILE", "file of the log [default: standard error]"),
    value("log-format", "", "FORMAT", "text or json"),
    switch("debug", "", "log more"),
    switch("systemd-cgroup", "", "refused: cgroups are made in their file system"),
    value("rootless", "", "WORD", "false or auto; true is refused: it needs root"),
    switch("help", "h", "print this"),
    switch("version", "v", "print the version"),
];

const BUNDLE: Flag = value("bundle", "b", "DIR", "folder of config.json [default: .]");
const CONSOLE: Flag = value("console-socket", "", "PATH", "socket that gets the terminal");
const PIDFD: Flag = value("pidfd-socket", "", "PATH", "socket that gets a descriptor of the process");
const PID_FILE: Flag = value("pid-file", "", "FILE", "file of the process's number");
const NO_PIVOT: Flag = switch("no-pivot", "", "move the root over the machine's instead of pivoting");
const NO_KEYRING: Flag = switch("no-new-keyring", "", "leave it the caller's keyring");
const KEPT: Flag = value("preserve-fds", "", "N", "descriptors from 3 on that it gets");
const DETACH: Flag = switch("detach", "d", "don't wait for its end");
const FORMAT: Flag = value("format", "f", "FORMAT", "table or json");

/// Flags of `create`.
pub const CREATE: &[Flag] = &[BUNDLE, CONSOLE, PIDFD, PID_FILE, NO_PIVOT, NO_KEYRING, KEPT];
/// Flags of `run`.
pub const RUN: &[Flag] = &[
    BUNDLE,
    CONSOLE,
    PIDFD,
    PID_FILE,
    NO_PIVOT,
    NO_KEYRING,
    KEPT,
    DETACH,
    switch("keep", "", "don't delete it at its end"),
    switch("no-subreaper", "", "don't become the parent of its orphans"),
];
/// Flags of `exec`.
pub const EXEC: &[Flag] = &[
    CONSOLE,
    PIDFD,
    PID_FILE,
    KEPT,
    DETACH,
    value("cwd", "", "DIR", "working folder"),
    value("env", "e", "NAME=VALUE", "one more variable"),
    switch("tty", "t", "give it a terminal"),
    value("user", "u", "UID[:GID]", "user"),
    value("additional-gids", "g", "GID", "one more group"),
    value("process", "p", "FILE", "the process, as in config.json"),
    value("process-label", "", "LABEL", "SELinux label"),
    value("apparmor", "", "PROFILE", "AppArmor profile"),
    switch("no-new-privs", "", "it never gains privileges"),
    value("cap", "c", "NAME", "one more capability"),
    value("cgroup", "", "PATH", "refused: it runs in the container's"),
    switch("ignore-paused", "", "even in a paused container"),
];
/// Flags of `kill`.
pub const KILL: &[Flag] = &[switch("all", "a", "every process of the container")];
/// Flags of `delete`.
pub const DELETE: &[Flag] = &[switch("force", "f", "kill it where it is not stopped; fine when there is none")];
/// Flags of `list`.
pub const LIST: &[Flag] = &[FORMAT, switch("quiet", "q", "ids alone")];
/// Flags of `ps`.
pub const PS: &[Flag] = &[FORMAT];
/// Flags of `events`.
pub const EVENTS: &[Flag] =
    &[switch("stats", "", "once, and no more"), value("interval", "", "TIME", "between two looks [default: 5s]")];
/// Flags of `spec`.
pub const SPEC: &[Flag] = &[BUNDLE, switch("rootless", "", "refused")];
/// Flags of `update`.
pub const UPDATE: &[Flag] = &[
    value("resources", "r", "FILE", "limits as in config.json; - is stdin, and nothing else counts then"),
    value("blkio-weight", "", "N", "weight for disks"),
    value("cpu-period", "", "N", "microseconds of a period"),
    value("cpu-quota", "", "N", "microseconds in a period"),
    value("cpu-burst", "", "N", "microseconds that may be saved up"),
    value("cpu-share", "", "N", "weight for processors"),
    value("cpu-rt-period", "", "N", "microseconds of a real-time period"),
    value("cpu-rt-runtime", "", "N", "real-time microseconds in a period"),
    value("cpu-idle", "", "N", "1 for what nobody else wants"),
    value("cpuset-cpus", "", "LIST", "processors"),
    value("cpuset-mems", "", "LIST", "memory nodes"),
    value("memory", "", "BYTES", "memory"),
    value("memory-reservation", "", "BYTES", "memory that is left to it"),
    value("memory-swap", "", "BYTES", "memory and swap; -1 is no limit"),
    value("pids-limit", "", "N", "processes"),
    value("l3-cache-schema", "", "TEXT", "refused"),
    value("mem-bw-schema", "", "TEXT", "refused"),
];

/// Every command: name, flags, what follows them, what it does.
pub const COMMANDS: &[(&str, &[Flag], &str, &str)] = &[
    ("create", CREATE, "ID", "make a container of a bundle, up to its program"),
    ("start", &[], "ID", "start the program of a container that was made"),
    ("run", RUN, "ID", "make a container, start it, wait for its end and delete it"),
    ("exec", EXEC, "ID COMMAND [ARGUMENT...]", "run one more process in a container"),
    ("state", &[], "ID", "print the state of a container"),
    ("list", LIST, "", "print all containers"),
    ("ps", PS, "ID [OPTIONS OF PS]", "print the processes of a container"),
    ("kill", KILL, "ID [SIGNAL]", "send a signal to a container [default: TERM]"),
    ("delete", DELETE, "ID", "remove what is left of a container"),
    ("pause", &[], "ID", "stop all processes of a container"),
    ("resume", &[], "ID", "let them go on"),
    ("update", UPDATE, "ID", "change the limits of a container"),
    ("events", EVENTS, "ID", "print what a container uses, and when it ran out of memory"),
    ("spec", SPEC, "", "write a config.json to begin with"),
    ("features", &[], "", "print what this program can do"),
];

/// What `--help` prints.
pub fn help(program: &str, command: Option<&str>) -> String {
    let flags = |list: &[Flag]| -> String { list.iter().map(line).collect() };
    match COMMANDS.iter().find(|(name, ..)| Some(*name) == command) {
        Some((name, list, rest, about)) => {
            let head = format!("{about}\n\nusage: {program} {name} [FLAGS] {rest}\n");
            if list.is_empty() { head } else { format!("{head}\nflags:\n{}", flags(list)) }
        }
        None => {
            let rows: String = COMMANDS.iter().map(|(name, _, _, about)| format!("  {name:10}{about}\n")).collect();
            format!(
                "The built-in container runtime, with the command line of the OCI's runtimes.\n\n\
                 usage: {program} [FLAGS] COMMAND [FLAGS] ...\n\ncommands:\n{rows}\nflags:\n{}\n\
                 {program} COMMAND --help tells the flags of a command.\n",
                flags(GLOBAL)
            )
        }
    }
}

fn line(flag: &Flag) -> String {
    let short = if flag.short.is_empty() { String::new() } else { format!("-{}, ", flag.short) };
    let spelled = format!("{short}--{} {}", flag.name, flag.value);
    format!("  {spelled:30}{}\n", flag.help)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_of_a_command_are_told_apart() {
        for (name, list, ..) in COMMANDS.iter().chain([&("", GLOBAL, "", "")]) {
            let mut names: Vec<&str> =
                list.iter().flat_map(|flag| [flag.name, flag.short]).filter(|n| !n.is_empty()).collect();
            let count = names.len();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), count, "{name}");
            assert!(help("p", Some(name)).contains("usage: p"));
        }
    }
}
