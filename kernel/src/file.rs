//! Small files that are there whole or not at all: drafts beside their place, renames, removals, bounded reads.

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// What a file has to outlive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outlives {
    /// The process that writes it: what it tells ends with the power.
    Process,
    /// A loss of power, at the price of syncing the file and its folder.
    Power,
}

/// Begins the name of a draft, so that most lists leave it out.
const PREFIX: &str = ".";
/// Ends the name of a draft, so that it is taken for nobody else's file.
const SUFFIX: &str = ".orlop-new";

/// Puts a file in place: readers see the old one or the new one, whoever is killed whenever. Several may replace the
/// same file at once, in one process or many; they take turns.
///
/// `mode` is what the file has afterwards, whatever the process's mask is. What a killed writer leaves is a draft
/// ([`is_draft`]), which goes with the next [`replace`] or [`remove`] of the same file, or by [`sweep`].
///
/// # Errors
/// When the folder refuses; the old file is untouched then.
pub fn replace(path: &Path, bytes: &[u8], mode: u32, outlives: Outlives) -> io::Result<()> {
    let draft = draft_of(path)?;
    let mut file = take_draft(&draft, mode)?;
    let written = (|| {
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        if outlives == Outlives::Power {
            file.sync_all()?;
        }
        std::fs::rename(&draft, path)?;
        if outlives == Outlives::Power { sync_folder(path.parent().unwrap_or(Path::new("/"))) } else { Ok(()) }
    })();
    if written.is_err() {
        // Ours as long as the lock is held; after the rename there is none.
        let _ = std::fs::remove_file(&draft);
    }
    written
}

/// Removes a file and what a killed writer left of it. Says whether there was a file.
///
/// # Errors
/// When the folder refuses for another reason than absence.
pub fn remove(path: &Path) -> io::Result<bool> {
    let removed = absent_is_fine(std::fs::remove_file(path))?;
    remove_left(&draft_of(path)?)?;
    Ok(removed.is_some())
}

/// Removes the drafts in a folder that nobody is writing any more.
///
/// # Errors
/// When the folder can't be listed; its absence is fine.
pub fn sweep(folder: &Path) -> io::Result<()> {
    let Some(entries) = absent_is_fine(std::fs::read_dir(folder))? else { return Ok(()) };
    entries.flatten().filter(|entry| is_draft(&entry.file_name())).try_for_each(|entry| remove_left(&entry.path()))
}

/// Removes a draft that nobody is writing.
fn remove_left(draft: &Path) -> io::Result<()> {
    let Some(file) = absent_is_fine(File::open(draft))? else { return Ok(()) };
    if file.try_lock().is_ok() && is_at(&file, draft) {
        absent_is_fine(std::fs::remove_file(draft))?;
    }
    Ok(())
}

/// Whether a name is one of a file that is being written, or was when its writer was killed.
#[must_use]
pub fn is_draft(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    name.starts_with(PREFIX.as_bytes()) && name.ends_with(SUFFIX.as_bytes())
}

/// Reads a file; none when there is none.
///
/// # Errors
/// When it can't be read, or is larger than `bytes_max`.
pub fn read(path: &Path, bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
    let Some(file) = absent_is_fine(File::open(path))? else { return Ok(None) };
    let mut bytes = Vec::new();
    file.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is larger than {bytes_max} bytes")));
    }
    Ok(Some(bytes))
}

/// Makes names that came into a folder, or went from it, last over a loss of power.
///
/// # Errors
/// When the folder can't be opened or synced.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn absent_is_fine<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn draft_of(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| io::Error::other(format!("{path:?} names no file")))?;
    let mut draft = OsString::with_capacity(PREFIX.len() + name.len() + SUFFIX.len());
    draft.push(PREFIX);
    draft.push(name);
    draft.push(SUFFIX);
    Ok(path.with_file_name(draft))
}

