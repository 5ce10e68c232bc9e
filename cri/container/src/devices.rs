//! Device nodes, the usual links below `/dev`, and the terminal.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use orlop_kernel::{mount, path, terminal};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, StatxFlags, Uid, makedev};

use crate::config::{Config, Device};
use crate::stage::{StageError, Step};
use crate::user_namespace::UserMappings;

/// Links that programs expect, and what they point to.
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Devices that every container has: path and number.
const USUAL: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// `TMPFS_MAGIC`.
const TMPFS_MAGIC: i64 = 0x0102_1994;
/// `DEVPTS_SUPER_MAGIC`.
const DEVPTS_MAGIC: i64 = 0x1cd1;

/// The devices that every container has.
#[must_use]
pub fn usual() -> [Device; 6] {
    USUAL.map(|(path, major, minor)| Device { path: path.into(), kind: "c".into(), major, minor, ..Device::default() })
}

/// Fills `/dev`, which is a fresh tmpfs or a folder of the root itself, and returns its `null`, checked to be the real one.
/// A `/dev` that somebody mounts from the machine is left as it is. Nodes elsewhere are made in the root itself.
pub(crate) fn fill(root: &OwnedFd, config: &Config, user: Option<&UserMappings>) -> Result<OwnedFd, StageError> {
    let mounted = config.mounts.iter().rev().find(|entry| entry.destination == Path::new("/dev"));
    if mounted.is_none() {
        path::make_folder_in_root(root, Path::new("dev"), Mode::from_raw_mode(0o755)).step("make /dev")?;
    }
    let dev = path::open_beneath(root, Path::new("dev"), OFlags::PATH | OFlags::DIRECTORY).step("open /dev")?;
    if mounted.is_none_or(|entry| entry.kind == "tmpfs") {
        if mounted.is_some() && magic(&dev).step("look at /dev")? != TMPFS_MAGIC {
            return Err("it is not the tmpfs that was mounted there").step("fill /dev");
        }
        make_all(root, &dev, &config.linux.devices, user)?;
        for (name, target) in LINKS {
            match rustix::fs::symlinkat(target, &dev, name) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(errno) => return Err(errno).step(format!("link /dev/{name}")),
            }
        }
    }
    let is_null = |fd: &OwnedFd| {
        let stat = rustix::fs::statat(fd, "", AtFlags::EMPTY_PATH)?;
        Ok::<_, std::io::Error>(
            FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == makedev(1, 3),
        )
    };
    let mut null = None;
    // Looked at before it is opened, and again after: opening something else could do something.
    for flags in [OFlags::PATH, OFlags::RDWR] {
        let fd = path::open_beneath(&dev, Path::new("null"), flags | OFlags::NOFOLLOW).step("open /dev/null")?;
        if !is_null(&fd).step("look at /dev/null")? {
            return Err("it is not the null device").step("check /dev/null");
        }
        null = Some(fd);
    }
    null.ok_or("it was not opened").step("open /dev/null")
}

fn magic(fd: &OwnedFd) -> std::io::Result<i64> {
    Ok(rustix::fs::fstatfs(fd)?.f_type)
}

/// Makes all nodes. Privileged containers get some hundreds, so each costs as few calls as it can: with no umask the
/// kernel sets the mode, and names right in `/dev` need no folder of their own.
fn make_all(root: &OwnedFd, dev: &OwnedFd, devices: &[Device], user: Option<&UserMappings>) -> Result<(), StageError> {
    let before = rustix::process::umask(Mode::empty());
    let made = devices
        .iter()
        .try_for_each(|device| make(root, dev, device, user).step(format!("make the device {:?}", device.path)));
    rustix::process::umask(before);
    made
}

fn make(root: &OwnedFd, dev: &OwnedFd, device: &Device, user: Option<&UserMappings>) -> Result<(), StageError> {
    let kind = match device.kind.as_str() {
        "c" | "u" => FileType::CharacterDevice,
        "b" => FileType::BlockDevice,
        "p" => FileType::Fifo,
        other => return Err(format!("{other:?} is not c, b or p")).step("read its kind"),
    };
    let number = if kind == FileType::Fifo { 0 } else { makedev(device.major, device.minor) };
    let (base, inside) = match device.path.strip_prefix("/dev") {
        Ok(inside) => (dev, inside),
        Err(_) => (root, device.path.strip_prefix("/").step("read its path")?),
    };
    let name = inside.file_name().ok_or("it has no name").step("read its path")?;
    let parent = inside.parent().filter(|parent| !parent.as_os_str().is_empty());
    let folder = parent.map(|parent| open_folder(base, parent)).transpose()?;
    let folder = folder.as_ref().unwrap_or(base);
    let mode = Mode::from_raw_mode(device.file_mode.unwrap_or(0o666) & 0o7777);
    match rustix::fs::mknodat(folder, name, kind, mode, number) {
        Err(rustix::io::Errno::EXIST) => check_existing(folder, name, kind, number)?,
        made => made.step("make the node")?,
    }
    let (uid, gid) = (device.uid.unwrap_or(0), device.gid.unwrap_or(0));
    if uid != 0 || gid != 0 {
        let (uid, gid) = match user {
            None => (uid, gid),
            Some(user) => (user.host_uid(uid)?, user.host_gid(gid)?),
        };
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        rustix::fs::chownat(folder, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).step("set its owner")?;
    }
    Ok(())
}

