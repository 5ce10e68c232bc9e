//! One line of a CRI log file: `<RFC 3339 time> <stdout|stderr> <F|P>[:tag…] <text>`. Pure.

use jiff::Timestamp;

/// Which stream a record belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogStream {
    /// Standard output, and everything of a terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A line of the file, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRecord<'a> {
    /// The time as it is written, which is what clients are shown.
    pub time_text: &'a str,
    /// The time.
    pub time: Timestamp,
    /// The stream.
    pub stream: LogStream,
    /// The line of the container goes on in the next record of the stream.
    pub partial: bool,
    /// What the container said, without the newline.
    pub text: &'a [u8],
}

/// A line of the file is not a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The time is missing or no RFC 3339.
    #[error("no RFC 3339 time at the start of the line")]
    Time,
    /// The stream is missing or unknown.
    #[error("the stream is neither stdout nor stderr")]
    Stream,
    /// The tag is missing or unknown.
    #[error("the tag is neither F nor P")]
    Tag,
}

/// Takes a line of a CRI log file apart; `line` has no newline.
///
/// # Errors
/// [`RecordError`] naming the part that is wrong.
pub fn parse_record(line: &[u8]) -> Result<LogRecord<'_>, RecordError> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let time_text = parts.next().and_then(|part| std::str::from_utf8(part).ok()).ok_or(RecordError::Time)?;
    let time = time_text.parse().map_err(|_| RecordError::Time)?;
    let stream = match parts.next() {
        Some(b"stdout") => LogStream::Stdout,
        Some(b"stderr") => LogStream::Stderr,
        _ => return Err(RecordError::Stream),
    };
    let partial = is_partial(parts.next().ok_or(RecordError::Tag)?).ok_or(RecordError::Tag)?;
    Ok(LogRecord { time_text, time, stream, partial, text: parts.next().unwrap_or_default() })
}

/// Stream and partiality without reading the time, for counting lines.
pub(super) fn peek_record(line: &[u8]) -> Option<(LogStream, bool)> {
    let mut parts = line.splitn(4, |byte| *byte == b' ').skip(1);
    let stream = match parts.next()? {
        b"stdout" => LogStream::Stdout,
        b"stderr" => LogStream::Stderr,
        _ => return None,
    };
    Some((stream, is_partial(parts.next()?)?))
}

/// Of the tags, separated by colons, only the first has a meaning yet.
fn is_partial(tags: &[u8]) -> Option<bool> {
    match tags.split(|byte| *byte == b':').next()? {
        b"F" => Some(false),
        b"P" => Some(true),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_taken_apart() {
        let record = parse_record(b"2026-01-02T03:04:05.000000006Z stdout F hello world ").unwrap();
        assert_eq!((record.stream, record.partial, record.text), (LogStream::Stdout, false, &b"hello world "[..]));
        assert_eq!(record.time.subsec_nanosecond(), 6);
        let with_offset = parse_record(b"2026-01-02T03:04:05.1+01:00 stderr P:x \xff").unwrap();
        assert!(with_offset.partial && with_offset.text == [0xff] && with_offset.stream == LogStream::Stderr);
        assert_eq!(
            parse_record(b"2026-01-02T03:04:05Z stdout F").unwrap().text,
            b"",
            "an empty line without its space"
        );
        for (line, want) in [
            (&b""[..], RecordError::Time),
            (b"yesterday stdout F x", RecordError::Time),
            (b"2026-01-02T03:04:05Z stdin F x", RecordError::Stream),
            (b"2026-01-02T03:04:05Z stdout X x", RecordError::Tag),
            (b"2026-01-02T03:04:05Z stdout", RecordError::Tag),
            (b"\xff\xff stdout F x", RecordError::Time),
        ] {
            assert_eq!(parse_record(line), Err(want), "{line:?}");
        }
    }
}
