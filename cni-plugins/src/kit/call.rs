//! What a runtime asks for: environment and configuration, checked.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::Result;
use crate::kit::{Attachment, CniError, CniResult, Code, Plugin, wrong_field};

/// Versions of the specification that are spoken, oldest first.
pub(crate) const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// The newest of them.
const NEWEST: &str = "1.1.0";
/// Bytes of a configuration.
const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// What names are made of.
const NAMES: &str = "a letter or digit, then letters, digits and _ . -";

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
            path: variable("CNI_PATH"),
            version: NEWEST.into(),
            ..Call::default()
        };
        if call.command == "VERSION" {
            return Ok(call);
        }
        call.check_environment()?;
        call.args = parse_args(&variable("CNI_ARGS"))?;
        let mut text = Vec::new();
        let read = std::io::stdin().lock().take(CONFIG_BYTES_MAX + 1).read_to_end(&mut text);
        read.map_err(|error| CniError::new(Code::Io, format!("read the configuration: {error}")))?;
        if text.len() as u64 > CONFIG_BYTES_MAX {
            return Err(CniError::new(Code::InvalidConfig, "the configuration is larger than 1 MiB"));
        }
        call.config = serde_json::from_slice(&text)
            .map_err(|error| CniError::new(Code::Decoding, format!("the configuration is no JSON: {error}")))?;
        call.version = call.config["cniVersion"].as_str().filter(|text| !text.is_empty()).unwrap_or("0.1.0").into();
        call.network = call.config["name"].as_str().unwrap_or_default().into();
        call.check_config()?;
        if std::env::var("CNI_NETNS_OVERRIDE").is_ok_and(|value| matches!(value.as_str(), "1" | "true")) {
            return Ok(call);
        }
        call.check_namespace().map(|()| call)
    }

    fn check_environment(&self) -> Result<()> {
        let attachment = match self.command.as_str() {
            "ADD" | "DEL" | "CHECK" => true,
            "GC" | "STATUS" => false,
            other => return Err(CniError::new(Code::Environment, format!("unknown CNI_COMMAND: {other}"))),
        };
        let missing: Vec<&str> = [
            ("CNI_CONTAINERID", attachment && self.container_id.is_empty()),
            ("CNI_NETNS", attachment && self.command != "DEL" && self.netns.as_os_str().is_empty()),
            ("CNI_IFNAME", attachment && self.ifname.is_empty()),
            ("CNI_PATH", self.path.is_empty()),
        ]
        .into_iter()
        .filter_map(|(name, missing)| missing.then_some(name))
        .collect();
        if !missing.is_empty() {
            let message = format!("required env variables [{}] missing", missing.join(","));
            return Err(CniError::new(Code::Environment, message));
        }
        let wrong = |name: &str, value: &str, rule: &str| {
            Err(CniError::new(Code::Environment, format!("{name}: {value:?} is not {rule}")))
        };
        if attachment && !is_name(&self.container_id) {
            return wrong("CNI_CONTAINERID", &self.container_id, NAMES);
        }
        if attachment && !is_ifname(&self.ifname) {
            return wrong("CNI_IFNAME", &self.ifname, "the name of a link: 1 to 15 characters without / : and space");
        }
        Ok(())
    }

    fn check_config(&self) -> Result<()> {
        let older = |version: &str| {
            VERSIONS.iter().position(|v| *v == self.version) < VERSIONS.iter().position(|v| *v == version)
        };
        if !VERSIONS.contains(&self.version.as_str()) {
            return Err(CniError {
                details: format!("config is {:?}, plugin supports {VERSIONS:?}", self.version),
                ..CniError::new(Code::IncompatibleVersion, "incompatible CNI versions")
            });
        }
        let since = match self.command.as_str() {
            "CHECK" => "0.4.0",
            "GC" | "STATUS" => "1.1.0",
            _ => "0.3.0",
        };
        if older(since) {
            let message = format!("{} needs cniVersion {since} or newer, not {}", self.command, self.version);
            return Err(CniError::new(Code::IncompatibleVersion, message));
        }
        if !is_name(&self.network) {
            return Err(CniError::field("name", format!("{:?} is not {NAMES}", self.network)));
        }
        Ok(())
    }

    /// A plugin never changes the machine's own namespace instead of a container's.
    fn check_namespace(&self) -> Result<()> {
        if self.netns.as_os_str().is_empty() {
            return Ok(());
        }
        let wrong = |text: &str| Err(CniError::new(Code::InvalidNetns, format!("CNI_NETNS {:?} {text}", self.netns)));
        let there = orlop_kernel::namespace::is_network(&self.netns);
        match self.command.as_str() {
            "ADD" | "CHECK" if !there => wrong("is no network namespace"),
            "ADD" | "DEL" if there && is_own(&self.netns) => {
                wrong("is the plugin's own: a plugin runs in the machine's namespace and is given the container's")
            }
            _ => Ok(()),
        }
    }

    /// The configuration as a plugin's own type.
    pub(crate) fn conf<T: DeserializeOwned>(&self) -> Result<T> {
        wrong_field::read("", &self.config)
    }

    /// A switch of the configuration, off when it is missing or damaged: for what has to work with any configuration.
    pub(crate) fn is_on(&self, field: &str) -> bool {
        self.config[field].as_bool().unwrap_or_default()
    }

    /// Whether an IPAM plugin is configured.
    pub(crate) fn has_ipam(&self) -> bool {
        self.config["ipam"]["type"].as_str().is_some_and(|kind| !kind.is_empty())
    }

    /// The result of the plugins before this one.
    pub(crate) fn previous(&self) -> Result<Option<CniResult>> {
        match &self.config["prevResult"] {
            Value::Null => Ok(None),
            value => wrong_field::read::<CniResult>("prevResult", value).map(Some),
        }
    }

    /// The same, for what can't do without.
    pub(crate) fn require_previous(&self) -> Result<CniResult> {
        self.previous()?.ok_or_else(|| CniError::field("prevResult", "is missing; this is called within a chain"))
    }

    /// Whether the container's namespace can still be entered.
    pub(crate) fn has_netns(&self) -> bool {
        !self.netns.as_os_str().is_empty() && orlop_kernel::namespace::is_network(&self.netns)
    }

    /// Attachments that are valid, as GC names them. Nothing is collected when nobody says what is valid.
    pub(crate) fn valid_attachments(&self) -> Result<Vec<Attachment>> {
        const FIELD: &str = "cni.dev/valid-attachments";
        let Some(list) = self.config.get(FIELD).or(self.config.get("cni.dev/attachments")) else {
            return Err(CniError::field(FIELD, "is missing; GC needs the list of attachments to keep"));
        };
        let wrong = |text: &str| CniError::field(FIELD, text);
        let entries = match list {
            Value::Null => return Ok(Vec::new()),
            Value::Array(entries) => entries,
            _ => return Err(wrong("is no list")),
        };
        let text = |entry: &Value, field: &str| {
            let text = entry[field].as_str().filter(|text| !text.is_empty());
            text.map(str::to_string).ok_or_else(|| wrong("has an entry without containerID or ifname"))
        };
        let read = |entry| Ok(Attachment { container_id: text(entry, "containerID")?, ifname: text(entry, "ifname")? });
        entries.iter().map(read).collect()
    }
}

