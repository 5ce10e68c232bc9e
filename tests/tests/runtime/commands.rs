//! The other commands, and what supervisors rely on: exec, list, ps, pause, update, events, logs, terminals, descriptors.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Stdio;

use orlop_kernel::socket;
use orlop_tests::world::until;
use serde_json::{Value, json};

use crate::bench::{Bench, case};

#[test]
fn exec_in_a_container() {
    case(|bench| {
        bench.config["hostname"] = json!("inside");
        bench.args(&["sleep", "100"]).start();
        assert_eq!(bench.must(&["exec", "c", "hostname"]), "inside");
        let said = bench.must(&[
            "exec",
            "-e",
            "A=1",
            "--env",
            "B=2",
            "--cwd",
            "/tmp",
            "--user",
            "7:8",
            "-g",
            "9",
            "c",
            "sh",
            "-c",
            "echo $A$B; pwd; id -u; id -G; exit 0",
        ]);
        assert_eq!(said, "12\n/tmp\n7\n8 9");
        let failed = bench.output(&["exec", "c", "sh", "-c", "echo out; echo err >&2; exit 7"]);
        assert_eq!(
            (failed.status.code(), &failed.stdout[..], &failed.stderr[..]),
            (Some(7), &b"out\n"[..], &b"err\n"[..])
        );
        let killed = bench.output(&["exec", "c", "sh", "-c", "kill -9 $$"]);
        assert_eq!(killed.status.code(), Some(137));
        let missing = bench.output(&["exec", "c", "nothing"]);
        assert_eq!(missing.status.code(), Some(255));
        assert!(String::from_utf8_lossy(&missing.stderr).contains("not found in $PATH"));
        let said = bench.must(&[
            "exec",
            "--cap",
            "CAP_NET_RAW",
            "--no-new-privs",
            "c",
            "grep",
            "-E",
            "NoNewPrivs|CapBnd",
            "/proc/self/status",
        ]);
        assert!(said.contains("NoNewPrivs:\t1") && !said.contains("CapBnd:\t0000000000000000"), "{said}");
        // By a file.
        let file = bench.beside("process.json");
        let process = json!({"args": ["sh", "-c", "id -u; cat /proc/self/oom_score_adj"], "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 3, "gid": 3}, "oomScoreAdj": 700});
        std::fs::write(&file, process.to_string()).unwrap();
        assert_eq!(bench.must(&["exec", "--process", file.to_str().unwrap(), "c"]), "3\n700");
        // Without waiting.
        let pid_file = bench.beside("exec.pid");
        let mut detached =
            bench.command(&["exec", "--detach", "--pid-file", pid_file.to_str().unwrap(), "c", "sleep", "55"]);
        assert!(detached.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success());
        let pid = std::fs::read_to_string(&pid_file).unwrap();
        assert_eq!(std::fs::read(format!("/proc/{pid}/cmdline")).unwrap(), b"sleep\x0055\x00");
        for (arguments, words) in [
            (&["exec", "c"][..], "cannot be empty"),
            (&["exec", "--cgroup", "x", "c", "true"], "not supported"),
            (&["exec", "--user", "root", "c", "true"], "--user"),
            (&["exec", "none", "true"], "does not exist"),
        ] {
            let said = bench.refuse(arguments);
            assert!(said.contains(words), "{said}");
        }
        bench.delete();
    });
}

#[test]
fn exec_with_a_user_namespace() {
    case(|bench| {
        let map = json!([{"containerID": 0, "hostID": 70_000, "size": 1000}]);
        bench.config["linux"]["uidMappings"] = map.clone();
        bench.config["linux"]["gidMappings"] = map;
        bench.config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
        bench.args(&["sleep", "100"]).start();
        assert_eq!(
            bench.must(&["exec", "--user", "5:6", "c", "sh", "-c", "id -u; cat /proc/self/uid_map | tr -s ' '"]),
            "5\n 0 70000 1000"
        );
        bench.delete();
    });
}

#[test]
fn run_in_the_foreground() {
    case(|bench| {
        bench.script("read word; echo got $word; echo err >&2; exit 42").write();
        let mut command = bench.command(&["run", "c"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"word\n").unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(
            (output.status.code(), &output.stdout[..], &output.stderr[..]),
            (Some(42), &b"got word\n"[..], &b"err\n"[..])
        );
        assert!(bench.refuse(&["state", "c"]).contains("does not exist"));
        // Signals are the container's.
        bench.script("trap 'exit 9' TERM; touch /ready; while :; do sleep 0.05; done").write();
        let mut child = bench.command(&["run", "--keep", "c"]).spawn().unwrap();
        until("it is ready", || bench.inside("ready").exists().then_some(()));
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), nix::sys::signal::Signal::SIGTERM)
            .unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(9));
        assert_eq!(bench.state()["status"], "stopped", "--keep");
        bench.delete();
        bench.args(&["sleep", "100"]).write();
        bench.must_quietly(&["run", "--detach", "c"]);
        assert_eq!(bench.state()["status"], "running");
        bench.delete();
    });
}

