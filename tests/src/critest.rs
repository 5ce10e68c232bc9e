//! critest, the conformance suite of the CRI, against `orlop cri` or against containerd with runc, in a world with the
//! images it asks for.

mod images;
mod report;
mod table;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

pub use self::images::{IMAGES, storage};
pub use self::report::{End, Spec};
pub use self::table::{compare, describe};
use crate::census::{Census, remove_empty_cgroups};
use crate::containerd::{Containerd, upstream_network, upstream_plugins};
use crate::images::{REGISTRY_PORT, registry};
use crate::place::{debian, foreign};
use crate::world::{Count, Daemon, World, run as run_command, until};

/// How long a whole run may take; critest itself is told a little less, so that it can report.
const DEADLINE: Duration = Duration::from_secs(15 * 60);

/// What is tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// `orlop cri`.
    Orlop,
    /// containerd with runc and the upstream plugins.
    Containerd,
}

impl Subject {
    /// For people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Subject::Orlop => "orlop",
            Subject::Containerd => "containerd",
        }
    }

    /// The cgroup of pods that ask for none, as critest's do.
    fn cgroup(self) -> &'static str {
        match self {
            Subject::Orlop => "orlop",
            Subject::Containerd => "k8s.io",
        }
    }
}

/// How it is tested.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Runtime handler of all pods.
    pub handler: Option<String>,
    /// Streams go over WebSockets.
    pub websocket: bool,
    /// Only the specs whose name this regular expression matches.
    pub focus: Option<String>,
    /// Another critest than the pinned one.
    pub critest: Option<PathBuf>,
    /// Folder that critest's output, its report and the server's log are kept in.
    pub keep: Option<PathBuf>,
}

/// What came out.
pub struct Outcome {
    /// What was tested.
    pub subject: Subject,
    /// The specs that were chosen, by name.
    pub specs: Vec<Spec>,
    /// What was left on the machine.
    pub left: Vec<String>,
    /// How long critest ran.
    pub took: Duration,
    /// The last lines of the server's log.
    pub log: String,
}

impl Outcome {
    /// Whether every spec passed or has an excuse, and ours left nothing behind.
    #[must_use]
    pub fn is_good(&self) -> bool {
        let excused = |spec: &Spec| spec.end == End::Passed || spec.excuse(self.subject).is_some();
        !self.specs.is_empty()
            && self.specs.iter().all(excused)
            && (self.left.is_empty() || self.subject == Subject::Containerd)
    }
}

/// A server in its world.
struct Server {
    subject: Subject,
    daemon: Daemon,
    socket: PathBuf,
    world: World,
}

