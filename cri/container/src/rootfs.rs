//! The root file system of a container: overlay, mounts, masks, pivot.
//!
//! Sources are opened in the machine's mount namespace (so that shared mounts stay in their peer group); targets are
//! resolved by descriptor inside the new root, whose content is hostile. The overlay is never attached anywhere but
//! in the container's own mount namespace.
//!
//! In a pod with a user namespace the image's layers and the writable one are shown with the pod's ids, each by a mapped
//! copy of its mount: on disk all files keep the ids that they have without one, whatever range of ids the pod got. The
//! overlay itself can't be mapped, so it is made of the mapped layers (see [`layers`]).

mod copy_up;
mod layers;
pub(crate) mod options;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use orlop_kernel::cgroup::Cgroups;
use orlop_kernel::mount::{self, Attributes, FsOption, Propagation};
use orlop_kernel::{lsm, path};
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid};

use crate::config::{Config, Mount};
use crate::create::Pod;
use crate::protocol::ContainerSpec;
use crate::sandbox;
use crate::stage::{StageError, Step};
use crate::user_namespace::{UserMappings, UserNamespace};
pub(crate) use layers::Tree;
use options::MountOptions;

/// What was opened while the machine's mounts could still be seen.
pub(crate) struct Sources {
    root: Tree,
    /// One per mount of the configuration.
    mounts: Vec<Source>,
    /// The container's folder of each hierarchy, with its controllers; none on v2 with a namespace of its own.
    cgroups: Vec<(String, OwnedFd)>,
}

/// Where a mount comes from.
pub(crate) enum Source {
    /// A file system of the container's own.
    New,
    /// The pod's shared memory.
    Shm,
    /// A folder or file of the machine.
    Bind { mount: OwnedFd, folder: bool },
    /// A read-only view of an image, or of what lies below a path in it.
    View { tree: Tree, sub_path: Option<PathBuf> },
}

/// Opens the layers and the sources of all binds, one per mount of the configuration.
pub(crate) fn open_trees(
    spec: &ContainerSpec,
    config: &Config,
    pod: &Pod<'_>,
) -> Result<(Tree, Vec<Source>), StageError> {
    let user = pod.pause.user.as_ref();
    open_to_users(spec).step(format!("set the mode of {:?}", spec.upper_dir))?;
    let label = config.linux.mount_label.as_deref();
    let root = Tree::writable(&spec.lower_dirs, &spec.upper_dir, &spec.work_dir, label, user)?;
    let shm = sandbox::shm_source(pod.folder);
    let mounts = config.mounts.iter().map(|entry| open_source(entry, Some(&shm), user)).collect::<Result<_, _>>()?;
    Ok((root, mounts))
}

/// The same for a container that stands alone, whose root is a folder. Without a cgroup namespace of its own it sees its
/// own cgroup alone on v2, too.
pub(crate) fn open_alone(
    root: &Path,
    config: &Config,
    user: Option<&UserNamespace>,
    cgroups: &Cgroups,
    own_cgroups: bool,
) -> Result<Sources, StageError> {
    let what = || format!("open the root {root:?}");
    if let Some(label) = &config.linux.mount_label {
        lsm::check_selinux(label).step("label the files of the container")?;
    }
    let tree = mount::clone_path(root, true).step(what())?;
    if !path::is_folder(&tree).step(what())? {
        return Err("it is not a folder").step(what());
    }
    mount::set_attributes(&tree, Attributes::empty(), Some(Propagation::Private), true).step(what())?;
    let mounts = config.mounts.iter().map(|entry| open_source(entry, None, user)).collect::<Result<_, _>>()?;
    let mut opened = open_cgroups(config, cgroups)?;
    if let (Cgroups::V2(_), false, true) = (cgroups, own_cgroups, asks_cgroups(config)) {
        let folder = cgroups.folders(&config.linux.cgroups_path).step("find the cgroup")?.remove(0);
        opened.push((String::new(), mount::clone_path(&folder, false).step("mount the cgroup")?));
    }
    Ok(Sources { root: Tree::Mounted(tree), mounts, cgroups: opened })
}

