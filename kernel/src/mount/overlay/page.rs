//! An overlay of many layers on kernels before 6.5. They take 256 bytes for the names of all layers, unless the overlay is
//! mounted the old way: at a path, with a page of options. That is done in a mount namespace that is gone right after.

use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, open};
use rustix::mount::{MountFlags, MountPropagationFlags, OpenTreeFlags, mount, mount_change, open_tree};
use rustix::thread::UnshareFlags;

use super::Plan;
use crate::mount::named;

/// Where the overlay is mounted in its own namespace: a folder that is always there.
const PLACE: &str = "/proc";

/// The detached overlay.
pub(super) fn create(plan: &Plan) -> std::io::Result<OwnedFd> {
    // A thread is enough to have another namespace.
    let made = std::thread::scope(|scope| scope.spawn(|| create_here(plan)).join());
    made.unwrap_or_else(|_| Err(std::io::Error::other("overlay: the thread that mounts it panicked")))
}

fn create_here(plan: &Plan) -> std::io::Result<OwnedFd> {
    let step = |what: &'static str| move |errno| named("overlay", what, errno);
    // It takes the working folder along, which names of layers may be relative to.
    // SAFETY: the flag takes no descriptors away, which alone could hurt other threads.
    #[expect(unsafe_code, reason = "unshare may take away descriptors that others use; not with this flag")]
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.map_err(step("unshare the mounts"))?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).map_err(step("make the mounts private"))?;
    // Opened here, since layers may lie on mounts of this namespace alone, and named by their numbers, since a page has to
    // hold all names.
    let mut folders = Vec::new();
    let mut name = |path: &str| -> std::io::Result<String> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = open(path, flags, Mode::empty()).map_err(|errno| {
            std::io::Error::new(std::io::Error::from(errno).kind(), format!("open {path}: {errno}"))
        })?;
        folders.push(folder);
        Ok(folders.last().map(AsRawFd::as_raw_fd).unwrap_or_default().to_string())
    };
    let lower = plan.lower.iter().map(|layer| name(layer)).collect::<Result<Vec<_>, _>>()?;
    let mut options = format!("lowerdir={}", lower.join(":"));
    if let Some((upper, work)) = &plan.writable {
        options.push_str(&format!(",upperdir={},workdir={},volatile", name(upper)?, name(work)?));
    }
    if let Some(label) = &plan.label {
        options.push_str(&format!(",context=\"{label}\""));
    }
    let options = CString::new(options).map_err(std::io::Error::other)?;
    rustix::process::chdir("/proc/thread-self/fd").map_err(step("enter the folder of descriptors"))?;
    mount("overlay", PLACE, "overlay", MountFlags::empty(), Some(options.as_c_str())).map_err(step("mount"))?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(CWD, PLACE, flags).map_err(step("take it out of its namespace"))
}
