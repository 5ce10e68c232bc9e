//! Output and input of containers: pipes and terminals to the log and the attached sessions, and back.

use orlop_kernel::terminal;
use rustix::io::Errno;

use crate::container::Container;
use crate::log::Stream;
use crate::poller::{Poller, Token};
use crate::shim::{Source, Sources};

/// Bytes read at once.
const READ_BYTES: usize = 64 << 10;
/// Reads of one container's output before others get their turn.
const READS_PER_TURN: usize = 4;

impl Container {
    /// Reads what a stream has to say. False when the stream has ended.
    pub fn read_output(
        &mut self,
        token: Token,
        buffer: &mut Vec<u8>,
        poller: &mut Poller,
        sources: &mut Sources,
    ) -> bool {
        for _ in 0..READS_PER_TURN {
            let Some((_, stream, fd)) = self.outputs.iter().find(|(known, _, _)| *known == token) else { return false };
            let stream = *stream;
            // Room that was never used is never touched: a quiet container costs no memory here.
            buffer.clear();
            buffer.reserve(READ_BYTES);
            match rustix::io::read(fd, rustix::buffer::spare_capacity(buffer)) {
                Ok(count) if count > 0 => {
                    let bytes = &buffer[..];
                    self.log.write(stream, bytes);
                    self.hand_out(stream, bytes, poller, sources);
                }
                Err(Errno::AGAIN) => return true,
                Err(Errno::INTR) => {}
                // A terminal says EIO when its last user has gone.
                Ok(_) | Err(_) => {
                    self.end_output(token, poller, sources);
                    return false;
                }
            }
        }
        true
    }

    /// Ends a stream: its last line is written, sessions get its end.
    fn end_output(&mut self, token: Token, poller: &mut Poller, sources: &mut Sources) {
        let Some(at) = self.outputs.iter().position(|(known, _, _)| *known == token) else { return };
        let (_, stream, fd) = self.outputs.swap_remove(at);
        poller.forget(&fd);
        sources.remove(&token);
        self.log.finish(stream);
        for session in &mut self.sessions {
            if let Some(sink) = session.sink(stream).take_if(|sink| !sink.is_waiting()) {
                forget_sink(&sink, poller, sources);
            }
        }
    }

    /// Reads everything that is there now, at the container's end.
    pub fn drain_outputs(&mut self, buffer: &mut Vec<u8>, poller: &mut Poller, sources: &mut Sources) {
        for token in self.outputs.iter().map(|(token, _, _)| *token).collect::<Vec<_>>() {
            // A pipe holds 1 MiB at most, a process that still writes must not keep us here.
            for _ in 0..16 {
                let before = self.outputs.len();
                if !self.read_output(token, buffer, poller, sources)
                    || self.outputs.len() != before
                    || self.is_drained(token)
                {
                    break;
                }
            }
        }
    }

    /// Whether a stream has nothing to read at the moment.
    fn is_drained(&self, token: Token) -> bool {
        self.outputs
            .iter()
            .find(|(known, _, _)| *known == token)
            .is_none_or(|(_, _, fd)| rustix::io::ioctl_fionread(fd).is_ok_and(|bytes| bytes == 0))
    }

    /// Gives bytes to the attached sessions; those that are gone or too slow are dropped.
    fn hand_out(&mut self, stream: Stream, bytes: &[u8], poller: &mut Poller, sources: &mut Sources) {
        let id = self.spec.id.clone();
        for session in &mut self.sessions {
            let connection = session.connection;
            let place = session.sink(stream);
            let Some(sink) = place else { continue };
            if !sink.write(bytes) {
                let sink = place.take().expect("it was there");
                forget_sink(&sink, poller, sources);
            } else if sink.is_waiting() && sink.token.is_none() {
                sink.token = poller.watch_writing(sink.descriptor()).ok();
                sources.extend(
                    sink.token.map(|token| (token, Source::SessionRoom { container: id.clone(), connection, stream })),
                );
            }
        }
    }

