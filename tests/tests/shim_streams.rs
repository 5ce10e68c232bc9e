//! Logs, attached sessions, terminals and rotation through the shim.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::time::Instant;

use orlop_container::client::Client;
use orlop_container::protocol::{Reply, Request};
use orlop_tests::shim::{DEADLINE, ShimPod, with_pod};

/// Stream, tag and text of the lines of a log; every line must have a time.
fn lines(text: &str) -> Vec<(String, String, String)> {
    let mut last = String::new();
    text.lines()
        .map(|line| {
            let parts: Vec<&str> = line.splitn(4, ' ').collect();
            let [time, stream, tag, text] = parts[..] else { panic!("{line:?}") };
            assert!(time.len() == 30 && time.ends_with('Z') && time.as_bytes()[19] == b'.', "{time}");
            assert!(*time >= *last, "{time} comes after {last}");
            last = time.to_string();
            (stream.to_string(), tag.to_string(), text.to_string())
        })
        .collect()
}

fn raw_log(pod: &ShimPod, id: &str) -> String {
    std::fs::read_to_string(pod.folder.join("containers").join(id).join("0.log")).unwrap()
}

#[test]
fn long_lines_are_split_and_the_last_may_lack_its_newline() {
    with_pod("lines", |pod| {
        let script = "head -c 20000 /dev/zero | tr '\\0' x; echo; printf end; printf oops >&2";
        assert_eq!(pod.run("c1", &pod.config("c1", &["sh", "-c", script])).0, 0);
        let mut found = lines(&raw_log(pod, "c1"));
        let errors: Vec<_> = found.extract_if(.., |(stream, _, _)| stream == "stderr").collect();
        assert_eq!(errors, [("stderr".into(), "P".into(), "oops".to_string())]);
        let shape: Vec<_> = found.iter().map(|(_, tag, text)| (tag.as_str(), text.len())).collect();
        assert_eq!(shape, [("P", 16384), ("F", 20000 - 16384), ("P", 3)]);
    });
}

#[test]
fn a_session_feeds_stdin_and_reads_output() {
    with_pod("attach", |pod| {
        let config = pod.config("c1", &["sh", "-c", "cat; echo ended >&2; exit 6"]);
        let mut events = pod.subscribe();
        pod.start_container("c1", &config, |spec| (spec.stdin, spec.stdin_once) = (true, true));
        let (their_in, mut our_in) = std::io::pipe().unwrap();
        let (mut our_out, their_out) = std::io::pipe().unwrap();
        let (mut our_err, their_err) = std::io::pipe().unwrap();
        let request = Request::Attach { id: "c1".into(), stdin: true, stdout: true, stderr: true };
        let streams = [their_in.as_fd(), their_out.as_fd(), their_err.as_fd()];
        let mut session = Client::send(&pod.folder, &request, &streams, DEADLINE).unwrap();
        assert!(matches!(session.receive().unwrap(), Some(Reply::Done)));
        drop((their_in, their_out, their_err));
        let big = vec![b'y'; 300_000];
        let reader = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            our_out.read_to_end(&mut bytes).unwrap();
            bytes
        });
        our_in.write_all(b"hello\n").unwrap();
        our_in.write_all(&big).unwrap();
        drop(our_in);
        let bytes = reader.join().unwrap();
        assert_eq!(bytes.len(), 6 + big.len());
        assert!(bytes.starts_with(b"hello\n"));
        let mut text = String::new();
        our_err.read_to_string(&mut text).unwrap();
        assert_eq!(text, "ended\n");
        assert!(matches!(session.receive().unwrap(), Some(Reply::Exited { record }) if record.exit_code == 6));
        assert_eq!(ShimPod::wait(&mut events, "c1").exit_code, 6);
        assert!(pod.log("c1").starts_with("hello\n"));
    });
}

#[test]
fn a_terminal_is_resized_and_logged_as_stdout() {
    with_pod("tty", |pod| {
        let script = "read x; stty size; echo got $x; echo error >&2; tty";
        let mut config = pod.config("c1", &["sh", "-c", script]);
        config.process.terminal = true;
        let mut events = pod.subscribe();
        pod.start_container("c1", &config, |spec| spec.stdin = true);
        assert!(matches!(pod.call(&Request::Resize { id: "c1".into(), width: 132, height: 43 }), Reply::Done));
        let (their_in, mut our_in) = std::io::pipe().unwrap();
        let (mut our_out, their_out) = std::io::pipe().unwrap();
        let request = Request::Attach { id: "c1".into(), stdin: true, stdout: true, stderr: false };
        let streams = [their_in.as_fd(), their_out.as_fd(), their_out.as_fd()];
        let mut session = Client::send(&pod.folder, &request, &streams, DEADLINE).unwrap();
        assert!(matches!(session.receive().unwrap(), Some(Reply::Done)));
        drop((their_in, their_out));
        our_in.write_all(b"word\n").unwrap();
        let mut text = String::new();
        our_out.read_to_string(&mut text).unwrap();
        assert!(text.contains("43 132\r\n") && text.contains("got word\r\n") && text.contains("error\r\n"), "{text:?}");
        assert!(text.contains("/dev/pts/") || text.contains("/dev/console"), "{text:?}");
        assert_eq!(ShimPod::wait(&mut events, "c1").exit_code, 0);
        assert!(lines(&raw_log(pod, "c1")).iter().all(|(stream, _, _)| stream == "stdout"));
    });
}

