//! What is kept of the last shutdown: when it was, and which pods it ended. The first is the kubelet's own file of that
//! name; the second makes them stay ended where the API could not be told in time.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use orlop_kernel::file::{self, Outlives};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The file in the kubelet's root.
const FILE: &str = "graceful_node_shutdown_state";
/// Longest file in bytes: more than 10000 pods.
const BYTES_MAX: u64 = 1 << 20;
/// How Go writes a time that there is not.
const GO_ZERO: &str = "0001-01-01T00:00:00Z";

/// Why the record can't be kept or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    /// The file.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Its contents.
    #[error("{path} is damaged and counts for nothing; the next shutdown writes it anew: {source}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// The last shutdown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ShutdownRecord {
    start_time: GoTime,
    end_time: GoTime,
    /// Pods that were told to end, by uid, with their grace in seconds.
    pub(crate) pods: BTreeMap<String, i64>,
}

/// A time that may not be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct GoTime(Option<Timestamp>);

impl Serialize for GoTime {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Some(time) => serializer.collect_str(&time),
            None => serializer.serialize_str(GO_ZERO),
        }
    }
}

impl<'de> Deserialize<'de> for GoTime {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == GO_ZERO {
            return Ok(GoTime(None));
        }
        text.parse().map(|time| GoTime(Some(time))).map_err(serde::de::Error::custom)
    }
}

impl ShutdownRecord {
    /// Reads it; an empty one where there is none. Blocking.
    pub(crate) fn read(root: &Path) -> Result<ShutdownRecord, RecordError> {
        let path = root.join(FILE);
        match file::read(&path, BYTES_MAX) {
            Ok(Some(text)) => serde_json::from_slice(&text).map_err(|source| RecordError::Damaged { path, source }),
            Ok(None) => Ok(ShutdownRecord::default()),
            Err(source) => Err(RecordError::File { path, source }),
        }
    }

    /// Writes it, complete or not at all. Blocking.
    pub(crate) fn write(&self, root: &Path) -> Result<(), RecordError> {
        let path = root.join(FILE);
        let text = serde_json::to_vec(self).map_err(|source| RecordError::Damaged { path: path.clone(), source })?;
        file::replace(&path, &text, 0o644, Outlives::Power).map_err(|source| RecordError::File { path, source })
    }

    /// A shutdown begins.
    pub(crate) fn begin(&mut self, now: Timestamp) {
        (self.start_time, self.end_time) = (GoTime(Some(now)), GoTime(None));
    }

    /// It is over, or was called off.
    pub(crate) fn end(&mut self, now: Timestamp) {
        self.end_time = GoTime(Some(now));
    }

    /// When it began and when it ended; none for what has not been.
    pub(crate) fn times(&self) -> [Option<Timestamp>; 2] {
        [self.start_time.0, self.end_time.0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_the_kubelets_file_too() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(ShutdownRecord::read(folder.path()).unwrap(), ShutdownRecord::default());
        let time = |text: &str| text.parse::<Timestamp>().unwrap();
        let mut record = ShutdownRecord::default();
        record.begin(time("2026-05-01T10:00:00Z"));
        record.pods.insert("u1".into(), 30);
        record.write(folder.path()).unwrap();
        let text = std::fs::read_to_string(folder.path().join(FILE)).unwrap();
        let want = format!(r#"{{"startTime":"2026-05-01T10:00:00Z","endTime":"{GO_ZERO}","pods":{{"u1":30}}}}"#);
        assert_eq!(text, want);
        record.end(time("2026-05-01T10:00:09.5Z"));
        record.write(folder.path()).unwrap();
        assert_eq!(ShutdownRecord::read(folder.path()).unwrap(), record);
        let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(left, [FILE]);
        let kubelets = r#"{"startTime":"2026-05-01T12:00:00.123456789+02:00","endTime":"0001-01-01T00:00:00Z"}"#;
        std::fs::write(folder.path().join(FILE), kubelets).unwrap();
        let times = ShutdownRecord::read(folder.path()).unwrap().times();
        assert_eq!(times, [Some(time("2026-05-01T10:00:00.123456789Z")), None]);
        for damage in ["", "{", r#"{"startTime": 3}"#, r#"{"startTime": "noon"}"#] {
            std::fs::write(folder.path().join(FILE), damage).unwrap();
            let error = ShutdownRecord::read(folder.path()).unwrap_err().to_string();
            assert!(error.contains(FILE) && error.contains("damaged"), "{damage}: {error}");
        }
        assert!(ShutdownRecord::default().write(Path::new("/nonexistent")).is_err());
    }
}