/// Opens the draft, alone: another writer is waited for. It may have renamed its draft into place meanwhile; then the
/// file that was locked is the finished one, and the next draft is made.
fn take_draft(draft: &Path, mode: u32) -> io::Result<File> {
    loop {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(mode & 0o600).custom_flags(libc::O_NOFOLLOW);
        let file = options.open(draft)?;
        if let Err(error) = file.try_lock() {
            match error {
                TryLockError::WouldBlock => file.lock()?,
                TryLockError::Error(error) => return Err(error),
            }
        }
        if is_at(&file, draft) {
            // What a killed writer left.
            file.set_len(0)?;
            return Ok(file);
        }
    }
}

/// Whether an open file is the one at a path.
fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(open), Ok(there)) = (file.metadata(), path.symlink_metadata()) else { return false };
    (open.dev(), open.ino()) == (there.dev(), there.ino())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    fn names(folder: &TempDir) -> Vec<OsString> {
        let entries = std::fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_replaced_read_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        assert_eq!(read(&path, 10).unwrap(), None);
        for (bytes, mode, outlives) in
            [(&b"first"[..], 0o644, Outlives::Power), (b"2", 0o600, Outlives::Process), (b"", 0o666, Outlives::Process)]
        {
            replace(&path, bytes, mode, outlives).unwrap();
            assert_eq!(read(&path, 5).unwrap().as_deref(), Some(bytes));
            assert_eq!(path.metadata().unwrap().mode() & 0o7777, mode, "whatever the mask is");
            assert_eq!(names(&folder), ["a.json"]);
        }
        std::fs::write(&path, "too long").unwrap();
        assert_eq!(read(&path, 5).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert!(remove(&path).unwrap() && !remove(&path).unwrap());
        assert!(replace(&folder.path().join("no/such"), b"", 0o600, Outlives::Process).is_err());
        assert!(replace(Path::new("/"), b"", 0o600, Outlives::Process).is_err());
    }

    #[test]
    fn what_a_killed_writer_leaves_is_written_over_removed_and_swept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        let leave = || std::fs::write(draft_of(&path).unwrap(), "half of a longer one").unwrap();
        leave();
        assert!(names(&folder).iter().all(|name| is_draft(name)) && !is_draft(OsStr::new("a.json")));
        replace(&path, b"whole", 0o600, Outlives::Process).unwrap();
        assert_eq!(read(&path, 100).unwrap().as_deref(), Some(&b"whole"[..]));
        leave();
        assert!(remove(&path).unwrap());
        assert_eq!(names(&folder), [""; 0]);
        leave();
        let writes = take_draft(&draft_of(&folder.path().join("b")).unwrap(), 0o600).unwrap();
        std::fs::write(folder.path().join(".hidden"), "").unwrap();
        sweep(folder.path()).unwrap();
        assert_eq!(names(&folder), [".b.orlop-new", ".hidden"], "what is being written stays");
        drop(writes);
        sweep(&folder.path().join("missing")).unwrap();
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("is-a-folder");
        std::fs::create_dir(&path).unwrap();
        assert!(replace(&path, b"x", 0o600, Outlives::Process).is_err());
        assert_eq!(names(&folder), ["is-a-folder"]);
        // A link in the place of the draft is not followed.
        std::os::unix::fs::symlink("/dev/null", draft_of(&folder.path().join("b")).unwrap()).unwrap();
        assert!(replace(&folder.path().join("b"), b"x", 0o600, Outlives::Process).is_err());
    }

    #[test]
    fn writers_of_one_file_take_turns() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::thread::scope(|scope| {
            for writer in 0..4_u8 {
                let path = &path;
                scope.spawn(move || {
                    for _ in 0..200 {
                        replace(path, &[writer; 4096], 0o600, Outlives::Process).unwrap();
                        let seen = read(path, 4096).unwrap().unwrap();
                        assert!(seen.len() == 4096 && seen.iter().all(|byte| *byte == seen[0]), "whole");
                    }
                });
            }
        });
        assert_eq!(names(&folder), ["a"]);
    }
}