/// The folder of a node, made where it is missing. It must not lie on something that is mounted there: a node in a
/// volume would stay behind on the machine, where others find it.
fn open_folder(base: &OwnedFd, parent: &Path) -> Result<OwnedFd, StageError> {
    let mount = |fd: &OwnedFd| rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).map(|s| s.stx_mnt_id);
    let check =
        |folder: &OwnedFd| match mount(base).step("look at its folder")? == mount(folder).step("look at its folder")? {
            true => Ok(()),
            false => Err("it is a mount of its own").step(format!("use the folder {parent:?}")),
        };
    // Nothing is made on a mount either; a link may still lead to one, which is seen afterwards.
    let there = parent.ancestors().find_map(|above| path::find_in_root(base, above).transpose()).transpose();
    if let Some(there) = there.step("find its folder")? {
        check(&there)?;
    }
    let folder = path::make_folder_in_root(base, parent, Mode::from_raw_mode(0o755)).step("make its folder")?;
    check(&folder)?;
    Ok(folder)
}

/// What is there already must be the same device: listed twice, or the image's own.
fn check_existing(folder: &OwnedFd, name: &OsStr, kind: FileType, number: u64) -> Result<(), StageError> {
    let stat = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).step("look at what is there")?;
    let same = FileType::from_raw_mode(stat.st_mode) == kind && (kind == FileType::Fifo || stat.st_rdev == number);
    if same { Ok(()) } else { Err("something else has that name").step("make the node") }
}

/// A terminal.
pub(crate) struct Terminal {
    /// What the shim reads and writes.
    pub(crate) master: OwnedFd,
    /// What the process reads and writes.
    pub(crate) slave: OwnedFd,
}

/// Opens a terminal of the container's own devpts; it also becomes `/dev/console` when `console` is set.
pub(crate) fn open_terminal(root: &OwnedFd, console: bool) -> Result<Terminal, StageError> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NOFOLLOW;
    let ptmx = Path::new("dev/pts/ptmx");
    let place = path::open_beneath(root, ptmx, OFlags::PATH | OFlags::NOFOLLOW).step("find a terminal")?;
    if magic(&place).step("look at /dev/pts")? != DEVPTS_MAGIC {
        return Err("/dev/pts is not a devpts file system").step("open a terminal");
    }
    let master = path::open_beneath(root, ptmx, flags).step("open a terminal")?;
    if magic(&master).step("look at the terminal")? != DEVPTS_MAGIC {
        return Err("/dev/pts is not a devpts file system").step("open a terminal");
    }
    let slave = terminal::open_slave(&master).step("open the terminal's other end")?;
    if console {
        let target = path::make_file_in_root(root, Path::new("dev/console"), Mode::from_raw_mode(0o600))
            .step("make /dev/console")?;
        let cover = mount::clone_fd(&slave, false).step("mount /dev/console")?;
        mount::attach(&cover, &target).step("mount /dev/console")?;
    }
    Ok(Terminal { master, slave })
}

/// Opens a terminal again by its path, for a process that has moved to a copy of the mounts: the first descriptor would
/// have no path there. It must be the terminal that the process has.
pub(crate) fn reopen_terminal(master: &OwnedFd) -> Result<OwnedFd, StageError> {
    let what = "open the terminal again";
    let name = rustix::pty::ptsname(master, Vec::new()).step(what)?;
    let inside = Path::new(OsStr::from_bytes(name.to_bytes())).strip_prefix("/").step(what)?;
    let root = path::open_root(Path::new("/")).step(what)?;
    let number =
        |fd: BorrowedFd<'_>| rustix::fs::statat(fd, "", AtFlags::EMPTY_PATH).map(|stat| (stat.st_dev, stat.st_ino));
    let before = number(rustix::stdio::stdin()).step(what)?;
    let place = path::open_beneath(&root, inside, OFlags::PATH | OFlags::NOFOLLOW).step(what)?;
    if number(place.as_fd()).step(what)? != before {
        return Err("something else is in its place").step(what);
    }
    path::open_beneath(&root, inside, OFlags::RDWR | OFlags::NOCTTY | OFlags::NOFOLLOW).step(what)
}
