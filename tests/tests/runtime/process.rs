//! The process of a container, its root and its mounts.

use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use orlop_tests::place::programs;
use serde_json::{Value, json};

use crate::bench::{Bench, case};

fn list(bench: &mut Bench) -> &mut Vec<Value> {
    bench.config["mounts"].as_array_mut().unwrap()
}

/// A bind of a folder beside the bundle.
fn bind(bench: &mut Bench, name: &str, options: &[&str]) {
    let source = bench.beside(name);
    std::fs::create_dir_all(&source).unwrap();
    list(bench).push(json!({"destination": format!("/{name}"), "type": "bind", "source": source, "options": options}));
}

#[test]
fn default() {
    case(|bench| {
        let said = bench.say("pwd; id -u; echo $PATH; ls /; cat /proc/1/comm; grep NoNewPrivs /proc/self/status; ip link show lo | grep -c UP");
        for word in ["/", "0", "/bin", "proc", "sh", "NoNewPrivs:\t0", "1"] {
            assert!(said.lines().any(|line| line == word), "{word}: {said}");
        }
    });
}

#[test]
fn hostname() {
    case(|bench| {
        bench.config["hostname"] = json!("hostname-specific");
        bench.config["domainname"] = json!("domain.example");
        assert_eq!(bench.say("hostname; cat /proc/sys/kernel/domainname"), "hostname-specific\ndomain.example");
        bench.config["linux"]["namespaces"].as_array_mut().unwrap().retain(|space| space["type"] != "uts");
        assert!(bench.write().refuse(&["run", "c"]).contains("hostname"));
    });
}

#[test]
fn process() {
    case(|bench| {
        bench.config["process"]["cwd"] = json!("/test/deep");
        bench.config["process"]["env"] = json!(["PATH=/bin", "testa=valuea", "testb=123"]);
        assert_eq!(bench.say("pwd; env | grep ^test | sort; echo \"$0\""), "/test/deep\ntesta=valuea\ntestb=123\nsh");
        bench.args(&["printf", "%s|", "a b", "", "ä"]);
        assert_eq!(bench.run(), "a b||ä|");
        bench.config["process"]["cwd"] = json!("relative");
        assert!(bench.write().refuse(&["run", "c"]).contains("relative"));
        bench.config["process"]["cwd"] = json!("/");
        for (args, words) in [
            ("/no/such", "no such file"),
            ("nothing", "not found in $PATH"),
            ("/etc", "is a directory"),
            ("/etc/passwd", "permission denied"),
        ] {
            let said = bench.args(&[args]).write().refuse(&["run", "c"]);
            assert!(said.contains(words), "{said}");
        }
    });
}

#[test]
fn process_user() {
    case(|bench| {
        bench.config["process"]["user"] = json!({"uid": 10, "gid": 11, "additionalGids": [5, 6], "umask": 0o77});
        std::fs::set_permissions(bench.inside("tmp"), PermissionsExt::from_mode(0o1777)).unwrap();
        let said = bench.say("id -u; id -g; id -G; umask; touch /tmp/x; stat -c %a:%u:%g /tmp/x; echo x > /dev/stderr; grep CapEff /proc/self/status");
        assert_eq!(said, "10\n11\n11 5 6\n0077\n600:10:11\nCapEff:\t0000000000000000");
    });
}

#[test]
fn process_capabilities() {
    case(|bench| {
        let sets = |names: &[&str]| json!(names);
        bench.config["process"]["capabilities"] = json!({
            "bounding": sets(&["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"]), "permitted": sets(&["CAP_CHOWN", "CAP_KILL"]),
            "effective": sets(&["CAP_CHOWN", "CAP_KILL"]), "inheritable": sets(&["CAP_KILL"]), "ambient": sets(&["CAP_KILL"]),
        });
        bench.config["process"]["user"] = json!({"uid": 10, "gid": 10});
        let said = bench.say("grep Cap /proc/self/status");
        let wanted = "CapInh:\t0000000000000020\nCapPrm:\t0000000000000020\nCapEff:\t0000000000000020\nCapBnd:\t0000000000002021\nCapAmb:\t0000000000000020";
        assert_eq!(said, wanted);
        bench.config["process"].as_object_mut().unwrap().remove("capabilities");
        bench.config["process"]["user"] = json!({"uid": 0, "gid": 0});
        assert!(bench.say("grep CapEff /proc/self/status").ends_with("0000000000000000"));
    });
}

#[test]
fn process_capabilities_fail() {
    case(|bench| {
        bench.config["process"]["capabilities"]["bounding"] = json!(["TEST_CAP"]);
        assert!(bench.write().refuse(&["run", "c"]).contains("TEST_CAP"));
    });
}

#[test]
fn process_oom_score_adj() {
    case(|bench| {
        bench.config["process"]["oomScoreAdj"] = json!(500);
        assert_eq!(bench.say("cat /proc/self/oom_score_adj"), "500");
    });
}

