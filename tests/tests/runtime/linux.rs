//! What only Linux has: namespaces, cgroups, devices, masks, propagation, seccomp, sysctls.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use orlop_tests::world::until;
use serde_json::{Value, json};

use crate::bench::{Bench, case};

/// Names of namespaces in the specification and in `/proc`.
const SPACES: [(&str, &str); 6] =
    [("pid", "pid"), ("network", "net"), ("ipc", "ipc"), ("uts", "uts"), ("mount", "mnt"), ("cgroup", "cgroup")];

fn space(pid: &str, name: &str) -> String {
    std::fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap().display().to_string()
}

fn spaces(bench: &mut Bench) -> &mut Vec<Value> {
    bench.config["linux"]["namespaces"].as_array_mut().unwrap()
}

/// Ids of a user namespace.
fn with_user(bench: &mut Bench, host: u32) {
    let map = json!([{"containerID": 0, "hostID": host, "size": 1000}]);
    bench.config["linux"]["uidMappings"] = map.clone();
    bench.config["linux"]["gidMappings"] = map;
    spaces(bench).push(json!({"type": "user"}));
}

/// v1 cases look at the files of v1.
fn is_v1() -> bool {
    Path::new("/sys/fs/cgroup/memory").is_dir()
}

#[test]
fn linux_ns_nopath() {
    case(|bench| {
        spaces(bench).push(json!({"type": "cgroup"}));
        with_user(bench, 1000);
        bench.create();
        let pid = bench.pid().to_string();
        for name in SPACES.map(|(_, name)| name).into_iter().chain(["user"]) {
            assert_ne!(space(&pid, name), space("thread-self", name), "{name}");
        }
        bench.delete();
    });
}

#[test]
fn linux_ns_itype() {
    case(|bench| {
        // A root is never mounted among the machine's mounts: without a mount namespace there is no container.
        spaces(bench).retain(|space| space["type"] == "mount");
        bench.create();
        let pid = bench.pid().to_string();
        for (kind, name) in SPACES.into_iter().filter(|(kind, _)| *kind != "mount") {
            assert_eq!(space(&pid, name), space("thread-self", name), "{kind}");
        }
        bench.delete();
        bench.config["linux"]["namespaces"] = json!([]);
        bench.write();
        assert!(bench.refuse(&["create", "c"]).contains("mount is missing"));
    });
}

#[test]
fn linux_ns_path() {
    for (kind, name) in SPACES {
        case(|bench| {
            let mut other = Command::new("unshare");
            other.args(["--pid", "--net", "--ipc", "--uts", "--mount", "--cgroup", "--fork", "sleep", "1000"]);
            let mut other = other.spawn().expect("run unshare");
            let number = other.id().to_string();
            // Its child is in all of them.
            let child = until("unshare has forked", || {
                let text = std::fs::read_to_string(format!("/proc/{number}/task/{number}/children")).ok()?;
                let child = text.split_whitespace().next()?.to_string();
                let line = std::fs::read(format!("/proc/{child}/cmdline")).ok()?;
                line.starts_with(b"sleep").then_some(child)
            });
            spaces(bench).retain(|space| space["type"] != kind);
            spaces(bench).push(json!({"type": kind, "path": format!("/proc/{child}/ns/{name}")}));
            bench.create();
            assert_eq!(space(&bench.pid().to_string(), name), space(&child, name), "{kind}");
            bench.delete();
            Command::new("kill").args(["-9", &child]).status().unwrap();
            other.wait().unwrap();
        });
    }
}

#[test]
fn linux_ns_path_type() {
    case(|bench| {
        for (kind, other) in [("network", "uts"), ("ipc", "net"), ("uts", "mnt"), ("pid", "net"), ("cgroup", "ipc")] {
            let before = bench.config.clone();
            spaces(bench).retain(|space| space["type"] != kind);
            spaces(bench).push(json!({"type": kind, "path": format!("/proc/self/ns/{other}")}));
            let said = bench.write().refuse(&["run", "c"]);
            assert!(said.to_lowercase().contains(kind), "{said}");
            bench.config = before;
        }
    });
}

