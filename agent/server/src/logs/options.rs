//! Which part of a log a client asks for. Pure.

use jiff::{SignedDuration, Timestamp};

use super::record::LogStream;
use crate::query::Query;

/// The query of `/containerLogs`, checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// Go on as the container speaks.
    pub follow: bool,
    /// The instance before the current one.
    pub previous: bool,
    /// Each line with its time in front.
    pub timestamps: bool,
    /// Nothing older than this.
    pub since: Option<Timestamp>,
    /// Only so many lines from the end.
    pub tail_lines: Option<u64>,
    /// At most so many bytes.
    pub limit_bytes: Option<u64>,
    /// Only this stream.
    pub stream: Option<LogStream>,
}

/// Reads the options of a query; the error is a text for the client.
pub(crate) fn parse_options(query: &Query, now: Timestamp) -> Result<LogOptions, String> {
    let number = |key: &str, min: i64| -> Result<Option<i64>, String> {
        let Some(text) = query.get(key).filter(|text| !text.is_empty()) else { return Ok(None) };
        let value: i64 = text.parse().map_err(|_| format!("{key}: {text:?} is no whole number"))?;
        if value < min { Err(format!("{key}: must be at least {min}")) } else { Ok(Some(value)) }
    };
    let since_seconds = number("sinceSeconds", 1)?;
    let since_time = match query.get("sinceTime").filter(|text| !text.is_empty()) {
        Some(text) => Some(text.parse::<Timestamp>().map_err(|_| format!("sinceTime: {text:?} is no RFC 3339 time"))?),
        None => None,
    };
    if since_seconds.is_some() && since_time.is_some() {
        return Err("at most one of sinceTime or sinceSeconds may be specified".to_owned());
    }
    let ago = |seconds: i64| now.checked_sub(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MIN);
    let stream = match query.get("stream").unwrap_or("All") {
        "" | "All" => None,
        "Stdout" => Some(LogStream::Stdout),
        "Stderr" => Some(LogStream::Stderr),
        other => return Err(format!("stream: {other:?} is none of All, Stdout, Stderr")),
    };
    Ok(LogOptions {
        follow: query.flag("follow")?,
        previous: query.flag("previous")?,
        timestamps: query.flag("timestamps")?,
        since: since_time.or(since_seconds.map(ago)),
        tail_lines: number("tailLines", 0)?.map(i64::unsigned_abs),
        limit_bytes: number("limitBytes", 1)?.map(i64::unsigned_abs),
        stream,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_checked() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let parse = |text: &str| parse_options(&Query::parse(Some(text)), now);
        assert_eq!(parse("").unwrap(), LogOptions::default());
        let all =
            parse("follow=true&previous=0&timestamps=true&sinceSeconds=60&tailLines=0&limitBytes=9&stream=Stderr")
                .unwrap();
        let want = LogOptions {
            follow: true,
            previous: false,
            timestamps: true,
            since: Some("2026-01-01T00:00:00Z".parse().unwrap()),
            tail_lines: Some(0),
            limit_bytes: Some(9),
            stream: Some(LogStream::Stderr),
        };
        assert_eq!(all, want);
        assert_eq!(parse("sinceTime=2026-01-01T00:00:00Z").unwrap().since, want.since);
        for (wrong, word) in [
            ("tailLines=x", "tailLines"),
            ("tailLines=-1", "tailLines"),
            ("limitBytes=0", "limitBytes"),
            ("sinceSeconds=0", "sinceSeconds"),
            ("sinceTime=noon", "sinceTime"),
            ("sinceTime=2026-01-01T00:00:00Z&sinceSeconds=1", "at most one"),
            ("stream=Stdin", "stream"),
            ("follow=perhaps", "follow"),
        ] {
            assert!(parse(wrong).unwrap_err().contains(word), "{wrong}");
        }
    }
}
