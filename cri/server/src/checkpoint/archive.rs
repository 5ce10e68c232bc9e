//! The archives of a checkpoint: what a container has written, as a layer of an image, and the whole.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Error, Read, Result, Write, repeat};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use orlop_kernel::path::open_beneath;
use rustix::fs::{AtFlags, Dir, FileType, OFlags, Stat, statat};
use serde_json::Value;
use tar::{Builder, EntryType, Header};

/// Bytes of one extended attribute.
const ATTRIBUTE_BYTES_MAX: usize = 64 << 10;

/// One part of the whole.
pub(super) enum Part<'a> {
    /// A file by its name and content.
    Json(&'a str, &'a Value),
    /// A file of the machine.
    File(&'a str, PathBuf),
    /// A folder of the machine with its files.
    Folder(&'a str, PathBuf),
}

/// Writes the whole. What there is to read is read as it is now; a log that grows meanwhile ends where it ended.
pub(super) fn write(parts: &[Part<'_>], out: &File) -> Result<()> {
    let mut archive = Builder::new(std::io::BufWriter::new(out));
    for part in parts {
        match part {
            Part::Json(name, value) => {
                let text = serde_json::to_vec_pretty(value)?;
                archive.append_data(
                    &mut header(EntryType::Regular, 0o600, text.len() as u64),
                    name,
                    text.as_slice(),
                )?;
            }
            Part::File(name, path) => append_file(&mut archive, Path::new(name), path)?,
            Part::Folder(name, path) => {
                archive.append_data(&mut header(EntryType::Directory, 0o700, 0), name, std::io::empty())?;
                let mut names: Vec<_> = std::fs::read_dir(path)?.flatten().map(|entry| entry.file_name()).collect();
                names.sort();
                for inner in names {
                    append_file(&mut archive, &Path::new(name).join(&inner), &path.join(&inner))?;
                }
            }
        }
    }
    archive.into_inner()?.flush()
}

/// A header of a file of root.
fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header
}

fn append_file(archive: &mut Builder<impl Write>, name: &Path, path: &Path) -> Result<()> {
    let named = |error: Error| Error::new(error.kind(), format!("{}: {error}", path.display()));
    // Nothing that somebody puts in its place.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
    let file = File::options().read(true).custom_flags(flags).open(path).map_err(named)?;
    let meta = file.metadata().map_err(named)?;
    if !meta.is_file() {
        return Err(named(Error::other("is no plain file")));
    }
    let mut header = header(EntryType::Regular, 0o600, meta.len());
    header.set_mtime(meta.mtime().max(0).unsigned_abs());
    archive.append_data(&mut header, name, exactly(file, meta.len())).map_err(named)
}

/// As many bytes as the header says, whatever becomes of the file.
fn exactly(file: impl Read, length: u64) -> impl Read {
    file.chain(repeat(0)).take(length)
}

/// Packs the writable layer of an overlay: what it hides becomes a whiteout as in layers of images. Its container goes on,
/// so nothing in there is reached through a link, and what goes meanwhile is passed by.
pub(super) fn write_layer(layer: &Path, out: File) -> Result<()> {
    let root: OwnedFd = File::open(layer)?.into();
    let mut packer = Packer { root, archive: Builder::new(std::io::BufWriter::new(out)), links: BTreeMap::new() };
    let mut waiting = vec![PathBuf::new()];
    while let Some(folder) = waiting.pop() {
        match packer.pack_folder(&folder) {
            Ok(inner) => waiting.extend(inner),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::new(error.kind(), format!("{}: {error}", folder.display()))),
        }
    }
    packer.archive.into_inner()?.flush()
}

struct Packer<W: Write> {
    root: OwnedFd,
    archive: Builder<W>,
    /// Files with several names by their number.
    links: BTreeMap<u64, PathBuf>,
}

