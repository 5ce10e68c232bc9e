//! Persistent volumes that are a path of this node (`local`): bound into the pod's folder.

use std::path::Path;

use orlop_kernel::mount::{self, Attributes, Propagation};
use orlop_kernel::path;

use crate::file::{FileError, failed, make_folder};

/// Mounts a path of the node at the volume's folder; fine when something is mounted there.
pub(crate) fn make(source: &Path, folder: &Path, read_only: bool) -> Result<(), FileError> {
    if mount::is_mount_point(folder).map_err(failed("look at", folder))? {
        return Ok(());
    }
    make_folder(folder, 0o750)?;
    let detached = mount::clone_path(source, true).map_err(failed("open the local volume", source))?;
    if read_only {
        mount::set_attributes(&detached, Attributes::MOUNT_ATTR_RDONLY, Some(Propagation::Private), true)
            .map_err(failed("make read-only", source))?;
    }
    let target = path::open_root(folder).map_err(|error| failed("open", folder)(std::io::Error::other(error)))?;
    mount::attach(&detached, &target).map_err(failed("mount at", folder))
}
