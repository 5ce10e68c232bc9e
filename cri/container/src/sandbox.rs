//! The pause process, which holds a pod's namespaces and its shared memory.
//!
//! A pod with a user namespace gets it by the same clone, so that all its other namespaces belong to it. It is kept by
//! pause and by the pod's network namespace. What needs the machine's own rights (cgroup, `oom_score_adj`, the maps) is
//! done by the shim while pause waits; pause then becomes the root of its namespace and goes on by itself.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use orlop_kernel::capability::{self, Capabilities};
use orlop_kernel::cgroup::{Cgroups, Resources};
use orlop_kernel::mount::{self, Attributes, FsOption, Propagation};
use orlop_kernel::procfs::{self, Procfs};
use orlop_kernel::{lsm, namespace, path, process, socket};
use rustix::fs::{Mode, OFlags};
use rustix::thread::LinkNameSpaceType;

use crate::config::Config;
use crate::confine;
use crate::create::begin;
use crate::pod_hooks::{self, Point};
use crate::program;
use crate::protocol::{NamespaceSource, SandboxSpec, SandboxState};
use crate::stage::{self, Message, StageError, Step};
use crate::sysctl::{self, Own};
use crate::user_namespace::{UserMappings, UserNamespace};

/// Identity of the pause process, as that of the usual pause image.
const PAUSE_USER: u32 = 65535;

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
    /// The pod's user namespace, where it has one.
    pub user: Option<UserNamespace>,
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
pub fn start_pause(spec: &SandboxSpec, cgroups: &Cgroups) -> Result<Pause, StageError> {
    let started = start(spec, cgroups);
    if started.is_err() {
        remove(spec, cgroups, || while process::reap().is_some() {});
    }
    started
}

fn start(spec: &SandboxSpec, cgroups: &Cgroups) -> Result<Pause, StageError> {
    check_sysctls(spec)?;
    check_user(spec)?;
    cgroups.provide(&spec.cgroup, &Resources::default()).step("make the sandbox's cgroup")?;
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
    let shm = make_shm(spec)?;
    let (sync, theirs) = socket::message_pair().step("make a socket")?;
    match process::clone(new_namespaces(spec)).step(clone_step(spec))? {
        process::Side::Parent { pid, pidfd } => {
            drop(theirs);
            let user = spec.user.as_ref().map(|user| admit(spec, cgroups, pid, user, &sync)).transpose()?;
            match stage::receive(&sync).step("wait for pause")? {
                None => {}
                Some(Message::Failed(text)) => return Err(text).step("start pause"),
                Some(other) => return Err(format!("unexpected {other:?}")).step("start pause"),
            }
            if let NamespaceSource::Bound(path) = &spec.network {
                namespace::bind_network(pid, path).step("keep the pod's network namespace")?;
            }
            Ok(Pause { pid, pidfd, shm, user })
        }
        process::Side::Child => {
            let kept: Vec<BorrowedFd<'_>> =
                [&program, &shm, &theirs].into_iter().chain(network.as_ref()).map(AsFd::as_fd).collect();
            let ready = begin(&kept)
                .and_then(|()| if spec.user.is_some() { become_root(&theirs) } else { join_cgroup(spec, cgroups) })
                .and_then(|()| set_up(spec, network.as_ref(), &shm));
            let error = match ready {
                Err(error) => error.to_string(),
                Ok(()) => process::exec_descriptor(&program, &[c"pause".into()], &[] as &[CString]).to_string(),
            };
            let _ = stage::send(&theirs, &Message::Failed(error));
            std::process::exit(127)
        }
    }
}

/// The namespaces that are made with pause. It is process 1 of a PID namespace of its own, which containers join where
/// the pod shares it.
fn new_namespaces(spec: &SandboxSpec) -> u64 {
    let new = |source: &NamespaceSource| matches!(source, NamespaceSource::New | NamespaceSource::Bound(_));
    let flags = [
        (new(&spec.network), process::new::NETWORK),
        (new(&spec.ipc), process::new::IPC),
        (new(&spec.uts), process::new::UTS),
        (spec.user.is_some(), process::new::USER),
    ];
    flags.iter().filter(|(new, _)| *new).fold(process::new::MOUNT | process::new::PID, |set, (_, flag)| set | flag)
}