#[test]
fn process_rlimits() {
    case(|bench| {
        let limit = |kind: &str, value: u64| json!({"type": kind, "soft": value, "hard": value});
        bench.config["process"]["rlimits"] =
            json!([limit("RLIMIT_NOFILE", 1024), limit("RLIMIT_CORE", 4096), limit("RLIMIT_NPROC", 512)]);
        let said = bench.say("grep -E 'open files|core file|processes' /proc/self/limits");
        for words in ["1024                 1024", "4096                 4096", "512                  512"] {
            assert!(said.contains(words), "{said}");
        }
    });
}

#[test]
fn process_rlimits_fail() {
    case(|bench| {
        bench.config["process"]["rlimits"] = json!([{"type": "RLIMIT_TEST", "soft": 1, "hard": 1}]);
        assert!(bench.write().refuse(&["run", "c"]).contains("RLIMIT_TEST"));
    });
}

#[test]
fn personality() {
    case(|bench| {
        bench.config["linux"]["personality"] = json!({"domain": "LINUX32"});
        assert_eq!(bench.say("uname -m; cat /proc/self/personality"), "i686\n00000008");
        bench.args(&["sleep", "100"]).start();
        assert_eq!(bench.must(&["exec", "c", "uname", "-m"]), "i686");
        bench.delete();
    });
}

#[test]
fn root_readonly_true() {
    case(|bench| {
        bench.config["root"]["readonly"] = json!(true);
        assert_eq!(bench.say("touch /x 2>/dev/null || echo ro; touch /dev/x && echo dev"), "ro\ndev");
    });
}

#[test]
fn mounts_of_every_kind() {
    case(|bench| {
        for (destination, kind, options) in [
            ("/tmp/volume", "tmpfs", &["nosuid", "nodev", "noexec", "mode=700", "size=1m", "uid=7"][..]),
            ("/dev/mqueue", "mqueue", &["nosuid"]),
            ("/sys/fs/cgroup", "cgroup", &["ro"]),
        ] {
            list(bench).push(json!({"destination": destination, "type": kind, "source": kind, "options": options}));
        }
        let said = bench.say("grep -E ' /tmp/volume | /dev/mqueue | /sys/fs/cgroup ' /proc/self/mounts; stat -c %a:%u /tmp/volume; ls /sys/fs/cgroup | head -1; mkdir /sys/fs/cgroup/x 2>/dev/null || echo ro");
        for words in
            ["tmpfs /tmp/volume tmpfs rw,nosuid,nodev,noexec", "mqueue /dev/mqueue mqueue rw,nosuid", "700:7", "ro"]
        {
            assert!(said.contains(words), "{words}: {said}");
        }
        list(bench).push(json!({"destination": "/x", "type": "nosuchfs", "source": "x"}));
        let said = bench.write().refuse(&["run", "c"]);
        assert!(said.contains("nosuchfs") && said.contains("/x"), "{said}");
    });
}

#[test]
fn mounts() {
    case(|bench| {
        std::fs::create_dir_all(bench.beside("inner/below")).unwrap();
        let below = bench.beside("inner/below");
        mount_tmpfs(&below);
        bind(bench, "inner", &["rbind", "rro", "nosuid"]);
        bind(bench, "plain", &["bind", "rw", "noexec"]);
        bind(bench, "top", &["rbind", "ro"]);
        let file = bench.beside("file");
        std::fs::write(&file, "words").unwrap();
        std::fs::create_dir_all(bench.inside("etc")).unwrap();
        list(bench).push(json!({"destination": "/etc/deep/file", "source": file, "options": ["bind", "ro"]}));
        symlink("/../../../..", bench.inside("up")).unwrap();
        list(bench).push(json!({"destination": "/up/placed", "type": "tmpfs", "source": "tmpfs"}));
        let said = bench.say(
            "touch /inner/x || echo 1; touch /inner/below/x || echo 2; touch /plain/x && echo 3; touch /top/x || echo 4; \
             cat /etc/deep/file; echo; echo x > /etc/deep/file || echo 5; grep -c ' /placed ' /proc/self/mounts; grep ' /plain ' /proc/self/mounts",
        );
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines[..7], ["1", "2", "3", "4", "words", "5", "1"], "{said}");
        assert!(lines[7].contains("rw,noexec"), "{said}");
        assert!(!bench.beside("placed").exists() && !Path::new("/placed").exists(), "a link leads nowhere else");
        nix::mount::umount(&below).unwrap();
    });
}

/// A small file system below a source.
fn mount_tmpfs(place: &Path) {
    let none: Option<&str> = None;
    nix::mount::mount(Some("t"), place, Some("tmpfs"), nix::mount::MsFlags::empty(), none).unwrap();
}

