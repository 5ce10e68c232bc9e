//! Deaths, restarts, namespaces and removal through the shim.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

use orlop_container::protocol::{FailureKind, PidSource, Reply, Request, SandboxState};
use orlop_container::sandbox;
use orlop_tests::census::{Census, remove_empty_cgroups};
use orlop_tests::place::{private_mounts, programs};
use orlop_tests::shim::{DEADLINE, ShimPod, with_pod};

fn state(pod: &ShimPod) -> SandboxState {
    serde_json::from_slice(&std::fs::read(pod.folder.join("state.json")).unwrap()).unwrap()
}

#[test]
fn the_machines_mount_table_never_changes() {
    with_pod("table", |pod| {
        let table = || std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let before = table();
        pod.start_container("c1", &pod.config("c1", &["sleep", "1000"]), |_| {});
        assert_eq!(table(), before);
        assert_eq!(pod.exec("c1", &["true"]).0, 0);
        assert_eq!(table(), before);
    });
}

#[test]
fn containers_share_memory_and_ipc_but_not_processes() {
    with_pod("share", |pod| {
        pod.start_container("c1", &pod.config("c1", &["sleep", "1000"]), |_| {});
        pod.start_container("c2", &pod.config("c2", &["sleep", "2000"]), |_| {});
        assert_eq!(pod.exec("c1", &["sh", "-c", "echo shared > /dev/shm/x"]).0, 0);
        assert_eq!(pod.exec("c2", &["cat", "/dev/shm/x"]), (0, "shared\n".into()));
        let (_, size) = pod.exec("c2", &["df", "-k", "/dev/shm"]);
        assert!(size.contains("65536"), "{size}");
        let (_, other) = pod.exec("c2", &["ps"]);
        assert!(other.contains("sleep 2000") && !other.contains("sleep 1000"), "{other}");
        let namespace = |id: &str, kind: &str| pod.exec(id, &["readlink", &format!("/proc/self/ns/{kind}")]).1;
        for kind in ["ipc", "net", "uts"] {
            assert_eq!(namespace("c1", kind), namespace("c2", kind), "{kind}");
        }
        for kind in ["pid", "mnt"] {
            assert_ne!(namespace("c1", kind), namespace("c2", kind), "{kind}");
        }
    });
}

#[test]
fn a_container_may_join_the_processes_of_the_pod_or_of_another() {
    with_pod("pids", |pod| {
        pod.start_container("c1", &pod.config("c1", &["sleep", "1111"]), |_| {});
        pod.start_container("c2", &pod.config("c2", &["sleep", "2222"]), |spec| {
            spec.pid = PidSource::Target("c1".into())
        });
        let (_, seen) = pod.exec("c2", &["ps"]);
        assert!(seen.contains("sleep 1111") && seen.contains("sleep 2222"), "{seen}");
        pod.start_container("c3", &pod.config("c3", &["sleep", "3333"]), |spec| spec.pid = PidSource::Pod);
        let (_, seen) = pod.exec("c3", &["ps"]);
        assert!(seen.contains("pause") && seen.contains("sleep 3333") && !seen.contains("1111"), "{seen}");
        let missing = pod.create("c4", &pod.config("c4", &["true"]), |spec| spec.pid = PidSource::Target("c9".into()));
        assert!(matches!(missing, Reply::Failed { kind: FailureKind::WrongState, .. }), "{missing:?}");
        // In a shared PID namespace the kernel doesn't end children with their parent; the shim does.
        let script = "sleep 4444 & exit 0";
        let mut events = pod.subscribe();
        pod.start_container("c5", &pod.config("c5", &["sh", "-c", script]), |spec| spec.pid = PidSource::Pod);
        assert_eq!(ShimPod::wait(&mut events, "c5").exit_code, 0);
        assert!(matches!(pod.call(&Request::Delete { id: "c5".into() }), Reply::Done));
        assert!(!pod.exec("c3", &["ps"]).1.contains("4444"));
    });
}

