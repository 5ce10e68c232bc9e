//! The pause process, which holds a pod's namespaces.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::path::Path;

use orlop_kernel::capability::{self, Capabilities};
use orlop_kernel::cgroup::{Cgroups, Resources};
use orlop_kernel::mount::{self, Attributes, FsOption, Propagation};
use orlop_kernel::procfs::Procfs;
use orlop_kernel::{namespace, path, process, socket};
use rustix::fs::{Mode, OFlags};
use rustix::thread::LinkNameSpaceType;

use crate::confine;
use crate::create::unblock_signals;
use crate::protocol::{NamespaceSource, SandboxSpec};
use crate::stage::{self, Message, StageError, Step};

/// Identity of the pause process, as that of the usual pause image.
const PAUSE_USER: u32 = 65535;

/// The pod's `/dev/shm` on the host, below the sandbox's folder; containers bind it.
pub const SHM: &str = "shm";
/// The empty root of pause.
const EMPTY: &str = "empty";

/// Makes the pod's shared memory and its pause process.
///
/// # Errors
/// When a step fails; what was made is undone.
pub fn start_pause(folder: &Path, spec: &SandboxSpec, cgroups: &Cgroups) -> Result<(i32, OwnedFd), StageError> {
    make_shm(folder, spec)?;
    let started = start(folder, spec, cgroups);
    if started.is_err() {
        remove(folder, spec, cgroups, || while process::reap().is_some() {});
    }
    started
}

fn make_shm(folder: &Path, spec: &SandboxSpec) -> Result<(), StageError> {
    let place = folder.join(SHM);
    std::fs::create_dir_all(&place).step("make the place of /dev/shm")?;
    let size = spec.shm_bytes.to_string();
    let options = [FsOption::Value("mode", "1777"), FsOption::Value("size", &size)];
    let attributes = Attributes::MOUNT_ATTR_NOSUID | Attributes::MOUNT_ATTR_NODEV | Attributes::MOUNT_ATTR_NOEXEC;
    let shm = mount::new_filesystem("tmpfs", "shm", &options, attributes).step("mount /dev/shm")?;
    let target = path::open_root(&place).step("open the place of /dev/shm")?;
    mount::attach(&shm, &target).step("attach /dev/shm")
}

fn start(folder: &Path, spec: &SandboxSpec, cgroups: &Cgroups) -> Result<(i32, OwnedFd), StageError> {
    cgroups.create(&spec.cgroup, &Resources::default()).step("make the sandbox's cgroup")?;
    std::fs::create_dir_all(folder.join(EMPTY)).step("make the root of pause")?;
    let program = rustix::fs::open(&spec.pause_program, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .step(format!("open the pause program {:?}", spec.pause_program))?;
    let network = match &spec.network {
        NamespaceSource::Path(path) => Some(namespace::open(path).step(format!("open the network namespace {path:?}"))?),
        _ => None,
    };
    let (sync, theirs) = socket::message_pair().step("make a socket")?;
    let flags = [
        (&spec.network, process::new::NETWORK),
        (&spec.ipc, process::new::IPC),
        (&spec.uts, process::new::UTS),
    ];
    // Pause is process 1 of a PID namespace of its own, which containers join where the pod shares it.
    let namespaces = flags
        .iter()
        .filter(|(source, _)| **source == NamespaceSource::New)
        .fold(process::new::MOUNT | process::new::PID, |set, (_, flag)| set | flag);
    match process::clone(namespaces).step("clone pause")? {
        process::Side::Parent { pid, pidfd } => {
            drop(theirs);
            match stage::receive(&sync).step("wait for pause")? {
                None => Ok((pid, pidfd)),
                Some(Message::Failed(text)) => Err(text).step("start pause"),
                Some(other) => Err(format!("unexpected {other:?}")).step("start pause"),
            }
        }
        process::Side::Child => {
            drop(sync);
            let error = match set_up(folder, spec, cgroups, network.as_ref()) {
                Err(error) => error.to_string(),
                Ok(()) => process::exec_descriptor(&program, &[c"pause".into()], &[] as &[CString]).to_string(),
            };
            let _ = stage::send(&theirs, &Message::Failed(error));
            std::process::exit(127)
        }
    }
}

fn set_up(folder: &Path, spec: &SandboxSpec, cgroups: &Cgroups, network: Option<&OwnedFd>) -> Result<(), StageError> {
    process::set_dumpable(false).step("hide the runtime")?;
    unblock_signals()?;
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
        let file = format!("sys/{}", name.replace('.', "/"));
        procfs.write(&file, value).step(format!("set the sysctl {name} to {value:?}"))?;
    }
    confine::set_oom_score(&procfs, Some(spec.oom_score_adj));
    mount::set_propagation(c"/", Propagation::Private).step("make the mounts private")?;
    let place = folder.join(EMPTY);
    let empty = mount::clone_path(&place, false).step("open the root of pause")?;
    mount::set_attributes(&empty, Attributes::MOUNT_ATTR_RDONLY, Some(Propagation::Private), false).step("make it read-only")?;
    let target = path::open_root(&place).step("open the root of pause")?;
    mount::attach(&empty, &target).step("attach the root of pause")?;
    mount::pivot_into(&empty).step("pivot into the root of pause")?;
    capability::bound(Capabilities::default()).step("bound the capabilities")?;
    process::set_identity(PAUSE_USER, PAUSE_USER, &[]).step("become the user of pause")?;
    capability::apply(Capabilities::default(), Capabilities::default()).step("drop the capabilities")?;
    rustix::thread::set_no_new_privs(true).step("set no_new_privs")?;
    process::close_on_exec_from(3).step("close the runtime's files")
}

/// Undoes what [`start_pause`] made, apart from the process, which must have been killed: shared memory and cgroup.
pub fn remove(folder: &Path, spec: &SandboxSpec, cgroups: &Cgroups, reap: impl FnMut()) {
    cgroups.kill(&spec.cgroup);
    if let Err(error) = cgroups.remove(&spec.cgroup, reap) {
        eprintln!("sandbox {} of pod {}: {error}", spec.id, spec.pod);
    }
    let _ = mount::detach(&folder.join(SHM));
}
