//! Pods with a user namespace: whose ids, namespaces, files and devices are what, inside and on disk.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use orlop_container::config::{Config, Device, IdMapping, Mount};
use orlop_container::protocol::{NamespaceSource, PidSource, Reply, Request, SandboxSpec, SandboxState, UserMappings};
use orlop_kernel::namespace;
use orlop_tests::census::{Census, remove_empty_cgroups};
use orlop_tests::place::{private_mounts, programs};
use orlop_tests::shim::{ShimPod, with_pod_of};

/// The machine's number of the pod's root.
const FIRST: u32 = 1_000_000;

fn mappings() -> UserMappings {
    let range = vec![IdMapping { container_id: 0, host_id: FIRST, size: 65536 }];
    UserMappings { uid_mappings: range.clone(), gid_mappings: range }
}

fn with_users(name: &str, test: impl FnOnce(&mut ShimPod)) {
    with_pod_of(name, |spec| spec.user = Some(mappings()), test);
}

fn state(pod: &ShimPod) -> SandboxState {
    serde_json::from_slice(&std::fs::read(pod.folder.join("state.json")).unwrap()).unwrap()
}

fn refused(reply: Reply) -> String {
    match reply {
        Reply::Failed { message, .. } => message,
        other => panic!("{other:?}"),
    }
}

/// One shell line in a running container; it must work.
fn shell(pod: &ShimPod, id: &str, line: &str) -> String {
    let (code, text) = pod.exec(id, &["sh", "-c", line]);
    assert_eq!(code, 0, "{line}: {text}");
    text.trim_end().to_string()
}

#[test]
fn processes_have_the_ids_of_the_pod() {
    with_users("users-ids", |pod| {
        pod.start_container("c1", &pod.config("c1", &["sleep", "1000"]), |_| {});
        let words = |text: String| text.split_whitespace().map(str::to_string).collect::<Vec<_>>();
        for map in ["/proc/1/uid_map", "/proc/self/uid_map", "/proc/1/gid_map"] {
            assert_eq!(words(shell(pod, "c1", &format!("cat {map}"))), ["0", "1000000", "65536"], "{map}");
        }
        assert_eq!(shell(pod, "c1", "id -u; id -g"), "0\n0");
        let script = "echo out > /dev/stdout; echo err > /dev/stderr; umask; pwd";
        let (code, log) = pod.run("c2", &pod.config("c2", &["sh", "-c", script]));
        assert_eq!(code, 0, "{log}");
        let mut lines: Vec<&str> = log.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, ["/", "0022", "err", "out"]);
        let Reply::Listing { containers, .. } = pod.call(&Request::List) else { panic!("no listing") };
        let orlop_container::protocol::ContainerPhase::Running { pid, .. } = containers["c1"] else {
            panic!("not running")
        };
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert!(status.contains("Uid:\t1000000\t1000000\t1000000\t1000000"), "{status}");
        assert!(status.contains("Gid:\t1000000\t1000000\t1000000\t1000000"), "{status}");
        assert!(status.contains("CapInh:\t0000000000000000"), "{status}");
        let pause = std::fs::read_to_string(format!("/proc/{}/status", state(pod).pause_pid)).unwrap();
        assert!(pause.contains("Uid:\t1065535\t"), "{pause}");
        assert!(pause.contains("CapBnd:\t0000000000000000") && pause.contains("CapEff:\t0000000000000000"), "{pause}");
        // The one container and exec are in the pod's user namespace, pause too.
        let user = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/user")).unwrap();
        assert_eq!(user(pid), user(state(pod).pause_pid));
        assert_ne!(user(pid), std::fs::read_link("/proc/self/ns/user").unwrap());
        assert_eq!(shell(pod, "c1", "readlink /proc/self/ns/user"), user(pid).display().to_string());
        // All its limits and its cgroup are those of any other pod.
        let cgroup = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        assert!(cgroup.contains(&format!("{}/c1", pod.cgroup)), "{cgroup}");
        let own = std::fs::read_to_string(format!("/proc/{}/cgroup", state(pod).pause_pid)).unwrap();
        assert!(own.contains(&format!("{}/sandbox", pod.cgroup)), "{own}");
    });
}

