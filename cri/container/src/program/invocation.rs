//! One run of a runtime program: its files, its streams, its end or its deadline, and its words when it fails.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio as ProcessStdio};
use std::time::{Duration, Instant};

use orlop_kernel::socket;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::net::SocketFlags;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::protocol::RuntimeProgram;
use crate::stage::{Message, StageError, Step};

/// Where a program finds its own helpers; the daemon's other variables are not for it.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Bytes of what a program prints that are kept.
const PRINTED_BYTES: u64 = 16 << 10;
/// Bytes of a program's log that are read.
const LOG_BYTES: u64 = 256 << 10;
/// How long a program that has called may take to send the terminal.
const TERMINAL_TIME: Duration = Duration::from_secs(5);

/// What becomes the streams of the process that is made.
pub(super) enum Stdio<'a> {
    /// These; where one is missing, the null device.
    Given([&'a Option<OwnedFd>; 3]),
    /// A terminal, whose master the program sends.
    Terminal,
}

/// One run of a program.
pub(super) struct Invocation<'a> {
    runtime: &'a RuntimeProgram,
    folder: &'a Path,
    /// Files of this run begin so.
    name: &'a str,
}

impl<'a> Invocation<'a> {
    /// A run whose files lie in a folder.
    pub(super) fn new(runtime: &'a RuntimeProgram, folder: &'a Path, name: &'a str) -> Invocation<'a> {
        Invocation { runtime, folder, name }
    }

    fn file(&self, kind: &str) -> PathBuf {
        self.folder.join(format!("{}.{kind}", self.name))
    }

    /// The program with what all its verbs take.
    fn command(&self) -> Command {
        let mut command = Command::new(&self.runtime.program);
        command.env_clear().env("PATH", PATH).current_dir("/");
        command.arg("--root").arg(&self.runtime.root);
        command.arg("--log").arg(self.file("log")).args(["--log-format", "json"]);
        if self.runtime.systemd_cgroup {
            command.arg("--systemd-cgroup");
        }
        command
    }

    /// Lets the program make a process.
    pub(super) fn make(
        &self,
        arguments: &[&OsStr],
        id: &str,
        stdio: Stdio<'_>,
        limit: Duration,
    ) -> Result<Message, StageError> {
        let pid_file = self.file("pid");
        let mut command = self.command();
        command.args(arguments).arg("--pid-file").arg(&pid_file);
        let printed = open_printed()?;
        let console = match stdio {
            Stdio::Given(streams) => {
                set_streams(&mut command, streams)?;
                None
            }
            Stdio::Terminal => {
                print_to(&mut command, &printed)?;
                let console = Console::listen(self.folder, self.file("sock"))?;
                command.arg("--console-socket").arg(&console.address);
                Some(console)
            }
        };
        command.arg(id);
        let done = self.run(command, &printed, console.as_ref(), limit).and_then(|terminal| {
            let text = std::fs::read_to_string(&pid_file).step(format!("read {pid_file:?}"))?;
            let pid = text.trim().parse().step(format!("read the process number {text:?}"))?;
            Ok(Message::Made { pid, terminal })
        });
        let _ = std::fs::remove_file(&pid_file);
        done
    }

    /// Lets the program do something that makes no process.
    pub(super) fn tell(&self, arguments: &[&OsStr], id: &str, limit: Duration) -> Result<(), StageError> {
        let mut command = self.command();
        command.args(arguments).arg(id).stdin(ProcessStdio::null());
        let printed = open_printed()?;
        print_to(&mut command, &printed)?;
        self.run(command, &printed, None, limit).map(drop)
    }

    /// Runs the program to its end; the terminal comes back where one was sent.
    fn run(
        &self,
        mut command: Command,
        printed: &File,
        console: Option<&Console>,
        limit: Duration,
    ) -> Result<Option<OwnedFd>, StageError> {
        let program = self.runtime.program.display();
        let verb = self.name.split('-').next().unwrap_or_default();
        let mut child = command.spawn().step(format!("run {program}"))?;
        drop(command);
        let ended = wait(&mut child, console, limit);
        let ended = ended.inspect_err(|_| {
            let _ = child.kill();
            let _ = child.wait();
        });
        let what = || format!("{program} {verb}");
        let result = match ended.step(what()) {
            Ok((status, terminal)) if status.success() => match (console, &terminal) {
                (Some(_), None) => Err("it has sent no terminal").step(what()),
                _ => Ok(terminal),
            },
            Ok((status, _)) => Err(self.words(printed).unwrap_or_else(|| status.to_string())).step(what()),
            Err(error) => Err(error),
        };
        let _ = std::fs::remove_file(self.file("log"));
        result
    }

    /// Why the program failed: the last error of its log, or what it printed last.
    fn words(&self, printed: &File) -> Option<String> {
        let mut log = Vec::new();
        if let Ok(file) = File::open(self.file("log")) {
            let _ = file.take(LOG_BYTES).read_to_end(&mut log);
        }
        let mut text = vec![0; PRINTED_BYTES as usize];
        let count = printed.read_at(&mut text, 0).unwrap_or(0);
        text.truncate(count);
        last_error(&String::from_utf8_lossy(&log)).or_else(|| last_line(&String::from_utf8_lossy(&text)))
    }
}

/// A file in memory for what a program prints; what is more than it holds is refused to the program.
fn open_printed() -> Result<File, StageError> {
    let open = || {
        let fd = rustix::fs::memfd_create("printed", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::ftruncate(&fd, PRINTED_BYTES)?;
        rustix::fs::fcntl_add_seals(&fd, SealFlags::GROW)?;
        Ok::<_, rustix::io::Errno>(File::from(fd))
    };
    open().step("make a file for the program's words")
}

fn print_to(command: &mut Command, printed: &File) -> Result<(), StageError> {
    let copy = || printed.try_clone().step("hand on the file for the program's words");
    command.stdin(ProcessStdio::null()).stdout(copy()?).stderr(copy()?);
    Ok(())
}

fn set_streams(command: &mut Command, streams: [&Option<OwnedFd>; 3]) -> Result<(), StageError> {
    let [stdin, stdout, stderr] = streams.map(|stream| match stream {
        Some(stream) => stream.try_clone().map(ProcessStdio::from),
        None => Ok(ProcessStdio::null()),
    });
    let what = "hand on the streams";
    command.stdin(stdin.step(what)?).stdout(stdout.step(what)?).stderr(stderr.step(what)?);
    Ok(())
}

/// Waits for a program and, where there is a console, for the terminal that it sends.
fn wait(
    child: &mut Child,
    console: Option<&Console>,
    limit: Duration,
) -> Result<(ExitStatus, Option<OwnedFd>), StageError> {
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).step("watch the program")?;
    let until = Instant::now() + limit;
    let mut terminal = None;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(format!("it has not ended within {} s", limit.as_secs())).step("wait for its end");
        }
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        let listener = console.filter(|_| terminal.is_none());
        let mut watched = vec![PollFd::new(&pidfd, PollFlags::IN)];
        watched.extend(listener.map(|console| PollFd::new(&console.listener, PollFlags::IN)));
        match poll(&mut watched, Some(&left)) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other.step("wait for its end")?,
        };
        let [ended, called] = [0, 1].map(|at| watched.get(at).is_some_and(|one| !one.revents().is_empty()));
        if let Some(console) = listener.filter(|_| called) {
            terminal = console.receive()?;
        } else if ended {
            return Ok((child.wait().step("wait for its end")?, terminal));
        }
    }
}

