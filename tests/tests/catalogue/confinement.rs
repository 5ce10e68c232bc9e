//! Containers that look for a way out while they are made, and while they run commands: cases 13, 15, 17.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use orlop_container::config::Mount;
use orlop_container::protocol::{Reply, Request, SandboxState};
use orlop_tests::invariant::{Invariant, descriptors};
use orlop_tests::shim::{ShimPod, with_pod};
use rustix::fs::RenameFlags;
use serde_json::json;

use crate::server::Server;

/// Commands run in a container through its shim.
const EXECS: usize = 200;
/// Commands run through the server.
const SERVER_EXECS: usize = 200;
/// Containers started while their volume changes.
const STARTS: usize = 60;

/// Prints the descriptors that a program has got, and its working folder.
const LIST: &str = "ls -l /proc/self/fd; readlink /proc/self/cwd";

/// Only streams, and nothing of the machine.
fn check_descriptors(list: &str, machine: &str) {
    for line in list.lines() {
        let Some((head, target)) = line.split_once(" -> ") else { continue };
        let number = head.rsplit(' ').next().unwrap_or_default();
        // `ls` has opened the folder that it lists.
        let own = number == "3" && target.starts_with("/proc/");
        let stream = ["0", "1", "2"].contains(&number) && (target.starts_with("pipe:") || target == "/dev/null");
        assert!(own || stream, "{line} in\n{list}");
    }
    assert!(!list.contains(machine) && !list.contains("unreachable"), "{list}");
}

fn shim_pid(pod: &ShimPod) -> u32 {
    let state = std::fs::read(pod.folder.join("state.json")).unwrap();
    serde_json::from_slice::<SandboxState>(&state).unwrap().shim_pid as u32
}

#[test]
fn case_13_descriptors_of_the_shim() {
    let invariant = Invariant::take(None);
    with_pod("case13", |pod| {
        let shim = shim_pid(pod);
        let machine = pod.folder.display().to_string();
        pod.start_container("main", &pod.config("main", &["sleep", "1000"]), |_| {});
        let before = descriptors(shim);
        for number in 3..=20 {
            let id = format!("c{number}");
            let mut config = pod.config(&id, &["sh", "-c", LIST]);
            config.process.cwd = format!("/proc/self/fd/{number}");
            let mut events = pod.subscribe();
            if let Reply::Created { .. } = pod.create(&id, &config, |_| {})
                && let Reply::Started { .. } = pod.call(&Request::Start { id: id.clone() })
            {
                ShimPod::wait(&mut events, &id);
                check_descriptors(&pod.log(&id), &machine);
            }
            assert!(matches!(pod.call(&Request::Delete { id }), Reply::Done));
        }
        for _ in 0..EXECS {
            let (code, list) = pod.exec("main", &["sh", "-c", LIST]);
            assert_eq!(code, 0, "{list}");
            check_descriptors(&list, &machine);
        }
        let after = descriptors(shim);
        assert!(after <= before + 1, "the shim has {after} descriptors, {before} before");
    });
    invariant.check();
}

#[test]
fn case_13_descriptors_of_the_server() {
    let server = Server::start(|_| {});
    let pod = server.run_pod("descriptors");
    let machine = server.world.root.display().to_string();
    let mut ids = vec![server.begin(&pod, "main", &json!({"command": ["sleep", "1000"]})).unwrap()];
    for number in [3, 7, 12, 20] {
        let place = json!({"command": ["sleep", "1000"], "working_dir": format!("/proc/self/fd/{number}")});
        ids.extend(server.begin(&pod, &format!("c{number}"), &place));
    }
    for round in 0..SERVER_EXECS {
        let answer = server.exec(&ids[round % ids.len()], &["sh", "-c", LIST], 10).unwrap();
        assert_eq!(answer.exit_code, 0);
        check_descriptors(&String::from_utf8_lossy(&answer.stdout), &machine);
    }
    server.end();
}

#[test]
fn case_15_file_systems_in_the_place_of_others() {
    type Make = fn(&Path);
    let ways: [(&str, Make); 6] = [
        ("a link to the root", |place| symlink("/", place).unwrap()),
        ("a link to the machine", |place| symlink("/etc", place).unwrap()),
        ("a link to a volume", |place| symlink("/volume", place).unwrap()),
        ("a link to nothing", |place| symlink("/no/such", place).unwrap()),
        ("a file", |place| std::fs::write(place, "").unwrap()),
        ("a pipe", |place| nix::unistd::mkfifo(place, nix::sys::stat::Mode::S_IRWXU).unwrap()),
    ];
    let invariant = Invariant::take(None);
    with_pod("case15", |pod| {
        let volume = pod.folder.join("volume");
        std::fs::create_dir(&volume).unwrap();
        std::fs::create_dir(pod.layer.join("volume")).unwrap();
        let mut config = pod.config("c1", &["sh", "-c", "mount; ls -l /dev/null /dev/pts/ptmx; ls /volume"]);
        config.mounts.insert(0, bind(&volume, "/volume"));
        for name in ["proc", "sys", "dev"] {
            let place = pod.layer.join(name);
            for (what, make) in ways {
                std::fs::remove_dir(&place).unwrap();
                make(&place);
                match pod.create("c1", &config, |_| {}) {
                    Reply::Failed { message, .. } => assert!(message.contains(&format!("/{name}")), "{message}"),
                    other => panic!("/{name} as {what}: {other:?}"),
                }
                std::fs::remove_file(&place).unwrap();
                std::fs::create_dir(&place).unwrap();
                assert_eq!(std::fs::read_dir(&volume).unwrap().count(), 0, "/{name} as {what}");
            }
        }
        // What the image has below /dev is hidden by the container's own, whatever it is.
        for (place_number, name) in ["dev/pts", "dev/shm", "dev/null", "dev/mqueue"].into_iter().enumerate() {
            for (number, (what, make)) in ways.into_iter().enumerate() {
                let place = pod.layer.join(name);
                make(&place);
                let id = format!("c{place_number}x{number}");
                let mut config = config.clone();
                config.linux.cgroups_path = format!("{}/{id}", pod.cgroup);
                let (code, log) = pod.run(&id, &config);
                assert_eq!(code, 0, "/{name} as {what}: {log}");
                assert!(log.contains("devpts on /dev/pts type devpts") && log.contains("on /dev/shm"), "{log}");
                assert_eq!(std::fs::read_dir(&volume).unwrap().count(), 0, "/{name} as {what}");
                std::fs::remove_file(&place).unwrap();
            }
        }
    });
    invariant.check();
}

