//! A pod driven through its shim alone: no daemon, no network, no image.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use orlop_container::client::Client;
use orlop_container::config::{Capabilities, Config, Device, Linux, Mount, Process, Root};
use orlop_container::protocol::{
    ContainerSpec, ExitRecord, NamespaceSource, PidSource, Reply, Request, SandboxSpec, UserMappings,
};

use crate::census::{Census, remove_empty_cgroups};
use crate::place::{busybox_root, private_mounts, programs};

/// How long anything may take here.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Runs a test with a pod of its own and checks that nothing is left.
///
/// # Panics
/// When the test does, or something is left.
pub fn with_pod(name: &str, test: impl FnOnce(&mut ShimPod)) {
    with_pod_of(name, |_| {}, test);
}

/// The same with a sandbox that is changed before its shim starts.
///
/// # Panics
/// When the test does, or something is left.
pub fn with_pod_of(name: &str, change: impl FnOnce(&mut SandboxSpec), test: impl FnOnce(&mut ShimPod)) {
    private_mounts();
    let base = tempfile::tempdir().unwrap();
    let mark = format!("orlop-shim-{name}-{}", std::process::id());
    let place = base.path().join(&mark);
    let before = Census::take(&mark);
    let mut pod = ShimPod::start(&place, &mark, change);
    test(&mut pod);
    if !pod.ended {
        pod.shut_down();
    }
    drop(pod);
    // The shim's last act is to close its sockets; a moment later it is gone.
    let until = Instant::now() + DEADLINE;
    while Census::take(&mark) != before && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(Census::take(&mark), before, "something was left behind");
}

/// A pod.
pub struct ShimPod {
    /// The sandbox's folder.
    pub folder: PathBuf,
    /// The image's only layer.
    pub layer: PathBuf,
    /// Cgroup of the pod.
    pub cgroup: String,
    /// Ids of its user namespace.
    pub user: Option<UserMappings>,
    /// The test has ended it already.
    pub ended: bool,
}

impl ShimPod {
    /// Starts a shim with its pause.
    ///
    /// # Panics
    /// When it can't be started.
    #[must_use]
    pub fn start(base: &Path, mark: &str, change: impl FnOnce(&mut SandboxSpec)) -> ShimPod {
        let folder = base.join("sandbox");
        let layer = base.join("layer");
        busybox_root(&layer);
        std::fs::create_dir_all(&folder).unwrap();
        let cgroup = format!("/{mark}/pod1");
        let mut spec = SandboxSpec {
            version: 1,
            id: "sandbox".into(),
            pod: "test/pod".into(),
            hostname: Some("shim-test".into()),
            user: None,
            network: NamespaceSource::New,
            ipc: NamespaceSource::New,
            uts: NamespaceSource::New,
            pid: NamespaceSource::Host,
            sysctls: [("net.ipv4.ip_unprivileged_port_start".to_string(), "0".to_string())].into(),
            cgroup: format!("{cgroup}/sandbox"),
            pause_program: programs().join("orlop-pause"),
            shm_bytes: 64 << 20,
            mount_label: None,
            oom_score_adj: -998,
            runtime: None,
        };
        change(&mut spec);
        std::fs::write(folder.join("sandbox.json"), serde_json::to_vec(&spec).unwrap()).unwrap();
        let output = Command::new(programs().join("orlop-shim")).arg(&folder).output().expect("start the shim");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        ShimPod { folder, layer, cgroup, user: spec.user, ended: false }
    }

