//! What a container can't do, and what an image can't make the runtime do.

use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use orlop_container::client::Client;
use orlop_container::config::Mount;
use orlop_container::protocol::{PidSource, Reply, Request};
use orlop_kernel::capability::Capabilities;
use orlop_kernel::cgroup::DeviceRule;
use orlop_kernel::lsm;
use orlop_kernel::seccomp::default_profile;
use orlop_tests::shim::{DEADLINE, ShimPod, with_pod};
use sha2::Digest;

/// The capabilities of an ordinary container.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

fn rule(allow: bool, kind: &str, numbers: Option<(i64, i64)>) -> DeviceRule {
    let (major, minor) = numbers.unzip();
    DeviceRule { allow, kind: Some(kind.into()), major, minor, access: Some("rwm".into()) }
}

#[test]
fn an_ordinary_container_is_confined_in_its_first_process_and_in_exec() {
    with_pod("ordinary", |pod| {
        let caps = Capabilities::from_names(DEFAULT).unwrap();
        let mut config = pod.config("c1", &["sleep", "1000"]);
        let sets = &mut config.process.capabilities;
        (sets.bounding, sets.effective, sets.permitted) = (caps.names(), caps.names(), caps.names());
        config.linux.seccomp = Some(default_profile(caps));
        let null_and_friends = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2), (136, -1)];
        config.linux.resources.devices = vec![rule(false, "a", None)];
        config.linux.resources.devices.push(DeviceRule { access: Some("m".into()), ..rule(true, "c", None) });
        config.linux.resources.devices.extend(null_and_friends.map(|numbers| rule(true, "c", Some(numbers))));
        pod.start_container("c1", &config, |_| {});
        for process in ["1", "self"] {
            let (_, status) = pod.exec("c1", &["cat", &format!("/proc/{process}/status")]);
            let set = format!("{:016x}", caps.0);
            for (name, value) in [("CapInh", "0000000000000000"), ("CapPrm", &set), ("CapEff", &set), ("CapBnd", &set)]
            {
                assert!(status.contains(&format!("{name}:\t{value}")), "{name} {value} in\n{status}");
            }
            assert!(status.contains("CapAmb:\t0000000000000000") && status.contains("Seccomp:\t2"), "{status}");
        }
        let fails = |command: &str| {
            let (code, text) = pod.exec("c1", &["sh", "-c", command]);
            assert_ne!(code, 0, "{command} worked: {text}");
        };
        for command in [
            "mount -t tmpfs x /tmp",
            "unshare -U true",
            "unshare -m true",
            "echo x > /proc/sys/kernel/hostname",
            "echo b > /proc/sysrq-trigger",
            "mkdir /sys/fs/cgroup/x || mkdir /sys/fs/cgroup/memory/x",
            "echo 1 > /sys/kernel/mm/ksm/run",
            "mknod /tmp/kmsg c 1 11 && head -c 1 /tmp/kmsg",
            "mknod /tmp/mem c 1 1 && head -c 1 /tmp/mem",
        ] {
            fails(command);
        }
        assert_eq!(pod.exec("c1", &["ls", "-A", "/sys/firmware"]), (0, String::new()), "a masked folder is empty");
        assert_eq!(pod.exec("c1", &["sh", "-c", "echo x > /dev/null; head -c 4 /dev/zero | wc -c"]), (0, "4\n".into()));
        let (_, mounts) = pod.exec("c1", &["cat", "/proc/1/mountinfo"]);
        let machine = mounts.lines().filter(|line| line.contains(" - ext4 ") || line.contains("/root/")).count();
        assert_eq!(machine, 0, "a mount of the machine is seen:\n{mounts}");
    });
}

#[test]
fn links_and_files_in_the_way_of_file_systems_are_refused() {
    type Make = fn(&Path);
    let ways: [(&str, Make); 4] = [
        ("a link", |place| symlink("/etc", place).unwrap()),
        ("a link to nothing", |place| symlink("/no/such", place).unwrap()),
        ("a file", |place| std::fs::write(place, "").unwrap()),
        ("a pipe", |place| nix::unistd::mkfifo(place, nix::sys::stat::Mode::S_IRWXU).unwrap()),
    ];
    with_pod("places", |pod| {
        for name in ["proc", "sys", "dev"] {
            let place = pod.layer.join(name);
            for (what, make) in ways {
                std::fs::remove_dir(&place).unwrap();
                make(&place);
                match pod.create("c1", &pod.config("c1", &["true"]), |_| {}) {
                    Reply::Failed { message, .. } => {
                        assert!(message.contains(&format!("/{name}")), "{what}: {message}")
                    }
                    other => panic!("/{name} as {what}: {other:?}"),
                }
                std::fs::remove_file(&place).unwrap();
                std::fs::create_dir(&place).unwrap();
            }
        }
        assert_eq!(pod.run("c1", &pod.config("c1", &["true"])).0, 0, "the same container after all that");
    });
}

