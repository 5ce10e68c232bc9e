//! What is read of a log that is written to and rotated meanwhile.

use std::fs::File;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::super::record::LogStream;
use super::*;

/// A folder with the log that a runtime writes.
struct Log {
    folder: tempfile::TempDir,
    rotations: u32,
}

impl Log {
    fn new() -> Log {
        Log { folder: tempfile::tempdir().unwrap(), rotations: 0 }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("0.log")
    }

    fn append(&self, text: &str) {
        let mut file = File::options().create(true).append(true).open(self.path()).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    fn lines(&self, numbers: std::ops::RangeInclusive<u32>) {
        self.append(&numbers.map(|number| record(number, "stdout", "F", &number.to_string())).collect::<String>());
    }

    /// The first half of a rotation; the file is written to until it is opened again. Returns its new name.
    fn rename(&mut self) -> PathBuf {
        self.rotations += 1;
        let name = self.folder.path().join(format!("0.log.20260101-{:06}", self.rotations));
        std::fs::rename(self.path(), &name).unwrap();
        name
    }

    fn rotate(&mut self) -> PathBuf {
        let name = self.rename();
        self.append("");
        name
    }

    fn open(&self, options: &LogOptions) -> LogReader {
        LogReader::open(&self.path(), options.clone()).unwrap()
    }
}

fn record(second: u32, stream: &str, tag: &str, text: &str) -> String {
    format!("2026-01-01T{:02}:{:02}:{:02}Z {stream} {tag} {text}\n", second / 3600, second / 60 % 60, second % 60)
}

fn compress(path: &Path) {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(&std::fs::read(path).unwrap()).unwrap();
    let (temporary, name) = (format!("{}.tmp", path.display()), format!("{}.gz", path.display()));
    std::fs::write(&temporary, packed.finish().unwrap()).unwrap();
    std::fs::rename(temporary, name).unwrap();
    std::fs::remove_file(path).unwrap();
}

/// Reads until there is nothing more for now.
fn read(reader: &mut LogReader) -> String {
    let mut text = Vec::new();
    loop {
        match reader.read_piece().unwrap() {
            Piece::Text(piece) => text.extend(piece),
            Piece::End(piece) => {
                text.extend(piece);
                return String::from_utf8(text).unwrap();
            }
        }
    }
}

#[test]
fn a_log_ends_where_it_ended_when_it_was_asked_for_unless_it_is_followed() {
    for (tail, follow, want) in [
        (None, false, "1\n2\n"),
        (Some(0), false, ""),
        (Some(1), false, "2\n"),
        (Some(2), false, "1\n2\n"),
        (None, true, "1\n2\n30\n4\n"),
        (Some(0), true, "30\n4\n"),
        (Some(1), true, "2\n30\n4\n"),
    ] {
        let log = Log::new();
        log.lines(1..=2);
        // The runtime is in the middle of a record.
        let (begun, end) = ("2026-01-01T00:00:03Z stdout F 3", "0\n");
        log.append(begun);
        let mut reader = log.open(&LogOptions { tail_lines: tail, follow, ..LogOptions::default() });
        log.append(end);
        log.lines(4..=4);
        assert_eq!(read(&mut reader), want, "tail {tail:?}, follow {follow}");
    }
}

#[test]
fn every_option_reaches_rotated_files() {
    let mut log = Log::new();
    log.lines(1..=2);
    log.append(&record(3, "stderr", "F", "3"));
    compress(&log.rotate());
    log.lines(4..=4);
    log.append(&record(5, "stdout", "P", "fi"));
    log.rotate();
    log.append(&record(6, "stdout", "F", "ve"));
    log.append(&record(7, "stderr", "F", "7"));
    log.lines(8..=8);
    let since = |second| Some(record(second, "", "", "").split(' ').next().unwrap().parse().unwrap());
    let all = LogOptions::default();
    for (options, want) in [
        (all.clone(), "1\n2\n3\n4\nfive\n7\n8\n"),
        (LogOptions { tail_lines: Some(0), ..all.clone() }, ""),
        (LogOptions { tail_lines: Some(1), ..all.clone() }, "8\n"),
        (LogOptions { tail_lines: Some(3), ..all.clone() }, "five\n7\n8\n"),
        (LogOptions { tail_lines: Some(4), ..all.clone() }, "4\nfive\n7\n8\n"),
        (LogOptions { tail_lines: Some(5), ..all.clone() }, "3\n4\nfive\n7\n8\n"),
        (LogOptions { tail_lines: Some(99), ..all.clone() }, "1\n2\n3\n4\nfive\n7\n8\n"),
        (LogOptions { since: since(2), ..all.clone() }, "2\n3\n4\nfive\n7\n8\n"),
        (LogOptions { since: since(2), tail_lines: Some(2), ..all.clone() }, "7\n8\n"),
        (LogOptions { since: since(8), tail_lines: Some(9), ..all.clone() }, "8\n"),
        (LogOptions { since: since(9), ..all.clone() }, ""),
        (LogOptions { limit_bytes: Some(9), ..all.clone() }, "1\n2\n3\n4\nf"),
        (LogOptions { limit_bytes: Some(3), tail_lines: Some(2), ..all.clone() }, "7\n8"),
        (LogOptions { stream: Some(LogStream::Stderr), ..all.clone() }, "3\n7\n"),
        (LogOptions { stream: Some(LogStream::Stderr), tail_lines: Some(2), ..all.clone() }, "3\n7\n"),
        (LogOptions { stream: Some(LogStream::Stdout), tail_lines: Some(2), ..all.clone() }, "five\n8\n"),
        (
            LogOptions { timestamps: true, tail_lines: Some(3), ..all.clone() },
            "2026-01-01T00:00:05Z five\n2026-01-01T00:00:07Z 7\n2026-01-01T00:00:08Z 8\n",
        ),
    ] {
        assert_eq!(read(&mut log.open(&options)), want, "{options:?}");
    }
}

#[test]
fn rotation_at_any_moment_loses_and_doubles_nothing() {
    type Step = fn(&mut Log);
    // What happens after the log was opened, and what a follower has read then.
    let cases: [(&str, Step, &str); 7] = [
        ("nothing", |_| (), ""),
        ("it is renamed, and still written to", |log| write_to(&log.rename(), 4), "4\n"),
        ("it is renamed and opened again", |log| drop(log.rotate()), ""),
        ("it is rotated and goes on", |log| (drop(log.rotate()), log.lines(4..=4)).1, "4\n"),
        (
            "it is rotated twice",
            |log| {
                log.lines(4..=4);
                log.rotate();
                log.lines(5..=5);
                log.rotate();
                log.lines(6..=6);
            },
            "4\n5\n6\n",
        ),
        (
            "it is rotated twice, and the first is compressed",
            |log| {
                log.lines(4..=4);
                let first = log.rotate();
                log.lines(5..=5);
                compress(&first);
                log.rotate();
                log.lines(6..=6);
            },
            "4\n5\n6\n",
        ),
        (
            "it is rotated twice, and both are compressed",
            |log| {
                let first = log.rotate();
                log.lines(4..=4);
                let second = log.rotate();
                log.lines(5..=5);
                compress(&first);
                compress(&second);
            },
            "4\n5\n",
        ),
    ];
    for (what, step, more) in cases {
        for (follow, read_before) in [(false, false), (false, true), (true, false), (true, true)] {
            let mut log = Log::new();
            log.lines(1..=1);
            log.rotate();
            log.lines(2..=3);
            let mut reader = log.open(&LogOptions { follow, ..LogOptions::default() });
            let mut text = if read_before { read(&mut reader) } else { String::new() };
            step(&mut log);
            text.push_str(&read(&mut reader));
            let want = if follow { format!("1\n2\n3\n{more}") } else { "1\n2\n3\n".to_owned() };
            assert_eq!(text, want, "{what}; follow {follow}, read before {read_before}");
            if follow {
                log.append(&record(9, "stdout", "F", "9"));
                assert_eq!(read(&mut reader), "9\n", "{what}; afterwards");
            }
        }
    }
}

fn write_to(path: &Path, number: u32) {
    let mut file = File::options().append(true).open(path).unwrap();
    file.write_all(record(number, "stdout", "F", &number.to_string()).as_bytes()).unwrap();
}

#[test]
fn a_log_that_was_renamed_and_not_opened_again_is_there() {
    let mut log = Log::new();
    log.lines(1..=1);
    log.rotate();
    log.lines(2..=3);
    log.rename();
    assert_eq!(read(&mut log.open(&LogOptions { tail_lines: Some(3), ..LogOptions::default() })), "1\n2\n3\n");
    let mut follower = log.open(&LogOptions { follow: true, tail_lines: Some(1), ..LogOptions::default() });
    assert_eq!(read(&mut follower), "3\n");
    log.lines(4..=4);
    assert_eq!(read(&mut follower), "4\n");
}

#[test]
fn a_file_that_is_cut_in_place_is_read_from_its_beginning() {
    let log = Log::new();
    log.lines(1..=5);
    let mut reader = log.open(&LogOptions { follow: true, ..LogOptions::default() });
    assert_eq!(read(&mut reader).lines().count(), 5);
    File::options().write(true).open(log.path()).unwrap().set_len(0).unwrap();
    log.lines(6..=6);
    assert_eq!(read(&mut reader), "6\n");
}

#[test]
fn readers_beside_a_busy_writer_get_each_line_once() {
    const LINES: u32 = 20_000;
    let mut log = Log::new();
    log.lines(1..=1);
    let (path, over) = (log.path(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut old: Option<PathBuf> = None;
            for number in 2..=LINES {
                let text = record(number, "stdout", "F", &number.to_string());
                // As a kernel may show it: half a record first.
                log.append(&text[..text.len() / 2]);
                log.append(&text[text.len() / 2..]);
                if number % 500 == 0 {
                    let name = log.rotate();
                    if let Some(old) = old.replace(name) {
                        compress(&old);
                    }
                }
            }
            over.store(true, Ordering::SeqCst);
        });
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                for (tail, most) in [(1, 1), (7, 7)] {
                    let options = LogOptions { tail_lines: Some(tail), ..LogOptions::default() };
                    let text = read(&mut LogReader::open(&path, options).unwrap());
                    let numbers: Vec<u32> = text.lines().map(|line| line.parse().unwrap()).collect();
                    let first = numbers[0];
                    assert_eq!(numbers, (first..first + numbers.len() as u32).collect::<Vec<_>>(), "tail {tail}");
                    assert_eq!(numbers.len(), most.min(numbers[numbers.len() - 1] as usize), "tail {tail}: {text}");
                }
            }
        });
        let mut follower = LogReader::open(&path, LogOptions { follow: true, ..LogOptions::default() }).unwrap();
        let (mut next, deadline) = (1, std::time::Instant::now() + Duration::from_secs(60));
        while next <= LINES {
            for line in read(&mut follower).lines() {
                assert_eq!(line, next.to_string());
                next += 1;
            }
            assert!(std::time::Instant::now() < deadline, "{next} of {LINES}");
        }
    });
}
