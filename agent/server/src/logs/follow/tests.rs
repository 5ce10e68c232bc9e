//! Reading and following real files.

use std::fs::File;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

fn line(text: &str) -> String {
    format!("2026-01-01T00:00:00Z stdout F {text}\n")
}

fn append(path: &Path, text: &str) {
    let mut file = File::options().create(true).append(true).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

fn source(path: &Path, options: LogOptions, running: &Arc<AtomicBool>) -> LogSource {
    let running = running.clone();
    LogSource {
        path: path.to_owned(),
        options,
        running: Arc::new(move || {
            let running = running.load(Ordering::SeqCst);
            Box::pin(async move { running })
        }),
    }
}

async fn all(mut receiver: mpsc::Receiver<io::Result<Bytes>>) -> String {
    let mut text = Vec::new();
    while let Some(piece) = receiver.recv().await {
        text.extend_from_slice(&piece.unwrap());
    }
    String::from_utf8(text).unwrap()
}

async fn read_until(receiver: &mut mpsc::Receiver<io::Result<Bytes>>, text: &mut String, end: &str) {
    let deadline = Duration::from_secs(10);
    while !text.ends_with(end) {
        let piece = tokio::time::timeout(deadline, receiver.recv()).await.expect("a line in time").unwrap().unwrap();
        text.push_str(std::str::from_utf8(&piece).unwrap());
    }
}

#[tokio::test]
async fn rotated_files_are_part_of_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("0.log");
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all((line("1") + &line("2")).as_bytes()).unwrap();
    std::fs::write(folder.path().join("0.log.20260101-000000.gz"), packed.finish().unwrap()).unwrap();
    std::fs::write(folder.path().join("0.log.20260102-000000"), line("3") + &line("4")).unwrap();
    std::fs::write(&path, line("5") + &line("6")).unwrap();
    let running = Arc::new(AtomicBool::new(false));
    for (tail, want) in [
        (None, "1\n2\n3\n4\n5\n6\n"),
        (Some(0), ""),
        (Some(1), "6\n"),
        (Some(2), "5\n6\n"),
        (Some(3), "4\n5\n6\n"),
        (Some(4), "3\n4\n5\n6\n"),
        (Some(5), "2\n3\n4\n5\n6\n"),
        (Some(9), "1\n2\n3\n4\n5\n6\n"),
    ] {
        let options = LogOptions { tail_lines: tail, ..LogOptions::default() };
        let got = all(stream_log(source(&path, options, &running)).await.unwrap()).await;
        assert_eq!(got, want, "tail {tail:?}");
    }
}

#[tokio::test]
async fn following_goes_on_across_rotation_and_ends_with_the_container() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("0.log");
    append(&path, &line("1"));
    let running = Arc::new(AtomicBool::new(true));
    let options = LogOptions { follow: true, ..LogOptions::default() };
    let mut receiver = stream_log(source(&path, options, &running)).await.unwrap();
    let mut text = String::new();
    read_until(&mut receiver, &mut text, "1\n").await;
    append(&path, "2026-01-01T00:00:00Z stdout F ha");
    append(&path, "lf\n");
    read_until(&mut receiver, &mut text, "half\n").await;
    std::fs::rename(&path, folder.path().join("0.log.20260101-000000")).unwrap();
    append(&folder.path().join("0.log.20260101-000000"), &line("still the old file"));
    append(&path, &line("2"));
    read_until(&mut receiver, &mut text, "2\n").await;
    append(&path, &line("3"));
    running.store(false, Ordering::SeqCst);
    text.push_str(&all(receiver).await);
    assert_eq!(text, "1\nhalf\nstill the old file\n2\n3\n");
}

#[tokio::test]
async fn a_reader_that_goes_away_ends_the_following() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("0.log");
    append(&path, &line("1"));
    let running = Arc::new(AtomicBool::new(true));
    let weak = Arc::downgrade(&running);
    let options = LogOptions { follow: true, ..LogOptions::default() };
    let receiver = stream_log(source(&path, options, &running)).await.unwrap();
    drop((receiver, running));
    tokio::time::timeout(Duration::from_secs(10), async {
        while weak.upgrade().is_some() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the task ends");
}

#[tokio::test]
async fn links_and_pipes_are_no_logs() {
    let folder = tempfile::tempdir().unwrap();
    let running = Arc::new(AtomicBool::new(false));
    let (real, link) = (folder.path().join("real"), folder.path().join("link"));
    append(&real, &line("secret"));
    std::os::unix::fs::symlink(&real, &link).unwrap();
    assert!(stream_log(source(&link, LogOptions::default(), &running)).await.is_err());
    assert!(stream_log(source(folder.path(), LogOptions::default(), &running)).await.is_err(), "a folder");
    let missing = stream_log(source(&folder.path().join("none"), LogOptions::default(), &running)).await;
    assert_eq!(missing.err().unwrap().kind(), io::ErrorKind::NotFound);
}
