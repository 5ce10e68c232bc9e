//! Objects of the API, read and written through the socket of a `kubectl proxy`: no process per look.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long an answer may take.
const ANSWER_TIME: Duration = Duration::from_secs(30);

/// How long a watch may be silent.
const WATCH_TIME: Duration = Duration::from_secs(120);

/// A way to the API with the administrator's rights.
#[derive(Clone, Debug)]
pub struct Api {
    socket: PathBuf,
}

impl Api {
    /// Through this socket.
    #[must_use]
    pub fn new(socket: &Path) -> Api {
        Api { socket: socket.to_path_buf() }
    }

    /// Sends a request; the code and the answer.
    ///
    /// # Errors
    /// When nobody answers.
    pub fn send(&self, method: &str, path: &str, body: Option<&Value>) -> std::io::Result<(u16, Value)> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(ANSWER_TIME))?;
        stream.set_write_timeout(Some(ANSWER_TIME))?;
        let body = body.map(Value::to_string).unwrap_or_default();
        let media = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        // HTTP 1.0: the answer ends with the connection and is never chunked.
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\nHost: localhost\r\nAccept: application/json\r\nContent-Type: {media}\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let text = String::from_utf8_lossy(&answer);
        let (head, rest) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let code = head.split_whitespace().nth(1).and_then(|code| code.parse().ok());
        let code = code.ok_or_else(|| std::io::Error::other(format!("not HTTP: {head:?}")))?;
        Ok((code, serde_json::from_str(rest).unwrap_or_else(|_| Value::String(rest.to_string()))))
    }

    /// Follows the changes of a list, each with the moment at which it was heard of; ends with the connection, or after
    /// a while without a word.
    ///
    /// # Errors
    /// When nobody answers.
    pub fn watch(&self, path: &str) -> std::io::Result<impl Iterator<Item = (Instant, Value)> + use<>> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(WATCH_TIME))?;
        write!(stream, "GET {path}?watch=true HTTP/1.0\r\nHost: localhost\r\nAccept: application/json\r\n\r\n")?;
        let mut lines = BufReader::new(stream).lines();
        // The head ends with an empty line.
        while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
        Ok(lines.map_while(Result::ok).filter_map(|line| Some((Instant::now(), serde_json::from_str(&line).ok()?))))
    }

    /// An object or a list, if it is there.
    ///
    /// # Panics
    /// When the API does not answer or refuses.
    #[must_use]
    pub fn find(&self, path: &str) -> Option<Value> {
        let (code, value) = self.send("GET", path, None).unwrap_or_else(|error| panic!("GET {path}: {error}"));
        match code {
            200 => Some(value),
            404 => None,
            _ => panic!("GET {path}: {code} {value}"),
        }
    }

    /// An object or a list that must be there.
    ///
    /// # Panics
    /// When it isn't.
    #[must_use]
    pub fn get(&self, path: &str) -> Value {
        self.find(path).unwrap_or_else(|| panic!("GET {path}: not there"))
    }

    /// Sends a request that must succeed.
    ///
    /// # Panics
    /// When it doesn't.
    pub fn must(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let (code, value) = self.send(method, path, body).unwrap_or_else(|error| panic!("{method} {path}: {error}"));
        assert!((200..300).contains(&code), "{method} {path}: {code} {value}");
        value
    }
}