    /// The configuration of a container that runs `args`.
    #[must_use]
    pub fn config(&self, id: &str, args: &[&str]) -> Config {
        let mount = |destination: &str, kind: &str, options: &[&str]| Mount {
            destination: destination.into(),
            kind: kind.into(),
            source: kind.into(),
            options: options.iter().map(ToString::to_string).collect(),
            ..Mount::default()
        };
        let device = |path: &str, major, minor| Device {
            path: path.into(),
            kind: "c".into(),
            major,
            minor,
            ..Device::default()
        };
        let names = |list: &[&str]| list.iter().map(|name| format!("CAP_{name}")).collect::<Vec<_>>();
        let caps = names(&["CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID", "KILL", "MKNOD", "NET_RAW"]);
        Config {
            oci_version: "1.2.0".into(),
            process: Process {
                args: args.iter().map(ToString::to_string).collect(),
                env: vec!["PATH=/bin".into()],
                cwd: "/".into(),
                capabilities: Capabilities {
                    bounding: caps.clone(),
                    effective: caps.clone(),
                    permitted: caps,
                    ..Capabilities::default()
                },
                ..Process::default()
            },
            root: Root { path: self.folder.join("containers").join(id).join("rootfs"), readonly: false },
            mounts: vec![
                mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
                mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
                mount(
                    "/dev/pts",
                    "devpts",
                    &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
                ),
                Mount {
                    destination: "/dev/shm".into(),
                    kind: "bind".into(),
                    source: self.folder.join("shm"),
                    options: vec!["bind".into()],
                    ..Mount::default()
                },
                mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
                mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
                mount("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "ro"]),
            ],
            linux: Linux {
                cgroups_path: format!("{}/{id}", self.cgroup),
                devices: vec![
                    device("/dev/null", 1, 3),
                    device("/dev/zero", 1, 5),
                    device("/dev/full", 1, 7),
                    device("/dev/random", 1, 8),
                    device("/dev/urandom", 1, 9),
                    device("/dev/tty", 5, 0),
                ],
                masked_paths: vec![
                    "/proc/kcore".into(),
                    "/proc/keys".into(),
                    "/proc/acpi".into(),
                    "/sys/firmware".into(),
                    "/proc/timer_list".into(),
                    "/no/such".into(),
                ],
                readonly_paths: vec!["/proc/sys".into(), "/proc/sysrq-trigger".into()],
                uid_mappings: self.user.clone().unwrap_or_default().uid_mappings,
                gid_mappings: self.user.clone().unwrap_or_default().gid_mappings,
                ..Linux::default()
            },
            ..Config::default()
        }
    }

    /// Writes the files of a container and has it made.
    ///
    /// # Panics
    /// When files can't be written or the shim says nothing.
    pub fn create(&self, id: &str, config: &Config, change: impl FnOnce(&mut ContainerSpec)) -> Reply {
        let folder = self.folder.join("containers").join(id);
        for name in ["upper", "work"] {
            std::fs::create_dir_all(folder.join(name)).unwrap();
        }
        let mut spec = ContainerSpec {
            version: 1,
            id: id.into(),
            name: format!("test/pod/{id}"),
            lower_dirs: vec![self.layer.clone()],
            upper_dir: folder.join("upper"),
            work_dir: folder.join("work"),
            log_path: Some(folder.join("0.log")),
            stdin: false,
            stdin_once: false,
            tty: config.process.terminal,
            pid: PidSource::Container,
        };
        change(&mut spec);
        std::fs::write(folder.join("container.json"), serde_json::to_vec(&spec).unwrap()).unwrap();
        std::fs::write(folder.join("config.json"), serde_json::to_vec(config).unwrap()).unwrap();
        self.call(&Request::Create { id: id.into() })
    }

    /// Sends a request and returns the first reply.
    ///
    /// # Panics
    /// When the shim says nothing.
    #[must_use]
    pub fn call(&self, request: &Request) -> Reply {
        Client::call(&self.folder, request, DEADLINE).unwrap_or_else(|error| panic!("{request:?}: {error}"))
    }

    /// Makes and starts a container, waits for its end and returns exit code and log.
    ///
    /// # Panics
    /// When any of it fails.
    #[must_use]
    pub fn run(&self, id: &str, config: &Config) -> (i32, String) {
        let mut events = self.subscribe();
        self.start_container(id, config, |_| {});
        let record = ShimPod::wait(&mut events, id);
        (record.exit_code, self.log(id))
    }

    /// Makes and starts a container that goes on.
    ///
    /// # Panics
    /// When any of it fails.
    pub fn start_container(&self, id: &str, config: &Config, change: impl FnOnce(&mut ContainerSpec)) {
        let created = self.create(id, config, change);
        assert!(matches!(created, Reply::Created { .. }), "{created:?}");
        let started = self.call(&Request::Start { id: id.into() });
        assert!(matches!(started, Reply::Started { .. }), "{started:?}");
    }

    /// Listens for ends.
    ///
    /// # Panics
    /// When the shim can't be reached.
    #[must_use]
    pub fn subscribe(&self) -> Client {
        let mut events = Client::send(&self.folder, &Request::Subscribe, &[], DEADLINE).unwrap();
        assert!(matches!(events.receive().unwrap(), Some(Reply::Listing { .. })));
        events
    }

    /// Waits for the end of a container.
    ///
    /// # Panics
    /// When the shim closes the connection.
    pub fn wait(events: &mut Client, id: &str) -> ExitRecord {
        loop {
            match events.receive().unwrap() {
                Some(Reply::Exited { record }) if record.id == id => return record,
                Some(_) => {}
                None => panic!("the shim closed the connection"),
            }
        }
    }

    /// The log of a container, texts only.
    ///
    /// # Panics
    /// When it can't be read.
    #[must_use]
    pub fn log(&self, id: &str) -> String {
        let text = std::fs::read_to_string(self.folder.join("containers").join(id).join("0.log")).unwrap();
        text.lines().map(|line| line.splitn(4, ' ').nth(3).unwrap_or_default()).collect::<Vec<_>>().join("\n")
    }

    /// Runs a command in a container; its exit code and standard output.
    ///
    /// # Panics
    /// When it can't be run.
    #[must_use]
    pub fn exec(&self, id: &str, args: &[&str]) -> (i32, String) {
        use std::io::Read;
        let null = std::fs::File::open("/dev/null").unwrap();
        let (mut read, write) = std::io::pipe().unwrap();
        let request = Request::Exec {
            id: id.into(),
            args: args.iter().map(ToString::to_string).collect(),
            env: vec![],
            tty: false,
        };
        let descriptors = [null.as_fd(), write.as_fd(), write.as_fd()];
        let mut client = Client::send(&self.folder, &request, &descriptors, DEADLINE).unwrap();
        let first = client.receive().unwrap().unwrap();
        assert!(matches!(first, Reply::ExecStarted { .. }), "{first:?}");
        drop(write);
        let mut text = String::new();
        read.read_to_string(&mut text).unwrap();
        match client.receive().unwrap().unwrap() {
            Reply::ExecExited { exit_code } => (exit_code, text),
            other => panic!("{other:?}"),
        }
    }

    /// Ends the pod and its shim.
    ///
    /// # Panics
    /// When the shim does not end.
    pub fn shut_down(&mut self) {
        self.ended = true;
        let mut client = Client::send(&self.folder, &Request::Shutdown, &[], DEADLINE).unwrap();
        assert!(matches!(client.receive().unwrap(), Some(Reply::Done)));
        // The end of the connection is the end of the shim.
        assert!(client.receive().unwrap().is_none());
    }
}

impl Drop for ShimPod {
    fn drop(&mut self) {
        if !self.ended {
            let _ = Client::call(&self.folder, &Request::Shutdown, DEADLINE);
        }
        // It lies in a cgroup of the test's own.
        if let Some(own) = self.cgroup.split('/').nth(1) {
            remove_empty_cgroups(own);
        }
    }
}