#[test]
fn linux_uid_mappings() {
    case(|bench| {
        with_user(bench, 100_000);
        std::fs::set_permissions(bench.inside("tmp"), PermissionsExt::from_mode(0o1777)).unwrap();
        bench.config["linux"]["sysctl"] =
            json!({"kernel.shm_rmid_forced": "1", "net.ipv4.ip_unprivileged_port_start": "9"});
        bench.config["mounts"].as_array_mut().unwrap().push(json!(
            {"destination": "/owned", "type": "tmpfs", "source": "tmpfs", "options": ["uid=3", "gid=4", "mode=750"]}
        ));
        let said = bench.say(
            "cat /proc/self/uid_map /proc/self/gid_map; id -u; stat -c %u:%g /owned /dev/pts; touch /tmp/made; \
             cat /proc/sys/kernel/shm_rmid_forced; umount /proc 2>/dev/null && echo unmounted; echo x > /dev/null && echo null",
        );
        let words: Vec<&str> = said.split_whitespace().collect();
        assert_eq!(words, ["0", "100000", "1000", "0", "100000", "1000", "0", "3:4", "0:0", "1", "null"], "{said}");
        assert_eq!(std::fs::metadata(bench.inside("tmp/made")).unwrap().uid(), 100_000);
        bench.config["linux"]["uidMappings"] = json!([]);
        bench.write();
        assert!(bench.refuse(&["run", "c"]).contains("linux.uidMappings"));
    });
}

#[test]
fn a_user_namespace_beside_a_network_that_exists() {
    case(|bench| {
        with_user(bench, 100_000);
        let machine = || std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").ok();
        let before = machine();
        let mut other = Command::new("unshare").args(["--net", "sleep", "1000"]).spawn().expect("run unshare");
        let pid = other.id().to_string();
        until("unshare is there", || (space(&pid, "net") != space("thread-self", "net")).then_some(()));
        spaces(bench).retain(|space| space["type"] != "network");
        spaces(bench).push(json!({"type": "network", "path": format!("/proc/{pid}/ns/net")}));
        bench.config["linux"]["sysctl"] =
            json!({"net.ipv4.ip_unprivileged_port_start": "17", "kernel.shm_rmid_forced": "1"});
        assert_eq!(
            bench.say("cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced"),
            "17\n1"
        );
        assert_eq!(machine(), before);
        other.kill().unwrap();
        other.wait().unwrap();
    });
}

#[test]
fn linux_devices() {
    case(|bench| {
        bench.config["linux"]["devices"] = json!([
            {"path": "/dev/test1", "type": "c", "major": 10, "minor": 666, "fileMode": 0o432, "uid": 1, "gid": 2},
            {"path": "/dev/deep/test2", "type": "b", "major": 8, "minor": 666},
            {"path": "/dev/test3", "type": "p", "fileMode": 0o600},
        ]);
        let said = bench.say("stat -c '%n %F %t:%T %a %u:%g' /dev/test1 /dev/deep/test2 /dev/test3");
        let wanted = "/dev/test1 character special file a:29a 432 1:2\n/dev/deep/test2 block special file 8:29a 666 0:0\n\
                      /dev/test3 fifo 0:0 600 0:0";
        assert_eq!(said, wanted);
        let devices = bench.say("for d in null zero full random urandom tty; do stat -c '%n %t:%T' /dev/$d; done; ls -l /dev | grep -c -- '->'");
        assert_eq!(devices.lines().last(), Some("5"), "fd, the streams and ptmx: {devices}");
        // Without a mount there the root's own folder gets them.
        bench.config["mounts"]
            .as_array_mut()
            .unwrap()
            .retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
        assert_eq!(bench.say("stat -c %t:%T /dev/null; test -e /dev/ptmx; echo x > /dev/zero; echo $?"), "1:3\n0");
        let nodes = std::fs::read_dir(bench.inside("dev")).unwrap().count();
        assert!(nodes > 6, "{nodes}");
        // An image that makes /dev a link leads nowhere.
        std::fs::remove_dir_all(bench.inside("dev")).unwrap();
        let trap = bench.beside("trap");
        std::fs::create_dir(&trap).unwrap();
        std::os::unix::fs::symlink(&trap, bench.inside("dev")).unwrap();
        let said = bench.write().refuse(&["run", "c"]);
        assert!(said.contains("/dev"), "{said}");
        assert_eq!(std::fs::read_dir(&trap).unwrap().count(), 0);
    });
}

