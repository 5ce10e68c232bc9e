//! Running one plugin.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::Attachment;

/// Bytes of a plugin's answer.
const OUTPUT_BYTES_MAX: u64 = 1 << 20;
/// How often a plugin that is just being written is tried.
const BUSY_TRIES: u32 = 5;
/// Characters of a plugin's words in a message.
const QUOTE_CHARS: usize = 300;

/// Why a plugin failed.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    /// Not in any folder.
    #[error("failed to find plugin {kind:?} in {folders:?}; install it there")]
    Missing {
        /// Its type.
        kind: String,
        /// Where it was looked for.
        folders: Vec<PathBuf>,
    },
    /// It can't be started or spoken to.
    #[error("run {program:?}")]
    Run {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It took too long and was killed.
    #[error("{program:?} gave no answer within {seconds} s and was killed")]
    Timeout {
        /// The program.
        program: PathBuf,
        /// The limit.
        seconds: u64,
    },
    /// It said that it failed.
    #[error("{message}")]
    Failed {
        /// Its error code.
        code: u64,
        /// Its words.
        message: String,
    },
    /// Its answer is no JSON.
    #[error("{program:?} answered what is not JSON: {quote:?}")]
    Garbage {
        /// The program.
        program: PathBuf,
        /// The beginning of it.
        quote: String,
    },
}

/// The processes of a plugin. They end with it when nobody waits any more: a plugin that hangs often hangs in one that
/// it called.
struct Group(Option<rustix::process::Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            let _ = rustix::process::kill_process_group(leader, rustix::process::Signal::KILL);
        }
    }
}

/// What is called.
pub(crate) struct Call<'a> {
    pub(crate) verb: &'static str,
    pub(crate) kind: &'a str,
    pub(crate) bin_dirs: &'a [PathBuf],
    pub(crate) attachment: &'a Attachment,
    pub(crate) timeout: Duration,
}

/// Finds a plugin's program.
pub(crate) fn find(folders: &[PathBuf], kind: &str) -> Result<PathBuf, PluginError> {
    let found = folders.iter().map(|folder| folder.join(kind)).find(|path| path.is_file());
    found.ok_or_else(|| PluginError::Missing { kind: kind.into(), folders: folders.to_vec() })
}

/// Runs a plugin with its input and returns its answer; an empty one is null.
pub(crate) async fn exec(call: &Call<'_>, input: &Value) -> Result<Value, PluginError> {
    let program = find(call.bin_dirs, call.kind)?;
    let input = input.to_string().into_bytes();
    let run = async {
        let mut tries = 0;
        loop {
            tries += 1;
            match run_once(call, &program, &input).await {
                Err(error) if error.raw_os_error() == Some(nix_etxtbsy()) && tries < BUSY_TRIES => {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                other => return other.map_err(|source| PluginError::Run { program: program.clone(), source }),
            }
        }
    };
    let timeout = || PluginError::Timeout { program: program.clone(), seconds: call.timeout.as_secs() };
    let (status, stdout, stderr) = tokio::time::timeout(call.timeout, run).await.map_err(|_| timeout())??;
    if stdout.len() as u64 > OUTPUT_BYTES_MAX {
        return Err(PluginError::Garbage { program, quote: format!("more than {OUTPUT_BYTES_MAX} bytes") });
    }
    if !status.success() {
        return Err(failure(status, &stdout, &stderr));
    }
    if stdout.iter().all(u8::is_ascii_whitespace) {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&stdout)
        .map_err(|_| PluginError::Garbage { program: program.clone(), quote: quote(&stdout) })
}

/// `ETXTBSY`.
const fn nix_etxtbsy() -> i32 {
    26
}

async fn run_once(call: &Call<'_>, program: &Path, input: &[u8]) -> std::io::Result<(ExitStatus, Vec<u8>, Vec<u8>)> {
    let attachment = call.attachment;
    let args: Vec<String> = attachment.args.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let path = std::env::join_paths(call.bin_dirs).map_err(std::io::Error::other)?;
    let mut command = tokio::process::Command::new(program);
    command
        .env("CNI_COMMAND", call.verb)
        .env("CNI_CONTAINERID", &attachment.container_id)
        .env("CNI_NETNS", &attachment.netns)
        .env("CNI_IFNAME", &attachment.ifname)
        .env("CNI_ARGS", args.join(";"))
        .env("CNI_PATH", path)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    let mut child = command.spawn()?;
    let pid = child.id().and_then(|pid| rustix::process::Pid::from_raw(pid.cast_signed()));
    let mut group = Group(pid);
    let (mut stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let write = async {
        if let Some(stdin) = &mut stdin {
            // A plugin that doesn't read its input says so by its answer.
            let _ = stdin.write_all(input).await;
        }
        stdin = None;
    };
    let ((), stdout, stderr) = tokio::join!(write, read(stdout), read(stderr));
    // It is waited for last: until then its number is nobody else's, and its group can be ended by it.
    let status = child.wait().await?;
    group.0 = None;
    Ok((status, stdout, stderr))
}

/// Reads to the end; what is beyond the bound is thrown away, so that a talkative plugin doesn't wait for a reader.
async fn read(stream: Option<impl tokio::io::AsyncRead + Unpin>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(mut stream) = stream {
        let _ = (&mut stream).take(OUTPUT_BYTES_MAX + 1).read_to_end(&mut bytes).await;
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    }
    bytes
}

/// What a plugin that failed has said, by libcni's rules.
fn failure(status: ExitStatus, stdout: &[u8], stderr: &[u8]) -> PluginError {
    let failed = |code, message: String| PluginError::Failed { code, message };
    let answer = serde_json::from_slice::<Value>(stdout).ok().filter(Value::is_object);
    if let Some(answer) = answer {
        let text = |name: &str| answer[name].as_str().unwrap_or_default().to_string();
        let message =
            [text("msg"), text("details")].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("; ");
        return failed(answer["code"].as_u64().unwrap_or(999), message);
    }
    match (stdout.is_empty(), stderr.is_empty()) {
        (true, true) => failed(999, format!("netplugin failed with no error message ({status})")),
        (true, false) => failed(999, format!("netplugin failed ({status}): {:?}", quote(stderr))),
        (false, _) => {
            failed(999, format!("netplugin failed ({status}), its answer is no error of CNI: {:?}", quote(stdout)))
        }
    }
}

/// The beginning of some bytes.
fn quote(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().take(QUOTE_CHARS).collect()
}