#[test]
fn bind_targets_never_leave_the_root() {
    with_pod("binds", |pod| {
        let outside = pod.folder.join("outside");
        let source = pod.folder.join("source");
        std::fs::create_dir_all(&outside).unwrap();
        std::fs::create_dir_all(&source).unwrap();
        std::fs::write(source.join("file"), "content").unwrap();
        symlink(&outside, pod.layer.join("absolute")).unwrap();
        symlink("../../../../../../../../tmp", pod.layer.join("climbing")).unwrap();
        let mut config = pod.config("c1", &["sh", "-c", "cat /absolute/a/file /climbing/b/file /etc/own; pwd"]);
        let bind = |source: &Path, destination: &str| Mount {
            destination: destination.into(),
            kind: "bind".into(),
            source: source.into(),
            options: vec!["rbind".into(), "ro".into()],
            ..Mount::default()
        };
        config.mounts.push(bind(&source, "/absolute/a"));
        config.mounts.push(bind(&source, "/climbing/b"));
        config.mounts.push(bind(&source.join("file"), "/etc/own"));
        config.process.cwd = "/made/../made/deep".into();
        let (code, log) = pod.run("c1", &config);
        // The absolute link points to nothing inside the root: its target is made there.
        assert_eq!((code, log.as_str()), (0, "contentcontentcontent/made/deep"));
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0, "something was made outside of the root");
        assert!(!Path::new("/tmp/b").exists());
    });
}

#[test]
fn a_working_folder_through_a_descriptor_stays_inside() {
    with_pod("cwd", |pod| {
        for number in 3..20 {
            let id = format!("c{number}");
            let mut config = pod.config(&id, &["pwd"]);
            config.process.cwd = format!("/proc/self/fd/{number}");
            if let Reply::Created { .. } = pod.create(&id, &config, |_| {}) {
                let _ = pod.call(&Request::Start { id: id.clone() });
                let log = pod.log(&id);
                assert!(log.is_empty() || log.starts_with('/'), "{log}");
            }
            assert!(matches!(pod.call(&Request::Delete { id }), Reply::Done));
        }
    });
}

#[test]
fn the_runtimes_program_can_not_be_written() {
    let program = orlop_tests::place::programs().join("orlop-shim");
    let hash = || sha2::Sha256::digest(std::fs::read(&program).unwrap());
    let before = hash();
    with_pod("program", |pod| {
        std::fs::write(pod.layer.join("again"), "#!/proc/self/exe\n").unwrap();
        std::fs::set_permissions(pod.layer.join("again"), PermissionsExt::from_mode(0o755)).unwrap();
        let _ = pod.run("c1", &pod.config("c1", &["/again"]));
        // One that could look into every process of the machine finds a file that is busy, or read-only.
        let state: orlop_container::protocol::SandboxState =
            serde_json::from_slice(&std::fs::read(pod.folder.join("state.json")).unwrap()).unwrap();
        let mut kept = Vec::new();
        for pid in [state.shim_pid, state.pause_pid] {
            let id = format!("p{pid}");
            let mut config = pod.config(&id, &["sh", "-c", &format!("echo x >> /proc/{pid}/exe")]);
            for set in [
                &mut config.process.capabilities.bounding,
                &mut config.process.capabilities.effective,
                &mut config.process.capabilities.permitted,
            ] {
                set.push("CAP_SYS_PTRACE".into());
            }
            let mut events = pod.subscribe();
            pod.start_container(&id, &config, |spec| spec.pid = PidSource::Host);
            assert_ne!(ShimPod::wait(&mut events, &id).exit_code, 0);
            let log = pod.log(&id);
            assert!(log.contains("Read-only file system") || log.contains("Text file busy"), "{log}");
            kept.push(std::fs::File::open(format!("/proc/{pid}/exe")).unwrap());
        }
        // One that keeps the file open until nobody runs it finds it read-only all the same.
        pod.shut_down();
        for file in kept {
            let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
            let open = || std::fs::OpenOptions::new().write(true).open(&path).unwrap_err();
            // Other tests may run the same program at this moment.
            let until = Instant::now() + DEADLINE;
            let mut refused = open();
            while refused.kind() == std::io::ErrorKind::ExecutableFileBusy && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(5));
                refused = open();
            }
            assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem, "{refused}");
        }
    });
    assert_eq!(hash(), before, "the shim's program was changed");
}

