//! Devices by the container device interface (CDI 0.8): a vendor describes in a file what a container needs for a device.
//!
//! Names are `vendor.example/class=device`. Hooks, which would be programs run as root on the machine, are refused.

use std::path::PathBuf;

use serde::Deserialize;

use crate::{SpecError, wrong};

/// One file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CdiFile {
    /// Version of the interface.
    pub cdi_version: String,
    /// `vendor.example/class`.
    pub kind: String,
    /// Devices of the class.
    pub devices: Vec<CdiDevice>,
    /// What each container needs that gets any of the devices.
    pub container_edits: Edits,
}

/// One device.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CdiDevice {
    /// Its name in the class.
    pub name: String,
    /// What a container needs for it.
    pub container_edits: Edits,
}

/// What a container gets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Edits {
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Device nodes.
    pub device_nodes: Vec<DeviceNode>,
    /// Binds.
    pub mounts: Vec<CdiMount>,
    /// Programs; refused.
    pub hooks: Vec<serde_json::Value>,
    /// Groups.
    #[serde(rename = "additionalGids")]
    pub additional_gids: Vec<u32>,
    /// Network devices to move; refused.
    pub net_devices: Vec<serde_json::Value>,
    /// Cache allocation; refused.
    pub intel_rdt: Option<serde_json::Value>,
}

/// A device node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DeviceNode {
    /// In the container.
    pub path: String,
    /// On the machine; the same when absent.
    pub host_path: Option<String>,
    /// Letters of `rwm`.
    pub permissions: String,
    /// Permissions of the node.
    pub file_mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
}

/// A bind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CdiMount {
    /// On the machine.
    pub host_path: PathBuf,
    /// In the container.
    pub container_path: PathBuf,
    /// As in `mount(8)`.
    pub options: Vec<String>,
}

impl Edits {
    fn extend(&mut self, more: &Edits) {
        self.env.extend(more.env.clone());
        self.device_nodes.extend(more.device_nodes.clone());
        self.mounts.extend(more.mounts.clone());
        self.hooks.extend(more.hooks.clone());
        self.additional_gids.extend(more.additional_gids.clone());
        self.net_devices.extend(more.net_devices.clone());
        self.intel_rdt = self.intel_rdt.take().or_else(|| more.intel_rdt.clone());
    }
}

/// What the named devices need, from files in the order of their folders: a later folder's word about a device replaces
/// an earlier one's, two of one folder contradict each other.
///
/// # Errors
/// When a device is not described, described twice, or needs what this runtime doesn't do.
pub fn resolve(names: &[String], folders: &[Vec<CdiFile>]) -> Result<Edits, SpecError> {
    let mut edits = Edits::default();
    let mut kinds = Vec::new();
    for name in names {
        let field = || format!("config.CDI_devices[{name}]");
        let (kind, device) = name
            .split_once('=')
            .filter(|(kind, device)| kind.contains('/') && !device.is_empty())
            .ok_or_else(|| wrong(field(), "must be vendor.example/class=device"))?;
        let found = folders.iter().rev().map(|files| describing(files, kind, device)).find(|found| !found.is_empty());
        let (file, device) = match found.as_deref() {
            None => return Err(wrong(field(), "no CDI file on this node describes it")),
            Some([one]) => *one,
            Some(_) => return Err(wrong(field(), "two CDI files of one folder describe it; remove one")),
        };
        // What belongs to the class comes once, however many of its devices there are.
        if !kinds.contains(&kind) {
            kinds.push(kind);
            edits.extend(&file.container_edits);
        }
        edits.extend(&device.container_edits);
    }
    let refused = [
        ("hooks", !edits.hooks.is_empty()),
        ("netDevices", !edits.net_devices.is_empty()),
        ("intelRdt", edits.intel_rdt.is_some()),
    ];
    if let Some((what, _)) = refused.iter().find(|(_, asked)| *asked) {
        let message = format!("{names:?} ask for {what}, which the built-in runtime doesn't do; use a runtime handler");
        return Err(wrong("config.CDI_devices", message));
    }
    Ok(edits)
}

fn describing<'a>(files: &'a [CdiFile], kind: &str, device: &str) -> Vec<(&'a CdiFile, &'a CdiDevice)> {
    let of_kind = files.iter().filter(|file| file.kind == kind);
    of_kind
        .flat_map(|file| file.devices.iter().filter(|known| known.name == device).map(move |known| (file, known)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> CdiFile {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn devices_and_their_class() {
        let card = file(
            r#"{"cdiVersion": "0.6.0", "kind": "example.com/card",
                "containerEdits": {"env": ["CLASS=1"]},
                "devices": [
                    {"name": "0", "containerEdits": {"deviceNodes": [{"path": "/dev/card0", "permissions": "rw"}]}},
                    {"name": "1", "containerEdits": {"env": ["ONE=1"], "mounts": [{"hostPath": "/lib", "containerPath": "/l", "options": ["ro"]}]}}
                ]}"#,
        );
        let hooked = file(
            r#"{"kind": "example.com/hooked", "devices": [{"name": "h", "containerEdits": {"hooks": [{"hookName": "prestart", "path": "/x"}]}}]}"#,
        );
        let folders = [vec![card.clone(), hooked], vec![]];
        let names = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        let edits = resolve(&names(&["example.com/card=0", "example.com/card=1"]), &folders).unwrap();
        assert_eq!(edits.env, ["CLASS=1", "ONE=1"]);
        assert_eq!(edits.device_nodes[0].path, "/dev/card0");
        assert_eq!(edits.mounts.len(), 1);
        for (name, words) in [
            ("card", "vendor.example/class=device"),
            ("example.com/card=9", "no CDI file"),
            ("example.com/hooked=h", "hooks"),
        ] {
            let error = resolve(&names(&[name]), &folders).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        let twice = [vec![card.clone(), card.clone()]];
        assert!(resolve(&names(&["example.com/card=0"]), &twice).unwrap_err().to_string().contains("two CDI files"));
        let replaced = [vec![card], vec![file(r#"{"kind": "example.com/card", "devices": [{"name": "0"}]}"#)]];
        assert_eq!(resolve(&names(&["example.com/card=0"]), &replaced).unwrap(), Edits::default());
    }
}
