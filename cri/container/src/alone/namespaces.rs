//! The namespaces of a container that stands alone: new, by the file of one that exists, or the machine's.
//!
//! With a user namespace those that are new belong to it. So they are made together with it by a process that does nothing
//! else, the holder: it waits until the container's own process has joined them, and ends.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use orlop_kernel::namespace::{self, Kinds};
use orlop_kernel::procfs::Procfs;
use orlop_kernel::{process, socket};
use rustix::thread::{LinkNameSpaceType as Kind, UnshareFlags};

use crate::config::{Config, IdMapping, Namespace};
use crate::create::{PidNamespace, begin, unshare};
use crate::stage::{self, Message, StageError, Step};
use crate::sysctl::{self, Own};
use crate::user_namespace::{UserMappings, UserNamespace, check_mappings};

/// Where one comes from.
#[derive(Debug, Default)]
pub(crate) enum Space {
    /// The machine's.
    #[default]
    Machine,
    /// A new one.
    New,
    /// One that exists.
    Of(OwnedFd),
}

impl Space {
    fn is_new(&self) -> bool {
        matches!(self, Space::New)
    }
}

/// Namespaces of a container.
#[derive(Debug, Default)]
pub(crate) struct Namespaces {
    pid: Space,
    network: Space,
    ipc: Space,
    uts: Space,
    mount: Space,
    pub(crate) cgroup: Space,
    user: Space,
}

impl Namespaces {
    /// Those that belong to the container, by its specification.
    pub(crate) fn own(namespaces: &[Namespace]) -> Own {
        let has = |kind: &str| namespaces.iter().any(|namespace| namespace.kind == kind);
        Own { network: has("network"), ipc: has("ipc"), uts: has("uts") }
    }

    /// Opens the files of those that exist.
    pub(crate) fn open(namespaces: &[Namespace]) -> Result<Namespaces, StageError> {
        let mut opened = Namespaces::default();
        for entry in namespaces {
            let space = match &entry.path {
                None => Space::New,
                Some(path) => {
                    let what = format!("open the {} namespace {path:?}", entry.kind);
                    Space::Of(namespace::open(path).step(what)?)
                }
            };
            *match entry.kind.as_str() {
                "pid" => &mut opened.pid,
                "network" => &mut opened.network,
                "ipc" => &mut opened.ipc,
                "uts" => &mut opened.uts,
                "mount" => &mut opened.mount,
                "cgroup" => &mut opened.cgroup,
                "user" => &mut opened.user,
                other => return Err(format!("{other:?} is none")).step("open the namespaces"),
            } = space;
        }
        Ok(opened)
    }

