//! What is on disk of a container: `<root>/<id>/` with its record, its specification and the socket of its start.
//!
//! | file | what |
//! |---|---|
//! | `state.json` | [`Record`], replaced as a whole |
//! | `config.json` | the specification as it was when the container was made |
//! | `start.sock` | where the first process waits; gone once it has been started |
//!
//! Commands that change a container lock its folder. A folder without a record is that of a creation that was killed.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use orlop_container::config::{Config, Hooks};
use orlop_container::hook::HookState;
use orlop_container::stage::Step;
use orlop_kernel::cgroup::Cgroups;
use orlop_kernel::file::{self, Outlives};
use orlop_kernel::{lock, procfs, socket};
use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// Letters of an id: what a folder's name may have.
const ID_MAX: usize = 255;
/// How long a command waits for another one.
const LOCK_TIME: Duration = Duration::from_secs(10);

/// What is known of a container.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Version of this record; 1.
    pub version: u32,
    /// Version of the specification that it was made by.
    pub oci_version: String,
    /// Its name.
    pub id: String,
    /// The folder of its specification.
    pub bundle: PathBuf,
    /// The folder of its root.
    pub rootfs: PathBuf,
    /// When it was made, in nanoseconds since the epoch.
    pub created: i64,
    /// Its first process; 0 while it is being made.
    pub pid: i32,
    /// When that started, in clock ticks since boot: tells a number that is used again.
    pub pid_start_ticks: u64,
    /// Path of its cgroup.
    pub cgroup: String,
    /// The cgroup was there before, so it stays.
    pub foreign_cgroup: bool,
    /// It has process numbers of its own: they end with its first process.
    pub own_pids: bool,
    /// It has a cgroup namespace of its own.
    pub own_cgroups: bool,
    /// It has a user namespace.
    pub user_namespace: bool,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// Its hooks.
    pub hooks: Hooks,
}

/// Where a container stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It is being made, or its creation was killed.
    Creating,
    /// It waits for its start.
    Created,
    /// Its program runs.
    Running,
    /// Its processes stand still.
    Paused,
    /// Its first process has ended.
    Stopped,
}

impl Status {
    /// The specification's word.
    pub fn word(self) -> &'static str {
        match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        }
    }
}

/// The folder of all containers.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
}

/// A container's folder.
#[derive(Debug)]
pub struct Place {
    /// The folder.
    pub folder: PathBuf,
}

/// A lock on a container's folder.
#[derive(Debug)]
pub struct Held {
    /// Unlocked when it is closed.
    _folder: File,
}

/// Refuses an id that is no plain name.
pub fn check_id(id: &str) -> Result<(), Failure> {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "_+-.".contains(letter);
    if id.is_empty() || id.len() > ID_MAX || id == "." || id == ".." || !id.chars().all(plain) {
        return Err(Failure::Id(id.chars().take(ID_MAX + 1).collect()));
    }
    Ok(())
}

impl Store {
    /// The containers below a folder.
    pub fn new(root: PathBuf) -> Store {
        Store { root }
    }

    /// The folder of a container that exists.
    ///
    /// # Errors
    /// When it doesn't.
    pub fn find(&self, id: &str) -> Result<Place, Failure> {
        check_id(id)?;
        let folder = self.root.join(id);
        if folder.is_dir() { Ok(Place { folder }) } else { Err(Failure::Missing) }
    }

    /// Makes the folder of a new container and locks it.
    ///
    /// # Errors
    /// When there is one of that name.
    pub fn make(&self, id: &str) -> Result<(Place, Held), Failure> {
        check_id(id)?;
        let mut private = std::fs::DirBuilder::new();
        private.mode(0o700);
        std::fs::DirBuilder::new()
            .mode(0o711)
            .recursive(true)
            .create(&self.root)
            .step(format!("make the folder {:?}", self.root))?;
        let place = Place { folder: self.root.join(id) };
        match private.create(&place.folder) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Err(Failure::Exists(id.into())),
            made => made.step(format!("make the folder {:?}", place.folder))?,
        }
        let held = place.lock(id)?;
        Ok((place, held))
    }

    /// The names of all containers.
    ///
    /// # Errors
    /// When the folder can't be read.
    pub fn ids(&self) -> Result<Vec<String>, Failure> {
        let entries = match std::fs::read_dir(&self.root) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.step(format!("read the folder {:?}", self.root))?,
        };
        let folders = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        let mut ids: Vec<String> = folders.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        ids.sort();
        Ok(ids)
    }
}

