//! Overlays: a container's root and read-only views of an image.
//!
//! Paths may be relative to the working folder, which is how layers that are mounted for a moment only are named.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
};

use super::{Propagation, clone_path, named, set_attributes};

/// Makes a detached overlay: layers from top to bottom, a writable layer and its work folder. `volatile` leaves out
/// the syncs that only matter over a power loss, after which the container is gone anyway.
///
/// # Errors
/// When the kernel refuses a layer.
pub fn overlay(lower: &[impl AsRef<Path>], upper: &Path, work: &Path) -> std::io::Result<OwnedFd> {
    labelled_overlay(lower, upper, work, None)
}

/// The same, all of whose files have one SELinux label where one is given.
///
/// # Errors
/// When the kernel refuses a layer or the label.
pub fn labelled_overlay(
    lower: &[impl AsRef<Path>],
    upper: &Path,
    work: &Path,
    label: Option<&str>,
) -> std::io::Result<OwnedFd> {
    if lower.is_empty() {
        // An image without layers: there is nothing to lay the writable one over.
        return clone_path(upper, false);
    }
    // What a volatile overlay leaves behind, so that nobody trusts it after a power loss. This one was never used: a
    // container that could not be made is made again.
    match std::fs::remove_dir_all(work.join("work/incompat/volatile")) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let context = overlay_of(lower, label)?;
    fsconfig_set_string(&context, "upperdir", text(upper)?).map_err(|errno| named("overlay", "upperdir", errno))?;
    fsconfig_set_string(&context, "workdir", text(work)?).map_err(|errno| named("overlay", "workdir", errno))?;
    // Kernels before 5.10 don't know it and work without.
    let _ = fsconfig_set_flag(&context, "volatile");
    fsconfig_create(&context).map_err(|errno| named("overlay", "create", errno))?;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
}

/// A detached read-only view of layers, from top to bottom, as a container of the image sees them.
///
/// # Errors
/// When the kernel refuses a layer.
pub fn layers_view(lower: &[impl AsRef<Path>]) -> std::io::Result<OwnedFd> {
    if let [only] = lower {
        // One layer is its own view, and overlayfs wants two.
        let view = clone_path(only.as_ref(), false)?;
        set_attributes(&view, MountAttrFlags::MOUNT_ATTR_RDONLY, Some(Propagation::Private), false)?;
        return Ok(view);
    }
    let context = overlay_of(lower, None)?;
    fsconfig_create(&context).map_err(|errno| named("overlay", "create", errno))?;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_RDONLY)?)
}

/// A path as an option of overlayfs.
fn text(path: &Path) -> std::io::Result<String> {
    let text = path.to_str().filter(|text| !text.contains([',', '\\', ':']));
    text.map(str::to_string)
        .ok_or_else(|| std::io::Error::other(format!("the layer path {path:?} holds one of , \\ :")))
}

/// An overlay in the making, with its lower layers and its label.
fn overlay_of(lower: &[impl AsRef<Path>], label: Option<&str>) -> std::io::Result<OwnedFd> {
    let open = || -> std::io::Result<OwnedFd> {
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        if let Some(label) = label {
            fsconfig_set_string(&context, "context", label).map_err(|errno| named("overlay", "context", errno))?;
        }
        Ok(context)
    };
    let context = open()?;
    let lower = lower.iter().map(|path| text(path.as_ref())).collect::<Result<Vec<_>, _>>()?;
    // One option per layer where the kernel has it (6.5 and newer): no limit on the length of all together.
    let one_by_one = lower.iter().all(|layer| fsconfig_set_string(&context, "lowerdir+", layer.as_str()).is_ok());
    if one_by_one {
        return Ok(context);
    }
    let context = open()?;
    fsconfig_set_string(&context, "lowerdir", lower.join(":")).map_err(|errno| named("overlay", "lowerdir", errno))?;
    Ok(context)
}
