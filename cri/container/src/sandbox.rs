//! The pause process, which holds a pod's namespaces and its shared memory.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use orlop_kernel::capability::{self, Capabilities};
use orlop_kernel::cgroup::{Cgroups, Resources};
use orlop_kernel::mount::{self, Attributes, FsOption, Propagation};
use orlop_kernel::procfs::{self, Procfs};
use orlop_kernel::{namespace, path, process, socket};
use rustix::fs::{Mode, OFlags};
use rustix::thread::LinkNameSpaceType;

use crate::config::Config;
use crate::confine;
use crate::create::begin;
use crate::protocol::{NamespaceSource, SandboxSpec, SandboxState};
use crate::stage::{self, Message, StageError, Step};

/// Identity of the pause process, as that of the usual pause image.
const PAUSE_USER: u32 = 65535;
/// Where the root of pause is attached in its own mount namespace, below the sandbox's folder.
const ROOT: &str = "root";

/// The pause process.
#[derive(Debug)]
pub struct Pause {
    /// In the machine's PID namespace.
    pub pid: i32,
    /// A descriptor of it.
    pub pidfd: OwnedFd,
    /// The pod's shared memory: the root of pause, mounted in its mount namespace alone. Whoever wants to copy the
    /// mount must be in there.
    pub shm: OwnedFd,
}

/// The source of a bind mount that stands for the pod's shared memory; nothing has that name on disk.
#[must_use]
pub fn shm_source(folder: &Path) -> PathBuf {
    folder.join("shm")
}

/// Makes the pod's shared memory and its pause process.
///
/// # Errors
/// When a step fails; what was made is undone.
pub fn start_pause(folder: &Path, spec: &SandboxSpec, cgroups: &Cgroups) -> Result<Pause, StageError> {
    let started = start(folder, spec, cgroups);
    if started.is_err() {
        remove(spec, cgroups, || while process::reap().is_some() {});
    }
    started
}