fn clone_step(spec: &SandboxSpec) -> &'static str {
    match spec.user {
        None => "clone pause",
        Some(_) => "clone pause with a user namespace (see /proc/sys/user/max_user_namespaces)",
    }
}

/// What the shim does for a pause in a user namespace, which may not do it itself; then lets it go on.
fn admit(
    spec: &SandboxSpec,
    cgroups: &Cgroups,
    pid: i32,
    user: &UserMappings,
    sync: &OwnedFd,
) -> Result<UserNamespace, StageError> {
    cgroups.join(&spec.cgroup, pid).step("join the cgroup")?;
    let procfs = Procfs::open().step("open /proc")?;
    let _ = procfs.write(&format!("{pid}/oom_score_adj"), &spec.oom_score_adj.to_string());
    let namespace = UserNamespace::of(&procfs, pid, user)?;
    stage::send(sync, &Message::Start).step("tell pause to go on")?;
    Ok(namespace)
}

/// Waits for the ids of this user namespace and becomes its root, who owns what belongs to the namespaces.
fn become_root(sync: &OwnedFd) -> Result<(), StageError> {
    match stage::receive(sync).step("wait for the ids")? {
        Some(Message::Start) => {}
        _ => return Err("the shim is gone").step("wait for the ids"),
    }
    process::set_identity(0, 0, &[]).step("become the root of the user namespace")
}

fn join_cgroup(spec: &SandboxSpec, cgroups: &Cgroups) -> Result<(), StageError> {
    cgroups.join(&spec.cgroup, 0).step("join the cgroup")?;
    confine::set_oom_score(&Procfs::open().step("open /proc")?, Some(spec.oom_score_adj));
    Ok(())
}

/// What a user namespace must own.
fn check_user(spec: &SandboxSpec) -> Result<(), StageError> {
    let Some(user) = &spec.user else { return Ok(()) };
    user.check().step("make the user namespace")?;
    let own = |source: &NamespaceSource| matches!(source, NamespaceSource::New | NamespaceSource::Bound(_));
    let owned = [("network", &spec.network), ("ipc", &spec.ipc), ("uts", &spec.uts)];
    match owned.iter().find(|(_, source)| !own(source)) {
        Some((name, _)) => {
            Err(format!("the {name} namespace must be the pod's own and new")).step("make the user namespace")
        }
        None => Ok(()),
    }
}

/// The pod's shared memory, which belongs to the root of the pod.
fn make_shm(spec: &SandboxSpec) -> Result<OwnedFd, StageError> {
    let (uid, gid) = match &spec.user {
        None => (0, 0),
        Some(user) => (user.host_uid(0)?, user.host_gid(0)?),
    };
    let (size, uid, gid) = (spec.shm_bytes.to_string(), uid.to_string(), gid.to_string());
    let mut options = vec![FsOption::Value("mode", "1777"), FsOption::Value("size", &size)];
    if spec.user.is_some() {
        options.extend([FsOption::Value("uid", &uid), FsOption::Value("gid", &gid)]);
    }
    if let Some(label) = &spec.mount_label {
        lsm::check_selinux(label).step("label the pod's shared memory")?;
        options.push(FsOption::Value("context", label));
    }
    let attributes = Attributes::MOUNT_ATTR_NOSUID | Attributes::MOUNT_ATTR_NODEV | Attributes::MOUNT_ATTR_NOEXEC;
    mount::new_filesystem("tmpfs", "shm", &options, attributes).step("mount the pod's shared memory")
}