impl Place {
    /// Locks the folder, waiting a while for another command.
    ///
    /// # Errors
    /// When that doesn't end in time, or has removed the container.
    pub fn lock(&self, id: &str) -> Result<Held, Failure> {
        let folder = match File::open(&self.folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(Failure::Missing),
            opened => opened.step(format!("open {:?}", self.folder))?,
        };
        let end = Instant::now() + LOCK_TIME;
        while !lock::lock_file(&folder).step(format!("lock {:?}", self.folder))? {
            if Instant::now() > end {
                return Err(Failure::Busy(id.into(), LOCK_TIME.as_secs()));
            }
        }
        let same = |other: &std::fs::Metadata| folder.metadata().is_ok_and(|own| own.ino() == other.ino());
        match std::fs::metadata(&self.folder) {
            Ok(now) if same(&now) => Ok(Held { _folder: folder }),
            _ => Err(Failure::Missing),
        }
    }

    /// The record; none while the container is half made.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn read(&self) -> Result<Option<Record>, Failure> {
        let file = self.folder.join("state.json");
        let bytes = match std::fs::read(&file) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            read => read.step(format!("read {file:?}"))?,
        };
        Ok(Some(serde_json::from_slice(&bytes).step(format!("read {file:?} (delete --force removes the container)"))?))
    }

    /// The record and where the container stands.
    ///
    /// # Errors
    /// When there is no container.
    pub fn look(&self, id: &str) -> Result<(Record, Status), Failure> {
        let record = match self.read()? {
            Some(record) => record,
            None if !self.folder.exists() => return Err(Failure::Missing),
            None => Record { id: id.into(), ..Record::default() },
        };
        let status = self.status(&record);
        Ok((record, status))
    }

    /// Replaces the record. It tells of processes, which end with the power, so it is not synced.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn write(&self, record: &Record) -> Result<(), Failure> {
        let text = serde_json::to_vec(record).step("encode the record")?;
        let file = self.folder.join("state.json");
        Ok(file::replace(&file, &text, 0o600, Outlives::Process).step(format!("replace {file:?}"))?)
    }

    /// The specification that the container was made by.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn config(&self) -> Result<Config, Failure> {
        let file = self.folder.join("config.json");
        let bytes = std::fs::read(&file).step(format!("read {file:?}"))?;
        Ok(serde_json::from_slice(&bytes).step(format!("read {file:?}"))?)
    }

    /// Where the first process waits for its start.
    pub fn start_socket(&self) -> PathBuf {
        self.folder.join("start.sock")
    }

    /// Where the container stands, by the kernel's word.
    pub fn status(&self, record: &Record) -> Status {
        if record.pid == 0 {
            return Status::Creating;
        }
        if !procfs::is_alive(record.pid, record.pid_start_ticks) {
            return Status::Stopped;
        }
        if Cgroups::detect().is_ok_and(|cgroups| cgroups.is_frozen(&record.cgroup)) {
            return Status::Paused;
        }
        // The socket ends with the exec. A connection without a word changes nothing.
        let socket = self.start_socket();
        if socket.exists() && socket::connect(&socket).is_ok() { Status::Created } else { Status::Running }
    }

    /// Removes the folder; the lock that its holder has is worth nothing any more.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn remove(&self) -> Result<(), Failure> {
        match std::fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).step(format!("remove {:?}", self.folder)).map_err(Into::into)
            }
            _ => Ok(()),
        }
    }
}

impl Record {
    /// What hooks are told.
    pub fn hook_state<'a>(&'a self, status: &'a str, pid: i32) -> HookState<'a> {
        HookState {
            oci_version: &self.oci_version,
            id: &self.id,
            status,
            pid,
            bundle: &self.bundle,
            annotations: &self.annotations,
        }
    }
}

/// An absolute path, whatever it is relative to.
///
/// # Errors
/// When the working folder is gone.
pub fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    Ok(std::path::absolute(path).step(format!("find {path:?}"))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_plain_names() {
        for id in ["a", "A_b+c-d.e", "..a", "0", &"x".repeat(255)] {
            check_id(id).unwrap();
        }
        for id in ["", ".", "..", "../x", "a/b", "a b", "ä", "a\0", "a\n", &"x".repeat(256)] {
            assert!(check_id(id).is_err(), "{id:?}");
        }
    }

    #[test]
    fn a_container_is_made_once_and_locked_while_it_is_changed() {
        let root = std::env::temp_dir().join(format!("orlop-store-{}", std::process::id()));
        let store = Store::new(root.join("deep"));
        assert!(matches!(store.find("c"), Err(Failure::Missing)));
        let (place, held) = store.make("c").unwrap();
        assert!(matches!(store.make("c"), Err(Failure::Exists(_))));
        assert_eq!(place.look("c").unwrap().1, Status::Creating);
        place.write(&Record { id: "c".into(), pid: 1 << 22, ..Record::default() }).unwrap();
        assert_eq!(place.look("c").unwrap().1, Status::Stopped);
        drop(held);
        let held = place.lock("c").unwrap();
        place.remove().unwrap();
        drop(held);
        assert!(matches!(place.lock("c"), Err(Failure::Missing)));
        assert_eq!(store.ids().unwrap(), Vec::<String>::new());
        std::fs::remove_dir_all(root).unwrap();
    }
}
