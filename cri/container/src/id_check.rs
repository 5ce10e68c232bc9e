//! Whether this machine can give pods a user namespace: by making what a pod would get.

use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;

use orlop_kernel::mount::{self, Propagation};
use orlop_kernel::{path, process};
use rustix::fs::{Mode, OFlags};
use rustix::thread::UnshareFlags;

use crate::config::IdMapping;
use crate::create::unshare;
use crate::rootfs::Tree;
use crate::stage::{StageError, Step};
use crate::user_namespace::{UserMappings, UserNamespace};

/// The ids that are tried: any that are not the machine's own.
const RANGE: IdMapping = IdMapping { container_id: 0, host_id: 1 << 20, size: 1 << 16 };

/// Makes a user namespace and an overlay of mapped layers in a folder of the file system in question, writes a file
/// through it and looks at its owner on disk. Nothing of it stays. Only for a process of one thread that does nothing
/// else: it is in a mount namespace of its own afterwards.
///
/// # Errors
/// The step that the kernel or the file system refused.
pub fn check(folder: &Path) -> Result<(), StageError> {
    let scratch = folder.join(format!(".id-check-{}", std::process::id()));
    let result =
        make_folders(&scratch).step(format!("make the folder {scratch:?}")).and_then(|()| in_user_namespace(&scratch));
    let removed = std::fs::remove_dir_all(&scratch).step(format!("remove the folder {scratch:?}"));
    result.and(removed)
}

fn make_folders(scratch: &Path) -> std::io::Result<()> {
    let mut private = std::fs::DirBuilder::new();
    private.mode(0o700).create(scratch)?;
    ["lower", "upper", "work"].iter().try_for_each(|name| private.create(scratch.join(name)))
}

fn in_user_namespace(scratch: &Path) -> Result<(), StageError> {
    let mappings = UserMappings { uid_mappings: vec![RANGE], gid_mappings: vec![RANGE] };
    UserNamespace::make(&mappings).and_then(|user| try_overlay(scratch, &user))
}

fn try_overlay(scratch: &Path, user: &UserNamespace) -> Result<(), StageError> {
    let (upper, work) = (scratch.join("upper"), scratch.join("work"));
    let tree = Tree::writable(&[scratch.join("lower")], &upper, &work, None, Some(user))?;
    unshare(UnshareFlags::NEWNS).step("make a mount namespace")?;
    mount::set_propagation(c"/", Propagation::Private).step("make the mounts private")?;
    let place = path::open_root(Path::new("/")).step("open the root")?;
    process::make_files_as(RANGE.host_id, RANGE.host_id).step("make files for others")?;
    let root = tree.mount(&place, None)?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let file =
        rustix::fs::openat(&root, "file", flags, Mode::from_raw_mode(0o600)).step("make a file in the overlay")?;
    let inside = rustix::fs::fstat(&file).step("look at the file")?;
    let disk = std::fs::metadata(upper.join("file")).step("look at the file on disk")?;
    let (got, wanted) = ((inside.st_uid, disk.uid()), (RANGE.host_id, 0));
    if got == wanted {
        return Ok(());
    }
    Err(format!("it and the file on disk belong to {got:?}, not to {wanted:?}")).step("look at the file's owner")
}
