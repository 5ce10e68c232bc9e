//! Namespaces: making, binding to files, joining.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::thread::{LinkNameSpaceType, ThreadNameSpaceType, UnshareFlags};

pub use rustix::thread::ThreadNameSpaceType as Kinds;

/// Why a network namespace can't be made, entered or removed.
#[derive(Debug, thiserror::Error)]
#[error("{step} the network namespace {path:?}")]
pub struct NamespaceError {
    step: &'static str,
    path: PathBuf,
    #[source]
    source: std::io::Error,
}

fn failed(step: &'static str, path: &Path, source: impl Into<std::io::Error>) -> NamespaceError {
    NamespaceError { step, path: path.to_path_buf(), source: source.into() }
}

/// Makes a network namespace and binds it to a file, so that it lives without a process. The work is done on a
/// thread of its own, which ends with it: no other thread ever changes its namespace.
///
/// # Errors
/// When the file exists or the kernel refuses; nothing is left behind then.
pub fn create_network(path: &Path) -> Result<(), NamespaceError> {
    make_file(path)?;
    let made = on_thread(|| {
        #[allow(deprecated)]
        rustix::thread::unshare(UnshareFlags::NEWNET).map_err(|errno| failed("unshare", path, errno))?;
        mount_bind("/proc/thread-self/ns/net", path).map_err(|errno| failed("bind", path, errno))
    });
    if made.is_err() {
        let _ = std::fs::remove_file(path);
    }
    made
}

/// Binds the network namespace of a process to a file, so that it outlives the process. This is how a network namespace
/// that belongs to a pod's user namespace gets its file: that one can only be made together with a process, and lives as
/// long as this file does, whose namespace it owns.
///
/// # Errors
/// When the file exists or the kernel refuses; nothing is left behind then.
pub fn bind_network(pid: i32, path: &Path) -> Result<(), NamespaceError> {
    make_file(path)?;
    let bound = mount_bind(format!("/proc/{pid}/ns/net"), path).map_err(|errno| failed("bind", path, errno));
    if bound.is_err() {
        let _ = std::fs::remove_file(path);
    }
    bound
}

fn make_file(path: &Path) -> Result<(), NamespaceError> {
    let file = OFlags::CREATE | OFlags::EXCL | OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::open(path, file, Mode::from_raw_mode(0o444))
        .map(drop)
        .map_err(|errno| failed("make the file of", path, errno))
}

/// Removes a bound network namespace; it ends when no process is left in it. Fine when it is gone already.
///
/// # Errors
/// When the kernel refuses.
pub fn remove_network(path: &Path) -> Result<(), NamespaceError> {
    use rustix::io::Errno;
    match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
        Err(errno) => return Err(failed("unmount", path, errno)),
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed("remove the file of", path, error)),
        _ => Ok(()),
    }
}

/// Runs a closure in another network namespace, on a thread of its own.
///
/// # Errors
/// When the namespace can't be entered.
pub fn in_network<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> Result<T, NamespaceError> {
    on_thread(|| {
        let fd = open(path).map_err(|error| failed("open", path, error))?;
        join(&fd, LinkNameSpaceType::Network).map_err(|error| failed("enter", path, error))?;
        Ok(work())
    })
}

/// Runs a closure on a fresh thread and waits for it.
fn on_thread<T: Send>(work: impl FnOnce() -> Result<T, NamespaceError> + Send) -> Result<T, NamespaceError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".into()).stack_size(256 << 10).spawn_scoped(scope, work);
        match thread {
            Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            Err(error) => Err(failed("start a thread for", Path::new(""), error)),
        }
    })
}

/// Opens the file of a namespace.
///
/// # Errors
/// When it doesn't exist.
pub fn open(path: &Path) -> std::io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Moves this thread into the namespace of a file. Only for processes of one thread, or threads that end soon.
///
/// # Errors
/// When the descriptor is no namespace of that kind, or the kernel refuses.
pub fn join(fd: impl AsFd, kind: LinkNameSpaceType) -> std::io::Result<()> {
    Ok(rustix::thread::move_into_link_name_space(fd.as_fd(), Some(kind))?)
}

/// Moves this thread into several namespaces of a process at once, by its pidfd.
///
/// # Errors
/// When the process is gone, or the kernel refuses.
pub fn join_process(pidfd: impl AsFd, kinds: ThreadNameSpaceType) -> std::io::Result<()> {
    Ok(rustix::thread::move_into_thread_name_spaces(pidfd.as_fd(), kinds)?)
}

/// The user namespace that a namespace belongs to: whose root has all rights in it.
///
/// # Errors
/// When the descriptor is no namespace, or the owner is out of this process's sight.
pub fn owner(namespace: impl AsFd) -> std::io::Result<OwnedFd> {
    use std::os::fd::{AsRawFd, FromRawFd};
    /// `NS_GET_USERNS`.
    const GET_OWNER: libc::c_ulong = 0xb701;
    // SAFETY: the call takes no argument.
    let result = unsafe { libc::ioctl(namespace.as_fd().as_raw_fd(), GET_OWNER as _) };
    if result < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made the descriptor (closed on exec), and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(result) })
}

/// Whether a file is a bound network namespace that can still be entered.
#[must_use]
pub fn is_network(path: &Path) -> bool {
    /// `NSFS_MAGIC`.
    const NSFS_MAGIC: i64 = 0x6e73_6673;
    rustix::fs::statfs(path).is_ok_and(|stat| stat.f_type == NSFS_MAGIC)
}

/// Raises the loopback device of a bound network namespace.
///
/// # Errors
/// When the namespace can't be entered or the kernel refuses.
pub fn raise_loopback(path: &Path) -> Result<(), NamespaceError> {
    in_network(path, raise_own_loopback)?.map_err(|error| failed("raise the loopback device of", path, error))
}

/// Raises the loopback device of the network namespace that this thread is in.
///
/// # Errors
/// When the kernel refuses.
pub fn raise_own_loopback() -> std::io::Result<()> {
    use std::os::fd::AsRawFd;
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    // SAFETY: all-zero is a valid ifreq; its name stays terminated.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which lives during the call.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}
