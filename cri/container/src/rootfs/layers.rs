//! Trees that are made of the layers of an image: the root of a container, and read-only views.
//!
//! Without a user namespace they are mounted at once. With one each layer becomes a mapped copy of its mount, and
//! overlayfs wants its layers by paths of this mount namespace: they are attached to a small tmpfs for as long as it
//! takes to make the overlay, which keeps copies of its own.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use orlop_kernel::mount::{self, Attributes, FsOption, Propagation};
use orlop_kernel::{lsm, path};
use rustix::fs::{Mode, OFlags};

use super::Source;
use crate::config::Mount;
use crate::stage::{StageError, Step};
use crate::user_namespace::UserNamespace;

/// Layers of one tree, as many as overlayfs takes.
const LAYERS_MAX: usize = 500;
/// The mapped writable layer while the overlay is made.
const WRITABLE: &str = "writable";

/// A tree on the way to being mounted.
pub(crate) enum Tree {
    /// A detached mount.
    Mounted(OwnedFd),
    /// Mapped layers.
    Mapped(Mapped),
}

/// Mapped layers, from top to bottom.
pub(crate) struct Mapped {
    lower: Vec<OwnedFd>,
    writable: Option<Writable>,
}

/// The mapped folder that holds a writable layer and its work folder.
struct Writable {
    mount: OwnedFd,
    upper: PathBuf,
    work: PathBuf,
}

impl Tree {
    /// A root: layers from top to bottom, a writable one and its work folder, which lie side by side.
    pub(crate) fn writable(
        lower: &[PathBuf],
        upper: &Path,
        work: &Path,
        label: Option<&str>,
        user: Option<&UserNamespace>,
    ) -> Result<Tree, StageError> {
        if let Some(label) = label {
            lsm::check_selinux(label).step("label the files of the container")?;
        }
        let what = || format!("mount the overlay of {} layers with upper {upper:?}", lower.len());
        let Some(user) = user else {
            return Ok(Tree::Mounted(mount::labelled_overlay(lower, upper, work, label).step(what())?));
        };
        let lower = map_layers(lower, user).step(what())?;
        let parent = upper.parent().filter(|parent| work.parent() == Some(*parent));
        let (Some(parent), Some(upper), Some(work)) = (parent, upper.file_name(), work.file_name()) else {
            return Err("upper and work must lie in one folder").step(what());
        };
        let below = |name| Path::new(WRITABLE).join(name);
        let writable =
            Writable { mount: map_layer(parent, user).step(what())?, upper: below(upper), work: below(work) };
        Ok(Tree::Mapped(Mapped { lower, writable: Some(writable) }))
    }

    /// Makes a detached mount of the tree; `place` is a folder of this mount namespace that is covered meanwhile.
    pub(crate) fn mount(self, place: &OwnedFd, label: Option<&str>) -> Result<OwnedFd, StageError> {
        let Mapped { mut lower, writable } = match self {
            Tree::Mounted(mount) => return Ok(mount),
            Tree::Mapped(mapped) => mapped,
        };
        if writable.is_none() && lower.len() == 1 {
            // One layer is its own view.
            return lower.pop().ok_or("no layer").step("mount the layers");
        }
        let options = [FsOption::Value("mode", "700"), FsOption::Value("size", "64k")];
        let bench = mount::new_filesystem("tmpfs", "layers", &options, Attributes::empty()).step("mount tmpfs")?;
        mount::attach(&bench, place).step("attach the folder of the layers")?;
        let overlay = assemble(&bench, &lower, writable.as_ref(), label);
        mount::detach_fd(&bench).step("detach the folder of the layers")?;
        overlay
    }
}

fn assemble(
    bench: &OwnedFd,
    lower: &[OwnedFd],
    writable: Option<&Writable>,
    label: Option<&str>,
) -> Result<OwnedFd, StageError> {
    let attach = |name: &str, layer: &OwnedFd| {
        let place = path::make_folder_in_root(bench, Path::new(name), Mode::from_raw_mode(0o700))
            .step("make the place of a layer")?;
        mount::attach(layer, &place).step("attach a layer")
    };
    let names: Vec<String> = (0..lower.len()).map(|number| number.to_string()).collect();
    for (name, layer) in names.iter().zip(lower) {
        attach(name, layer)?;
    }
    // The layers are named relative to the working folder.
    rustix::process::fchdir(bench).step("enter the folder of the layers")?;
    let what = || format!("mount the overlay of {} mapped layers", lower.len());
    match writable {
        None => mount::layers_view(&names).step(what()),
        Some(writable) => {
            attach(WRITABLE, &writable.mount)?;
            mount::labelled_overlay(&names, &writable.upper, &writable.work, label).step(what())
        }
    }
}

fn map_layers(layers: &[PathBuf], user: &UserNamespace) -> Result<Vec<OwnedFd>, StageError> {
    layers.iter().map(|layer| map_layer(layer, user)).collect()
}

