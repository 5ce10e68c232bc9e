//! Running an IPAM plugin, anybody's, as the specification says (section 4).

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::Result;
use crate::kit::{Call, CniError, CniResult, Code};

/// Runs the plugin that `ipam.type` names with this call's environment and another command. Its answer, if any.
pub(crate) fn delegate(call: &Call, command: &str) -> Result<Value> {
    let kind = call.config["ipam"]["type"].as_str().unwrap_or_default();
    let program = find(&call.path, kind)?;
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
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    if output.status.success() {
        return Ok(answer);
    }
    let text = |field: &str| answer[field].as_str().unwrap_or_default().to_string();
    Err(match answer["code"].as_u64() {
        Some(code) => CniError { code, message: text("msg"), details: text("details") },
        None => CniError::new(
            Code::Failed,
            format!("{} ended with {}: {}", program.display(), output.status, String::from_utf8_lossy(&output.stdout)),
        ),
    })
}

/// Runs ADD of the IPAM plugin.
pub(crate) fn delegate_add(call: &Call) -> Result<CniResult> {
    let answer = delegate(call, "ADD")?;
    let result: CniResult = serde_json::from_value(answer)
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
    found.ok_or_else(|| CniError::new(Code::Failed, format!("failed to find plugin {kind:?} in path {path:?}")))
}
