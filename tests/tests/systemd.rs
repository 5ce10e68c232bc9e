//! `orlop cri` with the cgroup driver systemd, driven by crictl: pods in slices, containers in scopes, and nothing left.
//!
//! Needs a machine that systemd has booted with cgroup v2: `cargo xtask guest test systemd`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use orlop_kernel::cgroup::Cgroups;
use orlop_tests::place::{debian, foreign};
use orlop_tests::world::{Daemon, World, read, refuse, run, until};
use serde_json::{Value, json};

/// Where cgroup v2 is mounted.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Ends a test that was asked for where no units can be had.
fn need_systemd() {
    let has = Path::new("/run/systemd/system").exists() && matches!(Cgroups::detect(), Ok(Cgroups::V2(_)));
    assert!(has, "this machine has no systemd, or no cgroup v2: cargo xtask guest test systemd");
}

/// A world with a server, and a slice of its own for pods, which goes with it.
struct Bench {
    world: World,
    slice: String,
}

impl Bench {
    fn new(name: &str) -> Bench {
        let bench = Bench { world: World::new(), slice: format!("orloptest{}{name}", std::process::id()) };
        std::fs::write(bench.file("cri.toml"), bench.configuration()).unwrap();
        bench
    }

    fn configuration(&self) -> String {
        let mut text = "version = 1\ncgroup_driver = \"systemd\"\n".to_string();
        for (name, program) in [("runc", foreign("runc")), ("crun", debian("crun", "crun"))] {
            text.push_str(&format!("[runtimes.{name}]\nprogram = {program:?}\n"));
        }
        text
    }

    fn file(&self, name: &str) -> PathBuf {
        self.world.folder().join(name)
    }

    fn serve(&self) -> Daemon {
        let mut command = self.world.orlop();
        command.args(["cri", "--cri-config"]).arg(self.file("cri.toml"));
        let daemon = Daemon::start(command, self.file("cri.log"));
        until("the server answers", || {
            self.world.crictl().arg("version").output().unwrap().status.success().then_some(())
        });
        daemon
    }

    /// The slice of a pod, by its name and by its place.
    fn pod_slice(&self, pod: &str) -> (String, PathBuf) {
        let name = format!("{}-pod{pod}.slice", self.slice);
        let place = Path::new(CGROUPS).join(format!("{}.slice", self.slice)).join(&name);
        (name, place)
    }

    /// Files that describe a pod and a container.
    fn files(&self, pod: &str, parent: &str, args: &[&str], resources: &Value) -> (String, String) {
        let write = |file: String, value: Value| {
            let path = self.file(&file);
            std::fs::write(&path, value.to_string()).unwrap();
            path.display().to_string()
        };
        let sandbox = json!({
            "metadata": {"name": pod, "namespace": "default", "uid": format!("uid-{pod}"), "attempt": 0},
            "log_directory": self.file("logs"),
            "linux": {"cgroup_parent": parent},
        });
        let container = json!({
            "metadata": {"name": "c"},
            "image": {"image": "localhost/test:1"},
            "command": args,
            "log_path": format!("{pod}.log"),
            "linux": {"resources": resources, "security_context": {"namespace_options": {"pid": 1}}},
        });
        (write(format!("{pod}-pod.json"), sandbox), write(format!("{pod}-container.json"), container))
    }

    fn inspect(&self, verb: &str, id: &str) -> Value {
        serde_json::from_str(&read(self.world.crictl().args([verb, id]))).unwrap()
    }

    /// Scopes below the slice that systemd knows, whatever state they are in, and cgroups of such.
    fn scopes(&self) -> BTreeSet<String> {
        let list =
            read(self.world.command("systemctl").args(["list-units", "--all", "--full", "--no-legend", "--plain"]));
        let of_slice = |unit: &&str| {
            unit.starts_with("orlop-")
                && read(self.world.command("systemctl").args(["show", "--value", "-p", "Slice", unit]))
                    .starts_with(&self.slice)
        };
        let units = list.lines().filter_map(|line| line.split_whitespace().next()).filter(of_slice).map(str::to_string);
        let mut all: BTreeSet<String> = units.collect();
        let mut folders = vec![Path::new(CGROUPS).join(format!("{}.slice", self.slice))];
        while let Some(folder) = folders.pop() {
            let below = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
            for folder in below.filter(|path| path.is_dir()) {
                let name = folder.file_name().unwrap().to_string_lossy().into_owned();
                if name.ends_with(".scope") {
                    all.insert(name);
                }
                folders.push(folder);
            }
        }
        all
    }

