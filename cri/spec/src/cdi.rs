//! Devices by the container device interface (CDI 0.8): a vendor describes in a file what a container needs for a device.
//!
//! Names are `vendor.example/class=device`. Hooks are programs that the machine's owner names in a file: a pod says which
//! device it wants, and nothing that it says becomes part of a hook.

use std::path::PathBuf;

use orlop_container::config::{Hook, Hooks};
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
    /// Mounts.
    pub mounts: Vec<CdiMount>,
    /// Programs that are run at points of the container's life.
    pub hooks: Vec<CdiHook>,
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
    /// `c`, `b`, `u` or `p`; that of the machine's node when absent.
    #[serde(rename = "type")]
    pub kind: String,
    /// Major number; with `kind` it makes a node of which the machine has none.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Letters of `rwm`.
    pub permissions: String,
    /// Permissions of the node.
    pub file_mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
}

/// A program that is run at a point of the container's life.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CdiHook {
    /// The point: `prestart`, `createRuntime`, `createContainer`, `startContainer`, `poststart` or `poststop`.
    pub hook_name: String,
    /// The program, its arguments, its environment, its limit in seconds.
    #[serde(flatten)]
    pub hook: Hook,
}

/// A mount.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CdiMount {
    /// On the machine.
    pub host_path: PathBuf,
    /// In the container.
    pub container_path: PathBuf,
    /// A file system of the container's own; absent for a bind.
    #[serde(rename = "type")]
    pub kind: String,
    /// As in `mount(8)`.
    pub options: Vec<String>,
}

impl Edits {
    /// The hooks by their points, in the order of the files.
    ///
    /// # Errors
    /// Names the point or the program that can't be had.
    pub fn hooks(&self) -> Result<Hooks, SpecError> {
        let field = "config.CDI_devices";
        let mut hooks = Hooks::default();
        for CdiHook { hook_name, hook } in &self.hooks {
            let names = hooks.lists().map(|(name, _)| name);
            let Some(at) = names.iter().position(|name| name == hook_name) else {
                let program = hook.path.display();
                return Err(wrong(field, format!("hook {program}: {hook_name:?} is not one of {}", names.join(", "))));
            };
            if let Some(entry) = hook.env.iter().find(|entry| !entry.contains('=') || entry.starts_with('=')) {
                return Err(wrong(field, format!("hook {}: env {entry:?} is not NAME=value", hook.path.display())));
            }
            hooks.lists_mut()[at].push(hook.clone());
        }
        hooks.check().map_err(|error| wrong(field, error))?;
        Ok(hooks)
    }

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
    let refused = [("netDevices", !edits.net_devices.is_empty()), ("intelRdt", edits.intel_rdt.is_some())];
    if let Some((what, _)) = refused.iter().find(|(_, asked)| *asked) {
        let message = format!("{names:?} ask for {what}, which is not there");
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
        let moved = file(
            r#"{"kind": "example.com/net", "devices": [{"name": "n", "containerEdits": {"netDevices": [{"name": "eth1"}]}}]}"#,
        );
        let folders = [vec![card.clone(), moved], vec![]];
        let names = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        let edits = resolve(&names(&["example.com/card=0", "example.com/card=1"]), &folders).unwrap();
        assert_eq!(edits.env, ["CLASS=1", "ONE=1"]);
        assert_eq!(edits.device_nodes[0].path, "/dev/card0");
        assert_eq!(edits.mounts.len(), 1);
        for (name, words) in [
            ("card", "vendor.example/class=device"),
            ("example.com/card=9", "no CDI file"),
            ("example.com/net=n", "netDevices"),
        ] {
            let error = resolve(&names(&[name]), &folders).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        let twice = [vec![card.clone(), card.clone()]];
        assert!(resolve(&names(&["example.com/card=0"]), &twice).unwrap_err().to_string().contains("two CDI files"));
        let replaced = [vec![card], vec![file(r#"{"kind": "example.com/card", "devices": [{"name": "0"}]}"#)]];
        assert_eq!(resolve(&names(&["example.com/card=0"]), &replaced).unwrap(), Edits::default());
    }
    #[test]
    fn hooks_go_to_their_points() {
        let edits = |hooks: &str| {
            let text = format!(
                r#"{{"kind": "e.com/k", "devices": [{{"name": "d"}}], "containerEdits": {{"hooks": [{hooks}]}}}}"#
            );
            resolve(&["e.com/k=d".to_string()], &[vec![file(&text)]]).unwrap().hooks()
        };
        let hooks = edits(
            r#"{"hookName": "createContainer", "path": "/a", "args": ["a", "b"], "env": ["A=b"], "timeout": 3},
               {"hookName": "poststop", "path": "/b"}, {"hookName": "createContainer", "path": "/c"}"#,
        )
        .unwrap();
        let paths = |list: &[Hook]| list.iter().map(|hook| hook.path.display().to_string()).collect::<Vec<_>>();
        assert_eq!(
            (paths(&hooks.create_container), paths(&hooks.poststop)),
            (vec!["/a".into(), "/c".into()], vec!["/b".into()])
        );
        let first = &hooks.create_container[0];
        assert_eq!((first.args.join(" "), first.env.join(" "), first.timeout), ("a b".into(), "A=b".into(), Some(3)));
        for (hook, words) in [
            (r#"{"hookName": "postmortem", "path": "/a"}"#, "\"postmortem\" is not one of prestart, createRuntime"),
            (r#"{"hookName": "poststop", "path": "a"}"#, "not absolute"),
            (r#"{"hookName": "poststop", "path": "/a", "timeout": 0}"#, "timeout"),
            (r#"{"hookName": "poststop", "path": "/a", "env": ["A"]}"#, "NAME=value"),
        ] {
            let error = edits(hook).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