/// The user namespace that owns a namespace, by its number.
fn owner_of(path: &str) -> u64 {
    let owner = namespace::owner(namespace::open(path.as_ref()).unwrap()).unwrap();
    std::fs::File::from(owner).metadata().unwrap().ino()
}

#[test]
fn the_pods_namespaces_belong_to_its_user_namespace() {
    let netns = std::env::temp_dir().join(format!("orlop-users-netns-{}", std::process::id()));
    let bound = netns.clone();
    let change = move |spec: &mut SandboxSpec| {
        (spec.user, spec.network) = (Some(mappings()), NamespaceSource::Bound(bound));
        spec.sysctls.insert("kernel.shm_rmid_forced".into(), "1".into());
        spec.sysctls.insert("net.ipv4.ping_group_range".into(), "0 65535".into());
    };
    with_pod_of("users-owner", change, |pod| {
        let pause = state(pod).pause_pid;
        let user = std::fs::metadata(format!("/proc/{pause}/ns/user")).unwrap().ino();
        for kind in ["net", "ipc", "uts", "mnt", "pid"] {
            assert_eq!(owner_of(&format!("/proc/{pause}/ns/{kind}")), user, "{kind}");
        }
        assert!(namespace::is_network(&netns));
        assert_eq!(
            std::fs::metadata(&netns).unwrap().ino(),
            std::fs::metadata(format!("/proc/{pause}/ns/net")).unwrap().ino()
        );
        namespace::raise_loopback(&netns).unwrap();
        pod.start_container("c1", &pod.config("c1", &["sleep", "1000"]), |_| {});
        assert_eq!(
            shell(pod, "c1", "cat /proc/sys/kernel/shm_rmid_forced /proc/sys/net/ipv4/ip_unprivileged_port_start"),
            "1\n0"
        );
        assert!(shell(pod, "c1", "ip addr show lo").contains("127.0.0.1"));
        assert_eq!(shell(pod, "c1", "hostname"), "shim-test");
    });
    namespace::remove_network(&netns).unwrap();
    assert!(!netns.exists());
}

#[test]
fn files_are_the_pods_inside_and_as_ever_on_disk() {
    with_users("users-files", |pod| {
        let second = pod.layer.with_file_name("second");
        std::fs::create_dir_all(second.join("srv")).unwrap();
        std::fs::write(second.join("srv/of-1000"), "image").unwrap();
        std::os::unix::fs::chown(second.join("srv/of-1000"), Some(1000), Some(1001)).unwrap();
        std::fs::set_permissions(second.join("srv/of-1000"), PermissionsExt::from_mode(0o600)).unwrap();
        let config = pod.config("c1", &["sleep", "1000"]);
        pod.start_container("c1", &config, |spec| spec.lower_dirs.insert(0, second.clone()));
        let stat = |path: &str| shell(pod, "c1", &format!("stat -c %u:%g:%a {path}"));
        assert_eq!(stat("/bin/busybox"), "0:0:755");
        assert_eq!(stat("/"), "0:0:755");
        assert_eq!(stat("/srv/of-1000"), "1000:1001:600");
        shell(pod, "c1", "echo more >> /srv/of-1000; echo new > /etc/new; chown 7:8 /etc/new; mkdir /etc/folder");
        shell(pod, "c1", "cp /bin/busybox /tmp/suid && chmod 4755 /tmp/suid; rm /etc/group; touch /dev/shm/x");
        assert_eq!(stat("/srv/of-1000"), "1000:1001:600");
        assert_eq!(stat("/etc/new"), "7:8:644");
        for own in
            ["/dev", "/dev/null", "/dev/pts", "/dev/pts/ptmx", "/dev/shm", "/dev/shm/x", "/dev/mqueue", "/etc/folder"]
        {
            assert!(stat(own).starts_with("0:0:"), "{own}: {}", stat(own));
        }
        let upper = pod.folder.join("containers/c1/upper");
        let owner = |path: &str| {
            let meta = std::fs::metadata(upper.join(path)).unwrap();
            (meta.uid(), meta.gid())
        };
        assert_eq!(owner("srv/of-1000"), (1000, 1001), "copied up");
        assert_eq!(owner("etc/new"), (7, 8));
        assert_eq!(owner("etc/folder"), (0, 0));
        assert_eq!(std::fs::read_to_string(upper.join("srv/of-1000")).unwrap(), "imagemore\n");
        assert_eq!(std::fs::read_to_string(second.join("srv/of-1000")).unwrap(), "image");
        // A container without a single layer has its writable one alone.
        let mut scratch = pod.config("c2", &["/tool/busybox", "stat", "-c", "%u:%g", "/", "/dev", "/tool"]);
        let mut tool = bind(&pod.layer.join("bin"), "/tool", &["rbind", "ro"]);
        (tool.uid_mappings, tool.gid_mappings) = (mappings().uid_mappings, mappings().gid_mappings);
        scratch.mounts.push(tool);
        let mut events = pod.subscribe();
        pod.start_container("c2", &scratch, |spec| spec.lower_dirs.clear());
        assert_eq!(ShimPod::wait(&mut events, "c2").exit_code, 0);
        assert_eq!(pod.log("c2"), "0:0\n0:0\n0:0");
    });
}

