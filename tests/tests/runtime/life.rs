//! The life of a container: create, start, state, kill, delete.

use std::os::unix::process::CommandExt;
use std::path::Path;

use orlop_tests::world::until;
use serde_json::{Value, json};

use crate::bench::case;

#[test]
fn create() {
    case(|bench| {
        bench.write();
        assert!(bench.refuse(&["create"]).contains("container id"));
        bench.create();
        assert_eq!((bench.state()["id"].as_str(), bench.state()["status"].as_str()), (Some("c"), Some("created")));
        let again = bench.refuse(&["create", "c"]);
        assert!(again.contains("already exists"), "{again}");
        assert_eq!(bench.state()["status"], "created", "the first one is as it was");
        bench.delete();
        for id in ["../c", "a/b", "", ".", "..", "c d", &"x".repeat(300)] {
            let said = bench.refuse(&["create", id]);
            assert!(said.contains("invalid id"), "{id:?}: {said}");
        }
        for file in ["state", "delete", "start", "kill", "pause", "exec"] {
            let said = bench.refuse(&[file, "../../etc"]);
            assert!(said.contains("invalid id"), "{file}: {said}");
        }
    });
}

#[test]
fn start() {
    case(|bench| {
        assert!(bench.refuse(&["start"]).contains("container id"));
        assert!(bench.refuse(&["start", "c"]).contains("does not exist"));
        bench.script("echo 'process called' >> /output").create();
        let output = bench.inside("output");
        assert!(!output.exists(), "process.args is nothing before the start");
        bench.must(&["start", "c"]);
        bench.until_status("stopped");
        assert_eq!(std::fs::read_to_string(&output).unwrap(), "process called\n");
        assert!(bench.refuse(&["start", "c"]).contains("stopped"));
        assert_eq!(std::fs::read_to_string(&output).unwrap(), "process called\n");
        bench.must(&["delete", "c"]);
        // Without a process there is a container, and nothing to start.
        bench.config.as_object_mut().unwrap().remove("process");
        bench.create();
        let said = bench.refuse(&["start", "c"]);
        assert!(said.contains("process"), "{said}");
        bench.delete();
    });
}

#[test]
fn state() {
    case(|bench| {
        assert!(bench.refuse(&["state"]).contains("container id"));
        assert!(bench.refuse(&["state", "c"]).contains("does not exist"));
        bench.config["annotations"] = json!({"dev.orlop.test": "words"});
        bench.args(&["sleep", "100"]).start();
        let state = bench.state();
        let bundle = bench.bundle();
        for (field, value) in [
            ("ociVersion", json!("1.2.1")),
            ("id", json!("c")),
            ("status", json!("running")),
            ("bundle", json!(bundle)),
            ("rootfs", json!(bundle.join("rootfs"))),
            ("annotations", json!({"dev.orlop.test": "words"})),
        ] {
            assert_eq!(state[field], value, "{field}");
        }
        let pid = state["pid"].as_i64().unwrap();
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        assert_eq!(line, b"sleep\x00100\x00");
        bench.must(&["kill", "c", "KILL"]);
        bench.until_status("stopped");
        assert_eq!(bench.pid(), 0);
        bench.delete();
    });
}

#[test]
fn kill() {
    case(|bench| {
        assert!(bench.refuse(&["kill"]).contains("container id"));
        assert!(bench.refuse(&["kill", "c", "KILL"]).contains("does not exist"));
        bench.args(&["sleep", "100"]).create();
        bench.must(&["kill", "c", "KILL"]);
        bench.until_status("stopped");
        let said = bench.refuse(&["kill", "c", "KILL"]);
        assert!(said.contains("container not running"), "{said}");
        bench.delete();
        bench.start();
        assert!(bench.refuse(&["kill", "c", "NONSENSE"]).contains("unknown signal"));
        bench.must(&["kill", "c", "KILL"]);
        bench.until_status("stopped");
        bench.must(&["delete", "c"]);
    });
}

#[test]
fn kill_no_effect() {
    case(|bench| {
        bench.start();
        bench.until_status("stopped");
        let before = bench.state();
        bench.refuse(&["kill", "c", "KILL"]);
        assert_eq!(bench.state(), before);
        bench.delete();
    });
}

#[test]
fn killsig() {
    case(|bench| {
        for signal in ["TERM", "USR1", "USR2", "HUP", "INT"] {
            bench.script(&format!("trap 'touch /{signal}; exit' {signal}; touch /ready; while :; do sleep 0.05; done"));
            bench.start();
            until("it listens", || bench.inside("ready").exists().then_some(()));
            bench.must(&["kill", "c", signal]);
            bench.until_status("stopped");
            assert!(bench.inside(signal).exists(), "{signal}");
            std::fs::remove_file(bench.inside("ready")).unwrap();
            bench.delete();
        }
    });
}

