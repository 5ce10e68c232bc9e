//! Volumes on disk: made beside and renamed into place, taken out of place and then removed.
//!
//! ```text
//!  <data dir>/lock                     held by the driver that serves this folder
//!  <data dir>/volumes/<id>/volume.json what it is
//!  <data dir>/volumes/<id>/data        what pods see
//!  <data dir>/making, removing         volumes on their way; swept at start
//!  <data dir>/damaged/<id>             volumes whose record can't be read, data kept
//! ```

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use orlop_kernel::{mount, path};

use crate::record::{self, Publication, RecordError, VERSION, VolumeRecord};
use crate::volume::is_volume_id;

/// Volumes that one driver keeps at most.
const VOLUMES_MAX: usize = 10_000;

/// Why volumes can't be kept.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file or folder.
    #[error("{step} {path}: {source}")]
    Io {
        /// What was being done.
        step: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// Another driver has the folder.
    #[error("{0} is in use by another driver; stop that one or give this one a data folder of its own")]
    Locked(PathBuf),
    /// A record.
    #[error("record of a volume: {0}")]
    Record(String),
    /// Too many.
    #[error("there are {VOLUMES_MAX} volumes already; delete some")]
    Full,
}

impl From<RecordError> for StoreError {
    fn from(error: RecordError) -> StoreError {
        StoreError::Record(error.to_string())
    }
}

fn failed<'a>(step: &'static str, path: &'a Path) -> impl FnOnce(std::io::Error) -> StoreError + 'a {
    move |source| StoreError::Io { step, path: path.to_path_buf(), source }
}

/// The volumes of a driver.
#[derive(Debug)]
pub(crate) struct Store {
    root: PathBuf,
    volumes: Mutex<BTreeMap<String, VolumeRecord>>,
    _lock: File,
}

impl Store {
    /// Opens the folder, makes it where it is missing, and takes in what is there.
    pub(crate) fn open(root: &Path) -> Result<Store, StoreError> {
        DirBuilder::new().recursive(true).mode(0o711).create(root).map_err(failed("make", root))?;
        let lock_path = root.join("lock");
        let lock = File::options().create(true).append(true).open(&lock_path).map_err(failed("open", &lock_path))?;
        if !orlop_kernel::lock::lock_file(&lock).map_err(failed("lock", &lock_path))? {
            return Err(StoreError::Locked(root.to_path_buf()));
        }
        for (name, mode) in [("volumes", 0o711), ("making", 0o700), ("removing", 0o700), ("damaged", 0o700)] {
            let folder = root.join(name);
            DirBuilder::new().recursive(true).mode(mode).create(&folder).map_err(failed("make", &folder))?;
        }
        for name in ["making", "removing"] {
            sweep(&root.join(name));
        }
        let mut volumes = BTreeMap::new();
        let folder = root.join("volumes");
        for entry in std::fs::read_dir(&folder).map_err(failed("list", &folder))? {
            let entry = entry.map_err(failed("list", &folder))?;
            let Some(id) = entry.file_name().to_str().filter(|id| is_volume_id(id)).map(str::to_owned) else {
                tracing::warn!(path = %entry.path().display(), "this is no volume of the driver; it is left alone");
                continue;
            };
            match record::read(&entry.path()) {
                Ok(volume) => drop(volumes.insert(id, volume)),
                Err(error) => {
                    let kept = root.join("damaged").join(&id);
                    tracing::error!(volume = id, %error, kept = %kept.display(), "a volume can't be read; its data are kept aside");
                    if let Err(error) = std::fs::rename(entry.path(), &kept) {
                        tracing::error!(volume = id, %error, "it could not be moved either");
                    }
                }
            }
        }
        Ok(Store { root: root.to_path_buf(), volumes: Mutex::new(volumes), _lock: lock })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, VolumeRecord>> {
        self.volumes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn folder(&self, id: &str) -> PathBuf {
        self.root.join("volumes").join(id)
    }

    /// What pods see of a volume.
    pub(crate) fn data(&self, id: &str) -> PathBuf {
        self.folder(id).join("data")
    }

    /// A volume.
    pub(crate) fn get(&self, id: &str) -> Option<VolumeRecord> {
        self.lock().get(id).cloned()
    }

    /// All volumes in the order in which they were made.
    pub(crate) fn list(&self) -> Vec<VolumeRecord> {
        let mut list: Vec<VolumeRecord> = self.lock().values().cloned().collect();
        list.sort_by_key(|volume| volume.serial);
        list
    }

    /// Free bytes of the file system.
    pub(crate) fn available_bytes(&self) -> Result<i64, StoreError> {
        let stat = rustix::fs::statvfs(&self.root).map_err(|e| failed("look at", &self.root)(e.into()))?;
        Ok(i64::try_from(stat.f_bavail.saturating_mul(stat.f_frsize)).unwrap_or(i64::MAX))
    }

    /// Makes an empty volume.
    pub(crate) fn create(&self, id: &str, name: &str, capacity_bytes: i64) -> Result<VolumeRecord, StoreError> {
        let serial = {
            let volumes = self.lock();
            if volumes.len() >= VOLUMES_MAX {
                return Err(StoreError::Full);
            }
            volumes.values().map(|volume| volume.serial).max().unwrap_or(0) + 1
        };
        let volume = VolumeRecord {
            version: VERSION,
            id: id.to_owned(),
            name: name.to_owned(),
            capacity_bytes,
            serial,
            published: Vec::new(),
        };
        let draft = self.root.join("making").join(id);
        path::remove_tree_at(&draft).map_err(failed("remove", &draft))?;
        std::fs::create_dir(&draft).map_err(failed("make", &draft))?;
        let data = draft.join("data");
        std::fs::create_dir(&data).map_err(failed("make", &data))?;
        // Any user of a pod may write unless the pod says otherwise by fsGroup; the folders above keep the others out.
        std::fs::set_permissions(&data, Permissions::from_mode(0o777)).map_err(failed("open up", &data))?;
        std::fs::set_permissions(&draft, Permissions::from_mode(0o711)).map_err(failed("open up", &draft))?;
        record::write(&draft, &volume)?;
        let folder = self.folder(id);
        std::fs::rename(&draft, &folder).map_err(failed("put in place", &folder))?;
        orlop_kernel::file::sync_folder(&self.root.join("volumes")).map_err(failed("sync", &folder))?;
        self.lock().insert(id.to_owned(), volume.clone());
        Ok(volume)
    }

    /// Deletes a volume with its data; its absence is success.
    pub(crate) fn delete(&self, id: &str) -> Result<(), StoreError> {
        let (folder, way_out) = (self.folder(id), self.root.join("removing").join(id));
        path::remove_tree_at(&way_out).map_err(failed("remove", &way_out))?;
        match std::fs::rename(&folder, &way_out) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed("remove", &folder)(error)),
            _ => {}
        }
        self.lock().remove(id);
        path::remove_tree_at(&way_out).map_err(failed("remove", &way_out))
    }