fn bind(source: &Path, destination: &str, options: &[&str]) -> Mount {
    Mount {
        destination: destination.into(),
        kind: "bind".into(),
        source: source.into(),
        options: options.iter().map(ToString::to_string).collect(),
        ..Mount::default()
    }
}

#[test]
fn volumes_are_mapped_where_asked_and_nobodys_else() {
    with_users("users-volumes", |pod| {
        let volume = pod.folder.join("volume");
        std::fs::create_dir_all(volume.join("of-1000")).unwrap();
        std::os::unix::fs::chown(volume.join("of-1000"), Some(1000), Some(1000)).unwrap();
        let mut config = pod.config("c1", &["sleep", "1000"]);
        let mut mapped = bind(&volume, "/mapped", &["rbind", "rw"]);
        (mapped.uid_mappings, mapped.gid_mappings) = (mappings().uid_mappings, mappings().gid_mappings);
        config.mounts.push(mapped);
        config.mounts.push(bind(&volume, "/plain", &["rbind", "rw"]));
        config.mounts.push(bind(&volume, "/protected", &["rbind", "ro"]));
        pod.start_container("c1", &config, |_| {});
        let stat = |path: &str| shell(pod, "c1", &format!("stat -c %u:%g {path}"));
        assert_eq!((stat("/mapped"), stat("/mapped/of-1000")), ("0:0".into(), "1000:1000".into()));
        assert_eq!(stat("/plain"), "65534:65534");
        shell(pod, "c1", "touch /mapped/made; chown 5:6 /mapped/made");
        let made = std::fs::metadata(volume.join("made")).unwrap();
        assert_eq!((made.uid(), made.gid()), (5, 6));
        assert_ne!(pod.exec("c1", &["touch", "/plain/x"]).0, 0);
        assert_ne!(pod.exec("c1", &["touch", "/protected/x"]).0, 0);
        let mut other = pod.config("c2", &["true"]);
        other.mounts.push(bind(&volume, "/v", &["rbind", "rshared"]));
        assert!(refused(pod.create("c2", &other, |_| {})).contains("rshared"));
        let mut proc_fs = pod.config("c3", &["true"]);
        let mut wrong = bind(Path::new("/proc/sys"), "/v", &["rbind"]);
        (wrong.uid_mappings, wrong.gid_mappings) = (mappings().uid_mappings, mappings().gid_mappings);
        proc_fs.mounts.push(wrong);
        let said = refused(pod.create("c3", &proc_fs, |_| {}));
        assert!(said.contains("/proc/sys") && said.contains("other owners"), "{said}");
    });
}

