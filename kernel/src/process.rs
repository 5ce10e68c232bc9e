//! Processes: clone3, pidfd, wait, identity, spawning a daemon's children.

use std::ffi::CString;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};

use crate::mount;

/// Which side of a clone this is.
#[derive(Debug)]
pub enum Side {
    /// The caller, with the child's number and a descriptor of it.
    Parent {
        /// Number of the child in the caller's PID namespace.
        pid: i32,
        /// Stays valid when the number is used again.
        pidfd: OwnedFd,
    },
    /// The new process.
    Child,
}

/// New namespaces of a clone.
pub mod new {
    /// Mounts.
    pub const MOUNT: u64 = libc::CLONE_NEWNS as u64;
    /// Process numbers.
    pub const PID: u64 = libc::CLONE_NEWPID as u64;
    /// Network.
    pub const NETWORK: u64 = libc::CLONE_NEWNET as u64;
    /// IPC.
    pub const IPC: u64 = libc::CLONE_NEWIPC as u64;
    /// Host name.
    pub const UTS: u64 = libc::CLONE_NEWUTS as u64;
    /// Cgroups.
    pub const CGROUP: u64 = libc::CLONE_NEWCGROUP as u64;
    /// Users; it owns all others that are made with it.
    pub const USER: u64 = libc::CLONE_NEWUSER as u64;
}

/// Forks this process with new namespaces. Only a process of one thread may call this: the child would otherwise
/// hold locks that nobody releases.
///
/// # Errors
/// When the process has more than one thread, or the kernel refuses.
pub fn clone(namespaces: u64) -> std::io::Result<Side> {
    // Changes nothing in a process of one thread and is refused in any other: the cheapest way to ask.
    // SAFETY: with CLONE_THREAD alone unshare has no effect.
    if unsafe { libc::unshare(libc::CLONE_THREAD) } != 0 {
        return Err(std::io::Error::other("clone in a process of several threads"));
    }
    let mut pidfd: libc::c_int = -1;
    // SAFETY: all-zero is a valid clone_args: each zero means that the feature is not used.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = namespaces | libc::CLONE_PIDFD as u64;
    arguments.pidfd = (&raw mut pidfd) as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    // SAFETY: no stack is given, so the child goes on with a copy of ours as after fork; there is one thread only.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<libc::clone_args>()) };
    match result {
        -1 => Err(std::io::Error::last_os_error()),
        0 => Ok(Side::Child),
        pid => {
            // SAFETY: the kernel has stored a new descriptor, which nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Side::Parent { pid: pid as i32, pidfd })
        }
    }
}

/// Replaces this process by a program.
///
/// # Errors
/// Only ever returns an error: what the kernel says of the program.
pub fn exec(program: &Path, arguments: &[CString], environment: &[CString]) -> std::io::Error {
    use std::os::unix::ffi::OsStrExt;
    let Ok(program) = CString::new(program.as_os_str().as_bytes()) else {
        return std::io::Error::other("the program's path holds a NUL byte");
    };
    match nix::unistd::execve(&program, arguments, environment) {
        Ok(never) => match never {},
        Err(errno) => errno.into(),
    }
}

