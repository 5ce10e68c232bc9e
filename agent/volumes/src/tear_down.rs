//! Taking a pod's volumes down by what is on disk; every step may be repeated, and what fails is named.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::future::join_all;
use orlop_agent_core::ports::VolumeError;
use orlop_kernel::mount::{mounts_below, unmount_path};
use orlop_kernel::path::remove_tree_at;

use crate::csi;
use crate::file::{FileError, blocking, failed, remove_empty};
use crate::layout::{check_name, plugin};
use crate::pod_volumes::Shared;
use crate::slots::Slot;

/// A volume on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    plugin: String,
    name: String,
    path: PathBuf,
}

/// What is to be done about one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Undo {
    /// Its driver takes it away.
    Driver,
    /// It is ours with all that is in it.
    RemoveAll,
    /// It leads to somebody else's data: it is unmounted, and only an empty folder is removed.
    Unmount,
}

fn undo_of(plugin: &str) -> Undo {
    match plugin {
        plugin::CSI => Undo::Driver,
        plugin::EMPTY_DIR | plugin::CONFIG_MAP | plugin::SECRET | plugin::DOWNWARD_API | plugin::PROJECTED => {
            Undo::RemoveAll
        }
        // A local volume, or one that another kubelet has left.
        _ => Undo::Unmount,
    }
}

/// Takes down everything below `pods/<uid>/volumes`. All are tried; the first failure is told.
pub(crate) async fn tear_down(shared: &Arc<Shared>, uid: &str, slot: &Slot) -> Result<(), VolumeError> {
    let all = |message: String| VolumeError::TearDown { volume: "all".to_owned(), message };
    check_name("uid", uid).map_err(|error| all(error.to_string()))?;
    let volumes = shared.layout.volumes(uid);
    let listed = volumes.clone();
    let found = blocking(move || list(&listed)).await.map_err(all)?;
    let undone = join_all(found.iter().map(|volume| undo(shared, uid, slot, volume))).await;
    for (volume, undone) in found.iter().zip(undone) {
        undone.map_err(|message| VolumeError::TearDown { volume: volume.name.clone(), message })?;
    }
    let marks = shared.layout.marks(uid);
    let cleaned = blocking(move || {
        for plugin in std::fs::read_dir(&volumes).into_iter().flatten().flatten() {
            // One that has got a volume meanwhile stays.
            let _ = std::fs::remove_dir(plugin.path());
        }
        remove_tree_at(&marks).map_err(failed("remove", &marks))
    });
    cleaned.await.map_err(all)
}

/// Every volume of a pod.
fn list(volumes: &Path) -> Result<Vec<Found>, FileError> {
    let entries = |folder: &Path| match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        entries => entries.and_then(Iterator::collect::<std::io::Result<Vec<_>>>).map_err(failed("list", folder)),
    };
    // Mounts are known by their real paths.
    let real = volumes.canonicalize().unwrap_or_else(|_| volumes.to_path_buf());
    let mut found = Vec::new();
    for plugin in entries(&real)? {
        for volume in entries(&plugin.path())? {
            let text = |name: std::ffi::OsString| name.to_string_lossy().into_owned();
            found.push(Found { plugin: text(plugin.file_name()), name: text(volume.file_name()), path: volume.path() });
        }
    }
    Ok(found)
}

async fn undo(shared: &Arc<Shared>, uid: &str, slot: &Slot, volume: &Found) -> Result<(), String> {
    let path = volume.path.clone();
    match undo_of(&volume.plugin) {
        Undo::Driver => {
            let _step = slot.step(&volume.name, "the CSI driver unpublishes or unstages it");
            csi::tear_down(shared, uid, slot, &volume.name, &path).await
        }
        Undo::RemoveAll => {
            let _step = slot.step(&volume.name, "removing its files");
            blocking(move || {
                unmount_all(&path)?;
                remove_tree_at(&path).map_err(failed("remove", &path))
            })
            .await
        }
        Undo::Unmount => {
            let _step = slot.step(&volume.name, "unmounting it");
            blocking(move || {
                unmount_all(&path)?;
                remove_empty(&path)
            })
            .await
        }
    }
}

/// Unmounts what is mounted at and below a folder, the deepest first. A mount that is in use is an error: it is never
/// only hidden.
fn unmount_all(folder: &Path) -> Result<(), FileError> {
    for mounted in mounts_below(folder).map_err(failed("read the mounts of", folder))? {
        unmount_path(&mounted).map_err(failed("unmount", &mounted))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_ours_is_removed_with_its_contents() {
        for (plugin, want) in [
            (plugin::EMPTY_DIR, Undo::RemoveAll),
            (plugin::SECRET, Undo::RemoveAll),
            (plugin::CSI, Undo::Driver),
            (plugin::LOCAL, Undo::Unmount),
            ("kubernetes.io~nfs", Undo::Unmount),
        ] {
            assert_eq!(undo_of(plugin), want, "{plugin}");
        }
    }

    #[test]
    fn what_is_on_disk_is_listed() {
        let place = tempfile::tempdir().unwrap();
        assert!(list(&place.path().join("none")).unwrap().is_empty());
        std::fs::create_dir_all(place.path().join("kubernetes.io~csi/pv")).unwrap();
        let found = list(place.path()).unwrap();
        assert_eq!((found.len(), found[0].plugin.as_str(), found[0].name.as_str()), (1, plugin::CSI, "pv"));
    }
}
