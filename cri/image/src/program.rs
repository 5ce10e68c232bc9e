//! Programs of others, run with a deadline, a bare environment and bounded output.

use std::ffi::{OsStr, OsString};
use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

/// Search path where we have none ourselves.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How often a program that is just being written is tried.
const BUSY_TRIES: u32 = 20;
/// Wait between those tries.
const BUSY_WAIT: Duration = Duration::from_millis(50);

/// What to run.
pub(crate) struct Call<'a> {
    /// A path, or a name to look for in `PATH`.
    pub program: &'a OsStr,
    pub arguments: &'a [&'a str],
    /// Given to it as its input.
    pub input: &'a [u8],
    /// Kept of each of its outputs; the rest is read and thrown away.
    pub output_bytes_max: usize,
    pub timeout: Duration,
}

/// How it ended.
pub(crate) struct Ended {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

/// It didn't get that far.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProgramError {
    #[error("it can't be run: {0}")]
    Start(#[source] io::Error),
    #[error("it gave no answer within {0:?} and was killed")]
    Timeout(Duration),
}

/// The processes of a program; they end with it, and with the one who waits for it.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            let _ = kill_process_group(leader, Signal::KILL);
        }
    }
}

/// Runs a program to its end.
pub(crate) async fn run(call: &Call<'_>) -> Result<Ended, ProgramError> {
    let run = async {
        let mut tries = 0;
        loop {
            tries += 1;
            match run_once(call).await {
                Err(error) if Errno::from_io_error(&error) == Some(Errno::TXTBSY) && tries < BUSY_TRIES => {
                    tokio::time::sleep(BUSY_WAIT).await;
                }
                other => return other.map_err(ProgramError::Start),
            }
        }
    };
    tokio::time::timeout(call.timeout, run).await.unwrap_or(Err(ProgramError::Timeout(call.timeout)))
}

async fn run_once(call: &Call<'_>) -> io::Result<Ended> {
    let inherited = |name: &str, default: &str| std::env::var_os(name).unwrap_or_else(|| OsString::from(default));
    let mut command = tokio::process::Command::new(call.program);
    command
        .args(call.arguments)
        .env_clear()
        .env("PATH", inherited("PATH", DEFAULT_PATH))
        .env("HOME", inherited("HOME", "/"))
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    let mut child = command.spawn()?;
    let leader = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
    let mut group = Group(leader);
    let (mut stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let write = async {
        if let Some(stdin) = &mut stdin {
            // A program may answer without reading its input.
            let _ = stdin.write_all(call.input).await;
        }
        stdin = None;
    };
    let (bytes_max, outputs) = (call.output_bytes_max, (stdout, stderr));
    let ((), stdout, stderr) = tokio::join!(write, read(outputs.0, bytes_max), read(outputs.1, bytes_max));
    // It is waited for last: until then its number is nobody else's, and its group can be ended by it.
    let status = child.wait().await?;
    group.0 = None;
    Ok(Ended { status, stdout, stderr })
}

async fn read(stream: Option<impl AsyncRead + Unpin>, bytes_max: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(mut stream) = stream {
        let _ = (&mut stream).take(bytes_max as u64).read_to_end(&mut bytes).await;
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    }
    bytes
}

/// The beginning of what a program said, fit for one line.
pub(crate) fn quote(bytes: &[u8]) -> String {
    const CHARS_MAX: usize = 300;
    let text = String::from_utf8_lossy(bytes);
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    words.chars().filter(|c| !c.is_control()).take(CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn shell(script: &str, timeout: Duration) -> Result<Ended, ProgramError> {
        let arguments = ["-c", script];
        run(&Call { program: "sh".as_ref(), arguments: &arguments, input: b"in", output_bytes_max: 10, timeout }).await
    }

    #[tokio::test]
    async fn a_program_gets_its_input_and_little_else() {
        let ended = shell("cat; echo 123456789012345 >&2; exit 3", Duration::from_secs(10)).await.unwrap();
        assert_eq!((&ended.stdout[..], &ended.stderr[..]), (&b"in"[..], &b"1234567890"[..]));
        assert_eq!(ended.status.code(), Some(3));
        let ended =
            shell("env | grep -v -e ^PATH= -e ^HOME= -e ^PWD= -e ^_= -e ^SHLVL=; exit 0", Duration::from_secs(10));
        assert_eq!(quote(&ended.await.unwrap().stdout), "");
    }

    #[tokio::test]
    async fn a_program_that_hangs_is_killed_with_its_children() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
        let script = format!("(exec 3> {0}; sleep 1000) & sleep 1000", fifo.display());
        let held = std::thread::spawn(move || {
            // Opens when the child has it open, ends when the child is gone.
            let mut bytes = Vec::new();
            io::Read::read_to_end(&mut std::fs::File::open(fifo).unwrap(), &mut bytes).unwrap()
        });
        assert!(matches!(shell(&script, Duration::from_millis(500)).await, Err(ProgramError::Timeout(_))));
        assert_eq!(held.join().unwrap(), 0);
        let missing = Call {
            program: "/nowhere/program".as_ref(),
            arguments: &[],
            input: b"",
            output_bytes_max: 1,
            timeout: Duration::from_secs(1),
        };
        assert!(matches!(run(&missing).await, Err(ProgramError::Start(_))));
    }
}