#[test]
fn linux_masked_paths() {
    case(|bench| {
        std::fs::create_dir_all(bench.inside("masked/folder")).unwrap();
        std::fs::write(bench.inside("masked/folder/x"), "secret").unwrap();
        std::fs::write(bench.inside("masked/file"), "secret").unwrap();
        std::os::unix::fs::symlink("/masked/file", bench.inside("masked/link")).unwrap();
        bench.config["linux"]["maskedPaths"] =
            json!(["/masked/folder", "/masked/file", "/masked/none", "/proc/version"]);
        assert_eq!(bench.say("ls /masked/folder; cat /masked/file /masked/link; wc -c < /proc/version"), "0");
        assert_eq!(std::fs::read_to_string(bench.inside("masked/file")).unwrap(), "secret");
    });
}

#[test]
fn linux_readonly_paths() {
    case(|bench| {
        std::fs::create_dir_all(bench.inside("ro/folder")).unwrap();
        std::fs::write(bench.inside("ro/file"), "kept").unwrap();
        bench.config["linux"]["readonlyPaths"] = json!(["/ro/folder", "/ro/file", "/ro/none", "/proc/sys"]);
        let said = bench.say(
            "touch /ro/folder/x || echo 1; echo x > /ro/file || echo 2; echo 1 > /proc/sys/kernel/pid_max || echo 3; touch /ro/x && echo free",
        );
        assert_eq!(said, "1\n2\n3\nfree");
    });
}

#[test]
fn linux_rootfs_propagation() {
    case(|bench| {
        for (wanted, mark) in [
            ("shared", "shared:"),
            ("rshared", "shared:"),
            ("slave", ""),
            ("private", ""),
            ("rprivate", ""),
            ("unbindable", "unbindable"),
        ] {
            bench.config["linux"]["rootfsPropagation"] = json!(wanted);
            let said = bench.say("grep ' / / ' /proc/self/mountinfo || grep ' / rw' /proc/self/mountinfo");
            let root = said.lines().find(|line| line.split(' ').nth(4) == Some("/")).unwrap_or(&said).to_string();
            let fields = root.split(" - ").next().unwrap();
            assert_eq!(
                fields.contains("shared:") || fields.contains("unbindable"),
                !mark.is_empty(),
                "{wanted}: {root}"
            );
            assert!(fields.contains(mark), "{wanted}: {root}");
        }
        bench.config["linux"]["rootfsPropagation"] = json!("sideways");
        assert!(bench.write().refuse(&["run", "c"]).contains("linux.rootfsPropagation"));
    });
}

#[test]
fn linux_seccomp() {
    case(|bench| {
        bench.config["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
            "syscalls": [{"names": ["getcwd", "sethostname"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13}],
        });
        for privileged in [true, false] {
            bench.config["process"]["noNewPrivileges"] = json!(privileged);
            let refused = bench.args(&["sh", "-c", "grep Seccomp: /proc/self/status; hostname x 2>&1; true"]).write();
            let said = refused.must(&["run", "c"]);
            assert!(said.contains("Seccomp:\t2") && said.contains("Permission denied"), "{said}");
        }
        bench.config["linux"]["seccomp"]["syscalls"][0]["action"] = json!("SCMP_ACT_NOTIFY");
        assert!(bench.write().refuse(&["run", "c"]).contains("SCMP_ACT_NOTIFY"));
    });
}