#[test]
fn an_exec_sees_the_processes_that_its_container_sees() {
    with_pod("execpids", |pod| {
        pod.start_container("c1", &pod.config("c1", &["sleep", "1111"]), |_| {});
        pod.start_container("c2", &pod.config("c2", &["sleep", "2222"]), |spec| {
            spec.pid = PidSource::Target("c1".into())
        });
        pod.start_container("c3", &pod.config("c3", &["sleep", "3333"]), |spec| spec.pid = PidSource::Pod);
        pod.start_container("c4", &pod.config("c4", &["sleep", "4444"]), |spec| spec.pid = PidSource::Host);
        let namespace = |id: &str| pod.exec(id, &["readlink", "/proc/self/ns/pid"]).1;
        let of = |pid: i32| format!("{}\n", std::fs::read_link(format!("/proc/{pid}/ns/pid")).unwrap().display());
        assert_eq!(namespace("c1"), namespace("c2"));
        assert_eq!(namespace("c3"), of(state(pod).pause_pid));
        assert_eq!(namespace("c4"), of(std::process::id() as i32));
        let first = |id: &str| pod.exec(id, &["cat", "/proc/1/cmdline"]).1.replace('\0', " ");
        assert_eq!((first("c2").as_str(), first("c3").as_str()), ("sleep 1111 ", "pause "));
        // The first process of a namespace takes all others with it, and nothing new gets in.
        let mut events = pod.subscribe();
        assert!(matches!(pod.call(&Request::Kill { id: "c1".into(), signal: 9, all: false }), Reply::Done));
        // The kernel lets it end last.
        assert_eq!(ShimPod::wait(&mut events, "c2").exit_code, 137);
        assert_eq!(ShimPod::wait(&mut events, "c1").exit_code, 137);
        let late = pod.create("c5", &pod.config("c5", &["true"]), |spec| spec.pid = PidSource::Target("c1".into()));
        assert!(matches!(late, Reply::Failed { kind: FailureKind::WrongState, .. }), "{late:?}");
    });
}

#[test]
fn created_and_running_containers_can_be_removed() {
    with_pod("remove", |pod| {
        let created = pod.create("c1", &pod.config("c1", &["true"]), |_| {});
        assert!(matches!(created, Reply::Created { .. }), "{created:?}");
        assert!(matches!(pod.call(&Request::Delete { id: "c1".into() }), Reply::Done));
        let mut events = pod.subscribe();
        let script = "trap '' TERM; sleep 100 & sleep 200 & wait";
        pod.start_container("c1", &pod.config("c1", &["sh", "-c", script]), |_| {});
        let start = pod.call(&Request::Start { id: "c1".into() });
        assert!(matches!(start, Reply::Failed { kind: FailureKind::WrongState, .. }), "{start:?}");
        let unknown = pod.call(&Request::Kill { id: "c9".into(), signal: 9, all: true });
        assert!(matches!(unknown, Reply::Failed { kind: FailureKind::NotFound, .. }), "{unknown:?}");
        assert!(matches!(pod.call(&Request::Kill { id: "c1".into(), signal: 9, all: true }), Reply::Done));
        assert_eq!(ShimPod::wait(&mut events, "c1").exit_code, 137);
        assert!(matches!(pod.call(&Request::Delete { id: "c1".into() }), Reply::Done));
        pod.start_container("c2", &pod.config("c2", &["sleep", "100"]), |_| {});
        assert!(matches!(pod.call(&Request::Delete { id: "c2".into() }), Reply::Done));
        assert_eq!(ShimPod::wait(&mut events, "c2").exit_code, 137);
    });
}

#[test]
fn the_end_of_pause_is_told_and_nothing_new_is_made() {
    with_pod("pause", |pod| {
        pod.start_container("c1", &pod.config("c1", &["sleep", "100"]), |_| {});
        let mut events = pod.subscribe();
        orlop_kernel::process::kill(state(pod).pause_pid, 15).unwrap();
        let told = events.receive().unwrap();
        assert!(matches!(told, Some(Reply::PauseExited { exit_code: 0 })), "{told:?}");
        assert_eq!(pod.exec("c1", &["echo", "alive"]), (0, "alive\n".into()));
        let refused = pod.create("c2", &pod.config("c2", &["true"]), |_| {});
        assert!(matches!(refused, Reply::Failed { kind: FailureKind::WrongState, .. }), "{refused:?}");
    });
}

#[test]
fn what_a_killed_shim_leaves_is_cleaned_up() {
    with_pod("killed", |pod| {
        pod.start_container("c1", &pod.config("c1", &["sh", "-c", "sleep 100 & wait"]), |_| {});
        let created = pod.create("c2", &pod.config("c2", &["true"]), |_| {});
        assert!(matches!(created, Reply::Created { .. }), "{created:?}");
        orlop_kernel::process::kill(state(pod).shim_pid, 9).unwrap();
        sandbox::clean_up(&pod.folder).unwrap();
        sandbox::clean_up(&pod.folder).unwrap();
        pod.ended = true;
    });
}