    /// There is room again in a session's sink.
    pub fn flush_session(&mut self, connection: Token, stream: Stream, poller: &mut Poller, sources: &mut Sources) {
        let ended = !self.outputs.iter().any(|(_, known, _)| *known == stream);
        let Some(session) = self.sessions.iter_mut().find(|session| session.connection == connection) else { return };
        let place = session.sink(stream);
        let Some(sink) = place else { return };
        let alive = sink.flush();
        if !alive || !sink.is_waiting() {
            forget_sink(sink, poller, sources);
            sink.token = None;
            if !alive || ended {
                *place = None;
            }
        }
    }

    /// Reads a session's input and passes it on.
    pub fn read_input(&mut self, connection: Token, buffer: &mut Vec<u8>, poller: &mut Poller, sources: &mut Sources) {
        let Some(session) = self.sessions.iter_mut().find(|session| session.connection == connection) else { return };
        let Some((token, fd)) = &session.stdin else { return };
        let Some(input) = &mut self.input else { return };
        buffer.clear();
        buffer.reserve(READ_BYTES);
        let ended = match rustix::io::read(fd, rustix::buffer::spare_capacity(buffer)) {
            Ok(0) => true,
            Ok(_) => !input.write(buffer),
            Err(Errno::AGAIN | Errno::INTR) => false,
            Err(_) => true,
        };
        if ended {
            poller.forget(fd);
            sources.remove(token);
            session.stdin = None;
            if self.spec.stdin_once && !self.spec.tty {
                self.close_input(poller, sources);
            }
        } else if input.is_waiting() && input.token.is_none() {
            // The container is slow: read no more from the session until there is room.
            poller.forget(fd);
            sources.remove(token);
            input.token = poller.watch_writing(input.descriptor()).ok();
            sources.extend(input.token.map(|token| (token, Source::InputRoom { container: self.spec.id.clone() })));
        }
    }

    /// There is room again in the container's input.
    pub fn flush_input(&mut self, poller: &mut Poller, sources: &mut Sources) {
        let Some(input) = &mut self.input else { return };
        if !input.flush() {
            self.close_input(poller, sources);
            return;
        }
        if input.is_waiting() {
            return;
        }
        forget_sink(input, poller, sources);
        input.token = None;
        let id = self.spec.id.clone();
        for session in &mut self.sessions {
            let connection = session.connection;
            if let Some((token, fd)) = &mut session.stdin
                && let Ok(fresh) = poller.watch_reading(&*fd)
            {
                *token = fresh;
                sources.insert(fresh, Source::SessionInput { container: id.clone(), connection });
            }
        }
    }

    /// Closes the container's input.
    pub fn close_input(&mut self, poller: &mut Poller, sources: &mut Sources) {
        if let Some(input) = self.input.take() {
            forget_sink(&input, poller, sources);
        }
    }

    /// Sets the terminal's size.
    pub fn resize(&self, width: u16, height: u16) -> Result<(), String> {
        let terminal = self.terminal.as_ref().ok_or("the container has no terminal")?;
        terminal::set_size(terminal, width, height).map_err(|error| format!("resize the terminal: {error}"))
    }

    /// Ends a session.
    pub fn end_session(&mut self, connection: Token, poller: &mut Poller, sources: &mut Sources) {
        let Some(at) = self.sessions.iter().position(|session| session.connection == connection) else { return };
        let session = self.sessions.swap_remove(at);
        let had_input = session.stdin.is_some();
        if let Some((token, fd)) = session.stdin {
            poller.forget(&fd);
            sources.remove(&token);
        }
        for sink in [session.stdout, session.stderr].into_iter().flatten() {
            forget_sink(&sink, poller, sources);
        }
        if had_input && self.spec.stdin_once && !self.spec.tty {
            self.close_input(poller, sources);
        }
    }
}

fn forget_sink(sink: &crate::attach::Sink, poller: &Poller, sources: &mut Sources) {
    if let Some(token) = sink.token {
        poller.forget(sink.descriptor());
        sources.remove(&token);
    }
}
