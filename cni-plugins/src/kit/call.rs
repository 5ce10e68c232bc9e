//! What a runtime asks for: environment and configuration, checked.

use std::io::Read;
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::Result;
use crate::kit::{CniError, CniResult, Code, Plugin};

/// Versions of the specification that are spoken.
pub(crate) const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// Bytes of a configuration.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// One call of a plugin.
#[derive(Clone, Debug, Default)]
pub(crate) struct Call {
    /// `CNI_COMMAND`.
    pub(crate) command: String,
    /// `CNI_CONTAINERID`.
    pub(crate) container_id: String,
    /// `CNI_NETNS`; empty when the runtime has none any more.
    pub(crate) netns: PathBuf,
    /// `CNI_IFNAME`.
    pub(crate) ifname: String,
    /// `CNI_ARGS`.
    pub(crate) args: Vec<(String, String)>,
    /// `CNI_PATH`.
    pub(crate) path: String,
    /// The configuration.
    pub(crate) config: Value,
    /// Its version.
    pub(crate) version: String,
    /// Name of the network.
    pub(crate) network: String,
}

impl Call {
    /// Reads the environment and standard input.
    pub(crate) fn read() -> Result<Call> {
        let variable = |name: &str| std::env::var(name).unwrap_or_default();
        let mut call = Call {
            command: variable("CNI_COMMAND"),
            container_id: variable("CNI_CONTAINERID"),
            netns: variable("CNI_NETNS").into(),
            ifname: variable("CNI_IFNAME"),
            args: parse_args(&variable("CNI_ARGS"))?,
            path: variable("CNI_PATH"),
            ..Call::default()
        };
        if call.command == "VERSION" {
            return Ok(call);
        }
        call.check()?;
        let mut text = Vec::new();
        let read = std::io::stdin().lock().take(CONFIG_BYTES_MAX + 1).read_to_end(&mut text);
        read.map_err(|error| CniError::new(Code::Io, format!("read the configuration: {error}")))?;
        if text.len() as u64 > CONFIG_BYTES_MAX {
            return Err(CniError::new(Code::InvalidConfig, "the configuration is larger than 1 MiB"));
        }
        call.config = serde_json::from_slice(&text)
            .map_err(|error| CniError::new(Code::Decoding, format!("the configuration is no JSON: {error}")))?;
        call.version = call.config["cniVersion"].as_str().unwrap_or("0.1.0").into();
        call.network = call.config["name"].as_str().unwrap_or_default().into();
        if !VERSIONS.contains(&call.version.as_str()) {
            return Err(CniError::new(
                Code::IncompatibleVersion,
                format!("cniVersion {:?} is not spoken; {} are", call.version, VERSIONS.join(", ")),
            ));
        }
        if !is_name(&call.network) {
            return Err(CniError::field("name", format!("{:?} is no name of a network", call.network)));
        }
        Ok(call)
    }

    fn check(&self) -> Result<()> {
        let wrong = |name: &str, value: &dyn std::fmt::Debug| {
            Err(CniError::new(Code::Environment, format!("{name}: {value:?} is missing or wrong")))
        };
        let attachment = match self.command.as_str() {
            "ADD" | "DEL" | "CHECK" => true,
            "GC" | "STATUS" => false,
            other => return wrong("CNI_COMMAND", &other),
        };
        if attachment && !is_name(&self.container_id) {
            return wrong("CNI_CONTAINERID", &self.container_id);
        }
        if attachment && !is_ifname(&self.ifname) {
            return wrong("CNI_IFNAME", &self.ifname);
        }
        if attachment && self.command != "DEL" && self.netns.as_os_str().is_empty() {
            return wrong("CNI_NETNS", &self.netns);
        }
        Ok(())
    }

    /// The configuration as a plugin's own type.
    pub(crate) fn conf<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_value(self.config.clone())
            .map_err(|error| CniError::new(Code::InvalidConfig, format!("the configuration: {error}")))
    }

    /// The result of the plugins before this one.
    pub(crate) fn previous(&self) -> Result<Option<CniResult>> {
        match &self.config["prevResult"] {
            Value::Null => Ok(None),
            value => {
                serde_json::from_value(value.clone()).map(Some).map_err(|error| CniError::field("prevResult", error))
            }
        }
    }

    /// Whether the container's namespace can still be entered.
    pub(crate) fn has_netns(&self) -> bool {
        !self.netns.as_os_str().is_empty() && orlop_kernel::namespace::is_network(&self.netns)
    }

    /// Attachments that are valid, as GC names them: container and interface.
    pub(crate) fn valid_attachments(&self) -> Vec<(String, String)> {
        let text = |entry: &Value, field: &str| entry[field].as_str().unwrap_or_default().to_string();
        let entries = self.config["cni.dev/valid-attachments"].as_array();
        entries.into_iter().flatten().map(|entry| (text(entry, "containerID"), text(entry, "ifname"))).collect()
    }
}

/// Does what is asked and gives what goes to standard output.
pub(crate) fn carry_out(plugin: &dyn Plugin, call: &Call) -> Result<Option<Value>> {
    match call.command.as_str() {
        "VERSION" => Ok(Some(json!({"cniVersion": "1.1.0", "supportedVersions": VERSIONS}))),
        "ADD" => Ok(Some(plugin.add(call)?.to_json(&call.version))),
        "DEL" => plugin.del(call).map(|()| None),
        "CHECK" => plugin.check(call).map(|()| None),
        "GC" => plugin.gc(call).map(|()| None),
        _ => plugin.status(call).map(|()| None),
    }
}

/// `KEY=VALUE;KEY=VALUE`.
fn parse_args(text: &str) -> Result<Vec<(String, String)>> {
    let pairs = text.split(';').filter(|part| !part.is_empty()).map(|part| {
        let pair = part.split_once('=').map(|(key, value)| (key.to_string(), value.to_string()));
        pair.ok_or_else(|| CniError::new(Code::Environment, format!("CNI_ARGS: {part:?} is not KEY=VALUE")))
    });
    pairs.collect()
}

/// A letter or digit, then letters, digits and `_.-`.
fn is_name(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

/// What Linux takes as the name of a link.
fn is_ifname(text: &str) -> bool {
    (1..=15).contains(&text.len())
        && !matches!(text, "." | "..")
        && !text.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (text, name, link) in [
            ("eth0", true, true),
            ("", false, false),
            ("-a", false, true),
            ("a/b", false, false),
            (".", false, false),
            ("a234567890123456", true, false),
            ("a b", false, false),
        ] {
            assert_eq!((is_name(text), is_ifname(text)), (name, link), "{text:?}");
        }
        assert_eq!(parse_args("A=1;B=x=y;").unwrap(), [("A".into(), "1".into()), ("B".into(), "x=y".into())]);
        assert!(parse_args("A").is_err());
    }
}