impl Bench {
    /// Runs a command whose container keeps the streams.
    fn must_quietly(&self, arguments: &[&str]) {
        let mut command = self.command(arguments);
        let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
        assert!(status.success(), "{arguments:?}");
    }
}

#[test]
fn list_and_ps() {
    case(|bench| {
        assert_eq!(bench.must(&["list", "--quiet"]), "");
        assert_eq!(bench.must(&["list", "--format", "json"]), "[]");
        bench.args(&["sleep", "100"]).start();
        assert_eq!(bench.must(&["list", "-q"]), "c");
        let all: Value = serde_json::from_str(&bench.must(&["list", "-f", "json"])).unwrap();
        assert_eq!((&all[0]["id"], &all[0]["status"]), (&json!("c"), &json!("running")));
        let table = bench.must(&["list"]);
        let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]);
        assert_eq!((lines[1][0], lines[1][2]), ("c", "running"));
        let pids: Vec<i64> = serde_json::from_str(&bench.must(&["ps", "--format=json", "c"])).unwrap();
        assert_eq!(pids, [bench.pid()]);
        let table = bench.must(&["ps", "c"]);
        assert!(table.lines().count() == 2 && table.contains("sleep 100"), "{table}");
        assert!(bench.must(&["ps", "c", "-o", "pid,comm", "-e"]).contains("sleep"));
        assert!(bench.refuse(&["ps", "--format", "xml", "c"]).contains("xml"));
        bench.delete();
    });
}

#[test]
fn pause_and_resume() {
    case(|bench| {
        bench.script("while :; do echo x >> /count; sleep 0.02; done").start();
        until("it counts", || bench.inside("count").exists().then_some(()));
        bench.must(&["pause", "c"]);
        assert_eq!(bench.state()["status"], "paused");
        let frozen = std::fs::metadata(bench.inside("count")).unwrap().len();
        assert!(bench.refuse(&["exec", "c", "true"]).contains("paused"));
        assert!(bench.refuse(&["pause", "c"]).contains("paused"));
        assert_eq!(std::fs::metadata(bench.inside("count")).unwrap().len(), frozen);
        bench.must(&["resume", "c"]);
        until("it goes on", || (std::fs::metadata(bench.inside("count")).unwrap().len() > frozen).then_some(()));
        assert!(bench.refuse(&["resume", "c"]).contains("running"));
        // A paused container is killed all the same.
        bench.must(&["pause", "c"]);
        bench.must(&["kill", "c", "KILL"]);
        bench.until_status("stopped");
        bench.delete();
        bench.start();
        bench.must(&["pause", "c"]);
        bench.delete();
    });
}