#[test]
fn a_session_that_reads_nothing_holds_up_nobody() {
    with_pod("slow", |pod| {
        let script = "read go; head -c 8000000 /dev/zero | tr '\\0' 'z' | fold -w 99; echo; echo done";
        let config = pod.config("c1", &["sh", "-c", script]);
        let mut events = pod.subscribe();
        pod.start_container("c1", &config, |spec| spec.stdin = true);
        let (their_in, mut our_in) = std::io::pipe().unwrap();
        let (_never_read, their_out) = std::io::pipe().unwrap();
        let request = Request::Attach { id: "c1".into(), stdin: true, stdout: true, stderr: false };
        let streams = [their_in.as_fd(), their_out.as_fd(), their_out.as_fd()];
        let mut session = Client::send(&pod.folder, &request, &streams, DEADLINE).unwrap();
        assert!(matches!(session.receive().unwrap(), Some(Reply::Done)));
        our_in.write_all(b"go\n").unwrap();
        assert_eq!(ShimPod::wait(&mut events, "c1").exit_code, 0);
        assert!(pod.log("c1").ends_with("done"));
    });
}

#[test]
fn rotation_loses_and_doubles_no_line() {
    with_pod("rotate", |pod| {
        let script = "i=0; while [ $i -lt 30000 ]; do i=$((i+1)); echo $i; done";
        let mut events = pod.subscribe();
        pod.start_container("c1", &pod.config("c1", &["sh", "-c", script]), |_| {});
        let folder = pod.folder.join("containers/c1");
        let mut rotated = Vec::new();
        let record = loop {
            let name = folder.join(format!("0.log.{}", rotated.len()));
            std::fs::rename(folder.join("0.log"), &name).unwrap();
            assert!(matches!(pod.call(&Request::ReopenLog { id: "c1".into() }), Reply::Done));
            rotated.push(name);
            let listing = pod.call(&Request::List);
            if let Reply::Listing { containers, .. } = &listing
                && containers["c1"] == orlop_container::protocol::ContainerPhase::Exited
            {
                break ShimPod::wait(&mut events, "c1");
            }
        };
        assert_eq!(record.exit_code, 0);
        rotated.push(folder.join("0.log"));
        let text: String = rotated.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect();
        let numbers: Vec<u32> = lines(&text).iter().map(|(_, _, text)| text.parse().unwrap()).collect();
        assert!(numbers.iter().copied().eq(1..=30000), "{} lines in {} files", numbers.len(), rotated.len());
    });
}

#[test]
fn a_full_disk_does_not_stop_the_container() {
    with_pod("full", |pod| {
        let small = pod.folder.join("small");
        std::fs::create_dir(&small).unwrap();
        let none: Option<&str> = None;
        nix::mount::mount(none, &small, Some("tmpfs"), nix::mount::MsFlags::empty(), Some("size=64k")).unwrap();
        // The shim shares this test's mounts from its start only: it must see the new one, so the log is reached below it.
        let place = std::fs::File::open(&small).unwrap();
        let log = std::path::PathBuf::from(format!(
            "/proc/{}/fd/{}/0.log",
            std::process::id(),
            std::os::fd::AsRawFd::as_raw_fd(&place)
        ));
        let script = "head -c 400000 /dev/zero | tr '\\0' 'z' | fold -w 99; echo; : > /tmp/written; read x; echo after";
        let mut events = pod.subscribe();
        pod.start_container("c1", &pod.config("c1", &["sh", "-c", script]), |spec| {
            (spec.log_path, spec.stdin) = (Some(log.clone()), true);
        });
        let until = Instant::now() + DEADLINE;
        while pod.exec("c1", &["test", "-f", "/tmp/written"]).0 != 0 {
            assert!(Instant::now() < until, "the container is held up by its log");
        }
        assert_eq!(std::fs::metadata(&log).unwrap().len(), 64 << 10, "the disk is full");
        std::fs::OpenOptions::new().write(true).open(&log).unwrap().set_len(0).unwrap();
        let (their_in, mut our_in) = std::io::pipe().unwrap();
        let request = Request::Attach { id: "c1".into(), stdin: true, stdout: false, stderr: false };
        let mut session = Client::send(&pod.folder, &request, &[their_in.as_fd(); 3], DEADLINE).unwrap();
        assert!(matches!(session.receive().unwrap(), Some(Reply::Done)));
        our_in.write_all(b"\n").unwrap();
        assert_eq!(ShimPod::wait(&mut events, "c1").exit_code, 0);
        let text = std::fs::read_to_string(&log).unwrap();
        assert!(text.contains("bytes of log were lost: No space left on device"), "{text}");
        assert!(text.trim_end().ends_with("stdout F after"), "{text}");
        drop(place);
        nix::mount::umount2(&small, nix::mount::MntFlags::MNT_DETACH).unwrap();
    });
}
