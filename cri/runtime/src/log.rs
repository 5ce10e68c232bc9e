//! The log that a caller asks for: text, or one JSON object a line as supervisors of the OCI's runtimes read it.

use std::fs::File;
use std::io::Write;

use orlop_container::clock;
use serde_json::json;

/// Where messages go.
#[derive(Debug, Default)]
pub struct Log {
    file: Option<File>,
    json: bool,
    debug: bool,
}

impl Log {
    /// A log in a file, or on standard error.
    ///
    /// # Errors
    /// When the file can't be opened.
    pub fn open(path: Option<&str>, json: bool, debug: bool) -> std::io::Result<Log> {
        let open = |path: &str| File::options().create(true).append(true).open(path);
        Ok(Log { file: path.filter(|path| !path.is_empty()).map(open).transpose()?, json, debug })
    }

    /// What makes a command fail. It is printed too, where the log is a file.
    pub fn error(&self, text: &str) {
        self.write("error", text);
        if self.file.is_some() {
            let _ = writeln!(std::io::stderr(), "{text}");
        }
    }

    /// What goes wrong without consequence for the command.
    pub fn warn(&self, text: &str) {
        self.write("warning", text);
    }

    /// What only those read who look for an error.
    pub fn debug(&self, text: &str) {
        if self.debug {
            self.write("debug", text);
        }
    }

    fn write(&self, level: &str, text: &str) {
        let time = clock::timestamp(clock::now());
        let line = if self.json {
            json!({"level": level, "msg": text, "time": time}).to_string()
        } else {
            format!("time={time:?} level={level} msg={text:?}")
        };
        // A log that can't be written must not end the command.
        let _ = match &self.file {
            Some(file) => writeln!(&mut &*file, "{line}"),
            None => writeln!(std::io::stderr(), "{line}"),
        };
    }
}
