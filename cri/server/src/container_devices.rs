//! Devices of the machine that a container gets: those that it names, or all of them when it is privileged.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use orlop_container::config::Device;
use orlop_cri_spec::devices::{HostDevice, check_access};
use orlop_cri_spec::{SpecError, check_path};
use orlop_proto::cri;

use crate::error::{RpcError, file};

/// Devices of one container.
const DEVICES_MAX: usize = 4096;
/// How deep folders of devices may nest.
const DEPTH_MAX: usize = 8;
/// What lies in `/dev` without being a device of the machine: each container has its own.
const OWN: [&str; 8] =
    ["/dev/pts", "/dev/shm", "/dev/fd", "/dev/mqueue", "/dev/console", "/dev/ptmx", "/dev/.udev", "/dev/.lxc"];

/// The devices of a container. Blocking.
pub(crate) fn find(config: &cri::ContainerConfig, privileged: bool) -> Result<Vec<HostDevice>, RpcError> {
    let mut found = Vec::new();
    for device in &config.devices {
        let field = format!("config.devices[{}]", device.host_path);
        check_path(&format!("{field}.host_path"), &device.host_path)?;
        check_path(&format!("{field}.container_path"), &device.container_path)?;
        let access = check_access(&format!("{field}.permissions"), &device.permissions)?;
        let before = found.len();
        let (from, to) = (Path::new(&device.host_path), Path::new(&device.container_path));
        collect(from, to, &access, 0, &mut found).map_err(file("look for the device", from))?;
        if found.len() == before {
            let message = format!("{:?} is neither a device nor a folder with devices", device.host_path);
            return Err(SpecError { field: format!("{field}.host_path"), message }.into());
        }
    }
    if privileged {
        let dev = Path::new("/dev");
        collect(dev, dev, "rwm", 0, &mut found).map_err(file("list the devices in", dev))?;
    }
    Ok(found)
}

/// Adds the device at a path, or all below it when it is a folder; what is neither is passed by.
fn collect(from: &Path, to: &Path, access: &str, depth: usize, found: &mut Vec<HostDevice>) -> std::io::Result<()> {
    // A name that was asked for may be a link, as those of udev are; below a folder links are other names of the same.
    let meta = if depth == 0 { std::fs::metadata(from)? } else { std::fs::symlink_metadata(from)? };
    let kind = meta.file_type();
    if kind.is_dir() {
        if depth > DEPTH_MAX {
            return Ok(());
        }
        let mut names: Vec<PathBuf> =
            std::fs::read_dir(from)?.flatten().map(|entry| entry.file_name().into()).collect();
        names.sort();
        for name in names {
            let inner = from.join(&name);
            if OWN.iter().any(|own| Path::new(own) == inner) {
                continue;
            }
            match collect(&inner, &to.join(&name), access, depth + 1, found) {
                // It may go while the folder is read.
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        return Ok(());
    }
    let kind = match () {
        () if kind.is_char_device() => "c",
        () if kind.is_block_device() => "b",
        // Pipes are handed on by name only.
        () if kind.is_fifo() && depth == 0 => "p",
        () => return Ok(()),
    };
    if found.len() >= DEVICES_MAX {
        return Err(std::io::Error::other(format!("more than {DEVICES_MAX} devices")));
    }
    let node = Device {
        path: to.to_path_buf(),
        kind: kind.into(),
        major: rustix::fs::major(meta.rdev()),
        minor: rustix::fs::minor(meta.rdev()),
        file_mode: Some(meta.mode() & 0o7777),
        uid: Some(meta.uid()),
        gid: Some(meta.gid()),
    };
    found.push(HostDevice { node, access: access.into() });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_by_name_and_by_folder() {
        let asked = |host: &str, container: &str| cri::ContainerConfig {
            devices: vec![cri::Device {
                host_path: host.into(),
                container_path: container.into(),
                permissions: "r".into(),
            }],
            ..Default::default()
        };
        let one = find(&asked("/dev/zero", "/dev/nothing"), false).unwrap();
        assert_eq!((one[0].node.major, one[0].node.minor, one[0].access.as_str()), (1, 5, "r"));
        assert_eq!(one[0].node.path, Path::new("/dev/nothing"));
        let all = find(&cri::ContainerConfig::default(), true).unwrap();
        assert!(all.iter().any(|device| device.node.path == Path::new("/dev/null")));
        assert!(!all.iter().any(|device| device.node.path.starts_with("/dev/pts")));
        assert!(find(&asked("/etc/hostname", "/dev/x"), false).unwrap_err().to_string().contains("neither a device"));
        assert!(find(&asked("/dev/nothing-there", "/dev/x"), false).is_err());
        assert!(find(&asked("/dev/../etc", "/dev/x"), false).is_err());
    }
}