fn asks_cgroups(config: &Config) -> bool {
    config.mounts.iter().any(|entry| entry.kind == "cgroup")
}

/// The container's folder of each v1 hierarchy, where it wants to see them.
fn open_cgroups(config: &Config, cgroups: &Cgroups) -> Result<Vec<(String, OwnedFd)>, StageError> {
    let mut opened = Vec::new();
    if asks_cgroups(config) {
        for (name, folder) in cgroups.folders_by_name(&config.linux.cgroups_path).step("find the cgroups")? {
            let bind = mount::clone_path(&folder, false).step(format!("mount the cgroups of {name}"))?;
            opened.push((name, bind));
        }
    }
    Ok(opened)
}

/// Opens all that has to be opened among the machine's mounts.
pub(crate) fn open_sources(spec: &ContainerSpec, config: &Config, pod: &Pod<'_>) -> Result<Sources, StageError> {
    let (root, mounts) = open_trees(spec, config, pod)?;
    let cgroups = open_cgroups(config, pod.cgroups)?;
    Ok(Sources { root, mounts, cgroups })
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

fn open_source(entry: &Mount, shm: Option<&Path>, user: Option<&UserNamespace>) -> Result<Source, StageError> {
    let what = || format!("mount {:?} at {:?}", entry.source, entry.destination);
    if !entry.is_bind() {
        return match entry.kind.as_str() {
            "overlay" if shm.is_some() => {
                layers::open_view(entry, user).step(format!("mount an image at {:?}", entry.destination))
            }
            _ => Ok(Source::New),
        };
    }
    if Some(&*entry.source) == shm {
        return Ok(Source::Shm);
    }
    let options = MountOptions::read(entry).step(what())?;
    let mount = mount::clone_path(&entry.source, options.recursive).step(what())?;
    let below = options.map_ids == Some(true);
    let asked = UserMappings { uid_mappings: entry.uid_mappings.clone(), gid_mappings: entry.gid_mappings.clone() };
    if asked != UserMappings::default() && user.is_none_or(|user| user.mappings != asked) {
        let other = UserNamespace::make(&asked).step(what())?;
        mount::map_ids(&mount, &other.namespace, below).map_err(layers::no_mapping).step(what())?;
    } else if asked != UserMappings::default() || options.map_ids.is_some() {
        let user = user.ok_or("the container has no user namespace whose ids they could be").step(what())?;
        mount::map_ids(&mount, &user.namespace, below).map_err(layers::no_mapping).step(what())?;
    }
    let folder = path::is_folder(&mount).step(what())?;
    Ok(Source::Bind { mount, folder })
}

fn has(entry: &Mount, option: &str) -> bool {
    entry.options.iter().any(|known| known == option)
}

/// Builds the root on top of a folder of this mount namespace, and returns a descriptor of it.
pub(crate) fn build_at(
    place: &Path,
    sources: Sources,
    shm: Option<OwnedFd>,
    config: &Config,
    user: Option<&UserMappings>,
) -> Result<OwnedFd, StageError> {
    let place = path::open_root(place).step("open the root's place")?;
    let label = config.linux.mount_label.as_deref();
    let root = sources.root.mount(&place, label)?;
    // Views are looked into where the root will be, so before it is there.
    let views = pick_views(&config.mounts, sources.mounts, &place)?;
    mount::attach(&root, &place).step("attach the root")?;
    let (mut shm, mut cgroups) = (shm, Some(sources.cgroups));
    for (entry, source) in config.mounts.iter().zip(views) {
        match source {
            Source::Bind { mount, folder } => attach_bind(&root, entry, mount, folder)?,
            Source::Shm => {
                let shm = shm.take().ok_or("it is mounted once already").step("mount the pod's shared memory")?;
                attach_bind(&root, entry, shm, true)?;
            }
            Source::New if entry.kind == "cgroup" => attach_cgroups(&root, entry, cgroups.take().unwrap_or_default())?,
            Source::New | Source::View { .. } => attach_new(&root, entry, label, user)?,
        }
    }
    Ok(root)
}

/// Mounts the views of images; `place` is a folder of this mount namespace that is covered meanwhile.
pub(crate) fn pick_views(entries: &[Mount], sources: Vec<Source>, place: &OwnedFd) -> Result<Vec<Source>, StageError> {
    let pick = |(entry, source): (&Mount, Source)| {
        let Source::View { tree, sub_path } = source else { return Ok(source) };
        let what = format!("mount an image at {:?}", entry.destination);
        let mount = layers::pick(place, tree, sub_path.as_deref()).step(what)?;
        let folder = path::is_folder(&mount).step("look at the image")?;
        Ok(Source::Bind { mount, folder })
    };
    entries.iter().zip(sources).map(pick).collect()
}

/// Attaches a bind, with its attributes set before anybody can see it.
fn attach_bind(root: &OwnedFd, entry: &Mount, bind: OwnedFd, folder: bool) -> Result<(), StageError> {
    let what = || format!("mount {:?} at {:?}", entry.source, entry.destination);
    let target = if folder {
        path::make_folder_in_root(root, &entry.destination, Mode::from_raw_mode(0o755)).step(what())?
    } else {
        path::make_file_in_root(root, &entry.destination, Mode::from_raw_mode(0o644)).step(what())?
    };
    let options = MountOptions::read(entry).step(what())?;
    share(&bind, &options).step(what())?;
    mount::attach(&bind, &target).step(what())
}

/// Sets how a mount shares, and its attributes: nothing is shared that isn't asked for.
fn share(bind: &OwnedFd, options: &MountOptions<'_>) -> std::io::Result<()> {
    let alone = [(Propagation::Private, true)];
    let kinds = if options.propagation.is_empty() { &alone[..] } else { &options.propagation };
    for (kind, _) in kinds {
        // A mount that is alone in its own right while those below it share with the machine is never meant.
        mount::set_attributes(bind, Attributes::empty(), Some(*kind), *kind != Propagation::Unbindable)?;
    }
    for (set, clear, all) in [(options.set_all, options.clear_all, true), (options.set, options.clear, false)] {
        if !(set | clear).is_empty() {
            mount::change_attributes(bind, set, clear, all)?;
        }
    }
    Ok(())
}

/// Makes and attaches a file system of the container's own.
fn attach_new(
    root: &OwnedFd,
    entry: &Mount,
    label: Option<&str>,
    user: Option<&UserMappings>,
) -> Result<(), StageError> {
    let what = || format!("mount {} at {:?}", entry.kind, entry.destination);
    let target = open_place(root, entry)?;
    let read = MountOptions::read(entry).step(what())?;
    let texts = read.data.iter().map(|option| map_option(entry, *option, user)).collect::<Result<Vec<_>, _>>()?;
    let mut options: Vec<FsOption<'_>> = read
        .data
        .iter()
        .zip(&texts)
        .map(|(option, text)| match (option, text) {
            (FsOption::Value(name, _), Some(text)) => FsOption::Value(name, text),
            (option, _) => *option,
        })
        .collect();
    if let Some(label) = label.filter(|_| matches!(entry.kind.as_str(), "tmpfs" | "mqueue" | "devpts")) {
        options.push(FsOption::Value("context", label));
    }
    let source = entry.source.to_string_lossy();
    let attributes = if read.copy_up { read.set & !Attributes::MOUNT_ATTR_RDONLY } else { read.set };
    let fresh = mount::new_filesystem(&entry.kind, &source, &options, attributes).step(what())?;
    if let Some(user) = user {
        own(&fresh, &entry.kind, user).step(what())?;
    }
    if read.copy_up {
        copy_up::copy(target.as_fd(), fresh.as_fd()).step(what())?;
        mount::change_attributes(&fresh, read.set, Attributes::empty(), false).step(what())?;
    }
    for (kind, _) in &read.propagation {
        mount::set_attributes(&fresh, Attributes::empty(), Some(*kind), false).step(what())?;
    }
    mount::attach(&fresh, &target).step(what())
}

/// Owners in options are ids of the container; these file systems take the machine's. None where a value stays.
fn map_option(entry: &Mount, option: FsOption<'_>, user: Option<&UserMappings>) -> Result<Option<String>, StageError> {
    let user = user.filter(|_| matches!(entry.kind.as_str(), "tmpfs" | "devpts"));
    let (Some(user), FsOption::Value(name, text)) = (user, option) else { return Ok(None) };
    let number = || {
        let what = || format!("read the option {name}={text} of {:?}", entry.destination);
        text.parse::<u32>().step(what())
    };
    Ok(match name {
        "uid" => Some(user.host_uid(number()?)?.to_string()),
        "gid" => Some(user.host_gid(number()?)?.to_string()),
        _ => None,
    })
}

/// Gives the root of a pod what the kernel makes for the machine's: the folder of message queues, and that of terminals
/// with its `ptmx`.
fn own(fresh: &OwnedFd, kind: &str, user: &UserMappings) -> Result<(), StageError> {
    let names: &[&str] = match kind {
        "mqueue" => &[""],
        "devpts" => &["", "ptmx"],
        _ => return Ok(()),
    };
    let (uid, gid) = (Uid::from_raw(user.host_uid(0)?), Gid::from_raw(user.host_gid(0)?));
    for name in names {
        rustix::fs::chownat(fresh, *name, Some(uid), Some(gid), AtFlags::EMPTY_PATH).step("set the owner")?;
    }
    Ok(())
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

/// Shows the container its cgroups: on v2 those of its cgroup namespace, on v1 its own folder of each hierarchy below
/// a small tmpfs.
fn attach_cgroups(root: &OwnedFd, entry: &Mount, hierarchies: Vec<(String, OwnedFd)>) -> Result<(), StageError> {
    let target = open_place(root, entry)?;
    let safe = Attributes::MOUNT_ATTR_NOSUID | Attributes::MOUNT_ATTR_NODEV | Attributes::MOUNT_ATTR_NOEXEC;
    let wanted = if has(entry, "ro") { safe | Attributes::MOUNT_ATTR_RDONLY } else { safe };
    if let [(name, bind)] = &hierarchies[..]
        && name.is_empty()
    {
        mount::set_attributes(bind, wanted, Some(Propagation::Private), false).step("mount the cgroup")?;
        return mount::attach(bind, &target).step("attach the cgroup");
    }
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
    enter_by(root, config, true)
}

/// The same, by moving the root over the old one where it can't be pivoted away.
pub(crate) fn enter_by(root: &OwnedFd, config: &Config, pivot: bool) -> Result<(), StageError> {
    if config.root.readonly {
        mount::set_attributes(root, Attributes::MOUNT_ATTR_RDONLY, None, false).step("make the root read-only")?;
    }
    match pivot {
        true => mount::pivot_into(root.as_fd()).step("pivot into the root")?,
        false => mount::move_into(root.as_fd()).step("move into the root")?,
    }
    let wanted = config.linux.rootfs_propagation.as_deref().unwrap_or_default();
    let propagation = match wanted.strip_prefix('r').unwrap_or(wanted) {
        "shared" => Propagation::Shared,
        "slave" => Propagation::Slave,
        "unbindable" => Propagation::Unbindable,
        // All that is there is private unless its own options say otherwise.
        _ => return Ok(()),
    };
    mount::set_attributes(root, Attributes::empty(), Some(propagation), wanted.starts_with('r'))
        .step(format!("make the mounts {wanted}"))
}
