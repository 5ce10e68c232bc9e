//! Files that change all at once: a new folder is written beside the old one and a link is turned to it, as the
//! kubelet's `AtomicWriter` lays it out.
//!
//! `name -> ..data/name`, `..data -> ..<time>`, `..<time>/name`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

/// Link to the folder in force.
const DATA: &str = "..data";
/// Name under which a new link is made before it replaces the old one.
const FRESH: &str = "..data_tmp";

/// A file of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) bytes: Vec<u8>,
    /// Mode bits.
    pub(crate) mode: u32,
    /// Owner, where it is not root.
    pub(crate) owner: Option<u32>,
}

/// Writes files; nothing is touched when they are there already. `prepare` sees the new folder before it comes into
/// force.
pub(crate) fn write(
    folder: &Path,
    files: &BTreeMap<String, File>,
    prepare: impl FnOnce(&Path) -> Result<(), String>,
) -> io::Result<()> {
    for name in files.keys() {
        check(name)?;
    }
    let old = std::fs::read_link(folder.join(DATA)).ok();
    if old.as_ref().is_some_and(|old| is_same(&folder.join(old), files)) {
        link_names(folder, files)?;
        return Ok(());
    }
    let fresh = new_folder(folder)?;
    let written = write_files(&fresh, files).and_then(|()| prepare(&fresh).map_err(io::Error::other));
    if let Err(error) = written {
        let _ = std::fs::remove_dir_all(&fresh);
        return Err(error);
    }
    let name = fresh.file_name().unwrap_or_default();
    let link = folder.join(FRESH);
    let _ = std::fs::remove_file(&link);
    symlink(name, &link)?;
    std::fs::rename(&link, folder.join(DATA))?;
    link_names(folder, files)?;
    // Only now is nobody led to the old ones; those of an earlier crash go too.
    for entry in std::fs::read_dir(folder)?.flatten() {
        let entry_name = entry.file_name();
        let is_old = entry_name.to_string_lossy().starts_with("..") && entry_name != name && entry_name != DATA;
        if is_old && entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// Only names below the folder, and none of ours.
fn check(name: &str) -> io::Result<()> {
    let plain = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
    if plain && !name.is_empty() && !name.starts_with("..") && name.len() <= 4096 {
        return Ok(());
    }
    Err(io::Error::other(format!("{name:?} is no path of a file in a volume")))
}

/// A folder named by the time.
fn new_folder(folder: &Path) -> io::Result<PathBuf> {
    let now = jiff::Timestamp::now();
    for number in 0u32.. {
        let name = format!("..{}.{:09}{number}", now.strftime("%Y_%m_%d_%H_%M_%S"), now.subsec_nanosecond());
        let path = folder.join(name);
        match std::fs::create_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => {
                made?;
                // The volume's users pass through it.
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
                return Ok(path);
            }
        }
    }
    Err(io::Error::other("every name is taken"))
}

fn write_files(folder: &Path, files: &BTreeMap<String, File>) -> io::Result<()> {
    for (name, file) in files {
        let path = folder.join(name);
        if let Some(parent) = path.parent().filter(|parent| *parent != folder) {
            std::fs::create_dir_all(parent)?;
        }
        let mut out = std::fs::File::options().write(true).create_new(true).mode(0o600).open(&path)?;
        out.write_all(&file.bytes)?;
        if let Some(owner) = file.owner {
            std::os::unix::fs::fchown(&out, Some(owner), None)?;
        }
        out.set_permissions(std::fs::Permissions::from_mode(file.mode & 0o7777))?;
    }
    Ok(())
}

/// Whether a folder holds these files and no others.
fn is_same(folder: &Path, files: &BTreeMap<String, File>) -> bool {
    let same = |(name, file): (&String, &File)| std::fs::read(folder.join(name)).is_ok_and(|bytes| bytes == file.bytes);
    count(folder) == files.len() && files.iter().all(same)
}

fn count(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| if entry.path().is_dir() { count(&entry.path()) } else { 1 }).sum()
}

/// Makes the links that users see and removes those of files that are gone.
fn link_names(folder: &Path, files: &BTreeMap<String, File>) -> io::Result<()> {
    let first = |name: &String| Path::new(name).components().next().map(|part| part.as_os_str().to_os_string());
    let wanted: BTreeSet<_> = files.keys().filter_map(first).collect();
    for name in &wanted {
        let link = folder.join(name);
        if std::fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(name), &link)?;
        }
    }
    for entry in std::fs::read_dir(folder)?.flatten() {
        let name = entry.file_name();
        if !name.to_string_lossy().starts_with("..") && !wanted.contains(&name) && entry.file_type()?.is_symlink() {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(list: &[(&str, &str)]) -> BTreeMap<String, File> {
        let file = |text: &str| File { bytes: text.into(), mode: 0o640, owner: None };
        list.iter().map(|(name, text)| (name.to_string(), file(text))).collect()
    }

    #[test]
    fn contents_change_as_a_whole() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path();
        let none = |_: &Path| Ok(());
        write(folder, &files(&[("a", "1"), ("b/c", "2")]), none).unwrap();
        let before = std::fs::read_link(folder.join(DATA)).unwrap();
        assert_eq!(std::fs::read_to_string(folder.join("b/c")).unwrap(), "2");
        assert_eq!(std::fs::read_link(folder.join("a")).unwrap(), Path::new("..data/a"));
        let mode = std::fs::metadata(folder.join("a")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
        write(folder, &files(&[("a", "1"), ("b/c", "2")]), none).unwrap();
        assert_eq!(std::fs::read_link(folder.join(DATA)).unwrap(), before, "nothing changed");
        write(folder, &files(&[("a", "3")]), none).unwrap();
        assert_eq!(std::fs::read_to_string(folder.join("a")).unwrap(), "3");
        assert!(!folder.join("b").exists() && !folder.join(before).exists());
        let failed = write(folder, &files(&[("a", "4")]), |_| Err("no".into()));
        assert!(failed.is_err());
        assert_eq!(std::fs::read_to_string(folder.join("a")).unwrap(), "3");
        assert_eq!(std::fs::read_dir(folder).unwrap().count(), 3, "a, ..data and one folder");
    }

    #[test]
    fn paths_stay_inside() {
        let place = tempfile::tempdir().unwrap();
        for name in ["../x", "/x", "a/../../x", "..data", "", "..x"] {
            assert!(write(place.path(), &files(&[(name, "")]), |_| Ok(())).is_err(), "{name:?}");
        }
    }
}
