//! From records to what the client is sent. Pure.

use super::options::LogOptions;
use super::record::{LogStream, parse_record};

/// Turns lines of the file into text: leaves out what is too old or of the other stream, joins parts of long lines,
/// puts times in front, and stops at the limit.
#[derive(Clone, Debug)]
pub struct LogText {
    options: LogOptions,
    left: Option<u64>,
    /// For each stream, whether the next record starts a line of the container.
    at_line_start: [bool; 2],
}

impl LogText {
    /// A log of which nothing was sent yet.
    pub fn new(options: LogOptions) -> Self {
        Self { left: options.limit_bytes, options, at_line_start: [true; 2] }
    }

    /// Nothing more may be sent.
    pub fn is_full(&self) -> bool {
        self.left == Some(0)
    }

    /// Adds what a line of the file (without its newline) says to `out`. Lines that are no records are left out.
    pub fn push(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let Ok(record) = parse_record(line) else { return };
        let unwanted = self.options.stream.is_some_and(|stream| stream != record.stream)
            || self.options.since.is_some_and(|since| record.time < since);
        if unwanted || self.is_full() {
            return;
        }
        let start = out.len();
        let line_start = &mut self.at_line_start[usize::from(record.stream == LogStream::Stderr)];
        if self.options.timestamps && *line_start {
            out.extend_from_slice(record.time_text.as_bytes());
            out.push(b' ');
        }
        *line_start = !record.partial;
        out.extend_from_slice(record.text);
        if !record.partial {
            out.push(b'\n');
        }
        if let Some(left) = &mut self.left {
            let added = (out.len() - start) as u64;
            if added > *left {
                // The limit is in bytes and may cut a character, as the kubelet's does.
                out.truncate(start + usize::try_from(*left).unwrap_or(usize::MAX));
            }
            *left = left.saturating_sub(added);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "2026-01-01T00:00:01Z stdout F one\n\
                        2026-01-01T00:00:02Z stderr F two\n\
                        garbage\n\
                        2026-01-01T00:00:03Z stdout P thr\n\
                        2026-01-01T00:00:03.5Z stderr F mid\n\
                        2026-01-01T00:00:04Z stdout F ee\n";

    #[test]
    fn options_choose_what_is_sent() {
        let since = |text: &str| Some(text.parse().unwrap());
        let plain = LogOptions::default();
        let cases = [
            ("all", plain.clone(), "one\ntwo\nthrmid\nee\n"),
            ("stdout", LogOptions { stream: Some(LogStream::Stdout), ..plain.clone() }, "one\nthree\n"),
            ("stderr", LogOptions { stream: Some(LogStream::Stderr), ..plain.clone() }, "two\nmid\n"),
            ("since", LogOptions { since: since("2026-01-01T00:00:03.1Z"), ..plain.clone() }, "mid\nee\n"),
            ("since itself", LogOptions { since: since("2026-01-01T00:00:04Z"), ..plain.clone() }, "ee\n"),
            ("limit", LogOptions { limit_bytes: Some(6), ..plain.clone() }, "one\ntw"),
            (
                "timestamps, once per line of the container",
                LogOptions { timestamps: true, stream: Some(LogStream::Stdout), ..plain },
                "2026-01-01T00:00:01Z one\n2026-01-01T00:00:03Z three\n",
            ),
        ];
        for (what, options, want) in cases {
            let (mut text, mut out) = (LogText::new(options), Vec::new());
            FILE.lines().for_each(|line| text.push(line.as_bytes(), &mut out));
            assert_eq!(String::from_utf8(out).unwrap(), want, "{what}");
        }
    }
}