    /// Processes that keep scopes.
    fn holders(&self) -> usize {
        let is_holder = |entry: &std::fs::DirEntry| {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).ends_with("orlop-shim\0--hold\0")
        };
        std::fs::read_dir("/proc").unwrap().flatten().filter(is_holder).count()
    }

    /// Removes all pods: nothing is there after that.
    fn end(&self) {
        run(self.world.crictl().args(["rmp", "-f", "-a"]));
        assert_eq!(self.scopes(), BTreeSet::new());
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = self.world.command("systemctl").args(["stop", &format!("{}.slice", self.slice)]).output();
    }
}

fn scope(id: &str) -> String {
    format!("orlop-{id}.scope")
}

fn content(file: &Path) -> String {
    std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display())).trim().to_string()
}

/// The cgroup of a process.
fn cgroup_of(pid: &Value) -> String {
    content(Path::new(&format!("/proc/{pid}/cgroup"))).trim_start_matches("0::").to_string()
}

#[test]
fn a_machine_without_systemd_is_told_so() {
    let bench = Bench::new("none");
    for folder in ["/run/systemd", "/run/dbus"] {
        if Path::new(folder).is_dir() {
            run(bench.world.command("mount").args(["-t", "tmpfs", "none", folder]));
        }
    }
    let said = refuse(bench.world.orlop().args(["cri", "--cri-config"]).arg(bench.file("cri.toml")));
    let words = if matches!(Cgroups::detect(), Ok(Cgroups::V2(_))) { "/run/systemd/private" } else { "cgroup v2" };
    assert!(said.contains(words) && said.contains("cgroupfs"), "{said}");
    assert!(!bench.world.socket().exists());
}

#[test]
fn a_holder_ends_with_whoever_holds_its_input() {
    let mut command = std::process::Command::new(orlop_tests::place::programs().join("orlop-shim"));
    let mut holder = command.arg("--hold").stdin(std::process::Stdio::piped()).spawn().unwrap();
    assert_eq!(holder.try_wait().unwrap(), None);
    drop(holder.stdin.take());
    assert!(holder.wait().unwrap().success());
}

