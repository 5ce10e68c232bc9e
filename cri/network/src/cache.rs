//! The result cache, in libcni's layout: who was attached, by which list, with which result.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use orlop_kernel::file::{self, Outlives};
use serde_json::{Map, Value, json};

use crate::Attachment;
use crate::conf::{self, NetworkList};

/// The file of an attachment.
pub(crate) fn path(folder: &Path, network: &str, attachment: &Attachment) -> PathBuf {
    folder.join("results").join(format!("{network}-{}-{}", attachment.container_id, attachment.ifname))
}

/// Says that this caller made the attachment: the folder may be another runtime's too.
const OWNER: (&str, &str) = ("runtime", "orlop");

/// Writes an attachment's file, whole or not at all. Without a result it says that somebody has begun to attach.
///
/// It isn't flushed: after a loss of power there are no namespaces, and nothing is attached any more.
pub(crate) fn write(path: &Path, list: &NetworkList, attachment: &Attachment, result: &Value) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
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
        OWNER.0: OWNER.1,
    });
    file::replace(path, document.to_string().as_bytes(), 0o600, Outlives::Process)
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

    /// The attachment itself.
    pub(crate) fn attachment(&self) -> Option<Attachment> {
        let text = |field: &str| self.document[field].as_str().map(str::to_string);
        let pair = |entry: &Value| Some((entry[0].as_str()?.to_string(), entry[1].as_str()?.to_string()));
        Some(Attachment {
            container_id: text("containerId")?,
            ifname: text("ifName")?,
            netns: text("netns").unwrap_or_default().into(),
            args: self.document["cniArgs"].as_array().into_iter().flatten().filter_map(pair).collect(),
            capabilities: self.capabilities(),
        })
    }

    /// The name of the network.
    pub(crate) fn network(&self) -> &str {
        self.document["networkName"].as_str().unwrap_or_default()
    }

    /// Whether this caller made the attachment, not another runtime that keeps its cache in the same folder.
    pub(crate) fn is_ours(&self) -> bool {
        self.document[OWNER.0] == OWNER.1
    }

    /// Removes the file.
    pub(crate) fn remove(&self) {
        let _ = file::remove(&self.path);
    }
}

/// Removes what writers left that were killed while they wrote: there may be no attachment yet to find it by.
pub(crate) fn sweep(folder: &Path) -> std::io::Result<()> {
    file::sweep(&folder.join("results"))
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

/// All attachments that can be read.
pub(crate) fn entries(folder: &Path) -> impl Iterator<Item = Entry> {
    files(folder).filter_map(|path| {
        let document = serde_json::from_slice(&std::fs::read(&path).ok()?).ok()?;
        Some(Entry { path, document })
    })
}

fn files(folder: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = std::fs::read_dir(folder.join("results")).into_iter().flatten().flatten();
    entries.filter(|entry| !file::is_draft(&entry.file_name())).map(|entry| entry.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_caller_left_half_written_is_swept() {
        let folder = tempfile::tempdir().unwrap();
        let list = conf::parse(br#"{"name":"n","cniVersion":"1.0.0","plugins":[{"type":"bridge"}]}"#).unwrap();
        let attachment = Attachment { container_id: "a".into(), ifname: "eth0".into(), ..Attachment::default() };
        let whole = path(folder.path(), &list.name, &attachment);
        write(&whole, &list, &attachment, &Value::Null).unwrap();
        let half = whole.with_file_name(".n-b-eth0.orlop-new");
        std::fs::write(&half, r#"{"kind":"cniCa"#).unwrap();
        let found: Vec<Attachment> = entries(folder.path()).filter_map(|entry| entry.attachment()).collect();
        assert_eq!(found.iter().map(|found| found.container_id.as_str()).collect::<Vec<_>>(), ["a"]);
        assert!(find(folder.path(), "b", "eth0").is_none(), "there is nothing yet to find it by");
        sweep(folder.path()).unwrap();
        assert!(whole.exists() && !half.exists());
        find(folder.path(), "a", "eth0").unwrap().remove();
        assert_eq!(std::fs::read_dir(folder.path().join("results")).unwrap().count(), 0);
    }
}
