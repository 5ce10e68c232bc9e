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
    /// CHECK is not wanted.
    pub disable_check: bool,
    /// GC is not wanted.
    pub disable_gc: bool,
    /// The list with all its plugins, for the cache.
    pub bytes: Vec<u8>,
}

impl NetworkList {
    /// Whether the plugins are spoken to in a version, or a newer one.
    #[must_use]
    pub fn speaks(&self, version: &str) -> bool {
        let place = |version: &str| VERSIONS.iter().position(|known| *known == version);
        place(&self.version) >= place(version)
    }
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
    let bytes = read(&path)?;
    let invalid = |message: String| ConfError::Invalid { path: path.clone(), message };
    let mut list = document(&bytes).map_err(invalid)?;
    add_plugins(folder, &mut list)?;
    check(list).map_err(|message| ConfError::Invalid { path, message })
}

/// Reads a file of bounded size.
fn read(path: &Path) -> Result<Vec<u8>, ConfError> {
    let failed = |source| ConfError::Read { path: path.into(), source };
    let size = std::fs::metadata(path).map_err(failed)?.len();
    if size > FILE_BYTES_MAX {
        let message = format!("{size} bytes are more than {FILE_BYTES_MAX}");
        return Err(ConfError::Invalid { path: path.into(), message });
    }
    std::fs::read(path).map_err(failed)
}

/// Appends the plugins that lie beside the list, in the folder of its network (CNI specification 1.1.0, section 1).
fn add_plugins(folder: &Path, list: &mut Value) -> Result<(), ConfError> {
    let name = list["name"].as_str().filter(|name| is_plain(name)).map(str::to_string);
    let Some(beside) = name.map(|name| folder.join(name)).filter(|_| !is_set(&list["loadOnlyInlinedPlugins"])) else {
        return Ok(());
    };
    let Ok(entries) = std::fs::read_dir(beside) else { return Ok(()) };
    let known = |path: &PathBuf| path.extension().is_some_and(|end| end == "conf");
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(known).collect();
    files.sort();
    for path in files {
        let plugin: Value = serde_json::from_slice(&read(&path)?)
            .map_err(|error| ConfError::Invalid { path: path.clone(), message: format!("not JSON: {error}") })?;
        match list["plugins"].as_array_mut() {
            Some(plugins) => plugins.push(plugin),
            None => list["plugins"] = json!([plugin]),
        }
    }
    Ok(())
}

/// A switch that may be a word too.
fn is_set(value: &Value) -> bool {
    value == &json!(true) || value.as_str().is_some_and(|word| word.eq_ignore_ascii_case("true"))
}

fn is_plain(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

/// Reads a list as it is kept in the cache.
pub(crate) fn parse(bytes: &[u8]) -> Result<NetworkList, String> {
    check(document(bytes)?)
}

/// Reads a list, or a single plugin's configuration as a list of one.
fn document(bytes: &[u8]) -> Result<Value, String> {
    let document: Value = serde_json::from_slice(bytes).map_err(|error| format!("not JSON: {error}"))?;
    if document["type"].is_string() && !document["plugins"].is_array() {
        return Ok(json!({"name": document["name"], "cniVersion": document["cniVersion"], "plugins": [document]}));
    }
    match document.is_object() {
        true => Ok(document),
        false => Err("neither a list (\"plugins\") nor a plugin (\"type\")".into()),
    }
}

/// What has to be right about a list.
fn check(list: Value) -> Result<NetworkList, String> {
    let name = list["name"].as_str().unwrap_or_default();
    if !is_plain(name) {
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
    let mut plugins = Vec::new();
    for (place, plugin) in list["plugins"].as_array().into_iter().flatten().enumerate() {
        let plugin = plugin.as_object().ok_or_else(|| format!("plugins[{place}] is no object"))?;
        let kind = plugin_type(plugin);
        if !is_plain(kind) {
            return Err(format!("plugins[{place}]: plugin type {kind:?} must be letters, digits, _ . and -"));
        }
        plugins.push(plugin.clone());
    }
    if plugins.is_empty() {
        return Err("no plugins in the list (\"plugins\"), and it is no plugin itself (\"type\")".into());
    }
    Ok(NetworkList {
        name: name.into(),
        version: version.into(),
        plugins,
        disable_check: is_set(&list["disableCheck"]),
        disable_gc: is_set(&list["disableGC"]),
        bytes: list.to_string().into_bytes(),
    })
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
            (r#"{"name":"n","plugins":["a"]}"#, "plugins[0]"),
            ("[]", "neither a list"),
            ("{", "not JSON"),
        ] {
            assert!(parse(text.as_bytes()).unwrap_err().contains(words), "{text}");
        }
    }

    #[test]
    fn versions_are_compared_by_age() {
        let list = |version: &str| {
            parse(
                format!(r#"{{"name":"n","cniVersion":"{version}","disableGC":"true","plugins":[{{"type":"a"}}]}}"#)
                    .as_bytes(),
            )
            .unwrap()
        };
        for (version, speaks) in [("0.3.1", false), ("0.4.0", true), ("1.1.0", true)] {
            assert_eq!(list(version).speaks("0.4.0"), speaks, "{version}");
        }
        assert!(list("1.1.0").disable_gc && !list("1.1.0").disable_check);
    }
}