/// A mapped copy of the mount at a path.
fn map_layer(layer: &Path, user: &UserNamespace) -> Result<OwnedFd, StageError> {
    let what = || format!("map the ids of {layer:?}");
    let mount = mount::clone_path(layer, false).step(what())?;
    mount::map_ids(&mount, &user.namespace, false).map_err(no_mapping).step(what())?;
    Ok(mount)
}

/// The kernel says "invalid argument" of a file system that can't map ids.
pub(super) fn no_mapping(error: std::io::Error) -> std::io::Error {
    match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
        Some(rustix::io::Errno::INVAL) => {
            std::io::Error::other("its file system can't show files with other owners, which a user namespace needs")
        }
        _ => error,
    }
}

/// Opens the layers of a view: a mount of type `overlay` with an option `lowerdir` (folders from top to bottom, parted by
/// colons) and perhaps `subpath`, which names what of it is shown.
pub(super) fn open_view(entry: &Mount, user: Option<&UserNamespace>) -> Result<Source, StageError> {
    let (layers, sub_path) = read_view(&entry.options).step("read its options")?;
    let tree = match user {
        Some(user) => Tree::Mapped(Mapped { lower: map_layers(&layers, user)?, writable: None }),
        None => Tree::Mounted(mount::layers_view(&layers).step(format!("mount {} layers", layers.len()))?),
    };
    Ok(Source::View { tree, sub_path })
}

/// Layers and sub path of a view's options; the rest of them concerns the mount.
fn read_view(options: &[String]) -> Result<(Vec<PathBuf>, Option<PathBuf>), String> {
    let (mut layers, mut sub_path) = (Vec::new(), None);
    for option in options {
        match option.split_once('=') {
            Some(("lowerdir", folders)) => layers.extend(folders.split(':').map(PathBuf::from)),
            Some(("subpath", path)) if !path.is_empty() => sub_path = Some(PathBuf::from(path)),
            Some(("subpath", _)) => {}
            _ if super::options::is_of_mount(option) && option != "rw" && option != "rrw" => {}
            _ => {
                return Err(format!("option {option:?}: the view of an image is read-only and made of lowerdir alone"));
            }
        }
    }
    if layers.is_empty() || layers.len() > LAYERS_MAX || layers.iter().any(|layer| !layer.is_absolute()) {
        return Err(format!("option lowerdir: wants 1 to {LAYERS_MAX} absolute paths"));
    }
    let climbs = |path: &PathBuf| path.is_absolute() || path.components().any(|part| part == Component::ParentDir);
    match sub_path {
        Some(path) if climbs(&path) => Err(format!("image volume sub path {path:?} must be relative, without ..")),
        sub_path => Ok((layers, sub_path)),
    }
}

/// Mounts a view, or what a path in it names; links are followed inside of the view. The image may hold anything, so the
/// view is never writable.
pub(super) fn pick(place: &OwnedFd, tree: Tree, sub_path: Option<&Path>) -> Result<OwnedFd, StageError> {
    let view = tree.mount(place, None)?;
    let picked = match sub_path {
        None => view,
        Some(sub_path) => {
            // What is to be copied must be in this mount namespace.
            mount::attach(&view, place).step("attach the view")?;
            let picked = find(&view, sub_path);
            mount::detach_fd(&view).step("detach the view")?;
            picked?
        }
    };
    mount::set_attributes(&picked, Attributes::MOUNT_ATTR_RDONLY, Some(Propagation::Private), false)
        .step("make the view read-only")?;
    Ok(picked)
}

fn find(view: &OwnedFd, sub_path: &Path) -> Result<OwnedFd, StageError> {
    let what = || format!("open the image volume sub path {sub_path:?}");
    let found = match path::open_in_root(view, sub_path, OFlags::PATH) {
        Err(error) if path::is_absent(&error) => {
            let source = format!("image volume sub path {sub_path:?} does not exist");
            return Err(source).step("look into the image");
        }
        found => found.step(what())?,
    };
    mount::clone_fd(found.as_fd(), false).step(what())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_views() {
        let read = |options: &[&str]| read_view(&options.iter().map(ToString::to_string).collect::<Vec<_>>());
        let (layers, sub_path) = read(&["ro", "lowerdir=/b:/a", "lowerdir=/c", "nosuid", "subpath=x/y,z"]).unwrap();
        assert_eq!(layers, ["/b", "/a", "/c"].map(PathBuf::from));
        assert_eq!(sub_path, Some("x/y,z".into()));
        for (options, words) in [
            (&["ro"][..], "lowerdir"),
            (&["lowerdir=a"], "absolute"),
            (&["lowerdir=/a", "upperdir=/b"], "upperdir=/b"),
            (&["lowerdir=/a", "rw"], "\"rw\""),
            (&["lowerdir=/a", "subpath=/x"], "\"/x\""),
            (&["lowerdir=/a", "subpath=x/../.."], "x/../.."),
        ] {
            let said = read(options).expect_err(words);
            assert!(said.contains(words), "{said}");
        }
    }
}