#[test]
fn waiting_containers_hold_nobodys_files() {
    with_pod("files", |pod| {
        pod.start_container("c1", &pod.config("c1", &["sleep", "1000"]), |_| {});
        let null = std::fs::File::open("/dev/null").unwrap();
        let (mut ours, theirs) = std::io::pipe().unwrap();
        let args = ["sh", "-c", "echo ready; read x < /tmp/go; echo end"].map(String::from).to_vec();
        assert_eq!(pod.exec("c1", &["mkfifo", "/tmp/go"]).0, 0);
        let request = Request::Exec { id: "c1".into(), args, env: vec![], tty: false };
        let streams = [null.as_fd(), theirs.as_fd(), theirs.as_fd()];
        let mut client = Client::send(&pod.folder, &request, &streams, DEADLINE).unwrap();
        assert!(matches!(client.receive().unwrap(), Some(Reply::ExecStarted { .. })));
        drop(theirs);
        // Made while the exec runs, and never started: it must not keep the exec's output open.
        let created = pod.create("c2", &pod.config("c2", &["true"]), |_| {});
        assert!(matches!(created, Reply::Created { .. }), "{created:?}");
        assert_eq!(pod.exec("c1", &["sh", "-c", "echo > /tmp/go"]).0, 0);
        let mut text = String::new();
        ours.read_to_string(&mut text).unwrap();
        assert_eq!(text, "ready\nend\n");
        assert!(matches!(client.receive().unwrap(), Some(Reply::ExecExited { exit_code: 0 })));
        let (_, list) = pod.exec("c1", &["ls", "/proc/self/fd"]);
        assert_eq!(list.split_whitespace().count(), 4, "stdio and the folder that ls reads: {list}");
    });
}

#[test]
fn a_user_without_privileges_keeps_its_streams_and_its_filter() {
    with_pod("user", |pod| {
        let caps = Capabilities::from_names(DEFAULT).unwrap();
        let script = "echo out > /dev/stdout; echo err > /dev/stderr; grep -E '^(Seccomp|NoNewPrivs|CapEff):' /proc/self/status; \
                      pwd; umask; id -u; ulimit -n; ulimit -Hn; unshare -U true || echo refused";
        let mut config = pod.config("c1", &["sh", "-c", script]);
        let sets = &mut config.process.capabilities;
        (sets.bounding, sets.effective, sets.permitted) = (caps.names(), caps.names(), caps.names());
        config.linux.seccomp = Some(default_profile(caps));
        config.process.no_new_privileges = true;
        (config.process.user.uid, config.process.user.gid) = (1000, 1000);
        config.process.cwd = "/work/place".into();
        config.process.rlimits =
            vec![orlop_container::config::Rlimit { kind: "RLIMIT_NOFILE".into(), soft: 1024, hard: 4096 }];
        let (code, log) = pod.run("c1", &config);
        assert_eq!(code, 0, "{log}");
        for line in [
            "out",
            "err",
            "NoNewPrivs:\t1",
            "Seccomp:\t2",
            "CapEff:\t0000000000000000",
            "/work/place",
            "0022",
            "1000",
            "1024",
            "4096",
            "refused",
        ] {
            assert!(log.lines().any(|found| found == line), "{line} in\n{log}");
        }
    });
}

#[test]
fn the_machines_devices_are_left_alone_when_they_are_mounted() {
    with_pod("hostdev", |pod| {
        let own = pod.folder.join("dev");
        std::fs::create_dir(&own).unwrap();
        let null = own.join("null");
        nix::sys::stat::mknod(
            &null,
            nix::sys::stat::SFlag::S_IFCHR,
            nix::sys::stat::Mode::all(),
            nix::sys::stat::makedev(1, 3),
        )
        .unwrap();
        let mut config = pod.config("c1", &["ls", "/dev"]);
        config.mounts.retain(|mount| !mount.destination.starts_with("/dev"));
        let options = vec!["rbind".into(), "rprivate".into()];
        let bind =
            Mount { destination: "/dev".into(), kind: "bind".into(), source: own.clone(), options, ..Mount::default() };
        config.mounts.push(bind);
        assert_eq!(pod.run("c1", &config), (0, "null".into()));
        assert_eq!(std::fs::read_dir(&own).unwrap().count(), 1);
        // Something else in the place of null is not used for masks and streams.
        std::fs::remove_file(&null).unwrap();
        std::fs::write(&null, "secret").unwrap();
        match pod.create("c2", &config_of(&config, pod), |_| {}) {
            Reply::Failed { message, .. } => assert!(message.contains("/dev/null"), "{message}"),
            other => panic!("{other:?}"),
        }
    });
}

/// The same container under another id.
fn config_of(config: &orlop_container::config::Config, pod: &ShimPod) -> orlop_container::config::Config {
    let mut config = config.clone();
    config.linux.cgroups_path = format!("{}/c2", pod.cgroup);
    config
}

