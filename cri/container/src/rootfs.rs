//! The root file system of a container: overlay, mounts, masks, pivot.
//!
//! Sources are opened in the machine's mount namespace (so that shared mounts stay in their peer group); targets are
//! resolved by descriptor inside the new root, whose content is hostile. The overlay is never attached anywhere but
//! in the container's own mount namespace.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use orlop_kernel::mount::{self, Attributes, FsOption, Propagation};
use orlop_kernel::path;
use rustix::fs::{Mode, OFlags};

use crate::config::{Config, Mount};
use crate::create::Pod;
use crate::protocol::ContainerSpec;
use crate::sandbox;
use crate::stage::{StageError, Step};

/// What was opened while the machine's mounts could still be seen.
pub(crate) struct Sources {
    overlay: OwnedFd,
    /// One per mount of the configuration.
    mounts: Vec<Source>,
    /// The container's folder of each v1 hierarchy, with its controllers.
    cgroups: Vec<(String, OwnedFd)>,
}

/// Where a mount comes from.
enum Source {
    /// A file system of the container's own.
    New,
    /// The pod's shared memory.
    Shm,
    /// A folder or file of the machine.
    Bind { mount: OwnedFd, folder: bool },
}

/// Opens the overlay and the sources of all binds.
pub(crate) fn open_sources(spec: &ContainerSpec, config: &Config, pod: &Pod<'_>) -> Result<Sources, StageError> {
    open_to_users(spec).step(format!("set the mode of {:?}", spec.upper_dir))?;
    let overlay = mount::overlay(&spec.lower_dirs, &spec.upper_dir, &spec.work_dir).step(format!(
        "mount the overlay of {} layers with upper {:?}",
        spec.lower_dirs.len(),
        spec.upper_dir
    ))?;
    let shm = sandbox::shm_source(pod.folder);
    let mounts = config.mounts.iter().map(|entry| open_source(entry, &shm)).collect::<Result<_, _>>()?;
    let mut cgroups = Vec::new();
    if config.mounts.iter().any(|entry| entry.kind == "cgroup") {
        for (name, folder) in pod.cgroups.folders_by_name(&config.linux.cgroups_path).step("find the cgroups")? {
            let bind = mount::clone_path(&folder, false).step(format!("mount the cgroups of {name}"))?;
            cgroups.push((name, bind));
        }
    }
    Ok(Sources { overlay, mounts, cgroups })
}

/// The writable layer's own mode is that of the container's `/`: that of the image's topmost layer, and never one
/// that locks out users other than root because of the umask of whoever made the folder.
fn open_to_users(spec: &ContainerSpec) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let usable = |mode: &u32| mode & 0o555 == 0o555;
    let top = spec.lower_dirs.first().and_then(|layer| std::fs::metadata(layer).ok());
    let mode = top.map(|meta| meta.permissions().mode() & 0o7777).filter(usable).unwrap_or(0o755);
    std::fs::set_permissions(&spec.upper_dir, PermissionsExt::from_mode(mode))
}

fn open_source(entry: &Mount, shm: &Path) -> Result<Source, StageError> {
    if entry.kind != "bind" && !has(entry, "bind") && !has(entry, "rbind") {
        return Ok(Source::New);
    }
    if entry.source == shm {
        return Ok(Source::Shm);
    }
    let what = || format!("mount {:?} at {:?}", entry.source, entry.destination);
    let mount = mount::clone_path(&entry.source, !has(entry, "bind")).step(what())?;
    let folder = path::is_folder(&mount).step(what())?;
    Ok(Source::Bind { mount, folder })
}

fn has(entry: &Mount, option: &str) -> bool {
    entry.options.iter().any(|known| known == option)
}

/// Builds the root on top of what this mount namespace has as its root, and returns a descriptor of it.
pub(crate) fn build(sources: Sources, shm: OwnedFd, config: &Config) -> Result<OwnedFd, StageError> {
    let place = path::open_root(Path::new("/")).step("open the root's place")?;
    mount::attach(&sources.overlay, &place).step("attach the overlay")?;
    let root = sources.overlay;
    let (mut shm, mut cgroups) = (Some(shm), Some(sources.cgroups));
    for (entry, source) in config.mounts.iter().zip(sources.mounts) {
        match source {
            Source::Bind { mount, folder } => attach_bind(&root, entry, mount, folder)?,
            Source::Shm => {
                let shm = shm.take().ok_or("it is mounted once already").step("mount the pod's shared memory")?;
                attach_bind(&root, entry, shm, true)?;
            }
            Source::New if entry.kind == "cgroup" => attach_cgroups(&root, entry, cgroups.take().unwrap_or_default())?,
            Source::New => attach_new(&root, entry)?,
        }
    }
    Ok(root)
}

/// Attaches a bind, with its attributes set before anybody can see it.
fn attach_bind(root: &OwnedFd, entry: &Mount, bind: OwnedFd, folder: bool) -> Result<(), StageError> {
    let what = || format!("mount {:?} at {:?}", entry.source, entry.destination);
    let target = if folder {
        path::make_folder_in_root(root, &entry.destination, Mode::from_raw_mode(0o755)).step(what())?
    } else {
        path::make_file_in_root(root, &entry.destination, Mode::from_raw_mode(0o644)).step(what())?
    };
    let propagation = match entry.options.iter().map(String::as_str).find(|o| o.starts_with("rs") || *o == "rprivate") {
        Some("rshared") => Propagation::Shared,
        Some("rslave") => Propagation::Slave,
        _ => Propagation::Private,
    };
    mount::set_attributes(&bind, Attributes::empty(), Some(propagation), true).step(what())?;
    let attributes = attributes(entry);
    if !attributes.is_empty() {
        mount::set_attributes(&bind, attributes, None, has(entry, "rro")).step(what())?;
    }
    mount::attach(&bind, &target).step(what())
}