/// Does what is asked and gives what goes to standard output.
pub(crate) fn carry_out(plugin: &dyn Plugin, call: &Call) -> Result<Option<Value>> {
    match call.command.as_str() {
        "VERSION" => Ok(Some(json!({"cniVersion": NEWEST, "supportedVersions": VERSIONS}))),
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
pub(crate) fn is_ifname(text: &str) -> bool {
    (1..=15).contains(&text.len())
        && !matches!(text, "." | "..")
        && !text.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control())
}

/// Whether a file is this process's own network namespace.
fn is_own(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let place = |path: &Path| std::fs::metadata(path).ok().map(|data| (data.dev(), data.ino()));
    place(path).is_some_and(|there| place(Path::new("/proc/thread-self/ns/net")) == Some(there))
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

    #[test]
    fn nothing_is_collected_when_nobody_says_what_is_valid() {
        let valid = |config| Call { config, ..Call::default() }.valid_attachments();
        assert!(valid(json!({})).unwrap_err().message.contains("cni.dev/valid-attachments"));
        assert!(valid(json!({"cni.dev/valid-attachments": 1})).is_err());
        assert!(valid(json!({"cni.dev/valid-attachments": [{"containerID": "a"}]})).is_err());
        assert_eq!(valid(json!({"cni.dev/valid-attachments": null})).unwrap(), []);
        let one = json!([{"containerID": "a", "ifname": "eth0"}]);
        assert_eq!(valid(json!({"cni.dev/attachments": one})).unwrap()[0].container_id, "a");
    }

    #[test]
    fn what_is_wrong_with_a_call_is_named() {
        let good = Call {
            command: "ADD".into(),
            container_id: "a".into(),
            netns: "/x".into(),
            ifname: "eth0".into(),
            path: "/bin".into(),
            version: "1.0.0".into(),
            network: "net".into(),
            ..Call::default()
        };
        good.check_environment().unwrap();
        good.check_config().unwrap();
        let message = |call: Call| call.check_environment().and_then(|()| call.check_config()).unwrap_err();
        for (call, code, words) in [
            (Call { command: "X".into(), ..good.clone() }, 4, "unknown CNI_COMMAND: X"),
            (
                Call { container_id: String::new(), netns: PathBuf::new(), ..good.clone() },
                4,
                "required env variables [CNI_CONTAINERID,CNI_NETNS] missing",
            ),
            (Call { ifname: "a/b".into(), ..good.clone() }, 4, "CNI_IFNAME"),
            (Call { version: "0.2.0".into(), ..good.clone() }, 1, "incompatible"),
            (Call { version: "9".into(), ..good.clone() }, 1, "incompatible"),
            (Call { command: "GC".into(), ..good.clone() }, 1, "GC needs cniVersion 1.1.0"),
            (Call { command: "CHECK".into(), version: "0.3.1".into(), ..good.clone() }, 1, "CHECK needs"),
            (Call { network: "../x".into(), ..good.clone() }, 7, "name"),
        ] {
            let error = message(call);
            assert_eq!(error.code, code, "{error:?}");
            assert!(error.message.contains(words), "{error:?}");
        }
    }
}
