//! The sockets below the registry folder.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Plugins at a time; further sockets are left alone.
pub(crate) const PLUGINS_MAX: usize = 128;
/// Folders below one another that are looked into.
const DEPTH_MAX: usize = 4;
/// Folders that are looked into at all.
const FOLDERS_MAX: usize = 256;

/// What tells a socket from one that has been made anew at its place: device, inode and time of birth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity(u64, u64, i64, i64);

/// What is below the registry folder.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Sockets by path.
    pub(crate) sockets: BTreeMap<PathBuf, Identity>,
    /// Folders, which may get sockets.
    pub(crate) folders: Vec<PathBuf>,
}

/// Looks for sockets in a folder and those below it; names with a leading dot don't count.
pub(crate) fn find_sockets(registry: &Path) -> Found {
    let mut found = Found::default();
    let mut left = vec![(registry.to_path_buf(), 0)];
    while let Some((folder, depth)) = left.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            // The entry itself: a link to a socket elsewhere is no plugin.
            let Ok(metadata) = entry.metadata() else { continue };
            if name.to_string_lossy().starts_with('.') {
                continue;
            }
            if metadata.is_dir() && depth < DEPTH_MAX && found.folders.len() < FOLDERS_MAX {
                found.folders.push(path.clone());
                left.push((path, depth + 1));
            } else if metadata.file_type().is_socket() && found.sockets.len() <= PLUGINS_MAX {
                // The time of change won't do: it moves when somebody sets a mode.
                let born = metadata.created().ok().and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
                let born = born.unwrap_or_default();
                let identity = Identity(
                    metadata.dev(),
                    metadata.ino(),
                    i64::try_from(born.as_secs()).unwrap_or_default(),
                    i64::from(born.subsec_nanos()),
                );
                found.sockets.insert(path, identity);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn sockets_are_found_wherever_they_are_and_told_apart() {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        std::fs::create_dir_all(at("driver/deep")).unwrap();
        std::fs::write(at("file.sock"), "").unwrap();
        let _sockets = [
            UnixListener::bind(at("a.sock")).unwrap(),
            UnixListener::bind(at(".hidden.sock")).unwrap(),
            UnixListener::bind(at("driver/deep/b.sock")).unwrap(),
        ];
        std::os::unix::fs::symlink(at("a.sock"), at("link.sock")).unwrap();
        let found = find_sockets(place.path());
        assert_eq!(found.sockets.keys().collect::<Vec<_>>(), [&at("a.sock"), &at("driver/deep/b.sock")]);
        assert_eq!(found.folders.len(), 2);
        assert_eq!(find_sockets(place.path()).sockets, found.sockets);
        std::fs::remove_file(at("a.sock")).unwrap();
        let _again = UnixListener::bind(at("a.sock")).unwrap();
        assert_ne!(find_sockets(place.path()).sockets[&at("a.sock")], found.sockets[&at("a.sock")]);
    }
}
