//! Folders that are volumes: emptyDir on disk or in memory, and paths of the machine.

use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use k8s_openapi::api::core::v1::EmptyDirVolumeSource;
use orlop_agent_core::quantity::units;
use orlop_kernel::mount::{self, Attributes, FsOption};
use orlop_kernel::path;

fn failed<'a>(step: &'a str, path: &'a Path) -> impl FnOnce(std::io::Error) -> String + 'a {
    move |error| format!("{step} {}: {error}", path.display())
}

/// Makes a folder with a mode, whatever the process's mask is.
pub(crate) fn make(folder: &Path, mode: u32) -> Result<(), String> {
    std::fs::create_dir_all(folder).map_err(failed("make", folder))?;
    let permissions = std::fs::Permissions::from_mode(mode);
    std::fs::set_permissions(folder, permissions).map_err(failed("set the mode of", folder))
}

/// Bytes that an emptyDir may hold.
pub(crate) fn size_limit(empty: &EmptyDirVolumeSource) -> Result<Option<u64>, String> {
    let Some(limit) = &empty.size_limit else { return Ok(None) };
    let bytes = units(limit).map_err(|error| format!("emptyDir.sizeLimit: {error}"))?;
    Ok(u64::try_from(bytes).ok().filter(|bytes| *bytes > 0))
}

/// An emptyDir, empty the first time; what a container wrote stays.
pub(crate) fn make_empty(folder: &Path, memory: bool, size: Option<u64>) -> Result<(), String> {
    if folder.is_dir() && (!memory || is_mounted(folder)) {
        return Ok(());
    }
    make(folder, 0o777)?;
    if memory {
        // Without a limit tmpfs stops at half of the machine's memory, and the pod's cgroup earlier.
        let size = size.map(|bytes| bytes.to_string());
        mount_tmpfs(folder, size.as_deref().unwrap_or("50%"), 0o777)?;
    }
    Ok(())
}

/// Whether something is mounted at a folder.
pub(crate) fn is_mounted(folder: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| std::fs::symlink_metadata(path).map(|metadata| metadata.dev()).ok();
    let mounted = mount::mounts_below(folder).unwrap_or_default().iter().any(|path| path == folder);
    mounted || folder.parent().is_some_and(|parent| device(parent) != device(folder))
}

/// Mounts memory at a folder; fine when it is mounted.
pub(crate) fn mount_tmpfs(folder: &Path, size: &str, mode: u32) -> Result<(), String> {
    if is_mounted(folder) {
        return Ok(());
    }
    let mode = format!("{mode:o}");
    let options = [FsOption::Value("size", size), FsOption::Value("mode", &mode)];
    let attributes = Attributes::MOUNT_ATTR_NOSUID | Attributes::MOUNT_ATTR_NODEV;
    let tmpfs =
        mount::new_filesystem("tmpfs", "tmpfs", &options, attributes).map_err(failed("mount tmpfs for", folder))?;
    let target = path::open_root(folder).map_err(|error| error.to_string())?;
    mount::attach(tmpfs, target).map_err(failed("mount tmpfs at", folder))
}

/// Checks a path of the machine, or makes it, as its type says (`HostPathType`).
pub(crate) fn check_host(path: &Path, kind: &str) -> Result<(), String> {
    let found = std::fs::metadata(path);
    let shown = path.display();
    let is_not = |what: &str| Err(format!("hostPath type check failed: {shown} is not {what}"));
    match kind {
        "" => Ok(()),
        "DirectoryOrCreate" | "FileOrCreate" if found.is_err() => {
            if kind == "DirectoryOrCreate" {
                return make(path, 0o755);
            }
            let file = std::fs::File::options().write(true).create_new(true).mode(0o644).open(path);
            file.map(|_| ()).map_err(failed("make", path))
        }
        "Directory" | "DirectoryOrCreate" if !found.as_ref().is_ok_and(std::fs::Metadata::is_dir) => {
            is_not("a directory")
        }
        "File" | "FileOrCreate" if !found.as_ref().is_ok_and(std::fs::Metadata::is_file) => is_not("a file"),
        "Socket" if !found.as_ref().is_ok_and(|found| found.file_type().is_socket()) => is_not("a socket file"),
        "CharDevice" if !found.as_ref().is_ok_and(|found| found.file_type().is_char_device()) => {
            is_not("a character device")
        }
        "BlockDevice" if !found.as_ref().is_ok_and(|found| found.file_type().is_block_device()) => {
            is_not("a block device")
        }
        "Directory" | "DirectoryOrCreate" | "File" | "FileOrCreate" | "Socket" | "CharDevice" | "BlockDevice" => Ok(()),
        other => Err(format!("hostPath.type {other:?} is not known")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_of_host_paths() {
        let place = tempfile::tempdir().unwrap();
        let (folder, file) = (place.path().join("folder"), place.path().join("file"));
        assert!(check_host(&folder, "Directory").unwrap_err().contains("is not a directory"));
        check_host(&folder, "DirectoryOrCreate").unwrap();
        check_host(&folder, "Directory").unwrap();
        check_host(&file, "FileOrCreate").unwrap();
        check_host(&file, "File").unwrap();
        for (path, kind) in [(&folder, "File"), (&file, "Directory"), (&file, "Socket"), (&file, "CharDevice")] {
            assert!(check_host(path, kind).unwrap_err().starts_with("hostPath type check failed"), "{kind}");
        }
        check_host(Path::new("/dev/null"), "CharDevice").unwrap();
        check_host(Path::new("/does/not/exist"), "").unwrap();
        assert!(check_host(&file, "Nonsense").is_err());
    }
}