#[test]
fn kill_all_and_shared_process_numbers() {
    case(|bench| {
        // Without process numbers of its own nothing but the cgroup tells what belongs to it.
        bench.config["linux"]["namespaces"].as_array_mut().unwrap().retain(|space| space["type"] != "pid");
        bench.script("sleep 1000 & sleep 1000 & touch /ready; wait").start();
        until("it is ready", || bench.inside("ready").exists().then_some(()));
        let pids = |text: String| serde_json::from_str::<Vec<i32>>(&text).unwrap();
        assert_eq!(pids(bench.must(&["ps", "--format", "json", "c"])).len(), 3);
        bench.must(&["kill", "c", "KILL"]);
        bench.until_status("stopped");
        until("all have ended", || pids(bench.must(&["ps", "--format", "json", "c"])).is_empty().then_some(()));
        bench.must(&["delete", "c"]);
    });
}

#[test]
fn delete() {
    case(|bench| {
        assert!(bench.refuse(&["delete"]).contains("container id"));
        assert!(bench.refuse(&["delete", "c"]).contains("does not exist"));
        bench.must(&["delete", "--force", "c"]);
        bench.args(&["sleep", "100"]).start();
        let said = bench.refuse(&["delete", "c"]);
        assert!(said.contains("not stopped"), "{said}");
        assert_eq!(bench.state()["status"], "running");
        bench.must(&["delete", "--force", "c"]);
        assert!(bench.refuse(&["state", "c"]).contains("does not exist"));
        // One that was never started goes with its process, as with runc.
        bench.create();
        let pid = bench.pid();
        bench.must(&["delete", "c"]);
        until("its process is gone", || (!Path::new(&format!("/proc/{pid}/exe")).exists()).then_some(()));
    });
}

#[test]
fn delete_resources() {
    case(|bench| {
        bench.config["linux"]["resources"] = json!({"pids": {"limit": 1000}});
        bench.create();
        if Path::new("/sys/fs/cgroup/pids").is_dir() {
            assert_eq!(bench.cgroup("pids", "pids.max").as_deref(), Some("1000"));
        }
        bench.must(&["start", "c"]);
        bench.until_status("stopped");
        bench.must(&["delete", "c"]);
        assert_eq!(bench.cgroup("pids", "pids.max"), None);
    });
}

#[test]
fn delete_only_create_resources() {
    case(|bench| {
        let Some(hierarchy) = ["pids", "."]
            .map(|name| Path::new("/sys/fs/cgroup").join(name))
            .into_iter()
            .find(|h| h.join("cgroup.procs").exists())
        else {
            panic!("no cgroup hierarchy is mounted");
        };
        let other = hierarchy.join(format!("{}-other", bench.mark));
        std::fs::create_dir(&other).unwrap();
        bench.create();
        std::fs::write(other.join("cgroup.procs"), bench.pid().to_string()).unwrap();
        bench.must(&["start", "c"]);
        bench.until_status("stopped");
        bench.must(&["delete", "c"]);
        assert!(other.is_dir());
        std::fs::remove_dir(&other).unwrap();
    });
}