fn bind(source: &Path, destination: &str) -> Mount {
    Mount {
        destination: destination.into(),
        kind: "bind".into(),
        source: source.into(),
        options: vec!["rbind".into(), "rprivate".into()],
        ..Mount::default()
    }
}

/// Exchanges two names of a folder over and over, as a sibling does that has the volume too.
struct Swapper {
    end: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Swapper {
    fn start(pairs: Vec<(PathBuf, PathBuf)>) -> Swapper {
        let end = Arc::new(AtomicBool::new(false));
        let ended = end.clone();
        let work = move || {
            while !ended.load(Ordering::Relaxed) {
                for (one, other) in &pairs {
                    let here = rustix::fs::CWD;
                    rustix::fs::renameat_with(here, one, here, other, RenameFlags::EXCHANGE).expect("exchange");
                }
            }
        };
        Swapper { end, thread: Some(std::thread::spawn(work)) }
    }
}

impl Drop for Swapper {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

/// A device node like the machine's `null`.
fn make_null(place: &Path) {
    let (kind, mode) = (nix::sys::stat::SFlag::S_IFCHR, nix::sys::stat::Mode::from_bits_truncate(0o666));
    nix::sys::stat::mknod(place, kind, mode, nix::sys::stat::makedev(1, 3)).unwrap();
}

#[test]
fn case_17_a_volume_that_changes_while_its_pod_starts() {
    let invariant = Invariant::take(None);
    with_pod("case17", |pod| {
        // The volume lies over /dev and over a folder with a path that is to be masked and one to be read-only.
        let (dev, work) = (pod.folder.join("dev"), pod.folder.join("work"));
        for folder in [&dev, &work] {
            std::fs::create_dir(folder).unwrap();
        }
        make_null(&dev.join("null"));
        symlink("/proc/sysrq-trigger", dev.join("null-2")).unwrap();
        for (place, name, target) in [
            (&dev, "pts", "/proc"),
            (&dev, "shm", "/proc/sys"),
            (&work, "masked", "/proc/sys/kernel"),
            (&work, "protected", "/proc"),
            (&work, "inner", "/proc/sys"),
        ] {
            std::fs::create_dir(place.join(name)).unwrap();
            symlink(target, place.join(format!("{name}-2"))).unwrap();
        }
        let inner = pod.folder.join("inner");
        std::fs::create_dir(&inner).unwrap();
        // A file is opened for writing and nothing written: success alone is the escape.
        let script = "for f in /proc/sysrq-trigger /proc/sys/kernel/core_pattern /proc/sys/kernel/modprobe; do \
                      if ( : >> $f ) 2> /work/err-$$; then echo \"WRITABLE $f\"; fi; done; \
                      if head -c 1 /proc/kcore 2> /work/err-$$ | grep -q .; then echo READABLE; fi; rm -f /work/err-$$; echo looked";
        let pairs =
            [(&dev, "null"), (&dev, "pts"), (&dev, "shm"), (&work, "masked"), (&work, "protected"), (&work, "inner")];
        let pairs = pairs.map(|(folder, name)| (folder.join(name), folder.join(format!("{name}-2"))));
        let swapper = Swapper::start(pairs.to_vec());
        let mut looked = 0;
        for round in 0..STARTS {
            let id = format!("c{round}");
            let mut config = pod.config(&id, &["sh", "-c", script]);
            // Half of them have the volume as their /dev.
            if round.is_multiple_of(2) {
                config.mounts.retain(|mount| mount.destination != Path::new("/dev"));
                config.mounts.insert(1, bind(&dev, "/dev"));
            }
            config.mounts.push(bind(&work, "/work"));
            config.mounts.push(bind(&inner, "/work/inner"));
            config.linux.masked_paths.push("/work/masked".into());
            config.linux.readonly_paths.push("/work/protected".into());
            let mut events = pod.subscribe();
            if let Reply::Created { .. } = pod.create(&id, &config, |_| {})
                && let Reply::Started { .. } = pod.call(&Request::Start { id: id.clone() })
            {
                ShimPod::wait(&mut events, &id);
                let log = pod.log(&id);
                assert!(!log.contains("WRITABLE") && !log.contains("READABLE"), "start {round}: {log}");
                looked += usize::from(log.contains("looked"));
            }
            assert!(matches!(pod.call(&Request::Delete { id }), Reply::Done));
        }
        drop(swapper);
        assert!(looked > STARTS / 8, "only {looked} of {STARTS} started");
    });
    invariant.check();
}
