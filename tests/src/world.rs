//! A machine of its own for a test: mount and network namespaces, a folder for state, and what was there before.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use crate::place::{debian, foreign, need_root, programs};

/// How long anything may take here.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// A world. Everything that runs in it ends with it.
pub struct World {
    holder: Child,
    folder: tempfile::TempDir,
    /// Where the instance keeps its state.
    pub root: PathBuf,
}

/// What a world holds: nothing of it may be left when pods are gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Count {
    mounts: Vec<String>,
    links: Vec<String>,
    rules: usize,
    leases: usize,
    processes: usize,
    cgroups: Vec<String>,
    /// What each pod has a file or folder of its own in: network namespaces, records, layers, volumes, logs.
    files: Vec<PathBuf>,
}

impl Count {
    /// What has come since an earlier count, for people.
    #[must_use]
    pub fn since(&self, before: &Count) -> Vec<String> {
        let mut new = Vec::new();
        for (what, now, then) in [
            ("mount", &self.mounts, &before.mounts),
            ("link", &self.links, &before.links),
            ("cgroup", &self.cgroups, &before.cgroups),
        ] {
            new.extend(now.iter().filter(|one| !then.contains(one)).map(|one| format!("{what} {one}")));
        }
        new.extend(
            self.files
                .iter()
                .filter(|file| !before.files.contains(file))
                .map(|file| format!("file {}", file.display())),
        );
        for (what, now, then) in [
            ("rules", self.rules, before.rules),
            ("leases", self.leases, before.leases),
            ("shims", self.processes, before.processes),
        ] {
            if now > then {
                new.push(format!("{} {what}", now - then));
            }
        }
        new
    }
}

/// Folders of an instance in which nothing is left when pods are gone.
const POD_FOLDERS: [&str; 9] = [
    "run/cri/netns",
    "run/cri/sandboxes",
    "state/cri/containers",
    "state/cri/meta/sandboxes",
    "state/cri/meta/containers",
    "kubelet/pods",
    "log/pods",
    "log/containers",
    "cni/cache/results",
];

impl World {
    /// Makes a world with nothing but a loopback device.
    ///
    /// # Panics
    /// When a program is missing or the kernel refuses.
    #[must_use]
    pub fn new() -> World {
        need_root();
        let _ = debian("ip", "iproute2");
        let _ = debian("nft", "nftables");
        let folder = tempfile::tempdir().unwrap();
        let script = "mount --make-rshared / && ip link set lo up && echo ready && exec sleep infinity";
        let mut holder = Command::new("unshare")
            .args(["-m", "-n", "--propagation", "slave", "sh", "-c", script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("run unshare");
        let mut line = String::new();
        let output = holder.stdout.take().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line).unwrap();
        assert_eq!(line, "ready\n", "the world's namespaces could not be made");
        let root = folder.path().canonicalize().unwrap().join("root");
        std::fs::create_dir(&root).unwrap();
        World { holder, folder, root }
    }

    /// A folder for the test's own files.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A process in this world.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.holder.id()
    }

