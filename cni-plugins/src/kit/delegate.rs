//! Running an IPAM plugin, anybody's, as the specification says (section 4).

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;
use serde_json::Value;

use crate::Result;
use crate::kit::{Call, CniError, CniResult, Code, carry_out};

/// Characters of a plugin's words in a message.
const QUOTE_CHARS: usize = 300;

/// Runs the plugin that `ipam.type` names with this call's environment and another command. Its answer, if any.
///
/// The runtime gives the whole call a deadline and ends its process group, so there is none here.
pub(crate) fn delegate(call: &Call, command: &str) -> Result<Value> {
    let kind = call.config["ipam"]["type"].as_str().unwrap_or_default();
    let program = find(&call.path, kind)?;
    if let Some(plugin) = crate::plugin(kind)
        && is_this(&program)
    {
        // The file is this very program: it would do the same after a start of its own.
        let call = Call { command: command.into(), ..call.clone() };
        return carry_out(plugin, &call).map(Option::unwrap_or_default);
    }
    let failed = |error: std::io::Error| CniError::new(Code::Failed, format!("run {}: {error}", program.display()));
    let mut child = Command::new(&program)
        .env("CNI_COMMAND", command)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let input = call.config.to_string();
    // A plugin that reads nothing is no failure; what it answers counts.
    let _ = child.stdin.take().map(|mut stdin| stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().map_err(failed)?;
    let quote: String = String::from_utf8_lossy(&output.stdout).chars().take(QUOTE_CHARS).collect();
    let answer = match serde_json::from_slice::<Value>(&output.stdout) {
        Ok(answer) => answer,
        Err(_) if output.status.success() && !quote.trim().is_empty() => {
            let message = format!("{} answered what is not JSON: {quote:?}", program.display());
            return Err(CniError::new(Code::Decoding, message));
        }
        Err(_) => Value::Null,
    };
    if output.status.success() {
        return Ok(answer);
    }
    let text = |field: &str| answer[field].as_str().unwrap_or_default().to_string();
    Err(match answer["code"].as_u64() {
        Some(code) => CniError { code, message: text("msg"), details: text("details") },
        None => CniError::new(Code::Failed, format!("{} ended with {}: {quote:?}", program.display(), output.status)),
    })
}

/// Runs ADD of the IPAM plugin.
pub(crate) fn delegate_add(call: &Call) -> Result<CniResult> {
    let answer = delegate(call, "ADD")?;
    let result = CniResult::deserialize(&answer)
        .map_err(|error| CniError::new(Code::Decoding, format!("the answer of the IPAM plugin: {error}")))?;
    if result.ips.is_empty() {
        return Err(CniError::new(Code::Failed, "IPAM plugin returned missing IP config"));
    }
    Ok(result)
}

fn find(path: &str, kind: &str) -> Result<PathBuf> {
    if kind.is_empty() || kind.contains('/') {
        return Err(CniError::field("ipam.type", format!("{kind:?} is no name of a plugin")));
    }
    let found = path.split(':').map(|folder| PathBuf::from(folder).join(kind)).find(|program| program.is_file());
    found.ok_or_else(|| {
        CniError::field("ipam.type", format!("failed to find plugin {kind:?} in path {path:?}; install it there"))
    })
}

/// Whether a file is the program that runs.
fn is_this(program: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let place = |path: &Path| std::fs::metadata(path).ok().map(|data| (data.dev(), data.ino()));
    place(program).is_some_and(|there| place(Path::new("/proc/self/exe")) == Some(there))
}
