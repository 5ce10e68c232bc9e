//! Sessions that are dropped and commands that print without end: cases 29, 30.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use orlop_tests::invariant::memory;
use orlop_tests::world::{Daemon, World, until};
use serde_json::json;

use crate::server::Server;

/// Sessions that are dropped.
const SESSIONS: usize = 200;
/// What a command prints.
const FLOOD: &str = "1073741824";

/// Runs something in a thread that is in the world's network.
fn inside<T: Send>(world: &World, work: impl FnOnce() -> T + Send) -> T {
    let namespace = std::fs::File::open(format!("/proc/{}/ns/net", world.pid())).unwrap();
    let run = move || {
        nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).expect("enter the world's network");
        work()
    };
    std::thread::scope(|scope| scope.spawn(run).join().expect("the thread ends"))
}

/// A masked WebSocket message on a channel.
fn message(channel: u8, text: &[u8]) -> Vec<u8> {
    assert!(text.len() < 125);
    let mut frame = vec![0x82, 0x80 | (text.len() as u8 + 1), 0, 0, 0, 0, channel];
    frame.extend_from_slice(text);
    frame
}

/// Opens a session, sends sizes and words, and leaves without a word at the point that the number says.
fn drop_session(url: &str, number: usize) -> std::io::Result<()> {
    let (host, path) = url.trim_start_matches("http://").split_once('/').expect("a URL with a path");
    let mut stream = TcpStream::connect(host)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let head = format!(
        "GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n"
    );
    if number.is_multiple_of(7) {
        return stream.write_all(&head.as_bytes()[..head.len() / 2]);
    }
    stream.write_all(head.as_bytes())?;
    if number % 7 == 1 {
        return Ok(());
    }
    let mut answer = [0; 64];
    let count = stream.read(&mut answer)?;
    assert!(answer[..count].starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&answer[..count]));
    for size in 1..=(number % 50) * 10 {
        stream.write_all(&message(4, format!("{{\"Width\":{size},\"Height\":{size}}}").as_bytes()))?;
    }
    if number.is_multiple_of(3) {
        stream.write_all(&message(0, b"echo more\n"))?;
        let _ = stream.read(&mut answer)?;
    }
    if number.is_multiple_of(5) {
        // Half a message.
        stream.write_all(&[0x82, 0xfe, 0x7f])?;
    }
    Ok(())
}

#[test]
fn case_29_sessions_that_are_dropped() {
    let server = Server::start(|_| {});
    let pod = server.run_pod("sessions");
    let id =
        server.begin(&pod, "main", &json!({"command": ["sh", "-c", "nc -lk -p 8080 -e cat & sleep 1000"]})).unwrap();
    let counted = |id: &str| {
        let answer = server.exec(id, &["sh", "-c", "ls -d /proc/[0-9]* | wc -l"], 10).unwrap();
        String::from_utf8_lossy(&answer.stdout).trim().parse::<usize>().unwrap()
    };
    let processes = counted(&id);
    for number in 0..SESSIONS {
        let url = server.exec_url(&id, &["sh"]);
        // A flood may be refused in the middle of a message; what counts is what is left.
        let _ = inside(&server.world, || drop_session(&url, number));
    }
    for number in 0..6 {
        let mut forward = server.world.crictl();
        let port = 18_200 + number;
        forward.args(["port-forward", &pod.1, &format!("{port}:8080")]);
        let forward = Daemon::start(forward, server.world.folder().join("forward.log"));
        until("the port is forwarded", || {
            inside(&server.world, || TcpStream::connect(("127.0.0.1", port))).ok()?.write_all(b"x").ok()
        });
        drop(forward);
        let mut attach = server.world.crictl();
        attach.args(["attach", &id]);
        drop(Daemon::start(attach, server.world.folder().join("attach.log")));
    }
    until("the sessions' processes have ended", || (counted(&id) <= processes + 1).then_some(()));
    server.end();
}

#[test]
fn case_30_output_without_end() {
    let server = Server::start(|_| {});
    let pod = server.run_pod("output");
    let id = server.begin(&pod, "main", &json!({"command": ["sleep", "1000"]})).unwrap();
    let before = memory(server.daemon.pid());
    let mut most = 0;
    std::thread::scope(|scope| {
        let flood = scope.spawn(|| {
            let both = format!("head -c {FLOOD} /dev/zero; head -c 20000000 /dev/zero >&2");
            server.exec(&id, &["sh", "-c", &both], 60)
        });
        while !flood.is_finished() {
            most = most.max(memory(server.daemon.pid()));
            std::thread::sleep(Duration::from_millis(10));
        }
        let answer = flood.join().unwrap().unwrap();
        assert_eq!(answer.exit_code, 0);
        let size = answer.stdout.len() + answer.stderr.len();
        assert!(size > 1 << 20 && size <= 16 << 20, "{size}");
    });
    assert!(most < before + (64 << 10), "{most} KiB, {before} before");

    // The command ends and a child of it holds its output; or it does not end at all.
    for (script, ends) in [
        ("sleep 300 & echo done", true),
        ("yes", false),
        ("trap '' TERM; sleep 300", false),
        ("sleep 300 & yes", false),
    ] {
        let began = Instant::now();
        let answer = server.exec(&id, &["sh", "-c", script], 2);
        let took = began.elapsed();
        assert!(took < Duration::from_secs(4), "{script}: {took:?}");
        match answer {
            Ok(answer) => assert!(ends && answer.stdout == b"done\n", "{script}: {answer:?}"),
            Err(status) => assert_eq!(status.code(), tonic::Code::DeadlineExceeded, "{script}: {status}"),
        }
    }
    let began = Instant::now();
    let answer = server.exec(&id, &["sh", "-c", "sleep 300 & echo done"], 0).unwrap();
    assert_eq!(answer.stdout, b"done\n");
    assert!(began.elapsed() < Duration::from_secs(7), "{:?}", began.elapsed());
    server.end();
}
