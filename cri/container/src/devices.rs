//! Device nodes, the usual links below `/dev`, and the terminal.

use std::os::fd::OwnedFd;
use std::path::Path;

use orlop_kernel::{mount, path, terminal};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid, makedev};

use crate::config::{Config, Device};
use crate::stage::{StageError, Step};

/// Links that programs expect, and what they point to.
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// `TMPFS_MAGIC`.
const TMPFS_MAGIC: i64 = 0x0102_1994;
/// `DEVPTS_SUPER_MAGIC`.
const DEVPTS_MAGIC: i64 = 0x1cd1;

/// Fills `/dev`, which is a fresh tmpfs, and returns its `null`, checked to be the real one. A `/dev` that somebody
/// mounts from the machine is left as it is.
pub(crate) fn fill(root: &OwnedFd, config: &Config) -> Result<OwnedFd, StageError> {
    let dev = path::open_beneath(root, Path::new("dev"), OFlags::PATH | OFlags::DIRECTORY).step("open /dev")?;
    let mounted = config.mounts.iter().rev().find(|entry| entry.destination == Path::new("/dev"));
    if mounted.is_some_and(|entry| entry.kind == "tmpfs") {
        if magic(&dev).step("look at /dev")? != TMPFS_MAGIC {
            return Err("it is not the tmpfs that was mounted there").step("fill /dev");
        }
        for device in &config.linux.devices {
            make(&dev, device)?;
        }
        for (name, target) in LINKS {
            match rustix::fs::symlinkat(target, &dev, name) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(errno) => return Err(errno).step(format!("link /dev/{name}")),
            }
        }
    } else if mounted.is_none() {
        return Err("the specification mounts nothing there").step("fill /dev");
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

fn make(dev: &OwnedFd, device: &Device) -> Result<(), StageError> {
    let what = || format!("make the device {:?}", device.path);
    let inside = device.path.strip_prefix("/dev").step(what())?;
    let kind = match device.kind.as_str() {
        "c" | "u" => FileType::CharacterDevice,
        "b" => FileType::BlockDevice,
        "p" => FileType::Fifo,
        other => return Err(format!("kind {other:?} is not c, b or p")).step(what()),
    };
    let mut folder = path::open_beneath(dev, Path::new(""), OFlags::PATH | OFlags::DIRECTORY).step(what())?;
    if let Some(parent) = inside.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        folder = path::make_folder_in_root(dev, parent, Mode::from_raw_mode(0o755)).step(what())?;
    }
    let name = inside.file_name().ok_or("no name").step(what())?;
    let mode = Mode::from_raw_mode(device.file_mode.unwrap_or(0o666) & 0o7777);
    rustix::fs::mknodat(&folder, name, kind, mode, makedev(device.major, device.minor)).step(what())?;
    // The umask has cut the mode; owner and mode are set on the node itself, which nobody else has seen yet.
    rustix::fs::chmodat(&folder, name, mode, AtFlags::empty()).step(what())?;
    let (uid, gid) = (device.uid.unwrap_or(0), device.gid.unwrap_or(0));
    if uid != 0 || gid != 0 {
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        rustix::fs::chownat(&folder, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).step(what())?;
    }
    Ok(())
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
