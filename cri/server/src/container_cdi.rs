//! Devices that a container asks for by CDI name: the files of this node are read, and what they say is turned into nodes,
//! binds, variables, groups and hooks.

use std::path::{Path, PathBuf};

use orlop_container::config::{Device, Hooks, Mount};
use orlop_cri_spec::cdi::{self, CdiFile, CdiMount, DeviceNode};
use orlop_cri_spec::devices::{HostDevice, check_access};
use orlop_cri_spec::{SpecError, check_path};
use orlop_proto::cri;

use crate::container_devices;
use crate::error::{RpcError, file};

/// Bytes of one file.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// Files of one folder.
const FILES_MAX: usize = 1024;

/// What CDI devices add to a container.
#[derive(Default)]
pub(crate) struct CdiParts {
    pub(crate) env: Vec<String>,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) devices: Vec<HostDevice>,
    pub(crate) groups: Vec<u32>,
    /// None when there are none.
    pub(crate) hooks: Option<Hooks>,
}

/// Finds what a container asks for in the node's folders, of which a later one goes before an earlier. Blocking.
pub(crate) fn find(config: &cri::ContainerConfig, folders: &[PathBuf]) -> Result<CdiParts, RpcError> {
    let names: Vec<String> = config.cdi_devices.iter().map(|device| device.name.clone()).collect();
    if names.is_empty() {
        return Ok(CdiParts::default());
    }
    let files = folders.iter().map(|folder| read_folder(folder)).collect::<Result<Vec<_>, _>>()?;
    let edits = cdi::resolve(&names, &files)?;
    let hooks = Some(edits.hooks()?).filter(|hooks| *hooks != Hooks::default());
    let mut parts = CdiParts { env: edits.env, groups: edits.additional_gids, hooks, ..CdiParts::default() };
    for node in &edits.device_nodes {
        parts.devices.extend(resolve_node(node)?);
    }
    for mount in edits.mounts {
        parts.mounts.push(to_mount(mount)?);
    }
    Ok(parts)
}

fn read_folder(folder: &Path) -> Result<Vec<CdiFile>, RpcError> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(file("list", folder))?,
    };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|kind| kind == "json" || kind == "yaml" || kind == "yml"));
    paths.sort();
    let mut files = Vec::new();
    for path in paths.iter().take(FILES_MAX) {
        match read_file(path) {
            Ok(read) => files.push(read),
            // It costs the devices that it describes, which are then not found.
            Err(error) => tracing::warn!(?path, %error, "a CDI file is left out"),
        }
    }
    Ok(files)
}

fn read_file(path: &Path) -> std::io::Result<CdiFile> {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(std::io::Error::other(format!("it is larger than {FILE_BYTES_MAX} bytes")));
    }
    // JSON is read as JSON, so that a mistake is told in its terms.
    if path.extension().is_some_and(|kind| kind == "json") {
        return Ok(serde_json::from_str(&text)?);
    }
    serde_saphyr::from_str(&text).map_err(|error| std::io::Error::other(error.to_string()))
}

fn resolve_node(node: &DeviceNode) -> Result<Vec<HostDevice>, RpcError> {
    let numbered = node.major != 0 || node.kind == "p";
    if !node.kind.is_empty() && numbered && node.host_path.is_none() {
        check_path("config.CDI_devices", &node.path)?;
        let DeviceNode { major, minor, file_mode, uid, gid, .. } = *node;
        let device = Device { path: (&node.path).into(), kind: node.kind.clone(), major, minor, file_mode, uid, gid };
        let access = check_access("config.CDI_devices", &node.permissions)?;
        return Ok(vec![HostDevice { node: device, access }]);
    }
    let device = cri::Device {
        container_path: node.path.clone(),
        host_path: node.host_path.clone().unwrap_or_else(|| node.path.clone()),
        permissions: node.permissions.clone(),
    };
    let asked = cri::ContainerConfig { devices: vec![device], ..Default::default() };
    let mut found = container_devices::find(&asked, false)?;
    for device in &mut found {
        device.node.file_mode = node.file_mode.or(device.node.file_mode);
        device.node.uid = node.uid.or(device.node.uid);
        device.node.gid = node.gid.or(device.node.gid);
    }
    Ok(found)
}

fn to_mount(mount: CdiMount) -> Result<Mount, SpecError> {
    let bind = matches!(mount.kind.as_str(), "" | "bind");
    for path in [&mount.container_path].into_iter().chain(bind.then_some(&mount.host_path)) {
        check_path("config.CDI_devices", &path.display().to_string())?;
    }
    let mut options = mount.options;
    if bind && !options.iter().any(|option| option == "bind" || option == "rbind") {
        options.push("rbind".into());
    }
    Ok(Mount {
        destination: mount.container_path,
        kind: if bind { "bind".into() } else { mount.kind },
        source: mount.host_path,
        options,
        ..Mount::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_both_kinds_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let yaml = "cdiVersion: 0.6.0\nkind: example.com/null\ndevices:\n- name: a\n  containerEdits:\n    deviceNodes:\n    \
                    - path: /dev/a\n      hostPath: /dev/null\n      permissions: r\n    - {path: /dev/b, type: c, major: 1, minor: 5}\n    env: [A=1]\n    additionalGids: [44]\n    mounts:\n    - \
                    {hostPath: tmpfs, containerPath: /t, type: tmpfs, options: [nosuid]}\n    hooks:\n    - {hookName: \
                    poststop, path: /x}\n";
        std::fs::write(folder.path().join("a.yaml"), yaml).unwrap();
        std::fs::write(folder.path().join("broken.json"), "{").unwrap();
        let asked = |name: &str| cri::ContainerConfig {
            cdi_devices: vec![cri::CdiDevice { name: name.into() }],
            ..Default::default()
        };
        let folders = [folder.path().to_path_buf(), folder.path().join("missing")];
        let parts = find(&asked("example.com/null=a"), &folders).unwrap();
        assert_eq!(parts.env, ["A=1"]);
        assert_eq!((parts.devices[0].node.path.as_path(), parts.devices[0].node.minor), (Path::new("/dev/a"), 3));
        assert_eq!((parts.devices[1].node.minor, parts.devices[1].access.as_str(), parts.groups), (5, "rwm", vec![44]));
        assert_eq!((parts.mounts[0].kind.as_str(), parts.mounts[0].options.join(" ")), ("tmpfs", "nosuid".into()));
        assert_eq!(parts.hooks.unwrap().poststop[0].path, Path::new("/x"));
        assert!(find(&asked("example.com/null=b"), &folders).is_err());
        assert!(find(&cri::ContainerConfig::default(), &folders).unwrap().devices.is_empty());
    }
}