/// A container of the pod with every right that there is.
fn powerful(pod: &ShimPod, id: &str, args: &[&str]) -> Config {
    let mut config = pod.config(id, args);
    let all = orlop_kernel::capability::Capabilities::ALL.names();
    let sets = &mut config.process.capabilities;
    (sets.bounding, sets.effective, sets.permitted) = (all.clone(), all.clone(), all);
    config
}

#[test]
fn all_rights_inside_are_none_outside() {
    with_users("users-rights", |pod| {
        let volume = pod.folder.join("volume");
        std::fs::create_dir_all(&volume).unwrap();
        let mut config = powerful(pod, "c1", &["sleep", "1000"]);
        let mut protected = bind(&volume, "/protected", &["rbind", "ro"]);
        (protected.uid_mappings, protected.gid_mappings) = (mappings().uid_mappings, mappings().gid_mappings);
        config.mounts.push(protected);
        pod.start_container("c1", &config, |_| {});
        // Inside it may do what a root may.
        shell(pod, "c1", "mount -t tmpfs none /tmp && touch /tmp/x && umount /tmp");
        shell(pod, "c1", "hostname changed && hostname | grep changed; ip link add d0 type dummy || ip link set lo up");
        shell(pod, "c1", "mkdir -p /tmp/p && unshare -p -f -m sh -c 'mount -t tmpfs x /tmp/p'");
        let fails = |line: &str| {
            let (code, text) = pod.exec("c1", &["sh", "-c", line]);
            assert_ne!(code, 0, "{line} worked: {text}");
        };
        for line in [
            // What the runtime mounted is locked.
            "umount /proc/kcore",
            "umount -l /sys/firmware",
            "umount /proc",
            "umount /sys",
            "mount -o remount,bind,rw /proc/sys",
            "mount -o remount,rw /sys",
            "mount -o remount,bind,rw /protected && touch /protected/x",
            "echo x > /proc/sys/kernel/core_pattern",
            "echo 1 > /proc/sys/vm/drop_caches",
            "echo b > /proc/sysrq-trigger",
            "mknod /tmp/kmsg c 1 11",
            "date -s 2000-01-01 2>&1 | grep -v 'not permitted' | grep -v 2000",
            "nsenter -t 1 -p true && chroot /proc/1/root/../.. ls /work",
            "dmesg -c",
        ] {
            fails(line);
        }
        assert_eq!(std::fs::read_dir(&volume).unwrap().count(), 0);
        // The machine's files that the pod doesn't own stay what they are.
        let status = shell(pod, "c1", "cat /proc/1/status");
        assert!(status.contains("CapEff:\t000001ffffffffff"), "{status}");
        assert!(status.contains("CapInh:\t0000000000000000"), "{status}");
    });
}

#[test]
fn devices_terminals_and_users_work() {
    with_users("users-devices", |pod| {
        let mut config = pod.config("c1", &["sleep", "1000"]);
        config.linux.devices.push(Device {
            path: "/dev/snd/deep/zero".into(),
            kind: "c".into(),
            major: 1,
            minor: 5,
            file_mode: Some(0o640),
            uid: Some(1000),
            gid: Some(1001),
        });
        (config.process.user.uid, config.process.user.gid) = (1000, 1000);
        config.process.user.additional_gids = vec![1000, 2000];
        config.process.terminal = true;
        pod.start_container("c1", &config, |_| {});
        assert_eq!(shell(pod, "c1", "id -u; id -g; id -G"), "1000\n1000\n1000 2000");
        assert_eq!(
            shell(pod, "c1", "head -c 3 /dev/zero | wc -c; echo x > /dev/null; ls -n /dev/snd/deep/zero | cut -c1-10"),
            "3\ncrw-r-----"
        );
        assert_eq!(
            shell(pod, "c1", "stat -c %u:%g /dev/snd/deep/zero; head -c 2 /dev/snd/deep/zero | wc -c"),
            "1000:1001\n2"
        );
        assert_eq!(shell(pod, "c1", "stat -c %u:%g /dev/console"), "1000:5");
        assert_eq!(shell(pod, "c1", "readlink /proc/1/fd/0"), "/dev/pts/0");
        let request = Request::Exec {
            id: "c1".into(),
            args: ["sh", "-c", "tty; stat -c %u:%g $(tty)"].map(String::from).to_vec(),
            env: vec![],
            tty: true,
        };
        let mut client =
            orlop_container::client::Client::send(&pod.folder, &request, &[], orlop_tests::shim::DEADLINE).unwrap();
        assert!(matches!(client.receive().unwrap(), Some(Reply::ExecStarted { .. })));
        let master = client.descriptors.pop().expect("the terminal comes along");
        let (mut text, mut buffer) = (Vec::new(), [0u8; 256]);
        while let Ok(count @ 1..) = rustix::io::read(&master, &mut buffer) {
            text.extend(&buffer[..count]);
        }
        let text = String::from_utf8_lossy(&text).into_owned();
        assert!(text.contains("/dev/pts/1") && text.contains("1000:5"), "{text}");
    });
}

