//! Addresses in use: one file each, named by the address, with container and interface in it.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::Result;
use crate::kit::{Attachment, CniError, Code};

/// A file that is being written.
const FRESH: &str = ".orlop-fresh";

/// The addresses of a network, locked while this lives.
pub(crate) struct Store {
    folder: PathBuf,
    _lock: File,
}

fn failed(step: &str, path: &Path) -> impl FnOnce(std::io::Error) -> CniError {
    let step = format!("{step} {}", path.display());
    move |error| CniError::new(Code::Io, format!("{step}: {error}"))
}

impl Store {
    /// Opens the folder of a network and waits for its lock.
    pub(crate) fn open(data_dir: &Path, network: &str) -> Result<Store> {
        let folder = data_dir.join(network);
        std::fs::create_dir_all(&folder).map_err(failed("make the folder", &folder))?;
        let path = folder.join("lock");
        let lock = OpenOptions::new().read(true).append(true).create(true).mode(0o750).open(&path);
        let lock = lock.map_err(failed("open", &path))?;
        lock.lock().map_err(failed("lock", &path))?;
        Ok(Store { folder, _lock: lock })
    }

    /// The same, unless nothing was ever kept there.
    pub(crate) fn open_if_there(data_dir: &Path, network: &str) -> Result<Option<Store>> {
        match data_dir.join(network).is_dir() {
            true => Store::open(data_dir, network).map(Some),
            false => Ok(None),
        }
    }

    fn last_file(&self, set: usize) -> PathBuf {
        self.folder.join(format!("last_reserved_ip.{set}"))
    }

    /// The address that was reserved last in a set.
    pub(crate) fn last(&self, set: usize) -> Option<IpAddr> {
        std::fs::read_to_string(self.last_file(set)).ok()?.trim().parse().ok()
    }

    /// Takes an address; false when somebody has it. The file appears whole: who is killed in between leaves at most
    /// [`FRESH`], which the next one writes over.
    pub(crate) fn reserve(&self, id: &str, ifname: &str, ip: IpAddr, set: usize) -> Result<bool> {
        let path = self.folder.join(ip.to_string());
        if path.symlink_metadata().is_ok() {
            return Ok(false);
        }
        self.replace(&path, &format!("{id}\r\n{ifname}"))?;
        self.replace(&self.last_file(set), &ip.to_string())?;
        Ok(true)
    }

    /// Puts a file in place. Everybody who writes here holds the lock.
    fn replace(&self, path: &Path, text: &str) -> Result<()> {
        let fresh = self.folder.join(FRESH);
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh);
        let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
        written.map_err(failed("write", &fresh))?;
        std::fs::rename(&fresh, path).map_err(failed("write", path))
    }

    /// Gives an address back.
    pub(crate) fn give_back(&self, ip: IpAddr) -> Result<()> {
        let path = self.folder.join(ip.to_string());
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed("remove", &path)(error)),
            _ => Ok(()),
        }
    }

    /// Every address with the trimmed text of its file.
    fn entries(&self) -> Result<Vec<(IpAddr, String)>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.folder).map_err(failed("list", &self.folder))?.flatten() {
            let Some(ip) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
            found.push((ip, text.trim().to_string()));
        }
        Ok(found)
    }

    /// Addresses of an attachment.
    pub(crate) fn owned(&self, id: &str, ifname: &str) -> Result<Vec<IpAddr>> {
        let wanted = format!("{id}\r\n{ifname}");
        Ok(self.entries()?.into_iter().filter(|(_, text)| *text == wanted).map(|(ip, _)| ip).collect())
    }

    /// Whether an attachment has an address, also in the format without the interface.
    pub(crate) fn has(&self, id: &str, ifname: &str) -> Result<bool> {
        let wanted = format!("{id}\r\n{ifname}");
        Ok(self.entries()?.iter().any(|(_, text)| *text == wanted || text == id))
    }

    /// Gives back the addresses of an attachment; those without an interface only when there are no others.
    pub(crate) fn release(&self, id: &str, ifname: &str) -> Result<()> {
        let wanted = format!("{id}\r\n{ifname}");
        let entries = self.entries()?;
        let exact = entries.iter().any(|(_, text)| *text == wanted);
        self.remove(entries, |text| if exact { text == wanted } else { text == id })
    }

    /// Gives back the addresses of attachments that are not valid. A file that is empty was never finished.
    pub(crate) fn collect(&self, valid: &[Attachment]) -> Result<()> {
        let keep = |text: &str| {
            valid
                .iter()
                .any(|one| text == one.container_id || text == format!("{}\r\n{}", one.container_id, one.ifname))
        };
        self.remove(self.entries()?, |text| !keep(text))
    }

    fn remove(&self, entries: Vec<(IpAddr, String)>, is_old: impl Fn(&str) -> bool) -> Result<()> {
        entries.into_iter().filter(|(_, text)| is_old(text)).try_for_each(|(ip, _)| self.give_back(ip))
    }
}
