//! hostPath: a path of the node, checked or made as its type says.

use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::file::{FileError, failed, make_folder};

/// Why a path can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HostPathError {
    /// It is something else.
    #[error("hostPath type check failed: {path} is not {what}")]
    Type { path: PathBuf, what: &'static str },
    /// The type is not one.
    #[error("{0} is an invalid volume type")]
    Unknown(String),
    /// It can't be made.
    #[error(transparent)]
    Make(#[from] FileError),
}

/// Checks a path of the node, or makes it (`HostPathType`). Links are followed: the path is the pod author's choice.
pub(crate) fn check(path: &Path, kind: &str) -> Result<(), HostPathError> {
    if kind.is_empty() {
        return Ok(());
    }
    let found = std::fs::metadata(path);
    let is = |test: fn(&std::fs::Metadata) -> bool| found.as_ref().is_ok_and(test);
    let missing = found.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound);
    let (fits, what) = match kind {
        "DirectoryOrCreate" if missing => return Ok(make_folder(path, 0o755)?),
        "FileOrCreate" if missing => {
            let file = std::fs::File::options().write(true).create_new(true).mode(0o644).open(path);
            return Ok(file.map(drop).map_err(failed("make", path))?);
        }
        "Directory" | "DirectoryOrCreate" => (is(std::fs::Metadata::is_dir), "a directory"),
        "File" | "FileOrCreate" => (is(std::fs::Metadata::is_file), "a file"),
        "Socket" => (is(|found| found.file_type().is_socket()), "a socket file"),
        "CharDevice" => (is(|found| found.file_type().is_char_device()), "a character device"),
        "BlockDevice" => (is(|found| found.file_type().is_block_device()), "a block device"),
        other => return Err(HostPathError::Unknown(other.to_owned())),
    };
    if fits { Ok(()) } else { Err(HostPathError::Type { path: path.to_path_buf(), what }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_of_host_paths() {
        let place = tempfile::tempdir().unwrap();
        let (folder, file) = (place.path().join("folder"), place.path().join("file"));
        let text = check(&folder, "Directory").unwrap_err().to_string();
        assert_eq!(text, format!("hostPath type check failed: {} is not a directory", folder.display()));
        check(&folder, "DirectoryOrCreate").unwrap();
        check(&folder, "Directory").unwrap();
        check(&file, "FileOrCreate").unwrap();
        check(&file, "File").unwrap();
        for (path, kind) in [
            (&folder, "File"),
            (&file, "Directory"),
            (&file, "DirectoryOrCreate"),
            (&folder, "FileOrCreate"),
            (&file, "Socket"),
            (&file, "CharDevice"),
            (&file, "BlockDevice"),
        ] {
            assert!(check(path, kind).unwrap_err().to_string().starts_with("hostPath type check failed"), "{kind}");
        }
        let _socket = std::os::unix::net::UnixListener::bind(place.path().join("s")).unwrap();
        check(&place.path().join("s"), "Socket").unwrap();
        check(Path::new("/dev/null"), "CharDevice").unwrap();
        check(Path::new("/does/not/exist"), "").unwrap();
        assert!(check(&file, "Nonsense").is_err());
    }
}