/// Marks every descriptor from `first` on to be closed by the next exec.
///
/// # Errors
/// When the kernel lacks `close_range` with that flag (5.11).
pub fn close_on_exec_from(first: u32) -> std::io::Result<()> {
    // SAFETY: only flags of descriptors change, nothing is closed here.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// Closes every descriptor above 2 that is not in `keep`: what a process that has just been cloned inherited from its
/// parent and has no use for. Others would wait in vain for the end of those files. The owners of the closed
/// descriptors, which the clone copied too, must never be used or dropped: the process ends by exec or exit.
///
/// # Errors
/// When the kernel lacks `close_range` (5.9).
pub fn close_all_but(keep: &[BorrowedFd<'_>]) -> std::io::Result<()> {
    let mut numbers: Vec<u32> = keep.iter().map(|fd| fd.as_raw_fd() as u32).filter(|number| *number > 2).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let mut first = 3;
    for number in numbers.into_iter().chain([u32::MAX]) {
        if number > first {
            let last = if number == u32::MAX { number } else { number - 1 };
            // SAFETY: the caller promises that nobody uses what is closed here.
            if unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } != 0 {
                return Err(std::io::Error::last_os_error());
            }
        }
        first = number.saturating_add(1);
    }
    Ok(())
}

/// Takes over descriptors that this program was started with: `count` of them from 3 on, which no program gets from now on
/// unless it is given them again. Only at the very start of a program, before it opens anything itself.
///
/// # Errors
/// When one of them is not open.
pub fn take_inherited(count: u32) -> std::io::Result<Vec<OwnedFd>> {
    let end = i32::try_from(count).ok().and_then(|count| count.checked_add(3));
    let end = end.ok_or_else(|| std::io::Error::other(format!("{count} descriptors are too many")))?;
    for number in 3..end {
        // SAFETY: changes a flag of a descriptor; one that isn't open is refused.
        if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
            return Err(std::io::Error::other(format!("descriptor {number} is to be kept and is not open")));
        }
    }
    // SAFETY: they are open, and the caller promises that nothing here has opened them.
    Ok((3..end).map(|number| unsafe { OwnedFd::from_raw_fd(number) }).collect())
}

