//! Keeps the logs of containers that run within their bounds: looks at their sizes now and then, puts long ones aside and
//! tells the runtime to begin anew.
//!
//! A container ends its log when it ends, so that a log that nobody writes to is never rotated. Whoever is killed in
//! between leaves a log without its live file; the next look lets the runtime make it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use futures::StreamExt;
use jiff::Timestamp;
use orlop_agent_core::log_rotation::{LogRotation, packed_names, plan_log_rotation};
use orlop_agent_core::runtime::RuntimeError;
use rustix::fs::OFlags;
use tokio::task::JoinError;
use tokio_util::sync::CancellationToken;

use crate::shared::Shared;

/// Why a log could not be rotated. It is tried again at the next look.
#[derive(Debug, thiserror::Error)]
enum RotationError {
    /// A step on a file.
    #[error("{step} {path}: {source}")]
    File {
        step: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The runtime.
    #[error("the runtime can't open the log anew: {0}")]
    Reopen(#[from] RuntimeError),
    /// Work on files did not come to its end.
    #[error("work on the log's files was broken off: {0}")]
    Broken(#[from] JoinError),
}

fn failed(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RotationError {
    let path = path.to_owned();
    move |source| RotationError::File { step, path, source }
}

/// A log that is written to.
#[derive(Clone, Debug)]
struct LiveLog {
    container: String,
    path: PathBuf,
}

/// What is to be done about a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    /// It has become too long.
    Rotation,
    /// Its live file is missing.
    Reopening,
}

/// Rotates logs until cancelled.
pub(crate) async fn rotate_logs(shared: &Shared, rotation: &LogRotation, cancel: &CancellationToken) {
    loop {
        tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(rotation.interval) => {}
        }
        let logs = live_logs(shared);
        if logs.is_empty() {
            continue;
        }
        let bytes_max = rotation.bytes_max;
        let look = shared.config.pace.blocking(move || find_needs(logs, bytes_max));
        let needy = look.await.unwrap_or_default();
        let work = futures::stream::iter(needy).for_each_concurrent(rotation.at_once.max(1), |(log, need)| async move {
            if let Err(error) = meet(shared, rotation, &log, need).await {
                tracing::warn!(container = log.container, log = %log.path.display(), %error, "a log can't be rotated; it is tried again");
            }
        });
        // What is under way is ended first: a log that was put aside needs its runtime to know.
        work.await;
    }
}

/// The logs of containers that run, as far as they are the agent's to rotate.
fn live_logs(shared: &Shared) -> Vec<LiveLog> {
    let root = &shared.config.pod_logs_root;
    let pods = shared.observed.all();
    let running = pods.iter().flat_map(|pod| &pod.containers).filter(|container| container.running());
    let logs = running.map(|container| LiveLog { container: container.id.clone(), path: (&container.log_path).into() });
    logs.filter(|log| log.path.starts_with(root)).collect()
}

fn find_needs(logs: Vec<LiveLog>, bytes_max: u64) -> Vec<(LiveLog, Need)> {
    let need = |log: LiveLog| match log.path.symlink_metadata() {
        Ok(facts) => (facts.is_file() && facts.len() >= bytes_max).then_some((log, Need::Rotation)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Some((log, Need::Reopening)),
        Err(_) => None,
    };
    logs.into_iter().filter_map(need).collect()
}

async fn meet(shared: &Shared, rotation: &LogRotation, log: &LiveLog, need: Need) -> Result<(), RotationError> {
    let reopened = || async { Ok(shared.ports.runtime.reopen_log(&log.container).await?) };
    if need == Need::Reopening {
        return reopened().await;
    }
    let (path, files_max, now) = (log.path.clone(), rotation.files_max, shared.now());
    let aside = shared.config.pace.blocking(move || put_aside(&path, files_max, now)).await??;
    let result = reopened().await;
    if result.is_err() {
        // Its lines go on into the same file, which gets its name back.
        let path = log.path.clone();
        shared.config.pace.blocking(move || put_back(&aside, &path)).await??;
    }
    result
}

/// Makes room among the files of a log, packs them and renames the live one; returns its new name.
fn put_aside(live: &Path, files_max: usize, now: Timestamp) -> Result<PathBuf, RotationError> {
    let folder = live.parent().unwrap_or(Path::new("/"));
    let name = live.file_name().unwrap_or_default().to_string_lossy();
    let entries = std::fs::read_dir(folder).map_err(failed("list", folder))?;
    let names: Vec<String> = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    let plan = plan_log_rotation(&name, &names, files_max, now);
    for name in &plan.remove {
        let path = folder.join(name);
        std::fs::remove_file(&path).map_err(failed("remove", &path))?;
    }
    for name in &plan.pack {
        pack(folder, name)?;
    }
    let aside = folder.join(&plan.aside);
    std::fs::rename(live, &aside).map_err(failed("put aside", live))?;
    Ok(aside)
}

/// Packs a file that was put aside, and removes it. The packed one has its rights, and gets its name when it is whole.
fn pack(folder: &Path, name: &str) -> Result<(), RotationError> {
    let (packed, unfinished) = packed_names(name);
    let (path, packed, unfinished) = (folder.join(name), folder.join(packed), folder.join(unfinished));
    let no_follow = OFlags::NOFOLLOW.bits() as i32;
    let mut source =
        OpenOptions::new().read(true).custom_flags(no_follow).open(&path).map_err(failed("open", &path))?;
    let facts = source.metadata().map_err(failed("look at", &path))?;
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(facts.permissions().mode() & 0o777).custom_flags(no_follow);
    let target = options.open(&unfinished).map_err(failed("make", &unfinished))?;
    let written = compress(&mut source, target).map_err(failed("write", &unfinished));
    let named = written.and_then(|()| std::fs::rename(&unfinished, &packed).map_err(failed("put in place", &packed)));
    if named.is_err() {
        let _ = std::fs::remove_file(&unfinished);
    }
    named?;
    std::fs::remove_file(&path).map_err(failed("remove", &path))
}

fn compress(source: &mut File, target: File) -> io::Result<()> {
    let mut packer = GzEncoder::new(target, Compression::default());
    io::copy(source, &mut packer)?;
    packer.finish().map(drop)
}

/// Gives a log its name back, unless the runtime has made a new one all the same.
fn put_back(aside: &Path, live: &Path) -> Result<(), RotationError> {
    match rustix::fs::renameat_with(rustix::fs::CWD, aside, rustix::fs::CWD, live, rustix::fs::RenameFlags::NOREPLACE) {
        Err(rustix::io::Errno::EXIST) => Ok(()),
        result => result.map_err(|errno| failed("give its name back to", aside)(errno.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    const A: &str = "0.log.20260101-000000";
    const B: &str = "0.log.20260101-000010";

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn unpacked(path: &Path) -> String {
        let mut text = String::new();
        flate2::read::GzDecoder::new(File::open(path).unwrap()).read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn a_log_is_put_aside_and_the_one_before_it_packed() {
        let folder = tempfile::tempdir().unwrap();
        let (path, live) = (folder.path(), folder.path().join("0.log"));
        let unfinished = format!("{B}.tmp");
        for (name, text) in [("0.log", "now"), (A, "first"), (B, "second"), (&unfinished, "half"), ("1.log", "other")] {
            std::fs::write(path.join(name), text).unwrap();
        }
        std::fs::set_permissions(path.join(B), std::fs::Permissions::from_mode(0o640)).unwrap();
        let aside = put_aside(&live, 4, "2026-01-02T03:04:05Z".parse().unwrap()).unwrap();
        let packed = |name: &str| format!("{name}.gz");
        assert_eq!(names(path), [packed(A), packed(B), "0.log.20260102-030405".into(), "1.log".into()]);
        assert_eq!(
            (unpacked(&path.join(packed(A))), unpacked(&path.join(packed(B)))),
            ("first".into(), "second".into())
        );
        assert_eq!(path.join(packed(B)).metadata().unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(std::fs::read_to_string(&aside).unwrap(), "now");
        put_back(&aside, &live).unwrap();
        assert_eq!(std::fs::read_to_string(&live).unwrap(), "now");
        // A runtime that had made the file before it failed: nothing is lost of either.
        let aside = put_aside(&live, 4, "2026-01-02T03:04:06Z".parse().unwrap()).unwrap();
        assert_eq!(
            names(path).len(),
            4,
            "three of this log, which is what is allowed beside the live one: {:?}",
            names(path)
        );
        std::fs::write(&live, "new").unwrap();
        put_back(&aside, &live).unwrap();
        assert_eq!(std::fs::read_to_string(&live).unwrap(), "new");
        assert!(aside.exists());
    }

    #[test]
    fn what_is_needed_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let log = |name: &str| LiveLog { container: name.to_owned(), path: folder.path().join(name) };
        std::fs::write(folder.path().join("short"), "1234").unwrap();
        std::fs::write(folder.path().join("long"), "12345").unwrap();
        std::fs::create_dir(folder.path().join("folder")).unwrap();
        std::os::unix::fs::symlink("long", folder.path().join("link")).unwrap();
        let logs = ["short", "long", "missing", "folder", "link"].map(log).to_vec();
        let found: Vec<_> = find_needs(logs, 5).into_iter().map(|(log, need)| (log.container, need)).collect();
        assert_eq!(found, [("long".to_owned(), Need::Rotation), ("missing".to_owned(), Need::Reopening)]);
    }

    #[test]
    fn errors_name_the_file_and_links_are_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let live = folder.path().join("0.log");
        let error = put_aside(&live, 5, Timestamp::UNIX_EPOCH).unwrap_err().to_string();
        assert!(error.contains("0.log"), "{error}");
        std::fs::write(&live, "now").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", folder.path().join(A)).unwrap();
        let error = put_aside(&live, 5, Timestamp::UNIX_EPOCH).unwrap_err().to_string();
        assert!(error.contains(A), "{error}");
        assert_eq!(names(folder.path()), ["0.log", A], "as it was");
    }
}