    /// Whose process numbers the container has.
    pub(crate) fn pid(&self) -> PidNamespace<'_> {
        match &self.pid {
            Space::Machine => PidNamespace::Host,
            Space::New => PidNamespace::New,
            Space::Of(file) => PidNamespace::File(file),
        }
    }

    /// The descriptors that the container's process needs.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [&self.network, &self.ipc, &self.uts, &self.mount, &self.cgroup].into_iter().filter_map(|space| match space {
            Space::Of(file) => Some(file.as_fd()),
            _ => None,
        })
    }

    /// New ones that a user namespace owns, where there is one.
    fn owned(&self) -> [(bool, u64, UnshareFlags, Kinds); 3] {
        let kinds = [
            (&self.network, process::new::NETWORK, UnshareFlags::NEWNET, Kinds::NETWORK),
            (&self.ipc, process::new::IPC, UnshareFlags::NEWIPC, Kinds::INTER_PROCESS_COMMUNICATION),
            (&self.uts, process::new::UTS, UnshareFlags::NEWUTS, Kinds::HOST_NAME_AND_NIS_DOMAIN_NAME),
        ];
        kinds.map(|(space, new, unshare, kinds)| (space.is_new(), new, unshare, kinds))
    }

    /// Makes the user namespace with what it owns, where one is asked for.
    pub(crate) fn hold(&self, config: &Config) -> Result<Option<Holder>, StageError> {
        let what = "make the user namespace";
        if let Space::Machine = self.user {
            return Ok(None);
        }
        let (sync, theirs) = socket::message_pair().step(what)?;
        let given = if let Space::Of(file) = &self.user { Some(file) } else { None };
        let owned = self.owned().into_iter().filter(|(new, ..)| *new);
        let (clone, unshare) =
            owned.fold((0, UnshareFlags::empty()), |(clone, unshare), (_, new, flag, _)| (clone | new, unshare | flag));
        let flags = if given.is_some() { 0 } else { clone | process::new::USER };
        match process::clone(flags).step("make the user namespace (see /proc/sys/user/max_user_namespaces)")? {
            process::Side::Child => {
                let kept: Vec<BorrowedFd<'_>> = given.into_iter().chain([&theirs]).map(AsFd::as_fd).collect();
                let held = begin(&kept).and_then(|()| hold_all(self, config, given, unshare, &theirs));
                let message = held.map_or_else(|error| Message::Failed(error.to_string()), |()| Message::Ready);
                let _ = stage::send(&theirs, &message);
                // The namespaces live as long as it does: until the other end is closed.
                let _ = stage::receive(&theirs);
                std::process::exit(0)
            }
            process::Side::Parent { pid, pidfd } => {
                drop(theirs);
                let mut holder = Holder { pidfd, sync: Some(sync), user: None };
                holder.user = Some(holder.admit(config, pid, given.is_some())?);
                Ok(Some(holder))
            }
        }
    }

    /// Joins and makes what the container's process does for itself. Its sources are open already; from here on it sees
    /// the mounts of its own namespace.
    pub(crate) fn enter(&self, holder: Option<&Holder>) -> Result<(), StageError> {
        for (space, kind, name) in [
            (&self.network, Kind::Network, "network"),
            (&self.ipc, Kind::InterProcessCommunication, "ipc"),
            (&self.uts, Kind::HostNameAndNISDomainName, "uts"),
            (&self.cgroup, Kind::ControlGroup, "cgroup"),
            (&self.mount, Kind::Mount, "mount"),
        ] {
            if let Space::Of(file) = space {
                namespace::join(file, kind).step(format!("join the {name} namespace"))?;
            }
        }
        let owned = self.owned().into_iter().filter(|(new, ..)| *new);
        let (mut make, held) = owned
            .fold((UnshareFlags::empty(), Kinds::empty()), |(make, held), (_, _, flag, kind)| {
                (make | flag, held | kind)
            });
        if let Some(holder) = holder {
            make = UnshareFlags::empty();
            if !held.is_empty() {
                namespace::join_process(&holder.pidfd, held).step("join the user namespace's own")?;
            }
        }
        if self.cgroup.is_new() {
            make |= UnshareFlags::NEWCGROUP;
        }
        if self.mount.is_new() {
            make |= UnshareFlags::NEWNS;
        }
        unshare(make).step("make the namespaces")
    }

    /// Gives the namespaces, which this process is in, their names and values. What only the root of a user namespace may
    /// set in those that are new, its holder has set.
    pub(crate) fn furnish(&self, config: &Config, procfs: &Procfs, holder: Option<&Holder>) -> Result<(), StageError> {
        if self.network.is_new() {
            namespace::raise_own_loopback().step("raise the loopback device")?;
        }
        if !config.hostname.is_empty() {
            let name = &config.hostname;
            rustix::system::sethostname(name.as_bytes()).step(format!("set the host name {name:?}"))?;
        }
        if !config.domainname.is_empty() {
            let name = &config.domainname;
            rustix::system::setdomainname(name.as_bytes()).step(format!("set the domain name {name:?}"))?;
        }
        let held = |name: &str| holder.is_some() && self.ipc.is_new() && sysctl::is_owners(name);
        let mut own = config.linux.sysctl.iter().filter(|(name, _)| !held(name));
        own.try_for_each(|(name, value)| sysctl::set(procfs, name, value))
    }
}

/// The process that holds a user namespace with what it owns until the container has joined it.
#[derive(Debug)]
pub(crate) struct Holder {
    pidfd: OwnedFd,
    sync: Option<OwnedFd>,
    user: Option<UserNamespace>,
}