/// Sets the execution domain of this thread and of what it executes (`personality(2)`).
///
/// # Errors
/// When the kernel refuses.
pub fn set_execution_domain(domain: u32) -> std::io::Result<()> {
    // SAFETY: takes one number.
    let result = unsafe { libc::personality(libc::c_ulong::from(domain)) };
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes sure that this program's file can't be opened for writing through this process or a child of it: runs the
/// program again, with the same arguments, from a read-only view of its file that no mount namespace holds. Returns
/// when that is so already: the file is sealed, or on a read-only mount.
///
/// # Errors
/// When the kernel refuses one of the steps.
pub fn protect_program() -> std::io::Result<()> {
    let own = rustix::fs::open("/proc/self/exe", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let sealed = rustix::fs::fcntl_get_seals(&own).is_ok_and(|seals| seals.contains(SealFlags::WRITE));
    if sealed || is_read_only(&own)? {
        return Ok(());
    }
    let view = mount::read_only_view(&own)?;
    if !is_read_only(&view)? {
        return Err(std::io::Error::other("the view of the program is not read-only"));
    }
    let texts = |texts: Vec<std::ffi::OsString>| {
        use std::os::unix::ffi::OsStringExt;
        texts.into_iter().map(|text| CString::new(text.into_vec())).collect::<Result<Vec<_>, _>>()
    };
    let arguments = texts(std::env::args_os().collect())?;
    let environment = texts(
        std::env::vars_os()
            .map(|(mut name, value)| {
                name.push("=");
                name.push(value);
                name
            })
            .collect(),
    )?;
    Err(exec_descriptor(&view, &arguments, &environment))
}

fn is_read_only(fd: impl AsFd) -> std::io::Result<bool> {
    Ok(rustix::fs::fstatvfs(fd)?.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY))
}

/// Sets the name by which `ps` and `/proc/<pid>/comm` know this process (15 bytes at most).
///
/// # Errors
/// When the name holds a NUL byte.
pub fn set_name(name: &str) -> std::io::Result<()> {
    Ok(rustix::thread::set_name(&CString::new(name)?)?)
}

/// Puts a descriptor into the place of stdin (0), stdout (1) or stderr (2).
///
/// # Errors
/// When the kernel refuses.
pub fn set_stdio(fd: impl AsFd, place: u8) -> std::io::Result<()> {
    match place {
        0 => rustix::stdio::dup2_stdin(fd)?,
        1 => rustix::stdio::dup2_stdout(fd)?,
        _ => rustix::stdio::dup2_stderr(fd)?,
    }
    Ok(())
}

/// Clones a child that does `work` and then stays until this process has ended: what both have open is closed by the
/// child, where closing takes long. It ends at once when the work is not done. For a process of one thread that ends
/// soon; the child is left to whoever reaps orphans. Gives a descriptor of the child.
///
/// # Errors
/// As [`clone`].
pub fn linger(work: impl FnOnce() -> bool) -> std::io::Result<OwnedFd> {
    let (mut stay, end) = std::io::pipe()?;
    match clone(0)? {
        Side::Parent { pidfd, .. } => {
            // Closed by the end of this process, after all that was opened before.
            std::mem::forget(end);
            Ok(pidfd)
        }
        Side::Child => {
            drop(end);
            let done = leave_stdio().is_ok() && work();
            if done {
                let _ = stay.read(&mut [0]);
            }
            std::process::exit(i32::from(!done))
        }
    }
}

/// Lets go of stdin, stdout and stderr: whoever reads the output of the process that this one was cloned from waits for
/// its end.
fn leave_stdio() -> std::io::Result<()> {
    let nothing = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    (0..3).try_for_each(|place| set_stdio(&nothing, place))
}

/// Forbids (or allows) others to look into this process and its `/proc` files.
///
/// # Errors
/// When the kernel refuses.
pub fn set_dumpable(dumpable: bool) -> std::io::Result<()> {
    // SAFETY: PR_SET_DUMPABLE takes one number.
    let result = unsafe { libc::prctl(libc::PR_SET_DUMPABLE, libc::c_ulong::from(dumpable), 0, 0, 0) };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// Makes orphans below this process its children.
///
/// # Errors
/// When the kernel refuses.
pub fn become_subreaper() -> std::io::Result<()> {
    nix::sys::prctl::set_child_subreaper(true).map_err(Into::into)
}

/// Gives this process a new, empty session keyring, so that it doesn't share that of the daemon. A kernel without
/// keyrings is fine.
pub fn join_new_keyring() {
    // SAFETY: KEYCTL_JOIN_SESSION_KEYRING with no name takes no pointer that is read.
    unsafe { libc::syscall(libc::SYS_keyctl, 1, std::ptr::null::<libc::c_char>()) };
}

/// Sets the identity of this process: groups first, then group, then user; capabilities are kept for the caller to
/// set afterwards.
///
/// # Errors
/// When the kernel refuses.
pub fn set_identity(uid: u32, gid: u32, groups: &[u32]) -> std::io::Result<()> {
    use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
    rustix::thread::set_keep_capabilities(true)?;
    let groups: Vec<Gid> = groups.iter().copied().map(Gid::from_raw).collect();
    setgroups(&groups)?;
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    Ok(())
}

/// Makes files that this process makes from now on somebody else's, and leaves all its rights as they are. An
/// identity that is set later ends that.
///
/// # Errors
/// When the kernel refuses.
pub fn make_files_as(uid: u32, gid: u32) -> std::io::Result<()> {
    use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
    let sets = rustix::thread::capabilities(None)?;
    // These two tell the number before, and never whether it worked: a second call does.
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    setfsgid(gid);
    setfsuid(uid);
    if setfsgid(gid) != gid || setfsuid(uid) != uid {
        return Err(std::io::ErrorKind::PermissionDenied.into());
    }
    // With a file identity other than root's the kernel takes the rights to files away.
    Ok(rustix::thread::set_capabilities(None, sets)?)
}

/// A child that ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its number.
    pub pid: i32,
    /// Exit status; 128 + signal when a signal ended it.
    pub exit_code: i32,
}

/// Reaps one child that has ended, if any.
#[must_use]
pub fn reap() -> Option<Ended> {
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
    loop {
        return match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => Some(Ended { pid: pid.as_raw(), exit_code: code }),
            Ok(WaitStatus::Signaled(pid, signal, _)) => {
                Some(Ended { pid: pid.as_raw(), exit_code: 128 + signal as i32 })
            }
            Ok(WaitStatus::StillAlive) | Err(nix::errno::Errno::ECHILD) => None,
            Ok(_) | Err(nix::errno::Errno::EINTR) => continue,
            Err(_) => None,
        };
    }
}