    /// A command that runs in this world.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.holder.id().to_string(), "-m", "-n", "--"]).arg(program).stdin(Stdio::null());
        command
    }

    /// `orlop` with this world's root.
    #[must_use]
    pub fn orlop(&self) -> Command {
        let mut command = self.command(programs().join("orlop"));
        command.arg("--root").arg(&self.root);
        command
    }

    /// `kubectl` as the administrator.
    #[must_use]
    pub fn kubectl(&self) -> Command {
        let mut command = self.command(foreign("kubectl"));
        command.env("KUBECONFIG", self.root.join("state/admin.kubeconfig"));
        command.env("HOME", self.folder.path());
        command
    }

    /// `crictl` on the instance's socket.
    #[must_use]
    pub fn crictl(&self) -> Command {
        let mut command = self.command(foreign("crictl"));
        command.args(self.crictl_flags());
        command
    }

    /// The same as the beginning of a shell's line.
    #[must_use]
    pub fn crictl_line(&self) -> String {
        format!("{} {}", foreign("crictl").display(), self.crictl_flags().join(" "))
    }

    fn crictl_flags(&self) -> [String; 6] {
        let socket = format!("unix://{}", self.socket().display());
        ["--runtime-endpoint", &socket, "--image-endpoint", &socket, "--timeout", "20s"].map(String::from)
    }

    /// The socket of the CRI server.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.root.join("run/cri/cri.sock")
    }

    /// The address of the node on the pods' bridge: the first of their subnet.
    ///
    /// # Panics
    /// When the instance has not chosen one.
    #[must_use]
    pub fn gateway(&self) -> String {
        let record = std::fs::read(self.root.join("state/instance.json")).expect("the instance has a record");
        let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
        let subnet = record["subnet"].as_str().unwrap().split('/').next().unwrap();
        format!("{}.1", subnet.rsplit_once('.').unwrap().0)
    }

    /// Makes an image of busybox and the sample and loads it as `localhost/test:1`.
    ///
    /// # Panics
    /// When a program is missing or fails.
    pub fn load_image(&self) {
        load_image(|| self.orlop(), self.folder());
    }

    /// What is there now.
    ///
    /// # Panics
    /// When a program fails.
    #[must_use]
    pub fn count(&self) -> Count {
        let text = |command: &mut Command| String::from_utf8(run(command).stdout).unwrap();
        let root = self.root.display().to_string();
        let table = std::fs::read_to_string(format!("/proc/{}/mountinfo", self.holder.id())).unwrap();
        let links = text(self.command("ip").args(["-o", "link"]));
        let links = links.lines().filter_map(|line| line.split(": ").nth(1)).filter(|name| name.starts_with("veth"));
        let rules = text(self.command("nft").args(["list", "ruleset"]));
        let leases = std::fs::read_dir(self.root.join("cni/networks")).into_iter().flatten().flatten();
        let leases = leases.flat_map(|network| std::fs::read_dir(network.path()).into_iter().flatten().flatten());
        let is_lease = |name: std::ffi::OsString| name.to_string_lossy().parse::<std::net::IpAddr>().is_ok();
        Count {
            mounts: table.lines().filter(|line| line.contains(&root)).map(str::to_string).collect(),
            links: links.map(str::to_string).collect(),
            rules: rules.lines().filter(|line| !line.trim().starts_with("comment") && line.contains("comment")).count(),
            leases: leases.filter(|entry| is_lease(entry.file_name())).count(),
            processes: self.shims().len(),
            cgroups: crate::census::Census::take("/pod")
                .cgroups
                .into_iter()
                .filter(|path| path.contains(&self.cgroup()))
                .collect(),
            files: self.pod_files(),
        }
    }

    fn pod_files(&self) -> Vec<PathBuf> {
        let entries = |folder: &str| std::fs::read_dir(self.root.join(folder)).into_iter().flatten().flatten();
        let mut files: Vec<PathBuf> = POD_FOLDERS.into_iter().flat_map(entries).map(|entry| entry.path()).collect();
        files.sort();
        files
    }

    /// Processes of shims of this world.
    fn shims(&self) -> Vec<i32> {
        let root = self.root.display().to_string();
        let of = |entry: std::fs::DirEntry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let line = std::fs::read(entry.path().join("cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).into_owned();
            (line.contains("orlop-shim") && line.contains(&root)).then_some(pid)
        };
        std::fs::read_dir("/proc").unwrap().flatten().filter_map(of).collect()
    }

    /// Name of the instance's cgroup, once it has one.
    #[must_use]
    pub fn cgroup(&self) -> String {
        let record = std::fs::read(self.root.join("state/instance.json")).unwrap_or_default();
        let record: serde_json::Value = serde_json::from_slice(&record).unwrap_or_default();
        record["cgroupRoot"].as_str().unwrap_or("/no-instance-yet").to_string()
    }
}