#[test]
fn containers_share_what_the_pod_shares() {
    with_users("users-share", |pod| {
        pod.start_container("c1", &pod.config("c1", &["sleep", "1111"]), |_| {});
        pod.start_container("c2", &pod.config("c2", &["sleep", "2222"]), |spec| spec.pid = PidSource::Pod);
        pod.start_container("c3", &pod.config("c3", &["sleep", "3333"]), |spec| {
            spec.pid = PidSource::Target("c1".into());
        });
        shell(pod, "c1", "echo shared > /dev/shm/x");
        assert_eq!(shell(pod, "c2", "cat /dev/shm/x"), "shared");
        let seen = shell(pod, "c3", "ps");
        assert!(seen.contains("sleep 1111") && seen.contains("sleep 3333") && !seen.contains("2222"), "{seen}");
        let seen = shell(pod, "c2", "ps");
        assert!(seen.contains("pause") && !seen.contains("1111"), "{seen}");
        for kind in ["user", "net", "ipc", "uts"] {
            let namespace = |id: &str| shell(pod, id, &format!("readlink /proc/self/ns/{kind}"));
            assert_eq!(namespace("c1"), namespace("c2"), "{kind}");
        }
        let said = refused(pod.create("c4", &pod.config("c4", &["true"]), |spec| spec.pid = PidSource::Host));
        assert!(said.contains("user namespace"), "{said}");
        let mut stranger = pod.config("c5", &["true"]);
        stranger.linux.uid_mappings[0].host_id += 1;
        let said = refused(pod.create("c5", &stranger, |_| {}));
        assert!(said.contains("not those of the pod"), "{said}");
        let mut unmapped = pod.config("c6", &["true"]);
        unmapped.process.user.uid = 70_000;
        let said = refused(pod.create("c6", &unmapped, |_| {}));
        assert!(said.contains("find the user 70000"), "{said}");
    });
}

#[test]
fn a_small_range_of_ids_is_enough() {
    let small = |first| vec![IdMapping { container_id: 0, host_id: first, size: 10 }];
    let user = UserMappings { uid_mappings: small(5000), gid_mappings: small(6000) };
    with_pod_of(
        "users-small",
        |spec| spec.user = Some(user),
        |pod| {
            let mut config = pod.config("c1", &["sleep", "1000"]);
            for mount in &mut config.mounts {
                mount.options.retain(|option| option != "gid=5");
            }
            pod.start_container("c1", &config, |_| {});
            assert_eq!(shell(pod, "c1", "cat /proc/self/gid_map | tr -s ' '"), " 0 6000 10");
            let pause = std::fs::read_to_string(format!("/proc/{}/status", state(pod).pause_pid)).unwrap();
            assert!(pause.contains("Uid:\t5000\t") && pause.contains("Gid:\t6000\t"), "{pause}");
        },
    );
}