/// Waits for the end of a child by its descriptor, and reaps it. Gives its exit status (128 + signal when a signal ended
/// it); none when it is no child of this process.
pub fn wait_for(pidfd: impl AsFd) -> Option<i32> {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    loop {
        match waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED) {
            Ok(status) => {
                let status = status?;
                return status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal));
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return None,
        }
    }
}

/// Sends a signal by number to a process.
///
/// # Errors
/// When the process is gone or the number is no signal.
pub fn kill(pid: i32, signal: i32) -> std::io::Result<()> {
    if pid <= 0 {
        return Err(std::io::Error::from_raw_os_error(libc::ESRCH));
    }
    // SAFETY: kill takes two numbers; the pid is checked not to mean a group.
    let result = unsafe { libc::kill(pid, signal) };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// Sends a signal by number to a process by its descriptor.
///
/// # Errors
/// When the process is gone or the number is no signal.
pub fn signal_by(pidfd: impl AsFd, signal: i32) -> std::io::Result<()> {
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: takes numbers, and a pointer that may be null.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_fd().as_raw_fd(), signal, none, 0) };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// A copy of a program in memory that nobody can change: what runs next to containers is never the file on disk.
///
/// # Errors
/// When the file can't be read or the kernel lacks sealing.
pub fn sealed_copy(program: &Path) -> std::io::Result<OwnedFd> {
    let name = program.file_name().map_or_else(|| "program".into(), |name| name.to_string_lossy().into_owned());
    let fd = rustix::fs::memfd_create(name.as_str(), MemfdFlags::ALLOW_SEALING)?;
    let mut copy = std::fs::File::from(fd);
    let mut bytes = Vec::new();
    std::fs::File::open(program)?.read_to_end(&mut bytes)?;
    copy.write_all(&bytes)?;
    copy.rewind()?;
    let fd = OwnedFd::from(copy);
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE)?;
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
    Ok(fd)
}

/// The path by which a descriptor of this process can be executed by a child of it.
#[must_use]
pub fn executable_path(fd: impl AsFd) -> std::path::PathBuf {
    format!("/proc/{}/fd/{}", std::process::id(), fd.as_fd().as_raw_fd()).into()
}

/// Replaces this process by the program behind a descriptor, which may lie outside of this process's root.
///
/// # Errors
/// Only ever returns an error: what the kernel says of the program.
pub fn exec_descriptor(program: impl AsFd, arguments: &[CString], environment: &[CString]) -> std::io::Error {
    let flags = nix::fcntl::AtFlags::AT_EMPTY_PATH;
    match nix::unistd::execveat(program, c"", arguments, environment, flags) {
        Ok(never) => match never {},
        Err(errno) => errno.into(),
    }
}

/// Gives a signal its default meaning again.
///
/// # Errors
/// When the number is no signal.
pub fn default_signal(signal: i32) -> std::io::Result<()> {
    set_signal(signal, libc::SIG_DFL)
}

/// Ignores a signal.
///
/// # Errors
/// When the number is no signal.
pub fn ignore_signal(signal: i32) -> std::io::Result<()> {
    set_signal(signal, libc::SIG_IGN)
}

fn set_signal(signal: i32, handler: libc::sighandler_t) -> std::io::Result<()> {
    // SAFETY: SIG_DFL and SIG_IGN run no code of ours.
    let result = unsafe { libc::signal(signal, handler) };
    if result == libc::SIG_ERR { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}