impl<W: Write> Packer<W> {
    /// Packs a folder's entries; returns the folders among them.
    fn pack_folder(&mut self, path: &Path) -> Result<Vec<PathBuf>> {
        let folder = self.open(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        if attribute(&folder, "trusted.overlay.opaque")?.is_some_and(|value| value == b"y") {
            let mark = path.join(".wh..wh..opq");
            self.archive.append_data(&mut header(EntryType::Regular, 0o600, 0), mark, std::io::empty())?;
        }
        let mut names = Vec::new();
        for entry in Dir::read_from(&folder)? {
            let name = entry?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(PathBuf::from(std::ffi::OsStr::from_bytes(&name)));
            }
        }
        names.sort();
        let mut folders = Vec::new();
        for name in names {
            let inner = path.join(&name);
            match self.pack_entry(&folder, &name, &inner) {
                Ok(true) => folders.push(inner),
                Ok(false) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::new(error.kind(), format!("{}: {error}", inner.display()))),
            }
        }
        Ok(folders)
    }

    /// Packs one entry; whether it is a folder.
    fn pack_entry(&mut self, folder: &OwnedFd, name: &Path, path: &Path) -> Result<bool> {
        let stat = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let inner = self.open(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
                self.append_attributes(&inner)?;
                self.append(&mut of(&stat, EntryType::Directory, 0), path, std::io::empty())?;
                Ok(true)
            }
            FileType::RegularFile => self.pack_file(path).map(|()| false),
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(folder, name, Vec::new())?;
                let target = Path::new(std::ffi::OsStr::from_bytes(target.to_bytes())).to_path_buf();
                self.archive.append_link(&mut of(&stat, EntryType::Symlink, 0), path, target)?;
                Ok(false)
            }
            FileType::CharacterDevice if stat.st_rdev == 0 => {
                let mut hidden = std::ffi::OsString::from(".wh.");
                hidden.push(name);
                self.append(&mut header(EntryType::Regular, 0o600, 0), &path.with_file_name(hidden), std::io::empty())?;
                Ok(false)
            }
            kind @ (FileType::CharacterDevice | FileType::BlockDevice | FileType::Fifo) => {
                let kind = match kind {
                    FileType::CharacterDevice => EntryType::Char,
                    FileType::BlockDevice => EntryType::Block,
                    _ => EntryType::Fifo,
                };
                let mut header = of(&stat, kind, 0);
                header.set_device_major(rustix::fs::major(stat.st_rdev))?;
                header.set_device_minor(rustix::fs::minor(stat.st_rdev))?;
                self.append(&mut header, path, std::io::empty())?;
                Ok(false)
            }
            // A socket is nothing without its process.
            _ => Ok(false),
        }
    }

    fn pack_file(&mut self, path: &Path) -> Result<()> {
        let file = self.open(path, OFlags::RDONLY | OFlags::NONBLOCK)?;
        let stat = rustix::fs::fstat(&file)?;
        if stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&stat.st_ino) {
                let first = first.clone();
                return self.archive.append_link(&mut of(&stat, EntryType::Link, 0), path, first);
            }
            self.links.insert(stat.st_ino, path.into());
        }
        self.append_attributes(&file)?;
        let length = u64::try_from(stat.st_size).unwrap_or(0);
        self.append(&mut of(&stat, EntryType::Regular, length), path, exactly(File::from(file), length))
    }

    fn append(&mut self, header: &mut Header, path: &Path, data: impl Read) -> Result<()> {
        self.archive.append_data(header, path, data)
    }

    /// Attributes of users and the capabilities of programs, before the entry itself.
    fn append_attributes(&mut self, file: &OwnedFd) -> Result<()> {
        let mut names = vec![0u8; ATTRIBUTE_BYTES_MAX];
        let length = match rustix::fs::flistxattr(file, &mut names) {
            Ok(length) => length,
            Err(_) => return Ok(()),
        };
        let mut found = Vec::new();
        for name in names[..length].split(|byte| *byte == 0).filter_map(|name| std::str::from_utf8(name).ok()) {
            if (name.starts_with("user.") && !name.starts_with("user.overlay.")) || name == "security.capability" {
                found.extend(attribute(file, name)?.map(|value| (format!("SCHILY.xattr.{name}"), value)));
            }
        }
        if found.is_empty() {
            return Ok(());
        }
        self.archive.append_pax_extensions(found.iter().map(|(name, value)| (name.as_str(), value.as_slice())))
    }

    fn open(&self, path: &Path, flags: OFlags) -> Result<OwnedFd> {
        open_beneath(&self.root, path, flags | OFlags::CLOEXEC).map_err(|error| {
            match orlop_kernel::path::is_absent(&error) {
                true => std::io::ErrorKind::NotFound.into(),
                false => Error::other(error),
            }
        })
    }
}