#[test]
fn the_machine_can_be_asked_whether_it_has_them() {
    use nix::mount::MsFlags;
    private_mounts();
    let base = tempfile::tempdir().unwrap();
    let check = |folder: &Path| {
        let mut shim = Command::new(programs().join("orlop-shim"));
        let output = shim.arg("--check-user-namespaces").arg(folder).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).trim_end().to_string())
    };
    let table = || std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let before = table();
    assert_eq!(check(base.path()), (true, String::new()));
    assert_eq!(std::fs::read_dir(base.path()).unwrap().count(), 0);
    assert_eq!(table(), before);
    let (can, said) = check(&base.path().join("no/such"));
    assert!(!can && said.contains("no/such") && said.lines().count() == 1, "{said}");
    // Layers that lie on an overlay can't be mapped.
    let folders = ["lower", "upper", "work", "over"].map(|name| base.path().join(name));
    for folder in &folders {
        std::fs::create_dir(folder).unwrap();
    }
    let [lower, upper, work, over] = folders;
    let options = format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
    nix::mount::mount(Some("overlay"), &over, Some("overlay"), MsFlags::empty(), Some(options.as_str())).unwrap();
    let (can, said) = check(&over);
    nix::mount::umount(&over).unwrap();
    assert!(!can && said.contains("can't show files with other owners"), "{said}");
    assert_eq!(std::fs::read_dir(&upper).unwrap().count(), 0, "something was left");
}

#[test]
fn a_sandbox_that_can_not_have_its_ids_says_why_and_leaves_nothing() {
    private_mounts();
    let base = tempfile::tempdir().unwrap();
    let folder = base.path().join("sandbox");
    std::fs::create_dir_all(&folder).unwrap();
    let mark = format!("orlop-shim-users-nothing-{}", std::process::id());
    let pause = programs().join("orlop-pause").display().to_string();
    let (there, fresh) = (base.path().join("there"), base.path().join("fresh"));
    std::fs::write(&there, "").unwrap();
    let maps = |host: u32, size: u32| {
        let list = serde_json::json!([{"containerID": 0, "hostID": host, "size": size}]);
        serde_json::json!({"uidMappings": list, "gidMappings": list})
    };
    let fresh_network = serde_json::json!({"bound": fresh});
    for (user, network, ipc, sysctl, words) in [
        (maps(0, 10), fresh_network.clone(), "new", "net.core.somaxconn", "must not be the machine's"),
        (maps(1000, 0), fresh_network.clone(), "new", "net.core.somaxconn", "user.uidMappings"),
        (maps(1000, 10), serde_json::json!("host"), "new", "kernel.shm_rmid_forced", "network namespace"),
        (maps(1000, 10), fresh_network.clone(), "host", "net.core.somaxconn", "ipc namespace"),
        (maps(1000, 10), serde_json::json!({"path": there}), "new", "net.core.somaxconn", "network namespace"),
        (maps(1000, 10), serde_json::json!({"bound": there}), "new", "net.ipv4.ip_forward", "there"),
        (maps(1000, 10), fresh_network.clone(), "new", "net.no.such", "net.no.such"),
    ] {
        let spec = serde_json::json!({
            "version": 1, "id": "s", "pod": "test/pod", "hostname": "h", "user": user, "network": network, "ipc": ipc,
            "uts": "new", "pid": "host", "sysctls": {sysctl: "1"}, "cgroup": format!("/{mark}/sandbox"),
            "pauseProgram": pause, "shmBytes": 1 << 20, "oomScoreAdj": 0,
        });
        std::fs::write(folder.join("sandbox.json"), serde_json::to_vec(&spec).unwrap()).unwrap();
        let output = Command::new(programs().join("orlop-shim")).arg(&folder).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(words) && said.lines().count() == 1, "{words}: {said}");
        assert!(!fresh.exists() && !folder.join("shim.sock").exists(), "{words}");
        assert!(Census::take(&format!("/{mark}/sandbox")).cgroups.is_empty(), "{words}");
        remove_empty_cgroups(&mark);
    }
}
