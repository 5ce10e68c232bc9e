//! The root file system of a container: overlay, mounts, masks, pivot.
//!
//! Sources are opened by the parent in the machine's mount namespace (so that shared mounts stay in their peer
//! group); targets are resolved by descriptor inside the new root, whose content is hostile.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use orlop_kernel::mount::{self, Attributes, FsOption, Propagation};
use orlop_kernel::path;
use rustix::fs::{Mode, OFlags};

use crate::config::{Config, Mount};
use crate::protocol::ContainerSpec;
use crate::stage::{StageError, Step};

/// What the parent has opened for its child.
pub(crate) struct Sources {
    overlay: OwnedFd,
    /// One per mount of the configuration; none for what the child makes itself.
    binds: Vec<Option<Bind>>,
}

struct Bind {
    mount: OwnedFd,
    folder: bool,
}

/// Opens the overlay and the sources of all binds.
pub(crate) fn open_sources(spec: &ContainerSpec, config: &Config) -> Result<Sources, StageError> {
    let overlay = mount::overlay(&spec.lower_dirs, &spec.upper_dir, &spec.work_dir)
        .step(format!("mount the overlay of {} layers with upper {:?}", spec.lower_dirs.len(), spec.upper_dir))?;
    let binds = config.mounts.iter().map(open_bind).collect::<Result<_, _>>()?;
    Ok(Sources { overlay, binds })
}

fn open_bind(entry: &Mount) -> Result<Option<Bind>, StageError> {
    if entry.kind != "bind" {
        return Ok(None);
    }
    let what = || format!("mount {:?} at {:?}", entry.source, entry.destination);
    let mount = mount::clone_path(&entry.source, !has(entry, "bind")).step(what())?;
    let folder = path::is_folder(&mount).step(what())?;
    Ok(Some(Bind { mount, folder }))
}

fn has(entry: &Mount, option: &str) -> bool {
    entry.options.iter().any(|known| known == option)
}

/// Builds the root in the child's own mount namespace and returns a descriptor of it.
pub(crate) fn build(sources: Sources, config: &Config) -> Result<OwnedFd, StageError> {
    // What happens in here from now on is nobody else's business.
    mount::set_propagation(c"/", Propagation::Private).step("make the mounts private")?;
    let place = path::open_root(&config.root.path).step("open the root's place")?;
    mount::attach(&sources.overlay, &place).step(format!("attach the overlay at {:?}", config.root.path))?;
    let root = sources.overlay;
    for (entry, bind) in config.mounts.iter().zip(sources.binds) {
        match bind {
            Some(bind) => attach_bind(&root, entry, bind)?,
            None => attach_new(&root, entry)?,
        }
    }
    Ok(root)
}

/// Attaches a bind, with its attributes set before anybody can see it.
fn attach_bind(root: &OwnedFd, entry: &Mount, bind: Bind) -> Result<(), StageError> {
    let what = || format!("mount {:?} at {:?}", entry.source, entry.destination);
    let target = if bind.folder {
        path::make_folder_in_root(root, &entry.destination, Mode::from_raw_mode(0o755)).step(what())?
    } else {
        path::make_file_in_root(root, &entry.destination, Mode::from_raw_mode(0o644)).step(what())?
    };
    let propagation = match entry.options.iter().map(String::as_str).find(|o| o.starts_with("rs") || *o == "rprivate") {
        Some("rshared") => Propagation::Shared,
        Some("rslave") => Propagation::Slave,
        _ => Propagation::Private,
    };
    mount::set_attributes(&bind.mount, Attributes::empty(), Some(propagation), true).step(what())?;
    let attributes = attributes(entry);
    if !attributes.is_empty() {
        mount::set_attributes(&bind.mount, attributes, None, has(entry, "rro")).step(what())?;
    }
    mount::attach(&bind.mount, &target).step(what())
}

/// Makes and attaches a file system of the container's own. Its place must be an ordinary folder: an image that
/// makes /proc or /dev a link has something in mind.
fn attach_new(root: &OwnedFd, entry: &Mount) -> Result<(), StageError> {
    let what = || format!("mount {} at {:?}", entry.kind, entry.destination);
    let inside = entry.destination.strip_prefix("/").unwrap_or(&entry.destination);
    let target = match path::open_beneath(root, inside, OFlags::PATH | OFlags::DIRECTORY) {
        Ok(target) => target,
        Err(_) => {
            path::make_folder_in_root(root, inside, Mode::from_raw_mode(0o755)).step(what())?;
            let step = format!("{} (the image must not have a link in its place)", what());
            path::open_beneath(root, inside, OFlags::PATH | OFlags::DIRECTORY).step(step)?
        }
    };
    if entry.kind == "cgroup" {
        return attach_cgroups(&target, entry);
    }
    let options: Vec<FsOption<'_>> = entry.options.iter().filter_map(|option| fs_option(option)).collect();
    let source = entry.source.to_string_lossy();
    let fresh = mount::new_filesystem(&entry.kind, &source, &options, attributes(entry)).step(what())?;
    mount::attach(&fresh, &target).step(what())
}

/// Options that concern the mount and not its file system.
const MOUNT_OPTIONS: [&str; 15] = [
    "ro", "rw", "nosuid", "nodev", "noexec", "strictatime", "relatime", "noatime", "bind", "rbind", "rprivate", "rslave",
    "rshared", "rro", "private",
];

