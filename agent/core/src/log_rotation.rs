//! Rotation of a container's log: which of its files go, which are packed, and the name that the live one gets.

use std::time::Duration;

use jiff::civil::DateTime;
use jiff::{Timestamp, ToSpan};

/// How the time in a rotated file's name is written, so that names sort by it (kubelet: `timestampFormat`).
const TIME: &str = "%Y%m%d-%H%M%S";
/// Ends the name of a packed file (kubelet: `compressSuffix`).
const PACKED: &str = ".gz";
/// Ends the name of a file that is being packed (kubelet: `tmpSuffix`).
const UNFINISHED: &str = ".tmp";

/// When logs are rotated, and what is kept of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRotation {
    /// A log is rotated when it has this many bytes (`containerLogMaxSize`).
    pub bytes_max: u64,
    /// Files of one log, the live one among them; at least 2 (`containerLogMaxFiles`).
    pub files_max: usize,
    /// Logs that are rotated at the same time (`containerLogMaxWorkers`).
    pub at_once: usize,
    /// Between two looks at the sizes (`containerLogMonitorInterval`).
    pub interval: Duration,
}

/// The kubelet's defaults.
impl Default for LogRotation {
    fn default() -> LogRotation {
        LogRotation { bytes_max: 10 << 20, files_max: 5, at_once: 1, interval: Duration::from_secs(10) }
    }
}

/// What is to be done with the files of a log, in this order; all are names in its folder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogRotationPlan {
    /// Files that go, the oldest first, so that who reads the log loses its beginning only.
    pub remove: Vec<String>,
    /// Files that are packed, the oldest first.
    pub pack: Vec<String>,
    /// The name that the live file gets.
    pub aside: String,
}

/// The name of a file once it is packed, and the one that it has until then.
#[must_use]
pub fn packed_names(name: &str) -> (String, String) {
    (format!("{name}{PACKED}"), format!("{name}{UNFINISHED}"))
}

/// Plans the rotation of the log `live`, whose folder has files of these `names`.
///
/// The file that was rotated last stays as it is until the next rotation: its container may still write to it, and
/// collectors may still read it. Names are by UTC, and never sort before those that are there, whatever the clock did.
#[must_use]
pub fn plan_log_rotation(live: &str, names: &[String], files_max: usize, now: Timestamp) -> LogRotationPlan {
    let prefix = format!("{live}.");
    let mut rotated: Vec<&String> = names.iter().filter(|name| name.starts_with(&prefix)).collect();
    rotated.sort();
    // What somebody was packing when he was killed, and what had been packed in full by then.
    let useless = |name: &String| {
        name.ends_with(UNFINISHED) || (!name.ends_with(PACKED) && names.contains(&format!("{name}{PACKED}")))
    };
    let (useless, kept): (Vec<&String>, Vec<&String>) = rotated.into_iter().partition(|name| useless(name));
    // The live file becomes a rotated one, and there will be another live one.
    let excess = kept.len().saturating_sub(files_max.saturating_sub(2));
    let (old, kept) = kept.split_at(excess);
    let newest = kept.iter().chain(old).filter_map(|name| time_of(name, &prefix)).max();
    LogRotationPlan {
        remove: useless.into_iter().chain(old.iter().copied()).cloned().collect(),
        pack: kept.iter().filter(|name| !name.ends_with(PACKED)).map(|name| (*name).clone()).collect(),
        aside: format!("{prefix}{}", next_time(newest, now).strftime(TIME)),
    }
}

fn time_of(name: &str, prefix: &str) -> Option<DateTime> {
    let time = name.strip_prefix(prefix)?;
    DateTime::strptime(TIME, time.strip_suffix(PACKED).unwrap_or(time)).ok()
}

/// Now, or a second after the newest file when that one is not older: two rotations in one second, or a clock that was
/// set back.
fn next_time(newest: Option<DateTime>, now: Timestamp) -> DateTime {
    let now = now.to_zoned(jiff::tz::TimeZone::UTC).datetime();
    let after = newest.map(|newest| newest.saturating_add(1.second()));
    after.map_or(now, |after| after.max(now))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_packed_kept_and_removed() {
        let now: Timestamp = "2026-01-02T03:04:05.9Z".parse().unwrap();
        let (a, b, c) = ("0.log.20260101-000000", "0.log.20260101-000010", "0.log.20260101-000020");
        let gz = |name: &str| format!("{name}.gz");
        let tmp = |name: &str| format!("{name}.tmp");
        let text = |name: &str| name.to_owned();
        type Case = (&'static str, usize, Vec<String>, Vec<String>, Vec<String>, &'static str);
        let usual = "0.log.20260102-030405";
        let cases: [Case; 10] = [
            ("the first", 5, vec![], vec![], vec![], usual),
            ("the second", 5, vec![text(a)], vec![], vec![text(a)], usual),
            ("the third", 5, vec![text(b), gz(a)], vec![], vec![text(b)], usual),
            ("one too many", 4, vec![gz(a), gz(b), text(c)], vec![gz(a)], vec![text(c)], usual),
            ("as few as can be", 2, vec![gz(a), text(b)], vec![gz(a), text(b)], vec![], usual),
            ("fewer than can be", 0, vec![text(a)], vec![text(a)], vec![], usual),
            ("killed while packing", 5, vec![text(a), tmp(a)], vec![tmp(a)], vec![text(a)], usual),
            ("killed after packing", 5, vec![text(a), gz(a)], vec![text(a)], vec![], usual),
            ("a clock set back", 5, vec![gz("0.log.20270101-235959")], vec![], vec![], "0.log.20270102-000000"),
            ("twice in a second", 2, vec![text(usual)], vec![text(usual)], vec![], "0.log.20260102-030406"),
        ];
        for (what, files_max, mut names, remove, pack, aside) in cases {
            // Other files of the folder are nobody's business.
            names.extend(["0.log", "1.log", "1.log.20260101-000000", "10.log.20260101-000000"].map(str::to_owned));
            let plan = plan_log_rotation("0.log", &names, files_max, now);
            assert_eq!(plan, LogRotationPlan { remove, pack, aside: aside.to_owned() }, "{what}");
        }
    }

    #[test]
    fn what_is_not_of_the_kubelets_form_is_no_time() {
        assert_eq!(time_of("0.log.1", "0.log."), None);
        assert_eq!(time_of("0.log.20260102-030405.gz", "0.log."), time_of("0.log.20260102-030405", "0.log."));
        assert!(time_of("0.log.20260102-030405", "0.log.").is_some());
        assert_eq!(packed_names("a"), ("a.gz".to_owned(), "a.tmp".to_owned()));
    }
}
