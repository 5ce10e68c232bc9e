//! The group of a pod's volumes: `fsGroup`.

use std::path::Path;

use k8s_openapi::api::core::v1::Pod;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags};

/// Rights of the group where it may write.
const WRITABLE: u32 = 0o660;
/// Rights of the group where it may not.
const READABLE: u32 = 0o440;
/// Rights of the group on folders, and that new files get the group.
const FOLDER: u32 = 0o2110;
/// Folders below one another.
const DEPTH_MAX: u32 = 200;

/// The group that a pod's volumes belong to.
pub(crate) fn group(pod: &Pod) -> Option<u32> {
    let context = pod.spec.as_ref()?.security_context.as_ref()?;
    u32::try_from(context.fs_group?).ok()
}

/// Gives all below a path to a group; links are not followed, since containers may have made them.
pub(crate) fn apply(path: &Path, group: Option<u32>, read_only: bool) -> Result<(), String> {
    let Some(group) = group else { return Ok(()) };
    let rights = if read_only { READABLE } else { WRITABLE };
    change(CWD, path, group, rights, 0).map_err(|error| format!("give {} to group {group}: {error}", path.display()))
}

fn change(
    folder: impl std::os::fd::AsFd,
    name: impl rustix::path::Arg + Copy,
    group: u32,
    rights: u32,
    depth: u32,
) -> rustix::io::Result<()> {
    if depth > DEPTH_MAX {
        return Err(rustix::io::Errno::LOOP);
    }
    let gid = Gid::from_raw(group);
    rustix::fs::chownat(&folder, name, None, Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    let stat = rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    if kind != FileType::Directory && kind != FileType::RegularFile {
        return Ok(());
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let opened = rustix::fs::openat(&folder, name, flags, Mode::empty())?;
    let more = if kind == FileType::Directory { rights | FOLDER } else { rights };
    rustix::fs::fchmod(&opened, Mode::from_raw_mode((stat.st_mode & 0o7777) | more))?;
    if kind == FileType::Directory {
        for entry in Dir::read_from(&opened)? {
            let entry = entry?;
            let name = entry.file_name();
            if name != c"." && name != c".." {
                change(&opened, name, group, rights, depth + 1)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    #[test]
    fn links_are_not_followed() {
        let place = tempfile::tempdir().unwrap();
        let (outside, volume) = (place.path().join("outside"), place.path().join("volume"));
        std::fs::write(&outside, "").unwrap();
        std::fs::set_permissions(&outside, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::create_dir_all(volume.join("deep")).unwrap();
        std::fs::write(volume.join("deep/file"), "").unwrap();
        std::fs::set_permissions(volume.join("deep/file"), std::fs::Permissions::from_mode(0o600)).unwrap();
        symlink(&outside, volume.join("deep/link")).unwrap();
        apply(&volume, Some(4242), false).unwrap();
        let of = |path: &Path| std::fs::metadata(path).map(|found| (found.gid(), found.mode() & 0o7777)).unwrap();
        assert_eq!(of(&volume.join("deep/file")), (4242, 0o660));
        assert_eq!(of(&volume.join("deep")).0, 4242);
        assert_eq!(of(&volume.join("deep")).1 & 0o2070, 0o2070);
        assert_eq!(of(&outside).1, 0o600);
        assert_ne!(of(&outside).0, 4242);
        assert_eq!(std::fs::symlink_metadata(volume.join("deep/link")).unwrap().gid(), 4242);
    }
}