/// Makes and attaches a file system of the container's own.
fn attach_new(root: &OwnedFd, entry: &Mount) -> Result<(), StageError> {
    let what = || format!("mount {} at {:?}", entry.kind, entry.destination);
    let target = open_place(root, entry)?;
    let options: Vec<FsOption<'_>> = entry.options.iter().filter_map(|option| fs_option(option)).collect();
    let source = entry.source.to_string_lossy();
    let fresh = mount::new_filesystem(&entry.kind, &source, &options, attributes(entry)).step(what())?;
    mount::attach(&fresh, &target).step(what())
}

/// Opens the folder where a file system of the container's own goes. It must be an ordinary one: an image that makes
/// /proc or /dev a link has something in mind. A tmpfs elsewhere may stand behind a link, as everything may that
/// users mount.
fn open_place(root: &OwnedFd, entry: &Mount) -> Result<OwnedFd, StageError> {
    let what = || format!("mount {} at {:?}", entry.kind, entry.destination);
    let inside = entry.destination.strip_prefix("/").step(format!("{}: not an absolute path", what()))?;
    let mode = Mode::from_raw_mode(0o755);
    if entry.kind == "tmpfs" && inside != Path::new("dev") {
        return path::make_folder_in_root(root, inside, mode).step(what());
    }
    let open = || path::open_beneath(root, inside, OFlags::PATH | OFlags::DIRECTORY);
    open().or_else(|_| {
        path::make_folder_in_root(root, inside, mode).step(what())?;
        open().step(format!("{} (the image must not have a link in its place)", what()))
    })
}

/// Options that concern the mount and not its file system.
const MOUNT_OPTIONS: [&str; 15] = [
    "ro",
    "rw",
    "nosuid",
    "nodev",
    "noexec",
    "strictatime",
    "relatime",
    "noatime",
    "bind",
    "rbind",
    "rprivate",
    "rslave",
    "rshared",
    "rro",
    "private",
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

/// Shows the container its cgroups: on v2 those of its cgroup namespace, on v1 its own folder of each hierarchy below
/// a small tmpfs.
fn attach_cgroups(root: &OwnedFd, entry: &Mount, hierarchies: Vec<(String, OwnedFd)>) -> Result<(), StageError> {
    let target = open_place(root, entry)?;
    let safe = Attributes::MOUNT_ATTR_NOSUID | Attributes::MOUNT_ATTR_NODEV | Attributes::MOUNT_ATTR_NOEXEC;
    let wanted = if has(entry, "ro") { safe | Attributes::MOUNT_ATTR_RDONLY } else { safe };
    if hierarchies.is_empty() {
        let fresh = mount::new_filesystem("cgroup2", "cgroup", &[], wanted).step("mount cgroup2")?;
        return mount::attach(&fresh, &target).step("attach cgroup2");
    }
    let options = [FsOption::Value("mode", "755"), FsOption::Value("size", "64k")];
    let tmpfs = mount::new_filesystem("tmpfs", "cgroup", &options, safe).step("mount tmpfs")?;
    mount::attach(&tmpfs, &target).step("attach the folder of the cgroups")?;
    for (name, bind) in hierarchies {
        let what = || format!("mount the cgroups of {name}");
        let place = path::make_folder_in_root(&tmpfs, Path::new(&name), Mode::from_raw_mode(0o755)).step(what())?;
        mount::set_attributes(&bind, wanted, Some(Propagation::Private), false).step(what())?;
        mount::attach(&bind, &place).step(what())?;
        // Controllers that share a hierarchy are found by their own names too.
        for controller in name.split(',').filter(|controller| *controller != name) {
            rustix::fs::symlinkat(name.as_str(), &tmpfs, controller).step(what())?;
        }
    }
    mount::set_attributes(&tmpfs, wanted, None, false).step("make the folder of the cgroups read-only")
}

/// Hides and protects paths; those that don't exist need no hiding.
pub(crate) fn mask(root: &OwnedFd, config: &Config, null: BorrowedFd<'_>) -> Result<(), StageError> {
    let mut empty: Option<OwnedFd> = None;
    for masked in &config.linux.masked_paths {
        let what = || format!("mask {masked:?}");
        let Some(target) = path::find_in_root(root, masked).step(what())? else { continue };
        if !path::is_folder(&target).step(what())? {
            let cover = mount::clone_fd(null, false).step(what())?;
            mount::attach(&cover, &target).step(what())?;
            continue;
        }
        // All folders are covered by one and the same empty file system.
        let cover = match &empty {
            Some(attached) => mount::clone_fd(attached, false).step(what())?,
            None => {
                let options =
                    [FsOption::Value("size", "0"), FsOption::Value("nr_inodes", "1"), FsOption::Value("mode", "555")];
                mount::new_filesystem("tmpfs", "tmpfs", &options, Attributes::MOUNT_ATTR_RDONLY).step(what())?
            }
        };
        mount::attach(&cover, &target).step(what())?;
        empty = empty.or(Some(cover));
    }
    for protected in &config.linux.readonly_paths {
        let what = || format!("make {protected:?} read-only");
        let Some(target) = path::find_in_root(root, protected).step(what())? else { continue };
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