impl Default for World {
    fn default() -> World {
        World::new()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // What a failed test left running goes with its world: daemons by the lock, pods by `down`.
        let _ = self.orlop().arg("down").output();
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Makes an image of busybox and the sample in the folder and has `orlop` load it as `localhost/test:1`.
///
/// # Panics
/// When a program is missing or fails.
pub fn load_image(orlop: impl Fn() -> Command, folder: &Path) {
    let busybox = debian("busybox", "busybox-static").display().to_string();
    let archive = folder.join("test.tar").display().to_string();
    let hello = programs().join("orlop-hello").display().to_string();
    let mut build = orlop();
    build.args(["image", "build", "--entrypoint", "/hello", "--output", &archive]);
    build.arg("--file").arg(format!("{hello}:/hello"));
    for name in
        ["sh", "cat", "echo", "sleep", "ls", "wget", "nc", "env", "id", "true", "false", "tar", "hostname", "stty"]
    {
        build.arg("--file").arg(format!("{busybox}:/bin/{name}"));
    }
    run(build.arg("localhost/test:1"));
    run(orlop().args(["image", "load", &archive]));
}

/// Runs a command to its success.
///
/// # Panics
/// With everything it said, when it fails.
pub fn run(command: &mut Command) -> Output {
    let output = command.output().expect("run a command");
    assert!(
        output.status.success(),
        "{command:?} ended with {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Runs a command and returns what it prints, without the white space around it.
///
/// # Panics
/// When it fails.
#[must_use]
pub fn read(command: &mut Command) -> String {
    String::from_utf8_lossy(&run(command).stdout).trim().to_string()
}

/// Runs a command that has to fail and returns what it says.
///
/// # Panics
/// When it succeeds.
#[must_use]
pub fn refuse(command: &mut Command) -> String {
    let output = command.output().expect("run a command");
    assert!(!output.status.success(), "{command:?} succeeded: {}", String::from_utf8_lossy(&output.stdout));
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Looks until something is so. For what tells nobody when it changes.
///
/// # Panics
/// When it isn't so in time.
pub fn until<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    until_within(DEADLINE, what, look)
}

/// The same, for what takes longer.
///
/// # Panics
/// When it isn't so in time.
pub fn until_within<T>(limit: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A daemon that runs until it is dropped, and its log.
pub struct Daemon {
    child: Child,
    log: PathBuf,
    silent: bool,
}

impl Daemon {
    /// Starts a program; its output goes to a file.
    ///
    /// # Panics
    /// When it can't be started.
    #[must_use]
    pub fn start(mut command: Command, log: PathBuf) -> Daemon {
        let file = std::fs::File::options().create(true).append(true).open(&log).unwrap();
        let child = command.stdout(file.try_clone().unwrap()).stderr(file).spawn().expect("start a daemon");
        Daemon { child, log, silent: false }
    }

    /// A program that runs already and keeps its log itself.
    #[must_use]
    pub fn of(child: Child) -> Daemon {
        Daemon { child, log: PathBuf::new(), silent: true }
    }

    /// The same, and its log is not shown when the test fails.
    #[must_use]
    pub fn silent(mut self) -> Daemon {
        self.silent = true;
        self
    }

    /// Its process. nsenter replaces itself by the program, so this is the daemon.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sees to it that it runs.
    ///
    /// # Panics
    /// With its log, when it has ended.
    pub fn check(&mut self) {
        assert!(self.child.try_wait().unwrap().is_none(), "the daemon ended by itself:\n{}", self.log());
    }

    /// How it ended, if it has.
    ///
    /// # Panics
    /// When the kernel does not know it.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Ends it as a power cut would.
    ///
    /// # Panics
    /// When it is gone already.
    pub fn kill(&mut self) {
        self.check();
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// What it said.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() && !self.silent {
            let log = self.log();
            let last: Vec<&str> = log.lines().rev().take(60).collect();
            eprintln!("the last lines of {}:", self.log.display());
            last.iter().rev().for_each(|line| eprintln!("{line}"));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
