//! A process in the foreground: its signals, its terminal and its end are those of this program.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use orlop_container::stage::Step;
use orlop_kernel::{process, terminal};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use crate::create::is_terminal;
use crate::failure::{Failure, Outcome, failed};

/// Bytes that are passed on at once.
const CHUNK: usize = 16 << 10;

/// What is watched while a process runs.
pub struct Watch {
    signals: SignalFd,
    master: Option<OwnedFd>,
    /// The terminal of this program as it was.
    before: Option<Termios>,
}

impl Watch {
    /// Begins to hold back signals for the process, and takes the terminal of this program over where the process has one.
    pub fn new(master: Option<OwnedFd>) -> Result<Watch, Failure> {
        let mut set = SigSet::all();
        for own in [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGFPE, Signal::SIGILL, Signal::SIGABRT] {
            set.remove(own);
        }
        set.thread_block().step("hold back signals")?;
        let signals =
            SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).step("watch signals")?;
        let mut watch = Watch { signals, master, before: None };
        if watch.master.is_some() && is_terminal(std::io::stdin()) {
            let before = tcgetattr(std::io::stdin()).step("look at the terminal")?;
            let mut raw = before.clone();
            raw.make_raw();
            tcsetattr(std::io::stdin(), OptionalActions::Now, &raw).step("make the terminal raw")?;
            watch.before = Some(before);
            watch.resize();
        }
        Ok(watch)
    }

    /// Follows a process to its end and gives its exit status.
    pub fn run(mut self, pidfd: &OwnedFd) -> Outcome {
        let mut input = self.master.is_some();
        loop {
            let mut fds =
                vec![PollFd::new(pidfd, PollFlags::IN), PollFd::from_borrowed_fd(self.signals.as_fd(), PollFlags::IN)];
            let stdin = std::io::stdin();
            if let Some(master) = &self.master {
                fds.push(PollFd::new(master, PollFlags::IN));
                if input {
                    fds.push(PollFd::new(&stdin, PollFlags::IN));
                }
            }
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(failed("wait for the process", errno)),
            }
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            drop(fds);
            if ready[1] {
                self.pass_signals(pidfd);
            }
            if ready.get(2) == Some(&true) && !self.pass_output() {
                self.master = None;
            }
            if ready.get(3) == Some(&true) {
                input = self.pass_input();
            }
            if ready[0] {
                break;
            }
        }
        while self.master.is_some() && self.has_output() && self.pass_output() {}
        let code = process::wait_for(pidfd).unwrap_or(255);
        Ok(u8::try_from(code).unwrap_or(255))
    }

    fn pass_signals(&mut self, pidfd: &OwnedFd) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            let number = info.ssi_signo as i32;
            match Signal::try_from(number) {
                // Of children, of Go's runtimes, and of this program's own place in its session.
                Ok(Signal::SIGCHLD | Signal::SIGURG | Signal::SIGPIPE) => {}
                Ok(Signal::SIGWINCH) => self.resize(),
                _ => {
                    let _ = process::signal_by(pidfd, number);
                }
            }
        }
    }

    /// Gives the process's terminal the size of this program's.
    fn resize(&self) {
        if let (Some(master), Ok(size)) = (&self.master, tcgetwinsize(std::io::stdin())) {
            let _ = terminal::set_size(master, size.ws_col, size.ws_row);
        }
    }

    fn has_output(&self) -> bool {
        self.master.as_ref().is_some_and(|master| rustix::io::ioctl_fionread(master).is_ok_and(|bytes| bytes > 0))
    }

    /// Passes on what there is; false at the end.
    fn pass_output(&self) -> bool {
        let mut buffer = [0u8; CHUNK];
        let Some(master) = &self.master else { return false };
        match rustix::io::read(master, &mut buffer) {
            Ok(0) => false,
            Ok(count) => {
                let mut out = std::io::stdout();
                out.write_all(&buffer[..count]).and_then(|()| out.flush()).is_ok()
            }
            Err(Errno::INTR | Errno::AGAIN) => true,
            // The last user of the terminal has gone.
            Err(_) => false,
        }
    }

    /// Passes on what was typed; false at the end.
    fn pass_input(&self) -> bool {
        let mut buffer = [0u8; CHUNK];
        let Some(master) = &self.master else { return false };
        match rustix::io::read(std::io::stdin(), &mut buffer) {
            Ok(0) => {
                // The end of what is typed, as a terminal says it.
                let _ = rustix::io::write(master, &[4]);
                false
            }
            Ok(count) => {
                let mut left = &buffer[..count];
                while !left.is_empty() {
                    match rustix::io::write(master, left) {
                        Ok(written) => left = &left[written..],
                        Err(Errno::INTR) => {}
                        Err(_) => return false,
                    }
                }
                true
            }
            Err(Errno::INTR | Errno::AGAIN) => true,
            Err(_) => false,
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, before);
        }
    }
}
