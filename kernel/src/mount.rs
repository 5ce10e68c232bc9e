//! The mount API by file descriptors.
//!
//! A mount is made detached, gets its attributes, and is attached to a target descriptor that was resolved inside its
//! root; no path string of a container is ever handed to the kernel from outside.

mod overlay;

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree, unmount,
};

pub use overlay::{labelled_overlay, layers_view, overlay};
pub use rustix::mount::MountAttrFlags as Attributes;

/// How a mount shares what is mounted below it later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// Nothing is shared.
    Private,
    /// What the machine mounts appears.
    Slave,
    /// Both ways.
    Shared,
    /// Nothing is shared, and nobody can bind it elsewhere.
    Unbindable,
}

/// One option of a file system.
#[derive(Clone, Copy, Debug)]
pub enum FsOption<'a> {
    /// Set or not.
    Flag(&'a str),
    /// A name and its value.
    Value(&'a str, &'a str),
}

/// Makes a detached mount of a new file system.
///
/// # Errors
/// When the kernel lacks the file system or refuses an option; its own words are lost, so the option is in ours.
pub fn new_filesystem(
    kind: &str,
    source: &str,
    options: &[FsOption<'_>],
    attributes: MountAttrFlags,
) -> std::io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", source)?;
    for option in options {
        let (name, set) = match option {
            FsOption::Flag(name) => (name, fsconfig_set_flag(&context, *name)),
            FsOption::Value(name, value) => (name, fsconfig_set_string(&context, *name, *value)),
        };
        set.map_err(|errno| named(kind, name, errno))?;
    }
    fsconfig_create(&context).map_err(|errno| named(kind, "create", errno))?;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

fn named(kind: &str, what: &str, errno: rustix::io::Errno) -> std::io::Error {
    let error = std::io::Error::from(errno);
    std::io::Error::new(error.kind(), format!("{kind}: {what}: {error}"))
}

/// A detached copy of the mount at a path of the machine, with those below it when `recursive`.
///
/// # Errors
/// When the path doesn't exist.
pub fn clone_path(path: &Path, recursive: bool) -> std::io::Result<OwnedFd> {
    Ok(open_tree(CWD, path, clone_flags(recursive))?)
}

/// A detached copy of what a descriptor stands for, as a mount.
///
/// # Errors
/// When the descriptor is not in this mount namespace.
pub fn clone_fd(fd: impl AsFd, recursive: bool) -> std::io::Result<OwnedFd> {
    Ok(open_tree(fd, "", clone_flags(recursive) | OpenTreeFlags::AT_EMPTY_PATH)?)
}

/// A detached read-only copy of a file, to be executed: nobody can write to the file through what runs it.
///
/// # Errors
/// When the descriptor is not in this mount namespace, or the kernel refuses.
pub fn read_only_view(file: impl AsFd) -> std::io::Result<OwnedFd> {
    let view = clone_fd(file, false)?;
    set_attributes(&view, MountAttrFlags::MOUNT_ATTR_RDONLY, Some(Propagation::Private), false)?;
    Ok(view)
}

fn clone_flags(recursive: bool) -> OpenTreeFlags {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive { flags | OpenTreeFlags::AT_RECURSIVE } else { flags }
}

/// Attaches a detached mount to a target that is open already.
///
/// # Errors
/// When a folder meets a file, or the kernel refuses.
pub fn attach(mount: impl AsFd, target: impl AsFd) -> std::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(mount, "", target, "", flags)?)
}

/// Sets attributes and propagation of a mount, and of all below it when `recursive`.
///
/// # Errors
/// When the kernel refuses (`mount_setattr` wants 5.12).
pub fn set_attributes(
    mount: impl AsFd,
    attributes: MountAttrFlags,
    propagation: Option<Propagation>,
    recursive: bool,
) -> std::io::Result<()> {
    setattr(mount.as_fd(), c"", attributes, propagation, recursive)
}

/// Sets and takes away attributes of a mount, and of all below it when `recursive`.
///
/// # Errors
/// When the kernel refuses.
pub fn change_attributes(
    mount: impl AsFd,
    set: MountAttrFlags,
    clear: MountAttrFlags,
    recursive: bool,
) -> std::io::Result<()> {
    // How access times are kept is one value of several bits: it changes as a whole or not at all.
    let atime = MountAttrFlags::MOUNT_ATTR__ATIME;
    let clear = if (set | clear).intersects(atime) { clear | atime } else { clear };
    let attr = libc::mount_attr {
        attr_set: u64::from(set.bits()),
        attr_clr: u64::from(clear.bits()),
        propagation: 0,
        userns_fd: 0,
    };
    change(mount.as_fd(), c"", &attr, recursive)
}

/// Sets propagation of the mount at a path, and of all below it.
///
/// # Errors
/// When the kernel refuses.
pub fn set_propagation(path: &CStr, propagation: Propagation) -> std::io::Result<()> {
    setattr(CWD, path, MountAttrFlags::empty(), Some(propagation), true)
}

fn setattr(
    fd: BorrowedFd<'_>,
    path: &CStr,
    attributes: MountAttrFlags,
    propagation: Option<Propagation>,
    recursive: bool,
) -> std::io::Result<()> {
    let attr = libc::mount_attr {
        attr_set: u64::from(attributes.bits()),
        attr_clr: 0,
        propagation: match propagation {
            None => 0,
            Some(Propagation::Private) => libc::MS_PRIVATE,
            Some(Propagation::Slave) => libc::MS_SLAVE,
            Some(Propagation::Shared) => libc::MS_SHARED,
            Some(Propagation::Unbindable) => libc::MS_UNBINDABLE,
        },
        userns_fd: 0,
    };
    change(fd, path, &attr, recursive)
}