#[test]
fn update_and_events() {
    case(|bench| {
        bench.args(&["sleep", "100"]).start();
        bench.must(&["update", "--memory", "64m", "--pids-limit", "20", "--cpu-share", "512", "c"]);
        let text: Value = serde_json::from_str(&bench.must(&["events", "--stats", "c"])).unwrap();
        assert_eq!((&text["type"], &text["id"]), (&json!("stats"), &json!("c")));
        assert_eq!(
            (&text["data"]["memory"]["usage"]["limit"], &text["data"]["pids"]["limit"]),
            (&json!(64 << 20), &json!(20))
        );
        let file = bench.beside("limits.json");
        std::fs::write(&file, json!({"pids": {"limit": 30}}).to_string()).unwrap();
        bench.must(&["update", "--resources", file.to_str().unwrap(), "c"]);
        let mut command = bench.command(&["update", "-r", "-", "c"]);
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(br#"{"memory": {"limit": 33554432}}"#).unwrap();
        assert!(child.wait().unwrap().success());
        let text: Value = serde_json::from_str(&bench.must(&["events", "--stats", "c"])).unwrap();
        assert_eq!(
            (&text["data"]["memory"]["usage"]["limit"], &text["data"]["pids"]["limit"]),
            (&json!(32 << 20), &json!(30))
        );
        for (arguments, words) in [
            (&["update", "--memory", "much", "c"][..], "--memory"),
            (&["update", "--l3-cache-schema", "x", "c"], "not supported"),
            (&["update", "--fly", "1", "c"], "not defined"),
            (&["events", "--interval", "x", "c"], "--interval"),
        ] {
            let said = bench.refuse(arguments);
            assert!(said.contains(words), "{said}");
        }
        bench.delete();
    });
}

#[test]
fn logs_that_supervisors_read() {
    case(|bench| {
        let file = bench.beside("log.json");
        let flags = ["--log", file.to_str().unwrap(), "--log-format", "json"];
        let with = |rest: &[&str]| -> Vec<String> { flags.iter().chain(rest).map(ToString::to_string).collect() };
        let arguments = with(&["state", "none"]);
        let said = bench.refuse(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(said, "container does not exist");
        let text = std::fs::read_to_string(&file).unwrap();
        let entry: Value = serde_json::from_str(text.trim()).unwrap();
        assert_eq!((&entry["level"], &entry["msg"]), (&json!("error"), &json!("container does not exist")));
        assert!(entry["time"].as_str().unwrap().ends_with('Z'));
        for (arguments, words) in [
            (&["--log-format", "xml", "list"][..], "xml"),
            (&["--systemd-cgroup", "list"], "cgroupfs"),
            (&["--rootless", "true", "list"], "--rootless"),
            (&["checkpoint", "c"], "not supported"),
            (&["fly"], "no command"),
            (&["--fly"], "not defined"),
        ] {
            let said = bench.refuse(arguments);
            assert!(said.contains(words), "{said}");
        }
        assert!(bench.must(&["--version"]).contains("spec: 1."));
        assert!(
            bench.must(&["--help"]).contains("create") && bench.must(&["exec", "--help"]).contains("--preserve-fds")
        );
        let features: Value = serde_json::from_str(&bench.must(&["features"])).unwrap();
        assert!(features["hooks"].as_array().unwrap().len() == 6);
        std::fs::create_dir(bench.beside("new")).unwrap();
        bench.must(&["spec", "--bundle", bench.beside("new").to_str().unwrap()]);
        assert!(bench.refuse(&["spec", "-b", bench.beside("new").to_str().unwrap()]).contains("config.json"));
    });
}

/// Takes the descriptor that comes to a listener.
fn take(listener: &UnixListener) -> OwnedFd {
    let (stream, _) = listener.accept().unwrap();
    let (mut name, mut descriptors) = ([0u8; 64], Vec::new());
    socket::receive(OwnedFd::from(stream), &mut name, &mut descriptors).unwrap();
    descriptors.pop().expect("a descriptor")
}

/// What a terminal says up to a word.
fn hear(master: OwnedFd, word: &str) -> String {
    let (mut file, mut text) = (std::fs::File::from(master), String::new());
    let mut buffer = [0u8; 1024];
    while !text.contains(word) {
        match file.read(&mut buffer) {
            Ok(count) if count > 0 => text.push_str(&String::from_utf8_lossy(&buffer[..count])),
            _ => break,
        }
    }
    text
}

#[test]
fn terminals() {
    case(|bench| {
        bench.config["process"]["terminal"] = json!(true);
        bench.config["process"]["consoleSize"] = json!({"height": 33, "width": 99});
        bench.script("stty size; tty; test -c /dev/console && echo console; echo end; sleep 100").write();
        assert!(bench.refuse(&["create", "c"]).contains("--console-socket"));
        let path = bench.beside("s");
        let listener = UnixListener::bind(&path).unwrap();
        let flags = ["--console-socket", path.to_str().unwrap()];
        assert!(bench.create_with(&flags).status.success(), "{}", bench.log());
        let master = take(&listener);
        bench.must(&["start", "c"]);
        let said = hear(master, "end");
        for words in ["33 99", "/dev/pts/0", "console"] {
            assert!(said.contains(words), "{said}");
        }
        let exec = ["exec", "--tty", "--detach", flags[0], flags[1], "c", "sh", "-c", "tty; echo end; sleep 1"];
        bench.must_quietly(&exec);
        assert!(hear(take(&listener), "end").contains("/dev/pts/"));
        // In the foreground this program's own streams are the terminal's.
        assert_eq!(bench.must(&["exec", "--tty", "c", "sh", "-c", "test -t 0 && test -t 1 && echo seen"]), "seen");
        bench.config["process"]["terminal"] = json!(false);
        bench.delete();
        bench.write();
        assert!(bench.refuse(&["create", flags[0], flags[1], "c"]).contains("--console-socket"));
    });
}

#[test]
fn descriptors_that_are_kept() {
    case(|bench| {
        bench
            .script("ls -l /proc/self/fd 2>/dev/null | grep -c -- '->'; cat <&3; cat <&4; echo $LISTEN_FDS $LISTEN_PID")
            .write();
        let files = ["one", "two"].map(|name| {
            std::fs::write(bench.beside(name), format!("{name}\n")).unwrap();
            bench.beside(name).display().to_string()
        });
        let program = bench.command(&[]).get_program().to_string_lossy().into_owned();
        let state = bench.beside("state").display().to_string();
        let shell = |environment: &str, kept: &str| {
            let line = format!(
                "{environment} exec {program} --root {state} run {kept} c 3<{} 4<{} 5</dev/null",
                files[0], files[1]
            );
            std::process::Command::new("sh").args(["-c", &line]).current_dir(bench.bundle()).output().unwrap()
        };
        let output = shell("", "--preserve-fds 2");
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "5\none\ntwo\n\n",
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let output = shell("LISTEN_FDS=1", "--preserve-fds 1");
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "5\none\ntwo\n1 1\n",
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let output = shell("", "--preserve-fds 9");
        assert!(String::from_utf8_lossy(&output.stderr).contains("is not open"));
        // A descriptor of the process for whoever asks.
        let path = bench.beside("p");
        let listener = UnixListener::bind(&path).unwrap();
        bench.args(&["sleep", "100"]).write();
        assert!(bench.create_with(&["--pidfd-socket", path.to_str().unwrap()]).status.success(), "{}", bench.log());
        let pidfd = take(&listener);
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).unwrap();
        assert!(info.contains(&format!("Pid:\t{}", bench.pid())), "{info}");
        bench.delete();
        drop(UnixStream::connect(&path));
    });
}

#[test]
fn commands_at_once() {
    case(|bench| {
        bench.args(&["sleep", "100"]).create();
        // Of many starts one succeeds; of many deletes all that come first, and nothing is left.
        let started: usize = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..6).map(|_| scope.spawn(|| usize::from(bench.output(&["start", "c"]).status.success()))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(started, 1);
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..6).map(|_| scope.spawn(|| bench.output(&["delete", "--force", "c"]).status.success())).collect();
            assert!(threads.into_iter().all(|thread| thread.join().unwrap()));
        });
        assert_eq!(bench.must(&["list", "-q"]), "");
    });
}