#[test]
fn a_sandbox_that_can_not_be_made_says_why_and_leaves_nothing() {
    private_mounts();
    let base = tempfile::tempdir().unwrap();
    let folder = base.path().join("sandbox");
    std::fs::create_dir_all(&folder).unwrap();
    let mark = format!("orlop-shim-nothing-{}", std::process::id());
    let spec = |pause: &str, sysctl: &str| {
        serde_json::json!({
            "version": 1, "id": "s", "pod": "test/pod", "hostname": "h", "network": "new", "ipc": "new", "uts": "new",
            "pid": "host", "sysctls": {sysctl: "1"}, "cgroup": format!("/{mark}/sandbox"), "pauseProgram": pause,
            "shmBytes": 1 << 20, "oomScoreAdj": 0,
        })
    };
    let pause = programs().join("orlop-pause").display().to_string();
    for (pause, sysctl, words) in [
        ("/no/such/pause", "net.core.somaxconn", "/no/such/pause"),
        (pause.as_str(), "kernel.core_pattern", "kernel.core_pattern"),
        (pause.as_str(), "net.no.such", "net.no.such"),
        ("/etc/passwd", "net.core.somaxconn", "start pause"),
    ] {
        std::fs::write(folder.join("sandbox.json"), serde_json::to_vec(&spec(pause, sysctl)).unwrap()).unwrap();
        let output = Command::new(programs().join("orlop-shim")).arg(&folder).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(words) && said.lines().count() == 1, "{said}");
        let names: BTreeSet<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(!names.contains(std::ffi::OsStr::new("shim.sock")), "{names:?}");
        assert!(Census::take(&format!("/{mark}/sandbox")).cgroups.is_empty());
        remove_empty_cgroups(&mark);
    }
    std::fs::write(folder.join("sandbox.json"), "{").unwrap();
    let output = Command::new(programs().join("orlop-shim")).arg(&folder).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("sandbox.json"));
}

#[test]
fn nothing_of_the_starter_stays_in_the_shim() {
    with_pod("starter", |pod| {
        let shim = state(pod).shim_pid;
        let link = |name: &str| std::fs::read_link(format!("/proc/{shim}/{name}")).unwrap();
        assert_eq!(link("cwd"), std::path::Path::new("/"));
        assert_eq!(link("fd/0"), std::path::Path::new("/dev/null"));
        assert_eq!((link("fd/1"), link("fd/2")), (pod.folder.join("shim.log"), pod.folder.join("shim.log")));
        let status = std::fs::read_to_string(format!("/proc/{shim}/status")).unwrap();
        assert!(status.contains("Name:\torlop-shim") && status.contains("Umask:\t0022"), "{status}");
        assert_eq!(std::fs::read(format!("/proc/{}/fd/0", state(pod).pause_pid)).unwrap(), b"");
        let words = std::fs::read_to_string(pod.folder.join("shim.log")).unwrap();
        assert!(words.lines().count() <= 1, "{words}");
    });
}

#[test]
fn many_callers_and_broken_ones() {
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    with_pod("callers", |pod| {
        pod.start_container("c1", &pod.config("c1", &["sleep", "100"]), |_| {});
        let socket = pod.folder.join("shim.sock");
        for garbage in [&b"\xff\xff\xff\xff"[..], b"\x00\x00\x00\x02{}", b"\x00\x00\x00\x05hello", b"\x00"] {
            let mut stream = UnixStream::connect(&socket).unwrap();
            stream.write_all(garbage).unwrap();
        }
        let idle: Vec<UnixStream> = (0..100).map(|_| UnixStream::connect(&socket).unwrap()).collect();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        assert_eq!(pod.exec("c1", &["true"]).0, 0);
                    }
                });
            }
        });
        drop(idle);
        let held = || std::fs::read_dir(format!("/proc/{}/fd", state(pod).shim_pid)).unwrap().count();
        let until = Instant::now() + DEADLINE;
        while held() > 24 {
            assert!(Instant::now() < until, "the shim holds {} descriptors", held());
            std::thread::sleep(Duration::from_millis(2));
        }
    });
}