#[test]
fn linux_sysctl() {
    case(|bench| {
        bench.config["linux"]["sysctl"] =
            json!({"net.ipv4.ip_forward": "1", "kernel.msgmax": "4096", "fs.mqueue.msg_max": "20"});
        assert_eq!(
            bench.say("cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax /proc/sys/fs/mqueue/msg_max"),
            "1\n4096\n20"
        );
        bench.config["linux"]["sysctl"] = json!({"kernel.pid_max": "1000"});
        assert!(bench.write().refuse(&["run", "c"]).contains("kernel.pid_max"));
        bench.config["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"});
        spaces(bench).retain(|space| space["type"] != "network");
        assert!(bench.write().refuse(&["run", "c"]).contains("shares that namespace"));
    });
}

#[test]
fn linux_mount_label() {
    case(|bench| {
        bench.config["linux"]["mountLabel"] = json!("system_u:object_r:container_file_t:s0");
        if orlop_kernel::lsm::has_selinux() {
            bench.run();
        } else {
            let said = bench.write().refuse(&["run", "c"]);
            assert!(said.contains("SELinux is not enabled"), "{said}");
        }
    });
}

#[test]
fn linux_process_apparmor_profile() {
    case(|bench| {
        bench.config["process"]["apparmorProfile"] = json!("no-such-profile");
        let said = bench.write().refuse(&["run", "c"]);
        assert!(said.contains("no-such-profile"), "{said}");
        bench.config["process"]["apparmorProfile"] = json!("unconfined");
        bench.run();
        bench.config["process"].as_object_mut().unwrap().remove("apparmorProfile");
        if !orlop_kernel::lsm::has_selinux() {
            bench.config["process"]["selinuxLabel"] = json!("a_u:b_r:c_t:s0");
            assert!(bench.write().refuse(&["run", "c"]).contains("SELinux is not enabled"));
        }
    });
}

/// Sets a limit, by an absolute and by a relative path of the cgroup, and looks at a file of the kernel's.
fn limit(resources: &Value, controller: &str, file: &str, value: &str) {
    for relative in [false, true] {
        case(|bench| {
            if !is_v1() {
                return;
            }
            if relative {
                bench.config["linux"]["cgroupsPath"] = json!(format!("{}/c", bench.mark));
            }
            bench.config["linux"]["resources"] = resources.clone();
            bench.create();
            assert_eq!(bench.cgroup(controller, file).as_deref(), Some(value), "{file}");
            let own = std::fs::read_to_string(format!("/proc/{}/cgroup", bench.pid())).unwrap();
            assert!(
                own.lines().any(|line| line.contains(controller) && line.ends_with(&format!("{}/c", bench.mark))),
                "{own}"
            );
            bench.delete();
        });
    }
}

#[test]
fn linux_cgroups_memory() {
    for (resources, file, value) in [
        (json!({"limit": 50 << 20, "swap": 60 << 20}), "memory.limit_in_bytes", (50 << 20).to_string()),
        (json!({"limit": 50 << 20, "swap": 60 << 20}), "memory.memsw.limit_in_bytes", (60 << 20).to_string()),
        (json!({"reservation": 20 << 20}), "memory.soft_limit_in_bytes", (20 << 20).to_string()),
        (json!({"swappiness": 10}), "memory.swappiness", "10".to_string()),
    ] {
        limit(&json!({"memory": resources}), "memory", file, &value);
    }
}

#[test]
fn linux_cgroups_cpus() {
    limit(&json!({"cpu": {"shares": 1024}}), "cpu", "cpu.shares", "1024");
    limit(&json!({"cpu": {"period": 100_000, "quota": 50_000, "burst": 1000}}), "cpu", "cpu.cfs_burst_us", "1000");
    limit(&json!({"cpu": {"cpus": "0", "mems": "0"}}), "cpuset", "cpuset.cpus", "0");
}

#[test]
fn linux_cgroups_pids() {
    limit(&json!({"pids": {"limit": 1000}}), "pids", "pids.max", "1000");
}