impl Holder {
    /// The user namespace.
    pub(crate) fn user(&self) -> Option<&UserNamespace> {
        self.user.as_ref()
    }

    /// The descriptors that the container's process needs.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [Some(self.pidfd.as_fd()), self.user.as_ref().map(|user| user.namespace.as_fd())].into_iter().flatten()
    }

    /// Gives the namespace its ids, or reads them where it exists, and lets the holder go on.
    fn admit(&self, config: &Config, pid: i32, exists: bool) -> Result<UserNamespace, StageError> {
        let what = "make the user namespace";
        let sync = self.sync.as_ref().ok_or("its holder is gone").step(what)?;
        let procfs = Procfs::open().step("open /proc")?;
        let asked = UserMappings {
            uid_mappings: config.linux.uid_mappings.clone(),
            gid_mappings: config.linux.gid_mappings.clone(),
        };
        let made = if exists { None } else { Some(UserNamespace::of(&procfs, pid, &asked)?) };
        stage::send(sync, &Message::Start).step(what)?;
        match stage::receive(sync).step(what)? {
            Some(Message::Ready) => {}
            Some(Message::Failed(text)) => return Err(text).step(what),
            _ => return Err("its holder is gone").step(what),
        }
        let user = match made {
            Some(user) => user,
            None => read_user(&procfs, pid)?,
        };
        if exists && asked != UserMappings::default() && asked != user.mappings {
            return Err("linux.uidMappings and linux.gidMappings are not those that it has").step(what);
        }
        Ok(user)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // It ends with the other end of this; what joined its namespaces keeps them.
        if self.sync.take().is_some() {
            process::wait_for(&self.pidfd);
        }
    }
}

/// The user namespace of a process, with its ids.
///
/// # Errors
/// When the process is gone, or its ids can't be a container's.
pub fn user_of(pid: i32) -> Result<UserNamespace, StageError> {
    read_user(&Procfs::open().step("open /proc")?, pid)
}

fn read_user(procfs: &Procfs, pid: i32) -> Result<UserNamespace, StageError> {
    let what = "read the ids of the user namespace";
    let read = |file: &str| -> Result<Vec<IdMapping>, StageError> {
        let text = procfs.read(&format!("{pid}/{file}")).step(what)?;
        let range = |line: &str| {
            let mut numbers = line.split_ascii_whitespace().map(str::parse::<u32>);
            let mut next = || numbers.next().and_then(Result::ok);
            Some(IdMapping { container_id: next()?, host_id: next()?, size: next()? })
        };
        text.lines().map(range).collect::<Option<Vec<_>>>().ok_or(format!("{file}: {text:?}")).step(what)
    };
    let mappings = UserMappings { uid_mappings: read("uid_map")?, gid_mappings: read("gid_map")? };
    check_mappings("uid_map", &mappings.uid_mappings).step(what)?;
    check_mappings("gid_map", &mappings.gid_mappings).step(what)?;
    let namespace = namespace::open(format!("/proc/{pid}/ns/user").as_ref()).step(what)?;
    Ok(UserNamespace { namespace, mappings })
}

/// What the holder does: it waits for the ids, becomes the root of the namespace and sets what only that may set.
fn hold_all(
    spaces: &Namespaces,
    config: &Config,
    given: Option<&OwnedFd>,
    make: UnshareFlags,
    sync: &OwnedFd,
) -> Result<(), StageError> {
    if let Some(file) = given {
        namespace::join(file, Kind::User).step("join the user namespace")?;
    }
    match stage::receive(sync).step("wait for the ids")? {
        Some(Message::Start) => {}
        _ => return Err("the runtime is gone").step("wait for the ids"),
    }
    process::set_identity(0, 0, &[]).step("become the root of the user namespace")?;
    if given.is_some() && !make.is_empty() {
        unshare(make).step("make the namespaces")?;
    }
    let procfs = Procfs::open().step("open /proc")?;
    // Only in namespaces that are its own: it is in the machine's where the container's are others'.
    let mut own = config.linux.sysctl.iter().filter(|(name, _)| spaces.ipc.is_new() && sysctl::is_owners(name));
    own.try_for_each(|(name, value)| sysctl::set(&procfs, name, value))
}