/// Sysctls that belong to a namespace of the pod; everything else would change the machine.
fn check_sysctls(spec: &SandboxSpec) -> Result<(), StageError> {
    let own = |source: &NamespaceSource| *source != NamespaceSource::Host;
    let own = Own { network: own(&spec.network), ipc: own(&spec.ipc), uts: false };
    spec.sysctls
        .iter()
        .try_for_each(|(name, value)| sysctl::check(own, name, value).step(format!("set the sysctl {name}")))
}

fn set_up(spec: &SandboxSpec, network: Option<&OwnedFd>, shm: &OwnedFd) -> Result<(), StageError> {
    rustix::process::setsid().step("start a session")?;
    if let Some(network) = network {
        namespace::join(network, LinkNameSpaceType::Network).step("join the network namespace")?;
    }
    if let Some(hostname) = spec.hostname.as_ref().filter(|_| spec.uts == NamespaceSource::New) {
        rustix::system::sethostname(hostname.as_bytes()).step(format!("set the host name {hostname:?}"))?;
    }
    if !spec.sysctls.is_empty() {
        let procfs = Procfs::open().step("open /proc")?;
        spec.sysctls.iter().try_for_each(|(name, value)| sysctl::set(&procfs, name, value))?;
    }
    // The streams of whoever starts the shim are not pause's: somebody may wait for their end.
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).step("open /dev/null")?;
    for place in 0..3 {
        process::set_stdio(&null, place).step("set the streams")?;
    }
    mount::set_propagation(c"/", Propagation::Private).step("make the mounts private")?;
    let target = path::open_root(Path::new("/")).step("open the place of pause's root")?;
    mount::attach(shm, &target).step("attach the pod's shared memory")?;
    mount::pivot_into(shm).step("pivot into the root of pause")?;
    capability::bound(Capabilities::default()).step("bound the capabilities")?;
    let mapped = |user: &UserMappings| user.host_uid(PAUSE_USER).and(user.host_gid(PAUSE_USER)).is_ok();
    let user = if spec.user.as_ref().is_none_or(mapped) { PAUSE_USER } else { 0 };
    process::set_identity(user, user, &[]).step("become the user of pause")?;
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
/// in the cgroups of its containers and of pause, and removes those cgroups, what a runtime program keeps of the containers,
/// and the socket, and runs the hooks that are owed at the end of containers. Works from the files of the sandbox's folder,
/// may be repeated, and leaves the files to the caller.
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
    let spec = read::<SandboxSpec>(&folder.join("sandbox.json"));
    let runtime = spec.as_ref().and_then(|spec| spec.runtime.as_ref());
    let (mut paths, mut hooked) = (Vec::new(), Vec::new());
    let mut result = Ok(());
    for entry in std::fs::read_dir(folder.join("containers")).into_iter().flatten().flatten() {
        let config = read::<Config>(&entry.path().join("config.json"));
        let path = config.as_ref().map(|config| config.linux.cgroups_path.clone());
        if let (Some(runtime), Some(id)) = (runtime, entry.file_name().to_str()) {
            path.iter().for_each(|path| cgroups.kill(path));
            result = result.and(program::forget(runtime, folder, id, config.as_ref()));
        }
        paths.extend(path);
        hooked.extend(config.filter(|config| Point::Stop.is_asked(config)).map(|config| (entry, config)));
    }
    paths.extend(spec.map(|spec| spec.cgroup));
    for path in paths.into_iter().filter(|path| cgroups.exists(path)) {
        cgroups.kill(&path);
        result = result.and(cgroups.remove(&path, || {}).step(format!("remove the cgroup {path}")));
    }
    for (entry, config) in hooked {
        let id = entry.file_name().to_string_lossy().into_owned();
        if let Err(error) = pod_hooks::pay(&id, &entry.path(), &config) {
            eprintln!("container {id}: {error}");
        }
    }
    let _ = std::fs::remove_file(folder.join("shim.sock"));
    result
}

fn read<T: serde::de::DeserializeOwned>(file: &Path) -> Option<T> {
    serde_json::from_slice(&std::fs::read(file).ok()?).ok()
}