#[test]
fn linux_cgroups_blkio() {
    let stat = std::fs::metadata("/").unwrap();
    // The disk below the root, not the part of it.
    let (major, minor) = (rustix::fs::major(stat.dev()), rustix::fs::minor(stat.dev()));
    if !Path::new(&format!("/sys/dev/block/{major}:{minor}/queue")).exists() {
        return;
    }
    let rate = json!([{"major": major, "minor": minor, "rate": 102_400}]);
    limit(
        &json!({"blockIO": {"throttleReadBpsDevice": rate}}),
        "blkio",
        "blkio.throttle.read_bps_device",
        &format!("{major}:{minor} 102400"),
    );
    limit(
        &json!({"blockIO": {"throttleWriteIOPSDevice": rate}}),
        "blkio",
        "blkio.throttle.write_iops_device",
        &format!("{major}:{minor} 102400"),
    );
}

#[test]
fn linux_cgroups_hugetlb() {
    case(|bench| {
        bench.config["linux"]["resources"] = json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}]});
        if Path::new("/sys/fs/cgroup/hugetlb").is_dir() {
            bench.create();
            assert_eq!(bench.cgroup("hugetlb", "hugetlb.2MB.limit_in_bytes"), Some((4 << 20).to_string()));
            bench.delete();
        } else {
            let said = bench.write().refuse(&["run", "c"]);
            assert!(said.contains("huge pages of 2MB"), "{said}");
        }
    });
}

#[test]
fn linux_cgroups_network() {
    case(|bench| {
        bench.config["linux"]["resources"] = json!({"network": {"classID": 255}});
        if Path::new("/sys/fs/cgroup/net_cls").is_dir() {
            bench.create();
            assert_eq!(bench.cgroup("net_cls", "net_cls.classid").as_deref(), Some("255"));
            bench.delete();
        } else {
            let said = bench.write().refuse(&["run", "c"]);
            assert!(said.contains("net_cls.classid") || said.contains("network"), "{said}");
        }
    });
}

#[test]
fn linux_cgroups_devices() {
    case(|bench| {
        bench.config["linux"]["resources"] = json!({"devices": [
            {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rwm"},
            {"allow": true, "type": "b", "major": 8, "minor": 20, "access": "rw"},
        ]});
        bench.config["linux"]["devices"] = json!([{"path": "/dev/mem2", "type": "c", "major": 1, "minor": 1}]);
        bench.script("head -c 1 /dev/mem2 || echo refused; head -c 1 /dev/zero | wc -c").create();
        if is_v1() {
            let list = bench.cgroup("devices", "devices.list").unwrap();
            assert!(list.contains("c 10:229 rwm") && list.contains("b 8:20 rw"), "{list}");
            assert!(!list.contains("a *:*") && list.contains("c 1:3 rwm"), "{list}");
        }
        bench.must(&["start", "c"]);
        bench.until_status("stopped");
        assert!(bench.log().contains("not permitted") && bench.log().ends_with("refused\n1\n"), "{}", bench.log());
        bench.delete();
    });
}

#[test]
fn linux_cgroups_that_can_not_be_had_are_refused_by_name() {
    case(|bench| {
        for (resources, words) in [
            (json!({"memory": {"kernel": 1 << 20}}), "memory.kernel"),
            (json!({"memory": {"kernelTCP": 1 << 20}}), "memory.kernelTCP"),
            (json!({"blockIO": {"leafWeight": 10}}), "blockIO.leafWeight"),
            (json!({"rdma": {"mlx": {"hcaHandles": 1}}}), "rdma"),
        ] {
            bench.config["linux"]["resources"] = resources;
            let said = bench.write().refuse(&["run", "c"]);
            assert!(said.contains(words) && said.contains("not supported"), "{said}");
        }
        if is_v1() {
            bench.config["linux"]["resources"] = json!({"unified": {"memory.high": "1"}});
            assert!(bench.write().refuse(&["run", "c"]).contains("unified"));
        }
        // A cgroup of others is not the container's.
        bench.config["linux"]["resources"] = json!({});
        bench.args(&["sleep", "100"]).create();
        let mut second = bench.command(&["create", "c2"]);
        let said = second.output().unwrap();
        assert!(!said.status.success() && String::from_utf8_lossy(&said.stderr).contains("holds processes"));
        bench.delete();
    });
}
