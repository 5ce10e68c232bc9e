//! A checked handle of procfs: what is written there is written to the kernel and nowhere else.

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// `PROC_SUPER_MAGIC`.
const PROC_MAGIC: i64 = 0x9fa0;

/// An open `/proc` that is known to be procfs.
#[derive(Debug)]
pub struct Procfs(OwnedFd);

impl Procfs {
    /// Opens the machine's own.
    ///
    /// # Errors
    /// When `/proc` is not procfs.
    pub fn open() -> std::io::Result<Procfs> {
        let fd = rustix::fs::open("/proc", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        if rustix::fs::fstatfs(&fd)?.f_type != PROC_MAGIC {
            return Err(std::io::Error::other("/proc is not procfs; mount it: mount -t proc proc /proc"));
        }
        Ok(Procfs(fd))
    }

    fn open_file(&self, path: &str, flags: OFlags) -> std::io::Result<std::fs::File> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS;
        loop {
            match rustix::fs::openat2(&self.0, Path::new(path), flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
                Err(Errno::AGAIN) => {}
                other => return Ok(other?.into()),
            }
        }
    }

    /// Writes a value, in one system call.
    ///
    /// # Errors
    /// When the file doesn't exist or the kernel refuses the value.
    pub fn write(&self, path: &str, value: &str) -> std::io::Result<()> {
        self.open_file(path, OFlags::WRONLY)?.write_all(value.as_bytes())
    }

    /// Whether there is such a file.
    #[must_use]
    pub fn has(&self, path: &str) -> bool {
        self.open_file(path, OFlags::PATH).is_ok()
    }

    /// The number that a process has here, by its descriptor: this process may live among other numbers.
    ///
    /// # Errors
    /// When it has ended, or has no number here.
    pub fn number_of(&self, pidfd: impl AsFd) -> std::io::Result<i32> {
        let text = self.read(&format!("self/fdinfo/{}", pidfd.as_fd().as_raw_fd()))?;
        let number = text.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok());
        number.filter(|number| *number > 0).ok_or_else(|| std::io::Error::other("the process is not there"))
    }

    /// Reads a file, up to 1 MiB.
    ///
    /// # Errors
    /// When the file doesn't exist.
    pub fn read(&self, path: &str) -> std::io::Result<String> {
        let mut text = String::new();
        self.open_file(path, OFlags::RDONLY)?.take(1 << 20).read_to_string(&mut text)?;
        Ok(text)
    }

    /// This process's number in the PID namespace of the mount, whichever its own is.
    ///
    /// # Errors
    /// When the kernel's text can't be read.
    pub fn own_number(&self) -> std::io::Result<i32> {
        let stat = self.read("self/stat")?;
        stat.split(' ').next().unwrap_or_default().parse().map_err(std::io::Error::other)
    }
}

/// When a process started, in clock ticks since boot; tells a process from a later one with the same number.
#[must_use]
pub fn start_ticks(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in brackets may hold anything, so the fields are counted from its end.
    let fields = stat.rsplit_once(')')?.1;
    fields.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Whether the process of this number and start time still runs (a zombie does not).
#[must_use]
pub fn is_alive(pid: i32, ticks: u64) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    let Some((_, fields)) = stat.rsplit_once(')') else { return false };
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next().unwrap_or("Z");
    state != "Z" && state != "X" && fields.nth(18).and_then(|field| field.parse().ok()) == Some(ticks)
}