#[test]
fn mounts_that_share_and_those_that_don_t() {
    case(|bench| {
        let source = bench.beside("slave");
        std::fs::create_dir_all(source.join("late")).unwrap();
        let none: Option<&str> = None;
        nix::mount::mount(Some(&source), &source, none, nix::mount::MsFlags::MS_BIND, none).unwrap();
        nix::mount::mount(none, &source, none, nix::mount::MsFlags::MS_SHARED, none).unwrap();
        bind(bench, "slave", &["rbind", "rslave"]);
        list(bench).push(json!({"destination": "/private", "source": source, "options": ["rbind", "rprivate"]}));
        bench.args(&["sleep", "100"]).start();
        mount_tmpfs(&source.join("late"));
        std::fs::write(source.join("late/word"), "seen").unwrap();
        assert_eq!(bench.must(&["exec", "c", "cat", "/slave/late/word"]), "seen");
        assert!(!bench.output(&["exec", "c", "cat", "/private/late/word"]).status.success());
        bench.delete();
        nix::mount::umount(&source.join("late")).unwrap();
        nix::mount::umount(&source).unwrap();
    });
}

#[test]
fn mounts_with_other_ids_and_copies() {
    case(|bench| {
        let map = json!([{"containerID": 0, "hostID": 5000, "size": 100}]);
        bind(bench, "mapped", &["bind", "idmap"]);
        let place = list(bench).len() - 1;
        list(bench)[place]["uidMappings"] = map.clone();
        list(bench)[place]["gidMappings"] = map;
        std::fs::write(bench.beside("mapped/file"), "").unwrap();
        std::fs::create_dir_all(bench.inside("copied/deep")).unwrap();
        std::fs::write(bench.inside("copied/deep/file"), "copied").unwrap();
        std::fs::set_permissions(bench.inside("copied/deep"), PermissionsExt::from_mode(0o750)).unwrap();
        std::os::unix::fs::chown(bench.inside("copied/deep/file"), Some(3), Some(4)).unwrap();
        symlink("/etc/passwd", bench.inside("copied/link")).unwrap();
        list(bench).push(
            json!({"destination": "/copied", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup", "ro"]}),
        );
        let said = bench.say("stat -c %u:%g /mapped/file; cat /copied/deep/file; echo; stat -c %a /copied/deep; stat -c %u:%g /copied/deep/file; readlink /copied/link; touch /copied/x || echo ro");
        assert_eq!(said, "5000:5000\ncopied\n750\n3:4\n/etc/passwd\nro");
        assert_eq!(std::fs::metadata(bench.beside("mapped/file")).unwrap().uid(), 0);
        bind(bench, "odd", &["bind", "size=1m"]);
        assert!(bench.write().refuse(&["run", "c"]).contains("size=1m"));
    });
}

#[test]
fn no_pivot() {
    case(|bench| {
        bench.args(&["sh", "-c", "ls / | head -1; cat /proc/1/mountinfo | head -1 | cut -d' ' -f5"]).write();
        assert_eq!(bench.must(&["run", "--no-pivot", "c"]).lines().next(), Some("bin"));
    });
}

#[test]
fn nothing_of_the_runtime_is_inside() {
    case(|bench| {
        // Descriptors, the runtime's own file, and the machine's mounts.
        let said = bench
            .say("ls -l /proc/self/fd 2>/dev/null | grep -c -- '->'; cat /proc/self/mountinfo | wc -l; ls /proc/1/root/ | head -1");
        assert_eq!(said.lines().next(), Some("3"), "the streams: {said}");
        assert!(said.lines().nth(1).unwrap().parse::<usize>().unwrap() < 12, "{said}");
        // The runtime's own program can't be written to through its process, not even when that has ended. A program of its
        // own: what others run is busy.
        bench.program = bench.beside("program");
        std::fs::copy(programs().join("orlop-runtime"), &bench.program).unwrap();
        bench.args(&["sleep", "100"]).create();
        let exe = std::fs::File::open(format!("/proc/{}/exe", bench.pid())).unwrap();
        bench.must(&["kill", "c", "KILL"]);
        bench.until_status("stopped");
        let again = format!("/proc/self/fd/{}", exe.as_raw_fd());
        let refused = std::fs::OpenOptions::new().write(true).open(&again).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EROFS), "{refused}");
        bench.delete();
        bench.create();
        bench.must(&["exec", "c", "true"]);
        let owner = std::fs::metadata(format!("/proc/{}/environ", bench.pid())).unwrap();
        assert_eq!(owner.uid(), 0);
        bench.delete();
        // An image whose program is the runtime's own file gets that, and no way to change it.
        symlink("/proc/self/exe", bench.inside("loop")).unwrap();
        assert!(bench.args(&["/loop", "--version"]).run().contains("orlop-runtime version"));
    });
}
