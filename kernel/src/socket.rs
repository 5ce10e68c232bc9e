//! Unix sockets that pass file descriptors.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

/// Descriptors that one message may carry.
pub const DESCRIPTORS_MAX: usize = 4;

/// How long a connect waits for a busy listener.
const CONNECT_WAIT: std::time::Duration = std::time::Duration::from_secs(5);

/// Sends bytes, with descriptors attached to the first of them. Returns how many bytes went out.
///
/// # Errors
/// What the socket says; `WouldBlock` on one that doesn't wait.
pub fn send(socket: impl AsFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> std::io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(std::io::Error::other(format!("more than {DESCRIPTORS_MAX} descriptors in one message")));
    }
    Ok(rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?)
}

/// Receives bytes and the descriptors that came with them, closed on exec. Zero bytes is the end.
///
/// # Errors
/// What the socket says; `WouldBlock` on one that doesn't wait.
pub fn receive(socket: impl AsFd, buffer: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> std::io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    Ok(got.bytes)
}

/// A pair of connected sockets that keep messages apart, closed on exec.
///
/// # Errors
/// When out of descriptors.
pub fn message_pair() -> std::io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Listens on a socket in a folder, which may lie deeper than a socket's path can say (108 bytes).
///
/// # Errors
/// When the folder doesn't exist or the kernel refuses.
pub fn listen(path: &Path) -> std::io::Result<OwnedFd> {
    let (_folder, short) = shorten(path)?;
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(&short)?)?;
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    rustix::net::listen(&socket, 64)?;
    Ok(socket)
}

/// Connects to such a socket, waiting 5 s at most for a listener that is busy; the connection itself does not wait on
/// reads and writes.
///
/// # Errors
/// When nobody listens.
pub fn connect(path: &Path) -> std::io::Result<OwnedFd> {
    use rustix::net::sockopt::{Timeout, set_socket_timeout};
    let (_folder, short) = shorten(path)?;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(CONNECT_WAIT))?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(&short)?)?;
    rustix::io::ioctl_fionbio(&socket, true)?;
    Ok(socket)
}

/// The same place by a short path, through a descriptor of its folder.
fn shorten(path: &Path) -> std::io::Result<(OwnedFd, PathBuf)> {
    use rustix::fs::{Mode, OFlags};
    use std::os::fd::AsRawFd;
    let name = path.file_name().ok_or_else(|| std::io::Error::other(format!("{path:?} names no socket")))?;
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = rustix::fs::open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name);
    Ok((folder, short))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn descriptors_travel_and_long_paths_work() {
        let folder = std::env::temp_dir().join("x".repeat(120)).join(std::process::id().to_string());
        std::fs::create_dir_all(&folder).unwrap();
        let listener = listen(&folder.join("s.sock")).unwrap();
        let client = connect(&folder.join("s.sock")).unwrap();
        let server = rustix::net::accept(&listener).unwrap();
        let (mut read, write) = std::io::pipe().unwrap();
        assert_eq!(send(&client, b"hi", &[write.as_fd()]).unwrap(), 2);
        drop(write);
        let (mut buffer, mut fds) = ([0; 8], Vec::new());
        assert_eq!(receive(&server, &mut buffer, &mut fds).unwrap(), 2);
        std::fs::File::from(fds.pop().unwrap()).write_all(b"through").unwrap();
        let mut text = String::new();
        read.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
        std::fs::remove_dir_all(folder).unwrap();
    }
}
