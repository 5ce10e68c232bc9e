//! The group of a pod's volumes: `fsGroup`.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;

use k8s_openapi::api::core::v1::Pod;
use orlop_kernel::path::{AtMount, walk_tree};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, RawMode, ResolveFlags};
use rustix::io::Errno;

use crate::file::{FileError, failed};

/// Rights of the group where it may write (kubelet `rwMask`).
const WRITABLE: RawMode = 0o660;
/// Rights of the group where it may not (kubelet `roMask`).
const READABLE: RawMode = 0o440;
/// Rights on folders besides (kubelet `execMask`), and that new files get the group.
const FOLDER: RawMode = 0o2110;

/// What a pod says of the group of its volumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FsGroup {
    /// The group.
    pub(crate) gid: u32,
    /// `fsGroupChangePolicy: OnRootMismatch`: nothing is changed where the volume's root is right already.
    pub(crate) on_root_mismatch: bool,
}

impl FsGroup {
    /// That of a pod.
    pub(crate) fn of(pod: &Pod) -> Option<FsGroup> {
        let context = pod.spec.as_ref()?.security_context.as_ref()?;
        let gid = u32::try_from(context.fs_group?).ok()?;
        Some(FsGroup { gid, on_root_mismatch: context.fs_group_change_policy.as_deref() == Some("OnRootMismatch") })
    }
}

/// Gives a tree to a group, its root last, so that a root that is right tells that all is. Links are not followed, since
/// containers may have made them, and what is mounted below is left alone.
pub(crate) fn apply(root: &Path, group: FsGroup, read_only: bool) -> Result<(), FileError> {
    let rights = if read_only { READABLE } else { WRITABLE };
    let failed = failed("give to the group", root);
    let run = || -> std::io::Result<()> {
        let folder = rustix::fs::openat(
            CWD,
            root,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        if group.on_root_mismatch && is_right(&folder, group.gid, rights)? {
            return Ok(());
        }
        walk_tree(&folder, AtMount::PassBy, &mut |entry| change(entry.parent, entry.name, group.gid, rights))?;
        change_open(folder.as_fd(), group.gid, rights)
    };
    run().map_err(failed)
}

/// Whether a volume's root has the group and at least its rights.
fn is_right(root: impl AsFd, gid: u32, rights: RawMode) -> std::io::Result<bool> {
    let stat = rustix::fs::fstat(root)?;
    let wanted = rights | FOLDER;
    Ok(stat.st_gid == gid && stat.st_mode & wanted == wanted)
}

fn change(parent: BorrowedFd<'_>, name: &std::ffi::CStr, gid: u32, rights: RawMode) -> std::io::Result<()> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat2(parent, name, flags, Mode::empty(), resolve) {
        Ok(found) => change_open(found.as_fd(), gid, rights),
        // Gone meanwhile, or a mount.
        Err(Errno::NOENT | Errno::XDEV) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Changes what a descriptor stands for, which nobody can exchange any more.
fn change_open(found: BorrowedFd<'_>, gid: u32, rights: RawMode) -> std::io::Result<()> {
    let stat = rustix::fs::fstat(found)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    if stat.st_gid != gid {
        rustix::fs::chownat(found, "", None, Some(Gid::from_raw(gid)), AtFlags::EMPTY_PATH)?;
    }
    let more = match kind {
        FileType::Symlink => return Ok(()),
        FileType::Directory => rights | FOLDER,
        _ => rights,
    };
    // The change of group has taken the set-id bits of programs away; they are given back as the kubelet does.
    let mode = (stat.st_mode & 0o7777) | more;
    if stat.st_gid == gid && mode == stat.st_mode & 0o7777 {
        return Ok(());
    }
    // A descriptor that was opened for its path only can be changed through its entry in /proc.
    rustix::fs::chmod(format!("/proc/self/fd/{}", found.as_raw_fd()), Mode::from_raw_mode(mode))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    fn of(path: &Path) -> (u32, u32) {
        std::fs::symlink_metadata(path).map(|found| (found.gid(), found.mode() & 0o7777)).unwrap()
    }

    #[test]
    fn all_below_gets_the_group_and_links_are_not_followed() {
        let place = tempfile::tempdir().unwrap();
        let (outside, volume) = (place.path().join("outside"), place.path().join("volume"));
        let mode = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        std::fs::write(&outside, "").unwrap();
        mode(&outside, 0o600);
        std::fs::create_dir_all(volume.join("deep")).unwrap();
        mode(&volume, 0o755);
        mode(&volume.join("deep"), 0o700);
        std::fs::write(volume.join("deep/file"), "").unwrap();
        mode(&volume.join("deep/file"), 0o600);
        symlink(&outside, volume.join("deep/link")).unwrap();
        let group = FsGroup { gid: 4242, on_root_mismatch: false };
        apply(&volume, group, false).unwrap();
        assert_eq!(of(&volume), (4242, 0o2775));
        assert_eq!(of(&volume.join("deep")), (4242, 0o2770));
        assert_eq!(of(&volume.join("deep/file")), (4242, 0o660));
        assert_eq!(of(&volume.join("deep/link")).0, 4242);
        assert_ne!(of(&outside).0, 4242);
        assert_eq!(of(&outside).1, 0o600);
        // A root that is right tells that all is, if the pod says so.
        mode(&volume.join("deep/file"), 0o600);
        apply(&volume, FsGroup { on_root_mismatch: true, ..group }, false).unwrap();
        assert_eq!(of(&volume.join("deep/file")).1, 0o600);
        apply(&volume, FsGroup { gid: 4343, on_root_mismatch: true }, true).unwrap();
        assert_eq!(of(&volume.join("deep/file")), (4343, 0o640));
    }
}