fn fs_option(option: &str) -> Option<FsOption<'_>> {
    if MOUNT_OPTIONS.contains(&option) {
        return None;
    }
    Some(option.split_once('=').map_or(FsOption::Flag(option), |(name, value)| FsOption::Value(name, value)))
}

fn attributes(entry: &Mount) -> Attributes {
    let table = [
        ("ro", Attributes::MOUNT_ATTR_RDONLY),
        ("rro", Attributes::MOUNT_ATTR_RDONLY),
        ("nosuid", Attributes::MOUNT_ATTR_NOSUID),
        ("nodev", Attributes::MOUNT_ATTR_NODEV),
        ("noexec", Attributes::MOUNT_ATTR_NOEXEC),
        ("noatime", Attributes::MOUNT_ATTR_NOATIME),
        ("strictatime", Attributes::MOUNT_ATTR_STRICTATIME),
    ];
    table.iter().filter(|(name, _)| has(entry, name)).fold(Attributes::empty(), |set, (_, flag)| set | *flag)
}

/// Shows the container its cgroups, read-only: on v2 those of its cgroup namespace, on v1 its own folder of each
/// hierarchy below a small tmpfs.
fn attach_cgroups(target: &OwnedFd, entry: &Mount) -> Result<(), StageError> {
    use orlop_kernel::cgroup::Cgroups;
    let read_only = Attributes::MOUNT_ATTR_RDONLY
        | Attributes::MOUNT_ATTR_NOSUID
        | Attributes::MOUNT_ATTR_NODEV
        | Attributes::MOUNT_ATTR_NOEXEC;
    let wanted = if has(entry, "ro") { read_only } else { read_only & !Attributes::MOUNT_ATTR_RDONLY };
    let cgroups = Cgroups::detect().step("find the cgroups")?;
    let Cgroups::V1(hierarchies) = cgroups else {
        let fresh = mount::new_filesystem("cgroup2", "cgroup", &[], wanted).step("mount cgroup2")?;
        return mount::attach(&fresh, target).step("attach cgroup2");
    };
    let own = std::fs::read_to_string("/proc/self/cgroup").step("read /proc/self/cgroup")?;
    let options = [FsOption::Value("mode", "755"), FsOption::Value("size", "64k")];
    let tmpfs = mount::new_filesystem("tmpfs", "tmpfs", &options, wanted & !Attributes::MOUNT_ATTR_RDONLY).step("mount tmpfs")?;
    mount::attach(&tmpfs, target).step("attach the folder of the cgroups")?;
    for hierarchy in hierarchies {
        let name = hierarchy.controllers.join(",");
        let path = own.lines().filter_map(|line| line.split_once(':').map(|(_, rest)| rest)).find_map(|rest| {
            let (controllers, path) = rest.split_once(':')?;
            controllers.split(',').any(|c| hierarchy.controllers.iter().any(|known| known == c)).then_some(path)
        });
        let Some(path) = path else { continue };
        let folder = hierarchy.mount.join(path.trim_start_matches('/'));
        let what = format!("mount the cgroups of {name}");
        let place = path::make_folder_in_root(&tmpfs, Path::new(&name), Mode::from_raw_mode(0o755)).step(what.clone())?;
        let bind = mount::clone_path(&folder, false).step(what.clone())?;
        mount::set_attributes(&bind, wanted, Some(Propagation::Private), false).step(what.clone())?;
        mount::attach(&bind, &place).step(what)?;
    }
    mount::set_attributes(&tmpfs, wanted, None, false).step("make the folder of the cgroups read-only")
}

/// Hides and protects paths; those that don't exist need no hiding.
pub(crate) fn mask(root: &OwnedFd, config: &Config, null: BorrowedFd<'_>) -> Result<(), StageError> {
    for masked in &config.linux.masked_paths {
        let Ok(target) = path::open_in_root(root, masked, OFlags::PATH) else { continue };
        let what = || format!("mask {masked:?}");
        let cover = if path::is_folder(&target).step(what())? {
            let options = [FsOption::Value("size", "0"), FsOption::Value("nr_inodes", "1"), FsOption::Value("mode", "555")];
            mount::new_filesystem("tmpfs", "tmpfs", &options, Attributes::MOUNT_ATTR_RDONLY).step(what())?
        } else {
            mount::clone_fd(null, false).step(what())?
        };
        mount::attach(&cover, &target).step(what())?;
    }
    for protected in &config.linux.readonly_paths {
        let Ok(target) = path::open_in_root(root, protected, OFlags::PATH) else { continue };
        let what = || format!("make {protected:?} read-only");
        let cover = mount::clone_fd(&target, true).step(what())?;
        mount::set_attributes(&cover, Attributes::MOUNT_ATTR_RDONLY, Some(Propagation::Private), true).step(what())?;
        mount::attach(&cover, &target).step(what())?;
    }
    Ok(())
}

/// Makes the root read-only where asked, and the only one that this process sees.
pub(crate) fn enter(root: &OwnedFd, config: &Config) -> Result<(), StageError> {
    if config.root.readonly {
        mount::set_attributes(root, Attributes::MOUNT_ATTR_RDONLY, None, false).step("make the root read-only")?;
    }
    mount::pivot_into(root.as_fd()).step("pivot into the root")
}
