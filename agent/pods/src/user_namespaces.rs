//! Ranges of ids for pods with a user namespace of their own, kept in the pods' folders as a kubelet keeps them.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use orlop_agent_core::user_namespaces::{IdMapping, IdRanges, IdSpace};

use crate::shared::lock;

/// Longest file of a pod in bytes.
const FILE_MAX: u64 = 4096;

/// Why a pod can't have a range.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IdError {
    /// A file can't be read or written.
    #[error("user namespace: {path}: {source}")]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// A file says what can't be. As long as it is there, nobody knows which ids are in use.
    #[error("user namespace: {path}: {why}; remove the file when no container of that pod runs")]
    Content { path: PathBuf, why: String },
    /// No range is free.
    #[error("create user namespace: {0}")]
    Full(String),
}

/// The ranges of all pods of a node.
#[derive(Debug)]
pub(crate) struct UserNamespaces {
    pods: PathBuf,
    space: IdSpace,
    /// None until a pod asks for the first time; then the files on disk are read.
    ranges: Mutex<Option<IdRanges>>,
}

impl UserNamespaces {
    /// Ranges of the space, by the folder that has those of all pods.
    pub(crate) fn new(pods: PathBuf, space: IdSpace) -> UserNamespaces {
        UserNamespaces { pods, space, ranges: Mutex::new(None) }
    }

    fn file(&self, uid: &str) -> PathBuf {
        self.pods.join(uid).join("userns")
    }

    /// The range of a pod; a new one is on disk before it is given.
    pub(crate) fn get_or_allocate(&self, uid: &str) -> Result<IdMapping, IdError> {
        let mut ranges = lock(&self.ranges);
        let ranges = match &mut *ranges {
            Some(ranges) => ranges,
            none => none.insert(self.read_all()?),
        };
        let path = self.file(uid);
        if let Some(mapping) = read(&path)? {
            ranges.record(uid, mapping).map_err(|why| IdError::Content { path, why })?;
            return Ok(mapping);
        }
        let mapping = ranges.allocate(uid).map_err(IdError::Full)?;
        if let Err(source) = write(&path, &mapping.to_file()) {
            ranges.release(uid);
            return Err(IdError::File { path, source });
        }
        Ok(mapping)
    }

    /// Frees the range of a pod that has no process and no volume any more.
    pub(crate) fn release(&self, uid: &str) -> std::io::Result<()> {
        let mut ranges = lock(&self.ranges);
        match std::fs::remove_file(self.file(uid)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        if let Some(ranges) = &mut *ranges {
            ranges.release(uid);
        }
        Ok(())
    }

    fn read_all(&self) -> Result<IdRanges, IdError> {
        let mut ranges = IdRanges::new(self.space);
        let file = |path: &Path, source| IdError::File { path: path.to_owned(), source };
        for entry in std::fs::read_dir(&self.pods).map_err(|source| file(&self.pods, source))? {
            let name = entry.map_err(|source| file(&self.pods, source))?.file_name();
            let Some(uid) = name.to_str() else { continue };
            let path = self.file(uid);
            if let Some(mapping) = read(&path)? {
                ranges.record(uid, mapping).map_err(|why| IdError::Content { path, why })?;
            }
        }
        Ok(ranges)
    }
}

/// What a file says; none if there is no file or nothing in it.
fn read(path: &Path) -> Result<Option<IdMapping>, IdError> {
    let failed = |source| IdError::File { path: path.to_owned(), source };
    let text = match std::fs::metadata(path) {
        Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(failed(error)),
        Ok(facts) if facts.len() > FILE_MAX => {
            return Err(IdError::Content { path: path.to_owned(), why: format!("is longer than {FILE_MAX} bytes") });
        }
        Ok(_) => std::fs::read_to_string(path).map_err(failed)?,
    };
    if text.is_empty() {
        return Ok(None);
    }
    IdMapping::from_file(&text).map(Some).map_err(|why| IdError::Content { path: path.to_owned(), why })
}

/// A range that containers have may not be forgotten.
fn write(path: &Path, text: &str) -> std::io::Result<()> {
    orlop_kernel::file::replace(path, text.as_bytes(), 0o644, orlop_kernel::file::Outlives::Power)
}

#[cfg(test)]
mod tests {
    use super::*;
    use orlop_agent_core::user_namespaces::UNIT;

    fn node(folder: &Path) -> UserNamespaces {
        UserNamespaces::new(folder.to_owned(), IdSpace::new(UNIT, 2 * 65_536, UNIT, 2).unwrap())
    }

    #[test]
    fn ranges_survive_a_restart_and_are_freed() {
        let folder = tempfile::tempdir().unwrap();
        for uid in ["a", "b", "c"] {
            std::fs::create_dir(folder.path().join(uid)).unwrap();
        }
        let a = node(folder.path()).get_or_allocate("a").unwrap();
        let again = node(folder.path());
        let b = again.get_or_allocate("b").unwrap();
        assert_ne!(a, b);
        assert_eq!(node(folder.path()).get_or_allocate("a").unwrap(), a);
        assert!(matches!(again.get_or_allocate("c"), Err(IdError::Full(_))));
        again.release("a").unwrap();
        assert!(!folder.path().join("a/userns").exists());
        assert_eq!(again.get_or_allocate("c").unwrap(), a);
        again.release("nobody").unwrap();
    }

    #[test]
    fn a_damaged_file_is_named_and_nobody_gets_ids_meanwhile() {
        let folder = tempfile::tempdir().unwrap();
        for uid in ["a", "b"] {
            std::fs::create_dir(folder.path().join(uid)).unwrap();
        }
        std::fs::write(folder.path().join("a/userns"), "{").unwrap();
        let pods = node(folder.path());
        let error = pods.get_or_allocate("b").unwrap_err().to_string();
        assert!(error.contains("a/userns"), "{error}");
        std::fs::remove_file(folder.path().join("a/userns")).unwrap();
        pods.get_or_allocate("b").unwrap();
    }
}
