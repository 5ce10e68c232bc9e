//! Where the last lines of a log begin, found from its end.

use std::io::{self, Read, Seek, SeekFrom};

use super::record::{LogStream, peek_record};

/// Bytes read at once.
const BLOCK: u64 = 64 << 10;
/// A line of the file longer than this is not the runtime's; nothing before it is looked at.
const LINE_MAX: usize = 1 << 20;

/// Where a tail begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TailStart {
    /// Offset of the first line of the file to read.
    pub(super) offset: u64,
    /// How many lines of the container are between there and the end.
    pub(super) lines: u64,
}

/// The start of the last `lines` lines that a container has said on `stream` (none: on either) before offset `end`.
/// Parts of a long line are one line; parts at the end that wait for more are one too.
pub(super) fn find_tail<R: Read + Seek>(
    file: &mut R,
    end: u64,
    lines: u64,
    stream: Option<LogStream>,
) -> io::Result<TailStart> {
    let mut counter = TailCounter { wanted: lines, stream, lines: 0, start: end };
    // Bytes of the line of the file whose beginning lies before what was read.
    let mut rest: Vec<u8> = Vec::new();
    let mut position = end;
    while position > 0 {
        let size = BLOCK.min(position);
        position -= size;
        let mut buffer = vec![0; size as usize];
        file.seek(SeekFrom::Start(position))?;
        file.read_exact(&mut buffer)?;
        buffer.extend_from_slice(&rest);
        let mut line_end = buffer.len();
        // The newline that ends a line belongs to it, so the one at the very end starts nothing.
        while let Some(newline) = buffer[..line_end.saturating_sub(1)].iter().rposition(|byte| *byte == b'\n') {
            if counter.is_full_at(&buffer[newline + 1..line_end], position + newline as u64 + 1) {
                return Ok(counter.result());
            }
            line_end = newline + 1;
        }
        buffer.truncate(line_end);
        if buffer.len() > LINE_MAX {
            return Ok(counter.result());
        }
        rest = buffer;
    }
    if !rest.is_empty() {
        counter.is_full_at(&rest, 0);
    }
    Ok(counter.result())
}

struct TailCounter {
    wanted: u64,
    stream: Option<LogStream>,
    lines: u64,
    start: u64,
}

impl TailCounter {
    /// Takes the next line of the file on the way to its beginning; true where it is one line too many.
    fn is_full_at(&mut self, line: &[u8], offset: u64) -> bool {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        if let Some((stream, partial)) = peek_record(line)
            && self.stream.is_none_or(|wanted| wanted == stream)
        {
            // Seen from the end, the last part of a line of the container comes first.
            let new_line = !partial || self.lines == 0;
            if new_line && self.lines == self.wanted {
                return true;
            }
            self.lines += u64::from(new_line);
        }
        self.start = offset;
        false
    }

    fn result(&self) -> TailStart {
        TailStart { offset: self.start, lines: self.lines }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn line(stream: &str, tag: &str, text: &str) -> String {
        format!("2026-01-01T00:00:00Z {stream} {tag} {text}\n")
    }

    #[test]
    fn the_last_lines_are_found() {
        let parts = [
            line("stdout", "F", "one"),
            line("stderr", "F", "two"),
            line("stdout", "P", "thr"),
            line("stdout", "F", "ee"),
            line("stderr", "F", "four"),
        ];
        let file: String = parts.concat();
        let offset = |count: usize| parts[..count].iter().map(String::len).sum::<usize>() as u64;
        let cases = [
            (0, None, offset(5), 0),
            (1, None, offset(4), 1),
            (2, None, offset(2), 2),
            (3, None, offset(1), 3),
            (4, None, 0, 4),
            (9, None, 0, 4),
            (1, Some(LogStream::Stdout), offset(2), 1),
            (2, Some(LogStream::Stderr), offset(1), 2),
        ];
        for (lines, stream, start, found) in cases {
            let got = find_tail(&mut Cursor::new(&file), file.len() as u64, lines, stream).unwrap();
            // What lies between is of the other stream and is left out when it is sent.
            assert!(got.offset <= start && got.lines == found, "{lines} of {stream:?}: {got:?}, want {start}, {found}");
            if stream.is_none() {
                assert_eq!(got.offset, start, "{lines}");
            }
        }
    }

    #[test]
    fn lines_across_blocks_open_ends_and_nonsense_are_survived() {
        let long = line("stdout", "F", &"x".repeat(BLOCK as usize * 2));
        let file = format!("{}{}{}", line("stdout", "F", "a"), long, line("stdout", "F", "b"));
        let got = find_tail(&mut Cursor::new(&file), file.len() as u64, 2, None).unwrap();
        assert_eq!(got, TailStart { offset: line("stdout", "F", "a").len() as u64, lines: 2 });
        let open = format!("{}{}", line("stdout", "F", "a"), line("stdout", "P", "b"));
        let got = find_tail(&mut Cursor::new(&open), open.len() as u64, 1, None).unwrap();
        assert_eq!(got.offset, line("stdout", "F", "a").len() as u64, "an unfinished line counts");
        let garbage = "\n".repeat(1000) + &"x".repeat(3 * LINE_MAX);
        find_tail(&mut Cursor::new(&garbage), garbage.len() as u64, 5, None).unwrap();
        assert_eq!(find_tail(&mut Cursor::new(""), 0, 5, None).unwrap(), TailStart { offset: 0, lines: 0 });
    }
}