#[test]
#[ignore = "needs systemd with cgroup v2: cargo xtask guest test systemd"]
fn containers_are_scopes_whose_limits_stay() {
    need_systemd();
    let bench = Bench::new("life");
    let _daemon = bench.serve();
    bench.world.load_image();
    let driver = read(bench.world.crictl().arg("runtime-config"));
    assert!(driver.to_uppercase().contains("SYSTEMD"), "{driver}");

    let (slice, place) = bench.pod_slice("1_2");
    let resources = json!({
        "memory_limit_in_bytes": 64 << 20, "cpu_period": 100_000, "cpu_quota": 50_000, "cpu_shares": 2048,
        "unified": {"memory.high": "50331648"},
    });
    let (pod, container) = bench.files("limits", &slice, &["sleep", "1000"], &resources);
    let sandbox = read(bench.world.crictl().args(["runp", &pod]));
    let pause = bench.inspect("inspectp", &sandbox)["info"]["pid"].clone();
    assert_eq!(Path::new(CGROUPS).join(&cgroup_of(&pause)[1..]), place.join(scope(&sandbox)));
    let id = read(bench.world.crictl().args(["create", &sandbox, &container, &pod]));
    until("nothing but the container is in its scope", || (bench.holders() == 0).then_some(()));
    run(bench.world.crictl().args(["start", &id]));
    let pid = bench.inspect("inspect", &id)["info"]["pid"].clone();
    let own = place.join(scope(&id));
    assert_eq!(Path::new(CGROUPS).join(&cgroup_of(&pid)[1..]), own);
    assert_eq!(content(&own.join("cgroup.procs")), pid.to_string());
    assert_eq!(bench.scopes(), BTreeSet::from([scope(&sandbox), scope(&id)]));
    assert_eq!(read(bench.world.crictl().args(["exec", "-s", &id, "cat", "/proc/self/cgroup"])), "0::/");

    let mut expected = vec![
        ("memory.max", "67108864"),
        ("memory.high", "50331648"),
        ("cpu.max", "50000 100000"),
        ("cpu.weight", "174"),
        ("pids.max", "max"),
    ];
    let check = |expected: &[(&str, &str)]| {
        let seen: Vec<(&str, String)> = expected.iter().map(|(file, _)| (*file, content(&own.join(file)))).collect();
        let expected: Vec<(&str, String)> = expected.iter().map(|(file, text)| (*file, text.to_string())).collect();
        assert_eq!(seen, expected);
    };
    // systemd looks at its cgroups some time after it has read its files again; a change that it is told then is the sign.
    let reload = || {
        std::fs::write(place.join(scope(&sandbox)).join("cpu.weight"), "7").unwrap();
        run(bench.world.command("systemctl").arg("daemon-reload"));
        until("systemd has looked again", || {
            run(bench.world.command("systemctl").args(["set-property", "--runtime", &scope(&sandbox), "CPUWeight=33"]));
            (content(&place.join(scope(&sandbox)).join("cpu.weight")) == "33").then_some(())
        });
    };
    let known = |names: &str| read(bench.world.command("systemctl").args(["show", "-p", names, &scope(&id)]));
    let all = "Delegate,MemoryMax,MemoryHigh,CPUWeight,CPUQuotaPerSecUSec,TasksMax,CollectMode";
    let told = known(all);
    for words in [
        "Delegate=yes",
        "MemoryMax=67108864",
        "MemoryHigh=50331648",
        "CPUWeight=174",
        "CPUQuotaPerSecUSec=500ms",
        "TasksMax=infinity",
        "CollectMode=inactive-or-failed",
    ] {
        assert!(told.lines().any(|line| line == words), "{words} is not in {told}");
    }
    check(&expected);
    reload();
    check(&expected);
    assert_eq!(known(all), told, "read again from systemd's files");

    run(bench.world.crictl().args(["update", "--memory", "100663296", "--cpu-quota", "20000", &id]));
    (expected[0], expected[2]) = (("memory.max", "100663296"), ("cpu.max", "20000 100000"));
    check(&expected);
    reload();
    check(&expected);
    let said = refuse(bench.world.crictl().args(["update", "--cpuset-cpus", "4000", &id]));
    assert!(said.contains("cpuset.cpus") && said.contains("4000"), "{said}");
    reload();
    check(&expected);

    run(bench.world.crictl().args(["stop", "-t", "0", &id]));
    run(bench.world.crictl().args(["rm", &id]));
    assert_eq!(bench.scopes(), BTreeSet::from([scope(&sandbox)]));
    bench.end();
}

#[test]
#[ignore = "needs systemd with cgroup v2: cargo xtask guest test systemd"]
fn a_parent_that_is_no_slice_is_refused() {
    need_systemd();
    let bench = Bench::new("wrong");
    let _daemon = bench.serve();
    for (parent, words) in [("/kubepods/pod1", "no slice"), ("/x.slice/a-b.slice", "/a.slice/a-b.slice")] {
        let (pod, _) = bench.files("wrong", parent, &[], &json!({}));
        let said = refuse(bench.world.crictl().args(["runp", &pod]));
        assert!(said.contains("cgroup_parent") && said.contains(words), "{said}");
    }
    // By its whole path, as the kubelet gives it.
    let (_, place) = bench.pod_slice("x");
    let parent = Path::new("/").join(place.strip_prefix(CGROUPS).unwrap()).display().to_string();
    let (pod, _) = bench.files("right", &parent, &[], &json!({}));
    let sandbox = read(bench.world.crictl().args(["runp", &pod]));
    assert!(place.join(scope(&sandbox)).is_dir());
    bench.end();
}

