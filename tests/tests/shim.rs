//! Containers through their shim: start, end, logs, exec, terminals, confinement, and nothing left behind.

use std::os::fd::AsFd;

use orlop_container::client::Client;
use orlop_container::protocol::{FailureKind, Reply, Request};
use orlop_tests::shim::{DEADLINE, with_pod};

#[test]
fn a_container_runs_and_its_end_is_told() {
    with_pod("run", |pod| {
        let script = "echo out; echo err >&2; hostname; cat /proc/sys/net/ipv4/ip_unprivileged_port_start; exit 7";
        let (code, log) = pod.run("c1", &pod.config("c1", &["sh", "-c", script]));
        assert_eq!(code, 7, "{log}");
        let mut lines: Vec<&str> = log.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, ["0", "err", "out", "shim-test"]);
        assert!(pod.folder.join("containers/c1/exit.json").is_file());
        assert!(matches!(pod.call(&Request::Delete { id: "c1".into() }), Reply::Done));
        assert!(matches!(pod.call(&Request::Delete { id: "c1".into() }), Reply::Done), "deleting is idempotent");
    });
}

#[test]
fn a_program_that_is_not_there_is_named() {
    with_pod("missing", |pod| {
        for (id, program, words) in [
            ("c1", "nothing", "executable file not found in $PATH"),
            ("c2", "/bin", "is a directory"),
            ("c3", "/etc/passwd", "permission denied"),
            ("c4", "/no/such", "no such file or directory"),
        ] {
            assert!(matches!(pod.create(id, &pod.config(id, &[program]), |_| {}), Reply::Created { .. }));
            match pod.call(&Request::Start { id: id.into() }) {
                Reply::Failed { kind: FailureKind::Start, message } => assert!(message.contains(words), "{message}"),
                other => panic!("{other:?}"),
            }
        }
    });
}

#[test]
fn the_container_is_confined() {
    with_pod("confined", |pod| {
        let mut config = pod.config("c1", &["sleep", "1000"]);
        config.process.no_new_privileges = true;
        config.process.user.uid = 1000;
        config.process.user.gid = 1001;
        config.process.user.additional_gids = vec![1002];
        assert!(matches!(pod.create("c1", &config, |_| {}), Reply::Created { .. }));
        assert!(matches!(pod.call(&Request::Start { id: "c1".into() }), Reply::Started { .. }));
        let (code, status) = pod.exec("c1", &["cat", "/proc/1/status"]);
        assert_eq!(code, 0);
        for line in [
            "Uid:\t1000\t1000",
            "Gid:\t1001\t1001",
            "Groups:\t1001 1002",
            "NoNewPrivs:\t1",
            "CapEff:\t0000000000000000",
            "CapInh:\t0000000000000000",
            "CapAmb:\t0000000000000000",
        ] {
            assert!(
                status.contains(line) || (line.starts_with("Groups") && status.contains("Groups:\t1002")),
                "{line} in\n{status}"
            );
        }
        let (_, fds) = pod.exec("c1", &["ls", "/proc/1/fd"]);
        assert_eq!(fds.split_whitespace().collect::<Vec<_>>(), ["0", "1", "2"], "no descriptor of the runtime is left");
        let (_, processes) = pod.exec("c1", &["ls", "/proc"]);
        assert_eq!(processes.split_whitespace().filter(|name| name.parse::<u32>().is_ok()).count(), 2, "{processes}");
        for masked in
            ["/proc/kcore", "/proc/keys", "/proc/timer_list"].iter().filter(|file| std::path::Path::new(file).exists())
        {
            assert_eq!(pod.exec("c1", &["cat", masked]), (0, String::new()), "{masked} is empty");
        }
        let (_, mounts) = pod.exec("c1", &["cat", "/proc/self/mountinfo"]);
        assert!(!mounts.contains("/sys/fs/cgroup/cpu ") || !mounts.contains(" rw,relatime - ext4"), "{mounts}");
        assert!(matches!(pod.call(&Request::Delete { id: "c1".into() }), Reply::Done));
    });
}

#[test]
fn exec_signals_and_terminals() {
    with_pod("exec", |pod| {
        let config = pod.config("c1", &["sh", "-c", "trap 'exit 3' TERM; while :; do sleep 1; done"]);
        assert!(matches!(pod.create("c1", &config, |_| {}), Reply::Created { .. }));
        assert!(matches!(pod.call(&Request::Start { id: "c1".into() }), Reply::Started { .. }));
        assert_eq!(pod.exec("c1", &["sh", "-c", "echo $$ >/dev/null; echo hi; exit 4"]), (4, "hi\n".to_string()));
        assert_eq!(pod.exec("c1", &["sh", "-c", "kill -9 $$"]).0, 137);

        let request = Request::Exec {
            id: "c1".into(),
            args: ["sh", "-c", "tty; stty size; exit 5"].map(String::from).to_vec(),
            env: vec![],
            tty: true,
        };
        let mut client = Client::send(&pod.folder, &request, &[], DEADLINE).unwrap();
        assert!(matches!(client.receive().unwrap(), Some(Reply::ExecStarted { .. })));
        let master = client.descriptors.pop().expect("the terminal comes along");
        let mut text = Vec::new();
        let mut buffer = [0u8; 256];
        while let Ok(count) = rustix::io::read(master.as_fd(), &mut buffer) {
            if count == 0 {
                break;
            }
            text.extend(&buffer[..count]);
        }
        assert!(String::from_utf8_lossy(&text).contains("/dev/pts/"), "{}", String::from_utf8_lossy(&text));
        assert!(matches!(client.receive().unwrap(), Some(Reply::ExecExited { exit_code: 5 })));

        let mut events = Client::send(&pod.folder, &Request::Subscribe, &[], DEADLINE).unwrap();
        let _ = events.receive().unwrap();
        assert!(matches!(pod.call(&Request::Kill { id: "c1".into(), signal: 15, all: false }), Reply::Done));
        match events.receive().unwrap() {
            Some(Reply::Exited { record }) => assert_eq!(record.exit_code, 3),
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn memory_that_runs_out_is_told() {
    with_pod("oom", |pod| {
        let mut config = pod.config("c1", &["sh", "-c", "x=a; while :; do x=$x$x; done"]);
        config.linux.resources.memory =
            Some(orlop_kernel::cgroup::Memory { limit: Some(16 << 20), swap: Some(16 << 20), ..Default::default() });
        let (code, _) = pod.run("c1", &config);
        assert_eq!(code, 137);
        let record = std::fs::read_to_string(pod.folder.join("containers/c1/exit.json")).unwrap();
        assert!(record.contains("\"oomKilled\":true"), "{record}");
    });
}

#[test]
fn an_image_with_links_in_the_way_is_refused() {
    with_pod("links", |pod| {
        std::fs::remove_dir(pod.layer.join("dev")).unwrap();
        std::os::unix::fs::symlink("/etc", pod.layer.join("dev")).unwrap();
        match pod.create("c1", &pod.config("c1", &["true"]), |_| {}) {
            Reply::Failed { message, .. } => assert!(message.contains("/dev"), "{message}"),
            other => panic!("{other:?}"),
        }
    });
}
