//! Where the last lines of a log begin, found from its end.

use std::io::{self, Read, Seek, SeekFrom};

use super::record::{LogStream, peek_record};

/// Bytes read at once.
const BLOCK: u64 = 64 << 10;
/// A line of the file longer than this is not the runtime's; nothing before it is looked at.
const LINE_MAX: usize = 1 << 20;

/// The offset right behind the last whole line before offset `end`: what follows is still being written.
pub(super) fn last_line_end<R: Read + Seek>(file: &mut R, end: u64) -> io::Result<u64> {
    let mut position = end;
    while position > 0 && end - position < LINE_MAX as u64 {
        let size = BLOCK.min(position);
        position -= size;
        let mut buffer = vec![0; size as usize];
        file.seek(SeekFrom::Start(position))?;
        file.read_exact(&mut buffer)?;
        if let Some(newline) = buffer.iter().rposition(|byte| *byte == b'\n') {
            return Ok(position + newline as u64 + 1);
        }
    }
    Ok(position)
}

/// Looks for the last lines that a container has said, from the end of its log towards the beginning, file by file.
/// Parts of a long line are one line; parts at the end that wait for more are one too.
#[derive(Clone, Debug)]
pub(super) struct TailSearch {
    wanted: u64,
    stream: Option<LogStream>,
    lines: u64,
    /// For each stream, whether a record was seen: one before it that is a part belongs to it.
    seen: [bool; 2],
    start: u64,
}

impl TailSearch {
    /// A search for the last `lines` lines on `stream` (none: on either).
    pub(super) fn new(lines: u64, stream: Option<LogStream>) -> TailSearch {
        TailSearch { wanted: lines, stream, lines: 0, seen: [false; 2], start: 0 }
    }

    /// Looks through a file that ends at `end`, which was written before those it has seen. Returns the offset to read
    /// from, or none when the lines begin in a file that is older still, if there is one.
    pub(super) fn look_through<R: Read + Seek>(&mut self, file: &mut R, end: u64) -> io::Result<Option<u64>> {
        self.start = end;
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
                if self.is_full_at(&buffer[newline + 1..line_end], position + newline as u64 + 1) {
                    return Ok(Some(self.start));
                }
                line_end = newline + 1;
            }
            buffer.truncate(line_end);
            if buffer.len() > LINE_MAX {
                return Ok(Some(self.start));
            }
            rest = buffer;
        }
        Ok((!rest.is_empty() && self.is_full_at(&rest, 0)).then_some(self.start))
    }

    /// Takes the next line of the file on the way to its beginning; true where it is one line too many.
    fn is_full_at(&mut self, line: &[u8], offset: u64) -> bool {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        if let Some((stream, partial)) = peek_record(line)
            && self.stream.is_none_or(|wanted| wanted == stream)
        {
            let seen = &mut self.seen[usize::from(stream == LogStream::Stderr)];
            let new_line = !(partial && *seen);
            if new_line && self.lines == self.wanted {
                return true;
            }
            *seen = true;
            self.lines += u64::from(new_line);
        }
        self.start = offset;
        false
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
            (0, None, Some(offset(5))),
            (1, None, Some(offset(4))),
            (2, None, Some(offset(2))),
            (3, None, Some(offset(1))),
            (4, None, None),
            (9, None, None),
            // What lies between is of the other stream and is left out when it is sent.
            (1, Some(LogStream::Stdout), Some(offset(1))),
            (2, Some(LogStream::Stderr), None),
        ];
        for (lines, stream, want) in cases {
            let mut search = TailSearch::new(lines, stream);
            let got = search.look_through(&mut Cursor::new(&file), file.len() as u64).unwrap();
            assert_eq!(got, want, "{lines} of {stream:?}");
        }
    }

    #[test]
    fn a_line_is_whole_across_files_and_other_streams() {
        let (out, err) = (|tag, text| line("stdout", tag, text), |tag, text| line("stderr", tag, text));
        // The last number: how many lines of the older file are left out.
        let cases = [
            ("a line that goes on in the next file", out("F", "x") + &out("P", "o"), out("F", "ne"), 1, 1),
            ("a line that begins the next file", out("F", "x"), out("F", "one"), 1, 1),
            ("an open line of another stream", out("F", "x") + &out("P", "open"), err("F", "one"), 1, 2),
            ("two of them", out("F", "x") + &out("P", "open"), err("F", "one"), 2, 1),
        ];
        for (what, older, newer, lines, left_out) in cases {
            let mut search = TailSearch::new(lines, None);
            assert_eq!(search.look_through(&mut Cursor::new(&newer), newer.len() as u64).unwrap(), None, "{what}");
            let got = search.look_through(&mut Cursor::new(&older), older.len() as u64).unwrap();
            let want: usize = older.split_inclusive('\n').take(left_out).map(str::len).sum();
            assert_eq!(got, Some(want as u64), "{what}");
        }
    }

    #[test]
    fn lines_across_blocks_open_ends_and_nonsense_are_survived() {
        let long = line("stdout", "F", &"x".repeat(BLOCK as usize * 2));
        let file = format!("{}{}{}", line("stdout", "F", "a"), long, line("stdout", "F", "b"));
        let tail = |text: &str, lines| {
            TailSearch::new(lines, None).look_through(&mut Cursor::new(text), text.len() as u64).unwrap()
        };
        let first = Some(line("stdout", "F", "a").len() as u64);
        assert_eq!(tail(&file, 2), first);
        let open = format!("{}{}", line("stdout", "F", "a"), line("stdout", "P", "b"));
        assert_eq!(tail(&open, 1), first, "an unfinished line counts");
        tail(&("\n".repeat(1000) + &"x".repeat(3 * LINE_MAX)), 5);
        assert_eq!(tail("", 5), None);
    }

    #[test]
    fn what_is_being_written_is_told_from_what_is_whole() {
        let long = "x".repeat(BLOCK as usize + 9);
        for (text, want) in [
            ("", 0),
            ("a", 0),
            ("a\n", 2),
            ("a\nbc", 2),
            ("a\n\n", 3),
            (&*format!("a\n{long}"), 2),
            (&*format!("{long}\nb"), long.len() as u64 + 1),
        ] {
            let got = last_line_end(&mut Cursor::new(text), text.len() as u64).unwrap();
            assert_eq!(got, want, "{:?} of {} bytes", &text[..text.len().min(9)], text.len());
        }
    }
}
