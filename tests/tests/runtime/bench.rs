//! The work bench of a case: a mount namespace, a bundle, the program, and a count of what is left.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};

use orlop_kernel::cgroup::Cgroups;
use orlop_tests::census::{Census, remove_empty_cgroups};
use orlop_tests::place::{busybox_root, private_mounts, programs};
use orlop_tests::world::until;
use serde_json::{Value, json};

/// Tells cases of one run apart.
static NEXT: AtomicUsize = AtomicUsize::new(0);

/// A bundle and a program.
pub struct Bench {
    base: tempfile::TempDir,
    /// A name that only this case uses; its containers' cgroups lie below it.
    pub mark: String,
    /// The specification that the next container is made by.
    pub config: Value,
    /// The program.
    pub program: PathBuf,
}

/// Runs a case, and checks that nothing of it is left.
pub fn case(test: impl FnOnce(&mut Bench)) {
    private_mounts();
    let mark = format!("orlop-runtime-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let base = tempfile::Builder::new().prefix(&mark).tempdir().unwrap();
    busybox_root(&base.path().join("bundle/rootfs"));
    let config = starter(&mark);
    let program = programs().join("orlop-runtime");
    let mut bench = Bench { base, mark, config, program };
    let before = bench.count();
    test(&mut bench);
    until("nothing is left", || (bench.count() == before).then_some(()));
}

fn starter(mark: &str) -> Value {
    let capabilities = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_MKNOD", "CAP_CHOWN"];
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": kind, "options": options});
    let namespaces = ["pid", "network", "ipc", "uts", "mount"].map(|kind| json!({"type": kind}));
    json!({
        "ociVersion": "1.2.1",
        "process": {
            "user": {"uid": 0, "gid": 0}, "args": ["true"], "env": ["PATH=/bin"], "cwd": "/",
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
        },
        "root": {"path": "rootfs"},
        "mounts": [
            mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        ],
        "linux": {"namespaces": namespaces, "cgroupsPath": format!("/{mark}/c")},
    })
}

impl Drop for Bench {
    /// A case that has failed leaves no process either.
    fn drop(&mut self) {
        if let Ok(cgroups) = Cgroups::detect() {
            let _ = cgroups.remove(&format!("/{}/c", self.mark), || {});
        }
        remove_empty_cgroups(&self.mark);
    }
}

impl Bench {
    /// The bundle.
    pub fn bundle(&self) -> PathBuf {
        self.base.path().join("bundle")
    }

    /// A path in the container's root, as the machine sees it.
    pub fn inside(&self, path: &str) -> PathBuf {
        self.bundle().join("rootfs").join(path.trim_start_matches('/'))
    }

    /// A path beside the bundle.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.base.path().join(name)
    }

    /// Sets the arguments of the process.
    pub fn args(&mut self, args: &[&str]) -> &mut Bench {
        self.config["process"]["args"] = json!(args);
        self
    }

    /// Lets the process run a script.
    pub fn script(&mut self, script: &str) -> &mut Bench {
        self.args(&["sh", "-c", script])
    }

    /// Writes the specification.
    pub fn write(&self) -> &Bench {
        std::fs::write(self.bundle().join("config.json"), self.config.to_string()).unwrap();
        self
    }

    /// The program with its state in this bench.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(self.base.path().join("state")).args(arguments).current_dir(self.bundle());
        command
    }

    /// Runs a command to its end.
    pub fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("run orlop-runtime")
    }

    /// Runs a command that has to succeed, and gives what it prints.
    pub fn must(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {words}");
        String::from_utf8(output.stdout).unwrap().trim_end().to_string()
    }

    /// Runs a command that has to fail, and gives what it says.
    pub fn refuse(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(!output.status.success(), "{arguments:?} has succeeded: {said}");
        String::from_utf8(output.stderr).unwrap().trim_end().to_string()
    }

    /// Writes the specification, runs the container to its end, and gives what it prints.
    pub fn run(&self) -> String {
        self.write().must(&["run", "c"])
    }

    /// The same with a script.
    pub fn say(&mut self, script: &str) -> String {
        self.script(script).run()
    }

    /// Writes the specification and makes a container. Its streams are nobody's.
    pub fn create(&self) {
        self.write();
        let made = self.create_with(&[]);
        assert!(made.status.success(), "{}", self.log());
    }

    /// Makes a container by more flags; what is printed goes to the log.
    pub fn create_with(&self, flags: &[&str]) -> Output {
        let log = std::fs::File::create(self.beside("create.log")).unwrap();
        let mut command = self.command(&["create"]);
        command.args(flags).arg("c").stdin(std::process::Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let status = command.status().expect("run orlop-runtime");
        Output { status, stdout: Vec::new(), stderr: self.log().into_bytes() }
    }

    /// What the last creation and its container have printed.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.beside("create.log")).unwrap_or_default()
    }

    /// Makes and starts a container.
    pub fn start(&self) {
        self.create();
        self.must(&["start", "c"]);
    }

    /// The state of the container.
    pub fn state(&self) -> Value {
        serde_json::from_str(&self.must(&["state", "c"])).unwrap()
    }

    /// The number of its process.
    pub fn pid(&self) -> i64 {
        self.state()["pid"].as_i64().unwrap()
    }

    /// Waits until the container has a status.
    pub fn until_status(&self, status: &str) {
        until(&format!("the container is {status}"), || (self.state()["status"] == status).then_some(()));
    }

    /// Ends and removes the container.
    pub fn delete(&self) {
        self.must(&["delete", "--force", "c"]);
    }

    /// The file of a cgroup v1 controller, or of v2, of the container.
    pub fn cgroup(&self, controller: &str, file: &str) -> Option<String> {
        let path = format!("{}/c/{file}", self.mark);
        let v1 = Path::new("/sys/fs/cgroup").join(controller).join(&path);
        std::fs::read_to_string(v1).ok().map(|text| text.trim().to_string())
    }

    /// What a case may leave nothing of: mounts, cgroups of containers, folders of state, processes.
    fn count(&self) -> (Census, BTreeSet<String>, BTreeSet<String>) {
        let mut census = Census::take(&self.mark);
        census.cgroups.retain(|path| path.ends_with("/c"));
        let folder = std::fs::read_dir(self.base.path().join("state")).into_iter().flatten().flatten();
        let state = folder.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        let own = std::process::id().to_string();
        let processes = std::fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy() != own)
            .filter_map(|entry| {
                let read = |name: &str| std::fs::read(entry.path().join(name)).unwrap_or_default();
                let text = [read("cmdline"), read("cgroup")].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
                text.concat().contains(&self.mark).then(|| text.concat().replace('\0', " "))
            })
            .collect();
        (census, state, processes)
    }
}