/// Runs critest.
///
/// # Errors
/// When it gives no report.
///
/// # Panics
/// When a program is missing or the server does not start.
pub fn run(subject: Subject, options: &Options) -> Result<Outcome, String> {
    let _ = debian("ipcmk", "util-linux");
    let world = World::new();
    let _registry = registry(&world, &storage());
    run_command(world.command("sh").args(["-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]));
    let mirrors = write_mirrors(world.folder());
    if let (Subject::Orlop, Some(handler)) = (subject, &options.handler) {
        write_handler(&world, handler);
    }
    let server = Server::start(subject, world, &mirrors);
    let (segments, before) = (shared_memory(), (server.world.count(), server.cgroups()));
    let began = Instant::now();
    let ended = server.critest(options);
    let took = began.elapsed();
    for segment in shared_memory().into_iter().filter(|segment| !segments.contains(segment)) {
        let _ = Command::new("ipcrm").args(["-m", &segment]).output();
    }
    let left = server.tidy(&before);
    let log = server.daemon.log();
    if let Some(folder) = &options.keep {
        server.keep(folder);
    }
    let lines: Vec<&str> = log.lines().collect();
    let log = lines[lines.len().saturating_sub(60)..].join("\n");
    let read = || {
        let status = ended?;
        let text = std::fs::read_to_string(server.world.folder().join("report.json"))
            .map_err(|error| format!("critest ended with {status} and left no report: {error}"))?;
        report::read(&text)
    };
    let specs = read().map_err(|error| {
        format!(
            "{error}\ncritest said:\n{}\nthe server's log:\n{log}",
            tail(&server.world.folder().join("critest.log"))
        )
    })?;
    Ok(Outcome { subject, specs, left, took, log })
}

impl Server {
    /// Starts what is tested, in an empty working folder, and waits until it listens.
    fn start(subject: Subject, world: World, mirrors: &Path) -> Server {
        let work = world.folder().join("server");
        std::fs::create_dir(&work).unwrap();
        let (daemon, socket) = match subject {
            Subject::Orlop => {
                let orlop = world.orlop();
                let mut command = world.command("env");
                command.arg("-C").arg(&work);
                // nsenter's own words come first in a command of the world.
                let words: Vec<_> = orlop.get_args().skip_while(|word| *word != "--").skip(1).collect();
                command.args(words).arg("cri").arg("--registry-config-dir").arg(mirrors);
                (Daemon::start(command, world.folder().join("server.log")), world.socket())
            }
            Subject::Containerd => {
                // Below the root, so that its mounts are counted.
                let folder = world.root.join("containerd");
                std::fs::create_dir(&folder).unwrap();
                let containerd = Containerd {
                    pause: "registry.k8s.io/pause:3.10.1".into(),
                    networks: upstream_network(world.folder(), "critest0", "10.66.0.0/16"),
                    plugins: upstream_plugins(),
                    registries: Some(mirrors.to_path_buf()),
                    folder,
                };
                (containerd.start(&world), containerd.socket())
            }
        };
        let mut server = Server { subject, daemon, socket, world };
        until("the server answers", || {
            server.daemon.check();
            server.crictl(&["version"]).output().is_ok_and(|output| output.status.success()).then_some(())
        });
        server
    }

    /// crictl on the server's socket.
    fn crictl(&self, arguments: &[&str]) -> Command {
        let mut command = self.world.command(foreign("crictl"));
        let socket = format!("unix://{}", self.socket.display());
        command.args(["--runtime-endpoint", &socket, "--image-endpoint", &socket, "--timeout", "60s"]).args(arguments);
        command
    }

    /// Runs critest to its end or to the deadline.
    fn critest(&self, options: &Options) -> Result<ExitStatus, String> {
        let folder = self.world.folder();
        let [work, temporary] = ["critest", "tmp"].map(|name| folder.join(name));
        std::fs::create_dir(&work).unwrap();
        std::fs::create_dir(&temporary).unwrap();
        let socket = format!("unix://{}", self.socket.display());
        let mut command = self.world.command("env");
        command.arg("-C").arg(&work).arg(format!("TMPDIR={}", temporary.display()));
        command.arg(options.critest.clone().unwrap_or_else(|| foreign("critest")));
        command.args(["-runtime-endpoint", &socket, "-image-endpoint", &socket]);
        // Always the same order.
        command.args(["-ginkgo.randomize-all=false", "-ginkgo.seed=1", "-ginkgo.no-color"]);
        command.arg(format!("-ginkgo.timeout={}s", DEADLINE.as_secs() - 60));
        command.arg(format!("-ginkgo.json-report={}", folder.join("report.json").display()));
        if let Some(handler) = &options.handler {
            command.args(["-runtime-handler", handler]);
        }
        if options.websocket {
            command.args(["-websocket-exec", "-websocket-attach", "-websocket-portforward"]);
        }
        if let Some(focus) = &options.focus {
            command.args(["-ginkgo.focus", focus]);
        }
        let log = std::fs::File::create(folder.join("critest.log")).unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        wait(command)
    }

    /// Removes the pods that failed specs left, and says what is still there then.
    fn tidy(&self, (before, cgroups): &(Count, BTreeSet<String>)) -> Vec<String> {
        let pods = self.crictl(&["pods", "--quiet"]).output().map(|output| output.stdout).unwrap_or_default();
        let mut left = Vec::new();
        if !pods.is_empty() {
            let count = String::from_utf8_lossy(&pods).lines().count();
            left.push(format!("{count} pods, which are removed now"));
            let removed = self.crictl(&["rmp", "--force", "--all"]).output().expect("run crictl");
            if !removed.status.success() {
                left.push(format!("pods: {}", String::from_utf8_lossy(&removed.stderr).trim()));
            }
        }
        left.extend(self.world.count().since(before));
        // Other instances put pods there, too; the log names all of this one.
        let log = self.daemon.log();
        let own = |path: &&String| path.rsplit('/').next().is_some_and(|id| log.contains(id));
        left.extend(self.cgroups().difference(cgroups).filter(own).map(|path| format!("cgroup {path}")));
        left
    }

    /// The cgroups of its pods.
    fn cgroups(&self) -> BTreeSet<String> {
        Census::take(&format!("/{}/", self.subject.cgroup())).cgroups
    }

    /// Copies what can tell more into a folder.
    fn keep(&self, folder: &Path) {
        std::fs::create_dir_all(folder).unwrap_or_else(|error| panic!("make {}: {error}", folder.display()));
        for name in ["critest.log", "report.json"] {
            let _ = std::fs::copy(self.world.folder().join(name), folder.join(name));
        }
        std::fs::write(folder.join("server.log"), self.daemon.log())
            .unwrap_or_else(|error| panic!("write {}: {error}", folder.join("server.log").display()));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Ours removes its own.
        if self.subject == Subject::Containerd {
            remove_empty_cgroups(self.subject.cgroup());
        }
    }
}

/// Waits for a program's end, at most until the deadline.
fn wait(mut command: Command) -> Result<ExitStatus, String> {
    let clock = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("make a runtime");
    clock.block_on(async {
        command.stdin(Stdio::null());
        let mut child = tokio::process::Command::from(command).kill_on_drop(true).spawn().expect("start critest");
        let waited = tokio::time::timeout(DEADLINE, child.wait()).await;
        waited
            .map_err(|_| format!("critest did not end within {} s", DEADLINE.as_secs()))?
            .map_err(|error| format!("wait for critest: {error}"))
    })
}

/// The registry of the world in the place of those in the names, as containerd's `hosts.toml` tells it.
fn write_mirrors(folder: &Path) -> PathBuf {
    let mirrors = folder.join("registries");
    let url = format!("http://127.0.0.1:{REGISTRY_PORT}");
    for host in images::HOSTS {
        let place = mirrors.join(host);
        std::fs::create_dir_all(&place).unwrap();
        let text = format!("server = \"{url}\"\n\n[host.\"{url}\"]\ncapabilities = [\"pull\", \"resolve\"]\n");
        std::fs::write(place.join("hosts.toml"), text).unwrap();
    }
    mirrors
}

/// A handler of our server for the runtime program of that name.
fn write_handler(world: &World, handler: &str) {
    // crun refuses to work where v2 has controllers beside v1.
    let mixed = Path::new("/sys/fs/cgroup/unified");
    if handler == "crun"
        && std::fs::read_to_string(mixed.join("cgroup.controllers")).is_ok_and(|text| !text.trim().is_empty())
    {
        run_command(world.command("umount").arg(mixed));
    }
    let text = format!("version = 1\n[runtimes.{handler}]\nprogram = {:?}\n", debian(handler, handler));
    std::fs::create_dir_all(world.root.join("etc")).unwrap();
    std::fs::write(world.root.join("etc/cri.toml"), text).unwrap();
}

/// Segments of System V shared memory: critest makes some and leaves them.
fn shared_memory() -> Vec<String> {
    let table = std::fs::read_to_string("/proc/sysvipc/shm").unwrap_or_default();
    table.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1)).map(str::to_string).collect()
}

/// The last lines of a file.
fn tail(file: &Path) -> String {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}
