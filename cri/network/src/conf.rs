//! Configuration lists: which is used, and what is in it.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

/// Bytes of a configuration file.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Versions that this caller speaks, oldest first.
const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// A network: a chain of plugins.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkList {
    /// Its name.
    pub name: String,
    /// Version of the specification that its plugins are spoken to in.
    pub version: String,
    /// Its plugins, in order.
    pub plugins: Vec<Map<String, Value>>,
    /// The list as it was read, for the cache.
    pub bytes: Vec<u8>,
}

/// Why there is no network.
#[derive(Debug, thiserror::Error)]
pub enum ConfError {
    /// The folder holds no list.
    #[error("cni plugin not initialized: no network configuration (*.conflist, *.conf, *.json) in {0:?}")]
    None(PathBuf),
    /// A file can't be read.
    #[error("read the network configuration {path:?}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file is damaged.
    #[error("network configuration {path:?}: {message}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
}

/// The type of a plugin.
pub(crate) fn plugin_type(plugin: &Map<String, Value>) -> &str {
    plugin.get("type").and_then(Value::as_str).unwrap_or_default()
}

/// Loads the first list of a folder by name.
pub(crate) fn load(folder: &Path) -> Result<NetworkList, ConfError> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(ConfError::None(folder.into())),
        Err(source) => return Err(ConfError::Read { path: folder.into(), source }),
    };
    let known =
        |path: &PathBuf| path.extension().is_some_and(|end| end == "conflist" || end == "conf" || end == "json");
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(known).collect();
    files.sort();
    let path = files.into_iter().next().ok_or_else(|| ConfError::None(folder.into()))?;
    let size = std::fs::metadata(&path).map_err(|source| ConfError::Read { path: path.clone(), source })?.len();
    if size > FILE_BYTES_MAX {
        return Err(ConfError::Invalid { path, message: format!("{size} bytes are more than {FILE_BYTES_MAX}") });
    }
    let bytes = std::fs::read(&path).map_err(|source| ConfError::Read { path: path.clone(), source })?;
    parse(&bytes).map_err(|message| ConfError::Invalid { path, message })
}

/// Reads a list, or a single plugin's configuration as a list of one.
pub(crate) fn parse(bytes: &[u8]) -> Result<NetworkList, String> {
    let document: Value = serde_json::from_slice(bytes).map_err(|error| format!("not JSON: {error}"))?;
    let list = if document["plugins"].is_array() {
        document
    } else if document["type"].is_string() {
        json!({"name": document["name"], "cniVersion": document["cniVersion"], "plugins": [document]})
    } else {
        return Err("neither a list (\"plugins\") nor a plugin (\"type\")".into());
    };
    let name = list["name"].as_str().unwrap_or_default();
    let plain = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
    };
    if !plain(name) {
        return Err(format!("name {name:?} must be letters, digits, _ . and -"));
    }
    let offered =
        list["cniVersions"].as_array().into_iter().flatten().chain([&list["cniVersion"]]).filter_map(Value::as_str);
    let version = offered
        .filter(|version| VERSIONS.contains(version))
        .max_by_key(|version| VERSIONS.iter().position(|v| v == version));
    let version = match (version, list["cniVersion"].as_str()) {
        (Some(version), _) => version,
        (None, None | Some("")) => "0.1.0",
        (None, Some(other)) => return Err(format!("cniVersion {other:?} is not one of {VERSIONS:?}")),
    };
    let plugins: Vec<Map<String, Value>> =
        list["plugins"].as_array().into_iter().flatten().filter_map(|p| p.as_object().cloned()).collect();
    if plugins.is_empty() {
        return Err("no plugins in the list".into());
    }
    if let Some(bad) = plugins.iter().map(plugin_type).find(|kind| !plain(kind)) {
        return Err(format!("plugin type {bad:?} must be letters, digits, _ . and -"));
    }
    Ok(NetworkList { name: name.into(), version: version.into(), plugins, bytes: list.to_string().into_bytes() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_what_is_wrong_with_them() {
        let list = parse(br#"{"name":"n","cniVersion":"1.0.0","cniVersions":["0.4.0","1.1.0","9.0.0"],"plugins":[{"type":"bridge"}]}"#).unwrap();
        assert_eq!((list.version.as_str(), list.plugins.len()), ("1.1.0", 1));
        assert_eq!(parse(br#"{"name":"n","type":"ptp"}"#).unwrap().version, "0.1.0");
        for (text, words) in [
            (r#"{"name":"n","plugins":[]}"#, "no plugins"),
            (r#"{"name":"../x","plugins":[{"type":"a"}]}"#, "name"),
            (r#"{"name":"n","plugins":[{"type":"../../bin/sh"}]}"#, "plugin type"),
            (r#"{"name":"n","cniVersion":"7","plugins":[{"type":"a"}]}"#, "cniVersion"),
            ("{", "not JSON"),
        ] {
            assert!(parse(text.as_bytes()).unwrap_err().contains(words), "{text}");
        }
    }
}
