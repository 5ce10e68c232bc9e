//! The termination message of a container: from its file, or from the end of its log.

use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use orlop_agent_core::facts::ObservedContainer;
use orlop_agent_core::labels;

/// Most bytes of a message (kubelet `MaxContainerTerminationMessageLength`).
const MAX_BYTES: usize = 4096;
/// Most bytes and lines that are taken of a log.
const MAX_LOG_BYTES: usize = 2048;
const MAX_LOG_LINES: usize = 80;
/// Bytes of a log file that are looked at for those: each line carries a time and tags, and may be split.
const LOG_WINDOW: u64 = 64 << 10;

/// Reads the message of a container that has ended. `share` is the pod's number of containers, which divide 12 KiB.
pub(crate) fn read_message(container: &ObservedContainer, file: &Path, share: usize) -> Option<String> {
    let limit = (12 * 1024 / share.max(1)).min(MAX_BYTES);
    let text = read_regular(file, limit);
    let fallback = container
        .annotations
        .get(labels::TERMINATION_MESSAGE_POLICY)
        .is_some_and(|policy| policy == "FallbackToLogsOnError");
    if text.as_deref().unwrap_or_default().is_empty() && fallback && container.exit_code != 0 {
        return tail_of_log(Path::new(&container.log_path)).or(text);
    }
    text
}

/// The container may have replaced the file's contents, but not the file: it is bind-mounted. Still it is opened
/// without following links and without waiting.
fn read_regular(path: &Path, limit: usize) -> Option<String> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let file = std::fs::OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path).ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(limit as u64).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn tail_of_log(path: &Path) -> Option<String> {
    let mut file = std::fs::File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_WINDOW))).ok()?;
    let mut bytes = Vec::new();
    file.take(LOG_WINDOW).read_to_end(&mut bytes).ok()?;
    Some(tail_of_lines(&String::from_utf8_lossy(&bytes), length > LOG_WINDOW))
}

/// The end of CRI log lines (`time stream tags text`), without what the runtime added.
fn tail_of_lines(text: &str, cut: bool) -> String {
    let mut out = String::new();
    let mut lines: Vec<String> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if cut && index == 0 {
            continue;
        }
        let mut parts = line.splitn(4, ' ');
        let (Some(_), Some(_), Some(tags), Some(content)) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        out.push_str(content);
        if tags.split(':').next() == Some("F") {
            out.push('\n');
            lines.push(std::mem::take(&mut out));
        }
    }
    if !out.is_empty() {
        lines.push(out);
    }
    let kept = lines.split_off(lines.len().saturating_sub(MAX_LOG_LINES)).concat();
    let mut start = kept.len().saturating_sub(MAX_LOG_BYTES);
    while !kept.is_char_boundary(start) {
        start += 1;
    }
    kept[start..].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_log_is_bounded_in_lines_and_bytes() {
        let line = |text: &str, tag: &str| format!("2026-01-01T00:00:00Z stdout {tag} {text}\n");
        assert_eq!(tail_of_lines(&(line("a", "F") + &line("b", "P") + &line("c", "F")), false), "a\nbc\n");
        let many: String = (0..100).map(|n| line(&n.to_string(), "F")).collect();
        let tail = tail_of_lines(&many, false);
        assert_eq!((tail.lines().count(), tail.lines().next()), (80, Some("20")));
        let long = line(&"é".repeat(3000), "F");
        assert!(tail_of_lines(&long, false).len() <= MAX_LOG_BYTES);
    }

    #[test]
    fn links_are_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("a"), folder.path().join("b"));
        std::fs::write(&file, "done").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert_eq!(read_regular(&file, 2).as_deref(), Some("do"));
        assert_eq!(read_regular(&link, 10), None);
    }
}
