//! Links `/var/log/containers/<pod>_<namespace>_<container>-<id>.log` that log collectors follow.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Pod;
use orlop_agent_core::containers;

fn link(folder: &Path, pod: &Pod, container: &str, id: &str) -> PathBuf {
    folder.join(format!("{}_{}_{container}-{id}.log", containers::name(pod), containers::namespace(pod)))
}

/// Makes the link of a container's log.
pub(crate) fn make_link(folder: &Path, pod: &Pod, container: &str, id: &str, log: &Path) -> std::io::Result<()> {
    crate::directories::make_folder(folder, 0o755)?;
    match std::os::unix::fs::symlink(log, link(folder, pod, container, id)) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Removes the link of a container's log.
pub(crate) fn remove_link(folder: &Path, pod: &Pod, container: &str, id: &str) {
    let _ = std::fs::remove_file(link(folder, pod, container, id));
}
