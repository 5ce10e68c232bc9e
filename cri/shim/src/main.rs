//! `orlop-shim`: one per pod, single thread, owns the pod's processes and their logs.
//!
//! `orlop-shim <sandbox folder>` reads `sandbox.json`, makes the pause process, writes `state.json`, listens on
//! `shim.sock` and goes into the background; the first process ends with 0 once all that is done, or with 1 and the
//! reason on stderr. From then on any daemon may die: processes, exit codes and logs are here.
//!
//! `orlop-shim --check-user-namespaces <folder>` makes none of that: it ends with 0 when pods whose layers lie in the file
//! system of that folder can have user namespaces, else with 1 and the reason. A daemon has too many threads to find out
//! by itself.
//!
//! `orlop-shim --hold` does nothing until its standard input ends: the first process of a scope that systemd makes, until
//! a process of the pod is in it.

mod attach;
mod connection;
mod container;
mod driven;
mod exec;
mod hooks;
mod log;
mod oom;
mod output;
mod poller;
mod requests;
mod shim;

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use orlop_container::protocol::SandboxSpec;
use orlop_kernel::process;

use shim::Shim;

fn main() {
    let mut arguments = std::env::args_os().skip(1);
    let folder = match (arguments.next(), arguments.next(), arguments.next()) {
        (Some(option), None, None) if option == HOLD => hold(),
        (Some(folder), None, None) => folder,
        (Some(option), Some(folder), None) if option == CHECK => check_user_namespaces(Path::new(&folder)),
        _ => {
            eprintln!(
                "usage: orlop-shim <sandbox folder>\n       orlop-shim {CHECK} <folder of the layers>\n       orlop-shim {HOLD}"
            );
            eprintln!("One runs per pod; it is started by the CRI server.");
            std::process::exit(2);
        }
    };
    let folder = match prepare(Path::new(&folder)) {
        Ok(folder) => folder,
        Err(error) => {
            eprintln!("prepare the shim for {}: {error}", Path::new(&folder).display());
            std::process::exit(1);
        }
    };
    // Containers run next to this program as root; none of them may ever get a way to write to its file.
    if let Err(error) = process::protect_program() {
        eprintln!("protect the shim's own program: {error}");
        std::process::exit(1);
    }
    let _ = process::set_name("orlop-shim");
    match detach() {
        Ok(Side::Starter(mut ready)) => {
            let mut said = String::new();
            let _ = ready.read_to_string(&mut said);
            if said == READY {
                std::process::exit(0);
            }
            eprintln!("{}", if said.is_empty() { "the shim ended without a word" } else { &said });
            std::process::exit(1);
        }
        Ok(Side::Shim(mut ready)) => match start(&folder) {
            Ok(mut shim) => {
                let _ = ready.write_all(READY.as_bytes());
                drop(ready);
                // The caller's streams end here; whoever waits for their end gets it.
                redirect(&folder);
                shim.run();
            }
            Err(error) => {
                let _ = ready.write_all(error.as_bytes());
                std::process::exit(1);
            }
        },
        Err(error) => {
            eprintln!("go into the background: {error}");
            std::process::exit(1);
        }
    }
}

/// The option that asks about the machine.
const CHECK: &str = "--check-user-namespaces";

/// The option that keeps a scope.
const HOLD: &str = "--hold";

/// Waits for the end of whoever holds the other end of standard input.
fn hold() -> ! {
    let ended = process::close_all_but(&[]).and_then(|()| std::io::copy(&mut std::io::stdin(), &mut std::io::sink()));
    std::process::exit(i32::from(ended.is_err()))
}

fn check_user_namespaces(folder: &Path) -> ! {
    match orlop_container::id_check::check(folder) {
        Ok(()) => std::process::exit(0),
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(1);
        }
    }
}

/// Leaves the caller's surroundings: its open files, its working folder, its umask, which would else decide about the
/// modes of what containers get.
fn prepare(folder: &Path) -> std::io::Result<PathBuf> {
    process::close_all_but(&[])?;
    let folder = std::path::absolute(folder)?;
    rustix::process::chdir("/")?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    Ok(folder)
}

/// What the shim says to its starter when all is well.
const READY: &str = "ready";

/// The two sides of going into the background.
enum Side {
    /// The process that was started; it waits for the word of the other.
    Starter(std::fs::File),
    /// The shim itself.
    Shim(std::fs::File),
}

fn detach() -> std::io::Result<Side> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    match process::clone(0)? {
        process::Side::Parent { .. } => {
            drop(write);
            Ok(Side::Starter(read.into()))
        }
        process::Side::Child => {
            drop(read);
            rustix::process::setsid()?;
            process::become_subreaper()?;
            process::ignore_signal(nix::sys::signal::Signal::SIGPIPE as i32)?;
            process::ignore_signal(nix::sys::signal::Signal::SIGHUP as i32)?;
            Ok(Side::Shim(write.into()))
        }
    }
}

/// Points the standard streams away from the caller: nothing in, words into `shim.log`.
fn redirect(folder: &Path) {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(folder.join("shim.log"));
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null");
    if let Ok(null) = null {
        let null = OwnedFd::from(null);
        let log = log.map_or_else(|_| null.try_clone(), |file| Ok(OwnedFd::from(file)));
        let _ = process::set_stdio(&null, 0);
        if let Ok(log) = log {
            let _ = process::set_stdio(&log, 1);
            let _ = process::set_stdio(&log, 2);
        }
    }
}

/// Makes the pod's pause process and the socket.
fn start(folder: &Path) -> Result<Shim, String> {
    let file = folder.join("sandbox.json");
    let bytes = std::fs::read(&file).map_err(|error| format!("read {}: {error}", file.display()))?;
    let spec: SandboxSpec = serde_json::from_slice(&bytes).map_err(|error| format!("{}: {error}", file.display()))?;
    let pod = spec.pod.clone();
    Shim::start(folder, spec).map_err(|error| format!("sandbox of pod {pod}: {error}"))
}
