//! `orlop-runtime`: the built-in container runtime by the command line that all runtimes of the OCI share, which runc has
//! set. For containerd, podman, handlers, and people; `orlop runtime` is the same.
//!
//! One call is one step: no daemon, one thread, no async runtime. What is known of a container lies in a folder of its own
//! ([`store`]); the container's first process waits there between `create` and `start`.

mod arguments;
mod commands;
mod create;
mod exec;
mod failure;
mod features;
mod foreground;
mod kill;
mod list;
mod log;
mod start;
mod store;
mod update;

use std::process::ExitCode;

use arguments::Arguments;
use commands::{COMMANDS, GLOBAL, help};
use failure::{Failure, Outcome, failed};
use log::Log;
use orlop_kernel::process;
use store::Store;

/// Where state is kept unless told otherwise.
const ROOT: &str = "/run/orlop/runtime";

fn main() -> ExitCode {
    let words = std::env::args_os().skip(1).map(std::ffi::OsString::into_string).collect::<Result<Vec<_>, _>>();
    let mut log = Log::default();
    let outcome = match words {
        Ok(words) => run(&words, &mut log),
        Err(word) => Err(Failure::Usage(format!("the argument {word:?} is no text"))),
    };
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            log.error(&failure.to_string());
            ExitCode::from(failure.code())
        }
    }
}

fn run(words: &[String], log: &mut Log) -> Outcome {
    let global = Arguments::read(GLOBAL, words, true)?;
    let name = global.rest.first().map(String::as_str);
    if global.has("version") {
        let version = env!("CARGO_PKG_VERSION");
        println!("orlop-runtime version {version}\nspec: {}", features::OCI_VERSION);
        return Ok(0);
    }
    if global.has("help") || matches!(name, None | Some("help")) {
        print!("{}", help("orlop-runtime", global.rest.get(1).map(String::as_str)));
        return Ok(0);
    }
    *log = open_log(&global)?;
    if global.has("systemd-cgroup") {
        return Err(Failure::Unsupported("--systemd-cgroup (cgroups are made in their file system: cgroupfs)".into()));
    }
    match global.get("rootless") {
        None | Some("auto" | "false") => {}
        Some(other) => return Err(Failure::Unsupported(format!("--rootless {other}"))),
    }
    let name = name.unwrap_or_default();
    let Some((name, flags, ..)) = COMMANDS.iter().find(|(known, ..)| *known == name) else {
        return Err(match name {
            "checkpoint" | "restore" => Failure::Unsupported(name.into()),
            other => Failure::Usage(format!("{other:?} is no command; --help names them all")),
        });
    };
    let rest = &global.rest[1..];
    let stop = matches!(*name, "exec" | "ps");
    let before = rest.iter().take_while(|word| word.starts_with('-')).any(|word| word == "--help" || word == "-h");
    if before {
        print!("{}", help("orlop-runtime", Some(name)));
        return Ok(0);
    }
    let arguments = Arguments::read(flags, rest, stop)?;
    let store = Store::new(store::absolute(global.get("root").unwrap_or(ROOT).as_ref())?);
    if matches!(*name, "create" | "run" | "exec") {
        // The process that is made looks at this program's file, and must find no way to write to it.
        process::protect_program().map_err(|error| failed("protect the runtime's own program", error))?;
    }
    match *name {
        "create" => start::create(&store, &arguments, log),
        "start" => start::start(&store, &arguments, log),
        "run" => start::run(&store, &arguments, log),
        "exec" => exec::exec(&store, &arguments),
        "state" => list::state(&store, &arguments),
        "list" => list::list(&store, &arguments),
        "ps" => list::ps(&store, &arguments),
        "kill" => kill::kill(&store, &arguments),
        "delete" => kill::delete(&store, &arguments, log),
        "pause" => update::pause(&store, &arguments),
        "resume" => update::resume(&store, &arguments),
        "update" => update::update(&store, &arguments),
        "events" => update::events(&store, &arguments),
        "spec" => features::spec(&arguments),
        _ => features::features(),
    }
}

fn open_log(global: &Arguments) -> Result<Log, Failure> {
    let json = match global.get("log-format") {
        None | Some("text") => false,
        Some("json") => true,
        Some(other) => return Err(Failure::Usage(format!("unknown log-format {other:?}: text or json"))),
    };
    let path = global.get("log");
    let opened = Log::open(path, json, global.has("debug"));
    opened.map_err(|error| failed(format!("open the log {:?}", path.unwrap_or_default()), error))
}