#[test]
fn config_updates_without_affect() {
    case(|bench| {
        bench.script("cat /proc/self/oom_score_adj; sysctl -n net.ipv4.ip_unprivileged_port_start; ulimit -n");
        bench.config["process"]["oomScoreAdj"] = json!(100);
        bench.config["linux"]["sysctl"] = json!({"net.ipv4.ip_unprivileged_port_start": "77"});
        bench.config["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 1000, "hard": 1000}]);
        bench.create();
        std::fs::write(bench.bundle().join("config.json"), r#"{"ociVersion": "1.0.0"}"#).unwrap();
        bench.must(&["start", "c"]);
        bench.until_status("stopped");
        assert_eq!(bench.log(), "100\n77\n1000\n");
        bench.delete();
    });
}

#[test]
fn pidfile() {
    case(|bench| {
        let file = bench.beside("pid");
        bench.args(&["sleep", "100"]).write();
        assert!(bench.create_with(&["--pid-file", file.to_str().unwrap()]).status.success(), "{}", bench.log());
        assert_eq!(std::fs::read_to_string(&file).unwrap(), bench.pid().to_string());
        bench.delete();
    });
}

#[test]
fn misc_props() {
    case(|bench| {
        bench.config["dev.orlop.unknown"] = json!({"x": 1});
        bench.config["process"]["unknown"] = json!(true);
        bench.run();
        for (path, value, words) in [
            ("/ociVersion", json!("2.0.0"), "ociVersion"),
            ("/ociVersion", json!(""), "ociVersion"),
            ("/process/args", json!("text"), "config.json"),
            ("/root", json!({}), "root.path"),
            ("/root/path", json!("nowhere"), "nowhere"),
            ("/hostname", json!(7), "config.json"),
        ] {
            let before = bench.config.clone();
            let place = path.rsplit_once('/').unwrap();
            let parent: &mut Value = bench.config.pointer_mut(place.0).unwrap();
            parent[place.1] = value;
            let said = bench.write().refuse(&["run", "c"]);
            assert!(said.contains(words), "{path}: {said}");
            bench.config = before;
        }
        std::fs::write(bench.bundle().join("config.json"), "{").unwrap();
        assert!(bench.refuse(&["run", "c"]).contains("config.json"));
        std::fs::remove_file(bench.bundle().join("config.json")).unwrap();
        assert!(bench.refuse(&["run", "c"]).contains("config.json"));
    });
}

#[test]
fn a_creation_that_is_killed_is_removed_by_force_alone() {
    case(|bench| {
        // A hook that hangs holds the creation up in its middle.
        let hook = json!([{"path": "/bin/sh", "args": ["sh", "-c", "sleep 1000"]}]);
        for kind in ["prestart", "createContainer"] {
            bench.config["hooks"] = json!({kind: hook});
            bench.write();
            let mut command = bench.command(&["create", "c"]);
            command.process_group(0);
            let mut child = command.spawn().unwrap();
            until("it is being made", || {
                let cgroup = bench.cgroup("pids", "cgroup.procs").or_else(|| bench.cgroup(".", "cgroup.procs"));
                (bench.output(&["state", "c"]).status.success() && cgroup.is_some_and(|pids| !pids.is_empty()))
                    .then_some(())
            });
            assert_eq!(bench.state()["status"], "creating");
            child.kill().unwrap();
            child.wait().unwrap();
            for verb in ["start", "kill", "delete", "pause", "exec"] {
                let said = bench.refuse(&[verb, "c"]);
                assert!(said.contains("creating") || said.contains("exec"), "{verb}: {said}");
            }
            bench.must(&["delete", "--force", "c"]);
            // The hook is the machine's own, and ends with its container only when it is asked to.
            let mark = "sleep\x001000\x00";
            for entry in std::fs::read_dir("/proc").unwrap().flatten() {
                let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
                let here = std::fs::read_link(entry.path().join("cwd")).unwrap_or_default();
                if line == mark.as_bytes() && here == bench.bundle() {
                    let pid = entry.file_name().to_string_lossy().parse().unwrap();
                    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
                }
            }
        }
    });
}

#[test]
fn a_number_that_is_used_again_is_not_the_container() {
    case(|bench| {
        bench.args(&["sleep", "100"]).start();
        let file = bench.beside("state/c/state.json");
        let text = std::fs::read_to_string(&file).unwrap();
        let mut record: Value = serde_json::from_str(&text).unwrap();
        // This test's own process has that number now, and not the container's start.
        record["pid"] = json!(std::process::id());
        std::fs::write(&file, record.to_string()).unwrap();
        assert_eq!(bench.state()["status"], "stopped");
        assert!(bench.refuse(&["kill", "c", "KILL"]).contains("not running"));
        std::fs::write(&file, text).unwrap();
        assert_eq!(bench.state()["status"], "running");
        // A record that can't be read is told, and hides nobody else.
        std::fs::write(&file, "{").unwrap();
        assert!(bench.refuse(&["state", "c"]).contains("state.json"));
        bench.must(&["list"]);
        std::fs::write(&file, record.to_string()).unwrap();
        bench.must(&["delete", "--force", "c"]);
    });
}

#[test]
fn a_container_whose_record_is_damaged_is_ended_by_force() {
    case(|bench| {
        bench.args(&["sleep", "100"]).start();
        std::fs::write(bench.beside("state/c/state.json"), "{").unwrap();
        assert!(bench.refuse(&["delete", "c"]).contains("delete --force"));
        bench.must(&["delete", "--force", "c"]);
        assert!(!bench.beside("state/c").exists());
        // No cgroup, no process.
        assert_eq!(bench.cgroup("pids", "cgroup.procs").or_else(|| bench.cgroup(".", "cgroup.procs")), None);
    });
}