fn start(folder: &Path, spec: &SandboxSpec, cgroups: &Cgroups) -> Result<Pause, StageError> {
    check_sysctls(spec)?;
    cgroups.create(&spec.cgroup, &Resources::default()).step("make the sandbox's cgroup")?;
    std::fs::create_dir_all(folder.join(ROOT)).step("make the place of pause's root")?;
    let program = rustix::fs::open(&spec.pause_program, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(std::io::Error::from)
        .and_then(mount::read_only_view)
        .step(format!("open the pause program {:?}", spec.pause_program))?;
    let network = match &spec.network {
        NamespaceSource::Path(path) => {
            Some(namespace::open(path).step(format!("open the network namespace {path:?}"))?)
        }
        _ => None,
    };
    let shm = make_shm(spec.shm_bytes)?;
    let (sync, theirs) = socket::message_pair().step("make a socket")?;
    let flags =
        [(&spec.network, process::new::NETWORK), (&spec.ipc, process::new::IPC), (&spec.uts, process::new::UTS)];
    // Pause is process 1 of a PID namespace of its own, which containers join where the pod shares it.
    let namespaces = flags
        .iter()
        .filter(|(source, _)| **source == NamespaceSource::New)
        .fold(process::new::MOUNT | process::new::PID, |set, (_, flag)| set | flag);
    match process::clone(namespaces).step("clone pause")? {
        process::Side::Parent { pid, pidfd } => {
            drop(theirs);
            match stage::receive(&sync).step("wait for pause")? {
                None => Ok(Pause { pid, pidfd, shm }),
                Some(Message::Failed(text)) => Err(text).step("start pause"),
                Some(other) => Err(format!("unexpected {other:?}")).step("start pause"),
            }
        }
        process::Side::Child => {
            let kept: Vec<BorrowedFd<'_>> =
                [&program, &shm, &theirs].into_iter().chain(network.as_ref()).map(AsFd::as_fd).collect();
            let error = match begin(&kept).and_then(|()| set_up(folder, spec, cgroups, network.as_ref(), &shm)) {
                Err(error) => error.to_string(),
                Ok(()) => process::exec_descriptor(&program, &[c"pause".into()], &[] as &[CString]).to_string(),
            };
            let _ = stage::send(&theirs, &Message::Failed(error));
            std::process::exit(127)
        }
    }
}

fn make_shm(bytes: u64) -> Result<OwnedFd, StageError> {
    let size = bytes.to_string();
    let options = [FsOption::Value("mode", "1777"), FsOption::Value("size", &size)];
    let attributes = Attributes::MOUNT_ATTR_NOSUID | Attributes::MOUNT_ATTR_NODEV | Attributes::MOUNT_ATTR_NOEXEC;
    mount::new_filesystem("tmpfs", "shm", &options, attributes).step("mount the pod's shared memory")
}

/// Sysctls that belong to a namespace of the pod, by its kind; everything else would change the machine.
fn check_sysctls(spec: &SandboxSpec) -> Result<(), StageError> {
    const IPC: [&str; 4] = ["kernel/shm", "kernel/msg", "kernel/sem", "fs/mqueue/"];
    for name in spec.sysctls.keys() {
        let file = sysctl_file(name);
        let (known, own) = if file.starts_with("net/") {
            (true, spec.network != NamespaceSource::Host)
        } else if IPC.iter().any(|prefix| file.starts_with(prefix)) {
            (true, spec.ipc != NamespaceSource::Host)
        } else {
            (false, false)
        };
        if !known {
            return Err("it belongs to no namespace of a pod").step(format!("set the sysctl {name}"));
        }
        if !own {
            return Err("the pod shares that namespace with the machine").step(format!("set the sysctl {name}"));
        }
    }
    Ok(())
}

/// The file of a sysctl below `/proc/sys`: dots part its name, and a slash stands for a dot (`sysctl(8)`).
fn sysctl_file(name: &str) -> String {
    let first = name.find(['.', '/']).and_then(|at| name[at..].chars().next());
    if first == Some('/') {
        return name.to_string();
    }
    let swap = |letter| match letter {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    name.chars().map(swap).collect()
}

fn set_up(
    folder: &Path,
    spec: &SandboxSpec,
    cgroups: &Cgroups,
    network: Option<&OwnedFd>,
    shm: &OwnedFd,
) -> Result<(), StageError> {
    rustix::process::setsid().step("start a session")?;
    cgroups.join(&spec.cgroup, 0).step("join the cgroup")?;
    if let Some(network) = network {
        namespace::join(network, LinkNameSpaceType::Network).step("join the network namespace")?;
    }
    if let Some(hostname) = spec.hostname.as_ref().filter(|_| spec.uts == NamespaceSource::New) {
        rustix::system::sethostname(hostname.as_bytes()).step(format!("set the host name {hostname:?}"))?;
    }
    let procfs = Procfs::open().step("open /proc")?;
    for (name, value) in &spec.sysctls {
        procfs
            .write(&format!("sys/{}", sysctl_file(name)), value)
            .step(format!("set the sysctl {name} to {value:?}"))?;
    }
    confine::set_oom_score(&procfs, Some(spec.oom_score_adj));
    // The streams of whoever starts the shim are not pause's: somebody may wait for their end.
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).step("open /dev/null")?;
    for place in 0..3 {
        process::set_stdio(&null, place).step("set the streams")?;
    }
    mount::set_propagation(c"/", Propagation::Private).step("make the mounts private")?;
    let target = path::open_root(&folder.join(ROOT)).step("open the place of pause's root")?;
    mount::attach(shm, &target).step("attach the pod's shared memory")?;
    mount::pivot_into(shm).step("pivot into the root of pause")?;
    capability::bound(Capabilities::default()).step("bound the capabilities")?;
    process::set_identity(PAUSE_USER, PAUSE_USER, &[]).step("become the user of pause")?;
    capability::apply(Capabilities::default(), Capabilities::default()).step("drop the capabilities")?;
    rustix::thread::set_no_new_privs(true).step("set no_new_privs")?;
    process::close_on_exec_from(3).step("close the runtime's files")
}

/// Undoes what [`start_pause`] made: kills what is in the sandbox's cgroup and removes it.
pub fn remove(spec: &SandboxSpec, cgroups: &Cgroups, reap: impl FnMut()) {
    cgroups.kill(&spec.cgroup);
    if let Err(error) = cgroups.remove(&spec.cgroup, reap) {
        eprintln!("sandbox {} of pod {}: {error}", spec.id, spec.pod);
    }
}

/// Removes what a shim that died left running: kills the shim itself should it still be there, then every process
/// in the cgroups of its containers and of pause, and removes those cgroups and the socket. Works from the files of
/// the sandbox's folder, may be repeated, and leaves the files to the caller.
///
/// # Errors
/// When a process does not end or a cgroup can't be removed; the rest is done all the same.
pub fn clean_up(folder: &Path) -> Result<(), StageError> {
    let cgroups = Cgroups::detect().step("find the cgroups")?;
    if let Some(state) = read::<SandboxState>(&folder.join("state.json")) {
        for (pid, ticks) in [(state.shim_pid, state.shim_start_ticks), (state.pause_pid, state.pause_start_ticks)] {
            if procfs::is_alive(pid, ticks) {
                let _ = process::kill(pid, nix::sys::signal::Signal::SIGKILL as i32);
            }
        }
    }
    let mut paths = Vec::new();
    if let Ok(entries) = std::fs::read_dir(folder.join("containers")) {
        let config = |entry: std::fs::DirEntry| read::<Config>(&entry.path().join("config.json"));
        paths.extend(entries.flatten().filter_map(config).map(|config| config.linux.cgroups_path));
    }
    paths.extend(read::<SandboxSpec>(&folder.join("sandbox.json")).map(|spec| spec.cgroup));
    let mut result = Ok(());
    for path in paths.into_iter().filter(|path| cgroups.exists(path)) {
        cgroups.kill(&path);
        result = result.and(cgroups.remove(&path, || {}).step(format!("remove the cgroup {path}")));
    }
    let _ = std::fs::remove_file(folder.join("shim.sock"));
    result
}

fn read<T: serde::de::DeserializeOwned>(file: &Path) -> Option<T> {
    serde_json::from_slice(&std::fs::read(file).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctls_stay_in_the_pod() {
        assert_eq!(sysctl_file("net.ipv4.conf.eth0/1.forwarding"), "net/ipv4/conf/eth0.1/forwarding");
        assert_eq!(sysctl_file("net/ipv4/conf/eth0.1/forwarding"), "net/ipv4/conf/eth0.1/forwarding");
        let spec = |network, name: &str| SandboxSpec {
            version: 1,
            id: "s".into(),
            pod: "n/p".into(),
            hostname: None,
            network,
            ipc: NamespaceSource::New,
            uts: NamespaceSource::New,
            pid: NamespaceSource::Host,
            sysctls: [(name.to_string(), "1".to_string())].into(),
            cgroup: "/x".into(),
            pause_program: "/p".into(),
            shm_bytes: 1,
            oom_score_adj: 0,
        };
        assert!(check_sysctls(&spec(NamespaceSource::New, "net.core.somaxconn")).is_ok());
        assert!(check_sysctls(&spec(NamespaceSource::New, "kernel.shm_rmid_forced")).is_ok());
        assert!(check_sysctls(&spec(NamespaceSource::Host, "net.core.somaxconn")).is_err());
        assert!(check_sysctls(&spec(NamespaceSource::New, "kernel.core_pattern")).is_err());
    }
}
