//! The result cache, in libcni's layout: who was attached, by which list, with which result.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use crate::Attachment;
use crate::conf::{self, NetworkList};

/// The file of an attachment.
pub(crate) fn file(folder: &Path, network: &str, attachment: &Attachment) -> PathBuf {
    folder.join("results").join(format!("{network}-{}-{}", attachment.container_id, attachment.ifname))
}

/// Writes an attachment's file, whole or not at all.
pub(crate) fn write(path: &Path, list: &NetworkList, attachment: &Attachment, result: &Value) -> std::io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
    let folder = path.parent().unwrap_or(path);
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let document = json!({
        "kind": "cniCacheV1",
        "containerId": attachment.container_id,
        "config": STANDARD.encode(&list.bytes),
        "ifName": attachment.ifname,
        "networkName": list.name,
        "netns": attachment.netns,
        "cniArgs": attachment.args,
        "capabilityArgs": attachment.capabilities,
        "result": result,
    });
    let fresh = path.with_extension("new");
    let mut out = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    std::io::Write::write_all(&mut out, document.to_string().as_bytes())?;
    std::fs::rename(fresh, path)
}

/// An attachment's file.
pub(crate) struct Entry {
    path: PathBuf,
    document: Value,
}

impl Entry {
    /// The list that it was attached by.
    pub(crate) fn list(&self) -> Option<NetworkList> {
        conf::parse(&STANDARD.decode(self.document["config"].as_str()?).ok()?).ok()
    }

    /// The result of the attachment.
    pub(crate) fn result(&self) -> Option<Value> {
        Some(self.document["result"].clone()).filter(Value::is_object)
    }

    /// The capabilities of the attachment.
    pub(crate) fn capabilities(&self) -> Map<String, Value> {
        self.document["capabilityArgs"].as_object().cloned().unwrap_or_default()
    }

    /// Removes the file.
    pub(crate) fn remove(&self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Finds the file of an attachment, whatever the network's name.
pub(crate) fn find(folder: &Path, container_id: &str, ifname: &str) -> Option<Entry> {
    let ending = format!("-{container_id}-{ifname}");
    files(folder).find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(&ending))).map(
        |path| {
            // A damaged file costs its knowledge, not the detaching.
            let document =
                std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
            Entry { path, document }
        },
    )
}

/// Ids of all attached sandboxes.
pub(crate) fn container_ids(folder: &Path) -> Vec<String> {
    let read = |path: PathBuf| serde_json::from_slice::<Value>(&std::fs::read(path).ok()?).ok();
    files(folder).filter_map(read).filter_map(|document| document["containerId"].as_str().map(str::to_string)).collect()
}

fn files(folder: &Path) -> impl Iterator<Item = PathBuf> {
    std::fs::read_dir(folder.join("results")).into_iter().flatten().flatten().map(|entry| entry.path())
}