#[test]
#[ignore = "needs systemd with cgroup v2: cargo xtask guest test systemd"]
fn what_ends_by_itself_is_told_and_forgotten() {
    need_systemd();
    let bench = Bench::new("ends");
    let _daemon = bench.serve();
    bench.world.load_image();
    let (slice, _) = bench.pod_slice("e");
    let hungry = "a=x; while :; do a=$a$a; done";
    let small = json!({"memory_limit_in_bytes": 16 << 20, "memory_swap_limit_in_bytes": 16 << 20});
    for (name, script, resources, code, reason) in [
        ("exits", "exit 3", json!({}), 3, "Error"),
        ("oom", hungry, small, 137, "OOMKilled"),
        ("done", "exit 0", json!({}), 0, "Completed"),
    ] {
        let (pod, container) = bench.files(name, &slice, &["sh", "-c", script], &resources);
        let id = read(bench.world.crictl().args(["run", "--no-pull", &container, &pod]));
        let status = until("it has ended", || {
            let status = bench.inspect("inspect", &id)["status"].clone();
            (status["state"] == "CONTAINER_EXITED").then_some(status)
        });
        assert_eq!((&status["exitCode"], &status["reason"]), (&json!(code), &json!(reason)), "{name}");
        until("its scope is gone", || (!bench.scopes().contains(&scope(&id))).then_some(()));
    }
    bench.end();
}

#[test]
#[ignore = "needs systemd with cgroup v2: cargo xtask guest test systemd"]
fn programs_get_their_scopes_from_systemd() {
    need_systemd();
    let bench = Bench::new("programs");
    let _daemon = bench.serve();
    bench.world.load_image();
    for handler in ["runc", "crun"] {
        let (slice, place) = bench.pod_slice(handler);
        let limits = json!({"memory_limit_in_bytes": 64 << 20});
        let (pod, container) = bench.files(handler, &slice, &["sleep", "1000"], &limits);
        let sandbox = read(bench.world.crictl().args(["runp", "--runtime", handler, &pod]));
        let id = read(bench.world.crictl().args(["create", &sandbox, &container, &pod]));
        run(bench.world.crictl().args(["start", &id]));
        assert_eq!(content(&place.join(scope(&id)).join("memory.max")), "67108864", "{handler}");
        assert_eq!(read(bench.world.crictl().args(["exec", "-s", &id, "echo", "inside"])), "inside");
        run(bench.world.crictl().args(["update", "--memory", "100663296", &id]));
        assert_eq!(content(&place.join(scope(&id)).join("memory.max")), "100663296", "{handler}");
        bench.end();
    }
}

#[test]
#[ignore = "needs systemd with cgroup v2: cargo xtask guest test systemd"]
fn a_server_that_is_killed_leaves_no_scope() {
    need_systemd();
    let bench = Bench::new("killed");
    let mut daemon = bench.serve();
    bench.world.load_image();
    let (slice, _) = bench.pod_slice("k");
    let (pod, container) = bench.files("stays", &slice, &["sleep", "1000"], &json!({}));
    let stays = read(bench.world.crictl().args(["run", "--no-pull", &container, &pod]));
    let before = bench.scopes();
    let pid = bench.inspect("inspect", &stays)["info"]["pid"].clone();
    for round in 0..8 {
        let (pod, container) = bench.files(&format!("r{round}"), &slice, &["sleep", "1000"], &json!({}));
        let mut command = bench.world.crictl();
        command.args(["run", "--no-pull", &container, &pod]);
        let mut making =
            command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
        // Somewhere on the way: the emulated machine needs about a second for all of it.
        std::thread::sleep(Duration::from_millis(40 + 120 * round));
        daemon.kill();
        let _ = making.wait();
        until("no holder outlives its server", || (bench.holders() == 0).then_some(()));
        daemon = bench.serve();
        assert_eq!(bench.inspect("inspect", &stays)["info"]["pid"], pid, "it has not noticed");
        let known = read(bench.world.crictl().args(["pods", "-q", "--no-trunc"]));
        let containers = read(bench.world.crictl().args(["ps", "-a", "-q", "--no-trunc"]));
        let known: BTreeSet<String> = known.lines().chain(containers.lines()).map(scope).collect();
        until("what nobody knows is gone", || bench.scopes().is_subset(&known).then_some(()));
        for sandbox in read(bench.world.crictl().args(["pods", "-q", "--no-trunc"])).lines() {
            if !before.contains(&scope(sandbox)) {
                run(bench.world.crictl().args(["rmp", "-f", sandbox]));
            }
        }
        assert_eq!(bench.scopes(), before);
    }
    bench.end();
}