/// Where a program sends the terminal that it has made.
struct Console {
    listener: OwnedFd,
    file: PathBuf,
    /// A short path of the same: sockets take 107 bytes.
    address: PathBuf,
    _folder: OwnedFd,
}

impl Console {
    fn listen(folder: &Path, file: PathBuf) -> Result<Console, StageError> {
        let what = || format!("listen on {file:?}");
        let listener = socket::listen(&file).step(what())?;
        let open = rustix::fs::open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let folder = open.step(what())?;
        let name = file.file_name().unwrap_or_default();
        let place = format!("/proc/{}/fd/{}", std::process::id(), folder.as_raw_fd());
        let address = PathBuf::from(place).join(name);
        Ok(Console { listener, address, file, _folder: folder })
    }

    /// Takes a call; a program that fails half-way calls and sends nothing.
    fn receive(&self) -> Result<Option<OwnedFd>, StageError> {
        let what = "receive the terminal";
        let caller = rustix::net::accept_with(&self.listener, SocketFlags::CLOEXEC).step(what)?;
        set_socket_timeout(&caller, Timeout::Recv, Some(TERMINAL_TIME)).step(what)?;
        let (mut name, mut descriptors) = ([0u8; 4096], Vec::new());
        socket::receive(&caller, &mut name, &mut descriptors).step(what)?;
        Ok(descriptors.pop())
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
    }
}