    /// Notes where a volume is published; mounts that are gone (the machine has been restarted) are forgotten.
    pub(crate) fn note(&self, id: &str, publications: Vec<Publication>) -> Result<(), StoreError> {
        let Some(mut volume) = self.get(id) else { return Ok(()) };
        if volume.published == publications {
            return Ok(());
        }
        volume.published = publications;
        record::write(&self.folder(id), &volume)?;
        self.lock().insert(id.to_owned(), volume);
        Ok(())
    }

    /// Where a volume is really mounted.
    pub(crate) fn published(&self, id: &str) -> Vec<Publication> {
        let noted = self.get(id).map(|volume| volume.published).unwrap_or_default();
        noted.into_iter().filter(|known| mount::is_mount_point(&known.target).unwrap_or(true)).collect()
    }
}

/// Removes what a crash has left.
fn sweep(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if let Err(error) = path::remove_tree_at(&entry.path()) {
            tracing::warn!(path = %entry.path().display(), %error, "a left-over could not be removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::volume_id;

    #[test]
    fn volumes_outlive_the_driver_and_damage_costs_one() {
        let place = tempfile::tempdir().unwrap();
        let (one, two) = (volume_id("one"), volume_id("two"));
        {
            let store = Store::open(place.path()).unwrap();
            assert!(matches!(Store::open(place.path()), Err(StoreError::Locked(_))), "a second driver");
            store.create(&one, "one", 5).unwrap();
            store.create(&two, "two", 6).unwrap();
            std::fs::write(store.data(&one).join("file"), "kept").unwrap();
            std::fs::write(store.data(&two).join("file"), "kept too").unwrap();
        }
        std::fs::write(place.path().join("volumes").join(&two).join(record::FILE), "{").unwrap();
        std::fs::create_dir_all(place.path().join("making/half/data")).unwrap();
        std::fs::create_dir_all(place.path().join("volumes/not-ours")).unwrap();
        let store = Store::open(place.path()).unwrap();
        assert_eq!(store.list().into_iter().map(|volume| volume.name).collect::<Vec<_>>(), ["one"]);
        assert_eq!(std::fs::read_to_string(store.data(&one).join("file")).unwrap(), "kept");
        assert!(place.path().join("damaged").join(&two).join("data/file").is_file());
        assert!(!place.path().join("making/half").exists() && place.path().join("volumes/not-ours").is_dir());
        store.delete(&one).unwrap();
        store.delete(&one).unwrap();
        assert!(store.list().is_empty() && !place.path().join("removing").join(&one).exists());
    }

    #[test]
    fn a_volume_is_listed_after_those_made_before() {
        let place = tempfile::tempdir().unwrap();
        let store = Store::open(place.path()).unwrap();
        for name in ["a", "b", "c", "d"] {
            store.create(&volume_id(name), name, 1).unwrap();
        }
        store.delete(&volume_id("b")).unwrap();
        store.create(&volume_id("e"), "e", 1).unwrap();
        assert_eq!(store.list().into_iter().map(|volume| volume.name).collect::<Vec<_>>(), ["a", "c", "d", "e"]);
    }
}