/// Shows the files of a detached mount, and of those below it when `recursive`, as those of others: an id on disk that
/// the user namespace has becomes the id of the machine that it stands for there, and every other id nobody's. What is
/// made through the mount gets the id back.
///
/// # Errors
/// When the file system can't (ext4, xfs, btrfs and tmpfs can, overlayfs can't), or the mount is mapped already.
pub fn map_ids(mount: impl AsFd, user_namespace: impl AsFd, recursive: bool) -> std::io::Result<()> {
    let attr = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: user_namespace.as_fd().as_raw_fd() as u64,
    };
    change(mount.as_fd(), c"", &attr, recursive)
}

fn change(fd: BorrowedFd<'_>, path: &CStr, attr: &libc::mount_attr, recursive: bool) -> std::io::Result<()> {
    let mut flags = if path.is_empty() { libc::AT_EMPTY_PATH } else { 0 };
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: the path ends with a NUL and the attributes live during the call; their size is told.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            path.as_ptr(),
            flags,
            std::ptr::from_ref(attr),
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// Takes the mount at a path away, at once for new users and for good when its last user leaves.
///
/// # Errors
/// When nothing is mounted there.
pub fn detach(path: &Path) -> std::io::Result<()> {
    Ok(unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?)
}

/// Takes the mount at a path away; fails while it is used.
///
/// # Errors
/// When nothing is mounted there or it is in use.
pub fn unmount_path(path: &Path) -> std::io::Result<()> {
    Ok(unmount(path, UnmountFlags::NOFOLLOW)?)
}

/// Takes a mount of this mount namespace away by a descriptor of its root; what has it open may go on with it.
///
/// # Errors
/// When the descriptor is no folder, or nothing is mounted there.
pub fn detach_fd(mount: impl AsFd) -> std::io::Result<()> {
    // unmount takes paths only, so the mount becomes the working folder for a moment.
    rustix::process::fchdir(mount)?;
    let detached = unmount(".", UnmountFlags::DETACH);
    rustix::process::chdir("/")?;
    Ok(detached?)
}

/// Makes a folder the root of this mount namespace and forgets the old one.
///
/// # Errors
/// When the folder is not a mount point.
pub fn pivot_into(root: impl AsFd) -> std::io::Result<()> {
    // The old root is stacked onto the new one by giving both as ".", so no folder is needed inside the container.
    rustix::process::fchdir(&root)?;
    rustix::process::pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    Ok(())
}

/// Makes a mount the root of this process by moving it over the old root, which stays below it: for roots that lie on the
/// first file system of the machine, which can't be pivoted away.
///
/// # Errors
/// When the folder is not a mount point.
pub fn move_into(root: impl AsFd) -> std::io::Result<()> {
    rustix::process::fchdir(&root)?;
    rustix::mount::mount_move(".", "/")?;
    rustix::process::chroot(".")?;
    rustix::process::chdir("/")?;
    Ok(())
}

/// Whether something is mounted right at a path; no file server is asked. A mount that can't even be looked at (its
/// server is gone) counts as one.
///
/// # Errors
/// When the kernel can't tell mounts from folders (before 5.8).
pub fn is_mount_point(path: &Path) -> std::io::Result<bool> {
    use rustix::fs::{AtFlags, StatxAttributes, StatxFlags, statx};
    use rustix::io::Errno;
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    match statx(CWD, path, flags, StatxFlags::TYPE) {
        Ok(stat) if stat.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT) => {
            Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
        }
        Ok(_) => Ok(mounts_below(path)?.iter().any(|mounted| mounted == path)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
        Err(Errno::NOTCONN | Errno::STALE | Errno::IO | Errno::HOSTDOWN | Errno::ACCESS) => Ok(true),
        Err(errno) => Err(errno.into()),
    }
}

/// Mount points below a folder (and the folder itself), the deepest first, from the mount table.
///
/// # Errors
/// When the mount table can't be read.
pub fn mounts_below(folder: &Path) -> std::io::Result<Vec<std::path::PathBuf>> {
    // The thread may have a mount namespace of its own.
    let table = std::fs::read_to_string("/proc/thread-self/mountinfo")?;
    let mut found: Vec<std::path::PathBuf> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|field| std::path::PathBuf::from(unescape(field)))
        .filter(|path| path.starts_with(folder))
        .collect();
    found.reverse();
    Ok(found)
}

/// Undoes the octal escapes of the mount table.
fn unescape(field: &str) -> String {
    let (mut text, mut rest) = (Vec::new(), field.as_bytes());
    while let Some((first, after)) = rest.split_first() {
        let code = (*first == b'\\' && after.len() >= 3)
            .then(|| std::str::from_utf8(&after[..3]).ok().and_then(|digits| u8::from_str_radix(digits, 8).ok()))
            .flatten();
        match code {
            Some(code) => {
                text.push(code);
                rest = &after[3..];
            }
            None => {
                text.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_mount_table_is_unescaped() {
        assert_eq!(super::unescape(r"/a\040b\134c"), r"/a b\c");
        assert_eq!(super::unescape(r"/a\9"), r"/a\9");
    }
}
