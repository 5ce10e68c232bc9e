//! Sub paths of volumes: resolved inside the volume only, then held by a bind mount that a container can't redirect.

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
        None => path::make_folder_in_root(&root, Path::new(sub_path), Mode::from_raw_mode(0o750))?,
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