#[test]
fn an_image_without_layers_has_only_what_is_mounted() {
    with_pod("scratch", |pod| {
        let mut config = pod.config("c1", &["/tool/busybox", "ls", "/"]);
        let options = vec!["rbind".into(), "ro".into()];
        config.mounts.push(Mount {
            destination: "/tool".into(),
            kind: "bind".into(),
            source: pod.layer.join("bin"),
            options,
            ..Mount::default()
        });
        let mut events = pod.subscribe();
        pod.start_container("c1", &config, |spec| spec.lower_dirs.clear());
        assert_eq!(ShimPod::wait(&mut events, "c1").exit_code, 0);
        assert_eq!(pod.log("c1").lines().collect::<Vec<_>>(), ["dev", "proc", "sys", "tool"]);
    });
}

#[test]
fn what_can_not_be_carried_out_is_refused_by_its_name() {
    with_pod("refused", |pod| {
        type Change = fn(&mut orlop_container::config::Config);
        let apparmor = if lsm::has_apparmor() { "is not loaded on this node" } else { "AppArmor is not enabled" };
        let changes: [(&str, Change); 7] = [
            (apparmor, |config| config.process.apparmor_profile = Some("no-such-profile-of-ours".into())),
            (if lsm::has_selinux() { "attr" } else { "SELinux is not enabled" }, |config| {
                config.process.selinux_label = Some("no:such:label".into())
            }),
            (if lsm::has_selinux() { "context" } else { "SELinux is not enabled" }, |config| {
                config.linux.mount_label = Some("no:such:label".into())
            }),
            ("linux.sysctl", |config| drop(config.linux.sysctl.insert("net.core.somaxconn".into(), "1".into()))),
            ("linux.rootfsPropagation", |config| config.linux.rootfs_propagation = Some("all".into())),
            ("process.rlimits", |config| {
                let limit = orlop_container::config::Rlimit { kind: "RLIMIT_NOFILE".into(), soft: 2, hard: 1 };
                config.process.rlimits.push(limit);
            }),
            ("domainname", |config| config.domainname = "x".into()),
        ];
        for (number, (words, change)) in changes.into_iter().enumerate() {
            let id = format!("c{number}");
            let mut config = pod.config(&id, &["true"]);
            change(&mut config);
            match pod.create(&id, &config, |_| {}) {
                Reply::Failed { message, .. } => assert!(message.contains(words), "{words}: {message}"),
                other => panic!("{words}: {other:?}"),
            }
        }
        let mut config = pod.config("fine", &["cat", "/proc/self/limits"]);
        config.process.apparmor_profile = (!lsm::has_apparmor()).then(|| "unconfined".into());
        let limit = |kind: &str, soft, hard| orlop_container::config::Rlimit { kind: kind.into(), soft, hard };
        config.process.rlimits =
            vec![limit("RLIMIT_CORE", 0, 0), limit("RLIMIT_MEMLOCK", 65536, u64::MAX), limit("RLIMIT_NPROC", 77, 88)];
        let (code, log) = pod.run("fine", &config);
        assert_eq!(code, 0, "{log}");
        let words = |name: &str| {
            let line = log.lines().find(|line| line.starts_with(name)).unwrap();
            line[name.len()..].split_whitespace().take(2).map(str::to_string).collect::<Vec<_>>()
        };
        assert_eq!(words("Max core file size"), ["0", "0"]);
        assert_eq!(words("Max processes"), ["77", "88"]);
        assert_eq!(words("Max locked memory")[0], "65536");
    });
}

#[test]
fn the_root_shares_mounts_as_it_is_told() {
    with_pod("propagation", |pod| {
        for (id, wanted, expected) in [
            ("c1", None, ""),
            ("c2", Some("rprivate"), ""),
            ("c3", Some("slave"), ""),
            ("c4", Some("shared"), "shared:"),
            ("c5", Some("rshared"), "shared:"),
        ] {
            let mut config = pod.config(id, &["cat", "/proc/self/mountinfo"]);
            config.linux.rootfs_propagation = wanted.map(str::to_string);
            let (code, log) = pod.run(id, &config);
            assert_eq!(code, 0, "{log}");
            let field = |place: &str| {
                let line = log.lines().find(|line| line.split(' ').nth(4) == Some(place)).unwrap();
                line.split(' ').nth(6).unwrap().trim_end_matches(|letter: char| letter.is_ascii_digit()).to_string()
            };
            assert_eq!(field("/").trim_end_matches('-'), expected, "{wanted:?}");
            let below = if wanted == Some("rshared") { "shared:" } else { "" };
            assert_eq!(field("/sys").trim_end_matches('-'), below, "{wanted:?}");
        }
    });
}
