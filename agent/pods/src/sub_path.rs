//! Sub paths of volumes: resolved inside the volume only, then held by a bind mount that a container can't redirect.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use orlop_kernel::{mount, path};
use rustix::fs::Mode;

use crate::directories::make_folder;

/// Why a sub path can't be mounted.
#[derive(Debug, thiserror::Error)]
#[error("failed to prepare subPath {sub_path:?} of volume {volume}: {message}")]
pub(crate) struct SubPathError {
    sub_path: String,
    volume: String,
    message: String,
}

/// Makes the sub path (a directory, where nothing is there) and returns a path that stays at it.
///
/// Links are followed within the volume; what would leave it can't be opened.
pub(crate) fn prepare_sub_path(
    volume_path: &Path,
    volume: &str,
    sub_path: &str,
    target: &Path,
) -> Result<PathBuf, SubPathError> {
    let failed = |message: String| SubPathError { sub_path: sub_path.to_owned(), volume: volume.to_owned(), message };
    bind(volume_path, sub_path, target).map_err(|error| failed(error.to_string()))?;
    Ok(target.to_path_buf())
}

fn bind(volume_path: &Path, sub_path: &str, target: &Path) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let root = path::open_root(volume_path)?;
    let found = match path::find_in_root(&root, Path::new(sub_path))? {
        Some(found) => found,
        None => make_missing(volume_path, &root, sub_path)?,
    };
    // What an instance before has mounted there is its own copy by now.
    while orlop_kernel::mount::mounts_below(target)?.iter().any(|mounted| mounted == target) {
        mount::detach(target)?;
    }
    let folder = target.parent().ok_or("the target has no folder")?;
    make_folder(folder, 0o750)?;
    if path::is_folder(&found)? {
        if target.is_file() {
            std::fs::remove_file(target)?;
        }
        make_folder(target, 0o750)?;
    } else {
        if target.is_dir() {
            std::fs::remove_dir(target)?;
        }
        std::fs::OpenOptions::new().write(true).create(true).truncate(false).open(target)?;
    }
    let place = rustix::fs::open(
        target,
        rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC | rustix::fs::OFlags::NOFOLLOW,
        Mode::empty(),
    )?;
    mount::attach(mount::clone_fd(&found, true)?, &place)?;
    Ok(())
}

/// Makes what is missing of a sub path, with the mode of the volume's root, as the kubelet does: who may write to the
/// volume may write there, whatever the process's mask is.
fn make_missing(
    volume_path: &Path,
    root: &OwnedFd,
    sub_path: &str,
) -> Result<OwnedFd, Box<dyn std::error::Error + Send + Sync>> {
    let mode = Mode::from_raw_mode(rustix::fs::stat(volume_path)?.st_mode & 0o7777);
    let mut made = None;
    let mut part = PathBuf::new();
    for name in Path::new(sub_path).components() {
        part.push(name);
        if path::find_in_root(root, &part)?.is_some() {
            continue;
        }
        let folder = path::make_folder_in_root(root, &part, mode)?;
        // The descriptor is of the folder itself; its entry in /proc leads nowhere else.
        rustix::fs::chmod(format!("/proc/self/fd/{}", folder.as_raw_fd()), mode)?;
        made = Some(folder);
    }
    match made {
        Some(made) => Ok(made),
        None => Ok(path::make_folder_in_root(root, Path::new(sub_path), mode)?),
    }
}

/// Takes all sub paths of a pod down.
pub(crate) fn release_sub_paths(folder: &Path) -> std::io::Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    for mounted in mount::mounts_below(folder)? {
        mount::detach(&mounted)?;
    }
    // Only empty directories and the empty files that mounts sat on are left; anything else is not ours to delete.
    remove_empty(folder)
}

fn remove_empty(folder: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_empty(&entry.path())?;
        } else if entry.metadata()?.len() == 0 {
            std::fs::remove_file(entry.path())?;
        }
    }
    std::fs::remove_dir(folder)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn missing_folders_get_the_mode_of_the_volume_and_stay_inside() {
        let base = std::env::temp_dir().join(format!("orlop-sub-path-{}", std::process::id()));
        let volume = base.join("volume");
        std::fs::create_dir_all(volume.join("there")).unwrap();
        std::fs::set_permissions(&volume, std::fs::Permissions::from_mode(0o2777)).unwrap();
        std::os::unix::fs::symlink(&base, volume.join("out")).unwrap();
        let root = path::open_root(&volume).unwrap();
        make_missing(&volume, &root, "there/a/b").unwrap();
        let mode = |path: &str| std::fs::metadata(volume.join(path)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("there/a"), mode("there/a/b")), (0o2777, 0o2777));
        assert_ne!(mode("there"), 0o2777, "what was there stays as it is");
        make_missing(&volume, &root, "out/x").unwrap();
        assert!(!base.join("x").exists(), "a link is not a way out");
        std::fs::remove_dir_all(base).unwrap();
    }
}
