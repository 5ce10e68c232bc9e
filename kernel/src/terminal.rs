//! Pseudo-terminals.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::pty::OpenptFlags;

/// The slave of a master, opened through the master itself: no path is involved.
///
/// # Errors
/// When the descriptor is no master.
pub fn open_slave(master: impl AsFd) -> std::io::Result<OwnedFd> {
    rustix::pty::unlockpt(&master)?;
    Ok(rustix::pty::ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?)
}

/// Makes a terminal the controlling one of this session.
///
/// # Errors
/// When the process leads no session.
pub fn take_control(slave: impl AsFd) -> std::io::Result<()> {
    Ok(rustix::process::ioctl_tiocsctty(slave)?)
}

/// Sets a terminal's size.
///
/// # Errors
/// When the descriptor is no terminal.
pub fn set_size(terminal: impl AsFd, columns: u16, rows: u16) -> std::io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize, which lives during the call.
    let result = unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}