fn attribute(file: impl AsFd, name: &str) -> Result<Option<Vec<u8>>> {
    let mut value = vec![0u8; ATTRIBUTE_BYTES_MAX];
    match rustix::fs::fgetxattr(file, name, &mut value) {
        Ok(length) => {
            value.truncate(length);
            Ok(Some(value))
        }
        Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// A header with what is known of a file.
fn of(stat: &Stat, kind: EntryType, size: u64) -> Header {
    let mut header = header(kind, stat.st_mode & 0o7777, size);
    header.set_uid(stat.st_uid.into());
    header.set_gid(stat.st_gid.into());
    header.set_mtime(stat.st_mtime.max(0).unsigned_abs());
    header
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn names(bytes: &[u8]) -> Vec<String> {
        let mut archive = tar::Archive::new(bytes);
        let entries = archive.entries().unwrap().map(Result::unwrap);
        entries.map(|entry| entry.path().unwrap().display().to_string()).collect()
    }

    #[test]
    fn a_layer_is_packed_with_what_it_hides_and_nothing_from_outside() {
        let folder = tempfile::tempdir().unwrap();
        let layer = folder.path().join("upper");
        std::fs::create_dir_all(layer.join("a/b")).unwrap();
        std::fs::write(layer.join("a/file"), b"text").unwrap();
        std::fs::hard_link(layer.join("a/file"), layer.join("a/same")).unwrap();
        std::fs::write(folder.path().join("secret"), b"secret").unwrap();
        symlink("../../secret", layer.join("a/link")).unwrap();
        symlink("/", layer.join("machine")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(layer.join("socket")).unwrap();
        let out = folder.path().join("diff.tar");
        write_layer(&layer, File::create(&out).unwrap()).unwrap();
        let bytes = std::fs::read(&out).unwrap();
        assert_eq!(names(&bytes), ["a", "machine", "a/b", "a/file", "a/link", "a/same"]);
        assert!(
            !bytes.windows(6).any(|part| part == b"secret") || bytes.windows(12).any(|part| part == b"../../secret")
        );
        let mut archive = tar::Archive::new(bytes.as_slice());
        let same = archive.entries().unwrap().map(Result::unwrap).find(|entry| entry.path().unwrap().ends_with("same"));
        assert_eq!(same.unwrap().link_name().unwrap().unwrap(), Path::new("a/file"));
    }

    #[test]
    fn the_whole_has_its_parts_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let images = folder.path().join("checkpoint");
        std::fs::create_dir(&images).unwrap();
        std::fs::write(images.join("pages-1.img"), b"pages").unwrap();
        let log = folder.path().join("dump.log");
        std::fs::write(&log, b"words").unwrap();
        let value = serde_json::json!({"id": "c"});
        let parts =
            [Part::Json("config.dump", &value), Part::Folder("checkpoint", images), Part::File("dump.log", log)];
        let out = folder.path().join("out.tar");
        write(&parts, &File::create(&out).unwrap()).unwrap();
        assert_eq!(
            names(&std::fs::read(&out).unwrap()),
            ["config.dump", "checkpoint", "checkpoint/pages-1.img", "dump.log"]
        );
        let missing = [Part::File("stats-dump", folder.path().join("stats-dump"))];
        let said = write(&missing, &File::create(&out).unwrap()).unwrap_err().to_string();
        assert!(said.contains("stats-dump"), "{said}");
        symlink("/etc/hostname", folder.path().join("log")).unwrap();
        assert!(
            write(&[Part::File("container.log", folder.path().join("log"))], &File::create(&out).unwrap()).is_err()
        );
    }
}