/// The last error of a log in JSON, whose objects stand in lines or right behind one another; a program that writes another
/// format is quoted by its last line.
fn last_error(log: &str) -> Option<String> {
    let read = |entry: serde_json::Value| {
        let level = entry.get("level")?.as_str()?.to_lowercase();
        let text = entry.get("msg")?.as_str()?.trim().to_string();
        matches!(level.as_str(), "error" | "fatal" | "panic" | "warning").then_some((level != "warning", text))
    };
    let objects = |line| serde_json::Deserializer::from_str(line).into_iter().map_while(Result::ok);
    let entries: Vec<(bool, String)> = log.lines().flat_map(objects).filter_map(read).collect();
    let error = entries.iter().rev().find(|(error, _)| *error).or(entries.last());
    error.map(|(_, text)| text.clone()).or_else(|| last_line(log))
}

fn last_line(text: &str) -> Option<String> {
    let mut lines = text.lines().map(|line| line.trim_matches(|letter: char| letter == '\0' || letter.is_whitespace()));
    lines.rfind(|line| !line.is_empty()).map(str::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_quoted_by_its_last_error() {
        for (log, words) in [
            ("", None),
            ("plain words\nmore of them\n\n", Some("more of them")),
            (r#"{"level":"warning","msg":"w","time":"t"}"#, Some("w")),
            (
                "{\"level\":\"error\",\"msg\":\"no such file \"}\n{\"level\":\"warning\",\"msg\":\"w\"}\n{\"level\":\"info\",\"msg\":\"i\"}",
                Some("no such file"),
            ),
            (r#"{"msg":"crun's way","level":"error","time":"t"}"#, Some("crun's way")),
            (r#"{"msg":"one","level":"error"}{"msg":"two","level":"error"}"#, Some("two")),
        ] {
            assert_eq!(last_error(log).as_deref(), words, "{log}");
        }
        assert_eq!(last_line("one\ntwo\n\0\0\0").as_deref(), Some("two"));
    }

    #[test]
    fn a_run_ends_or_is_ended() {
        let folder = std::env::temp_dir().join(format!("orlop-invocation-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let program = folder.join("program");
        let runtime = RuntimeProgram { program: program.clone(), root: folder.join("state"), systemd_cgroup: true };
        let tell = |script: &str| {
            // Written by another process: one that a test beside this one starts could hold it open for writing.
            let text = folder.join("script");
            std::fs::write(&text, format!("#!/bin/sh\n{script}\n")).unwrap();
            let install = Command::new("install").args(["-m", "755"]).args([&text, &program]).status();
            assert!(install.unwrap().success());
            let told = Invocation::new(&runtime, &folder, "start").tell(
                &["start".as_ref()],
                "c1",
                Duration::from_secs(if script.contains("sleep") { 1 } else { 20 }),
            );
            told.map_err(|error| error.to_string())
        };
        assert_eq!(tell(r#"[ "$*" = "--root $2 --log $4 --log-format json --systemd-cgroup start c1" ]"#), Ok(()));
        for (script, words) in [
            ("echo of it >&2; echo '{\"level\":\"error\",\"msg\":\"the log\"}' > $4; exit 1", "the log"),
            ("echo printed; exit 3", "printed"),
            ("exit 3", "exit status: 3"),
            ("exec sleep 60", "within 1 s"),
        ] {
            let said = tell(script).expect_err(words);
            assert!(said.contains(words) && said.contains("program start"), "{said}");
        }
        assert!(!folder.join("start.log").exists());
        std::fs::remove_dir_all(folder).unwrap();
    }
}
