//! Reading beside the work with what was read: a thread of its own stays a few buffers ahead.
//!
//! Inflating and hashing a layer and writing its files take about as long as each other, so two cores are twice as fast.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;

/// Large, since waking a thread on another core costs tens of microseconds.
const BUFFER_BYTES: usize = 256 * 1024;
/// Buffers that wait to be worked with.
const BUFFERS_AHEAD: usize = 4;
const STACK_BYTES: usize = 256 * 1024;

/// Does `work` with what `source` gives while the next bytes are read; the source comes back, read as far as it was.
///
/// # Errors
/// When there can be no thread. What the source says goes to `work`, in its place.
pub(super) fn beside<S: Read + Send, T>(mut source: S, work: impl FnOnce(&mut dyn Read) -> T) -> io::Result<(T, S)> {
    let (fill, filled) = sync_channel(BUFFERS_AHEAD);
    let (give_back, spent) = channel();
    thread::scope(|scope| {
        let builder = thread::Builder::new().name("orlop-unpack".into()).stack_size(STACK_BYTES);
        let reading = builder.spawn_scoped(scope, move || {
            read_on(&mut source, &fill, &spent);
            source
        })?;
        let done = work(&mut Ahead { filled, give_back, buffer: Vec::new(), at: 0 });
        // The queue is gone now: whoever reads ends with the buffer that is under way.
        let source = reading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok((done, source))
    })
}

/// Reads until the end, an error, or until nobody wants more.
fn read_on(source: &mut impl Read, fill: &SyncSender<io::Result<Vec<u8>>>, spent: &Receiver<Vec<u8>>) {
    loop {
        let mut buffer = spent.try_recv().unwrap_or_default();
        let read = fill_up(source, &mut buffer);
        let last = read.is_err() || buffer.len() < BUFFER_BYTES;
        // What came before an error is worked with first.
        let sent = fill.send(Ok(buffer)).is_ok();
        if let (true, Err(error)) = (sent, read) {
            let _ = fill.send(Err(error));
        }
        if last || !sent {
            return;
        }
    }
}

/// Fills a buffer; it is short at the end of the source.
fn fill_up(source: &mut impl Read, buffer: &mut Vec<u8>) -> io::Result<()> {
    buffer.resize(BUFFER_BYTES, 0);
    let mut length = 0;
    while length < BUFFER_BYTES {
        match source.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                buffer.truncate(length);
                return Err(error);
            }
        }
    }
    buffer.truncate(length);
    Ok(())
}

/// The working thread's end.
struct Ahead {
    filled: Receiver<io::Result<Vec<u8>>>,
    give_back: Sender<Vec<u8>>,
    buffer: Vec<u8>,
    at: usize,
}

impl Read for Ahead {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.at == self.buffer.len() {
            let Ok(next) = self.filled.recv() else { return Ok(0) };
            let spent = std::mem::replace(&mut self.buffer, next?);
            self.at = 0;
            let _ = self.give_back.send(spent);
        }
        let count = into.len().min(self.buffer.len() - self.at);
        into[..count].copy_from_slice(&self.buffer[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives a number of bytes in odd pieces, then what it is told to.
    struct Source {
        left: usize,
        then: Option<io::ErrorKind>,
    }

    impl Read for Source {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.left == 0 {
                return self.then.take().map_or(Ok(0), |kind| Err(kind.into()));
            }
            let count = buffer.len().min(self.left).min(10_007);
            for (index, byte) in buffer[..count].iter_mut().enumerate() {
                *byte = (self.left - index).to_le_bytes()[0];
            }
            self.left -= count;
            Ok(count)
        }
    }

    #[test]
    fn all_bytes_come_and_then_the_end_or_the_error() {
        for (length, then) in [
            (0, None),
            (1, None),
            (BUFFER_BYTES, None),
            (BUFFER_BYTES * 9 + 1, None),
            (0, Some(io::ErrorKind::InvalidData)),
            (BUFFER_BYTES * 3 + 5, Some(io::ErrorKind::InvalidData)),
        ] {
            let mut expected = Vec::new();
            let _ = Source { left: length, then: None }.read_to_end(&mut expected);
            let mut found = Vec::new();
            let (outcome, source) =
                beside(Source { left: length, then }, |ahead| ahead.read_to_end(&mut found)).unwrap();
            assert_eq!(outcome.map_err(|error| error.kind()).err(), then);
            assert!(found == expected, "{length} bytes");
            assert_eq!(source.left, 0);
        }
    }

    #[test]
    fn work_that_ends_early_ends_the_reading() {
        let endless = Source { left: usize::MAX, then: None };
        let (count, source) = beside(endless, |ahead| ahead.read(&mut [0; 10]).unwrap()).unwrap();
        assert_eq!(count, 10);
        assert!(usize::MAX - source.left <= BUFFER_BYTES * (BUFFERS_AHEAD + 3));
    }
}
