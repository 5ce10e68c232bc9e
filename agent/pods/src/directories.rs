//! Directories and files of pods on the node, as the kubelet lays them out.

use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Pod;
use orlop_agent_core::containers;

/// Where things of pods are.
#[derive(Clone, Debug)]
pub(crate) struct Directories {
    root: PathBuf,
    logs: PathBuf,
}

impl Directories {
    pub(crate) fn new(root: &Path, logs: &Path) -> Directories {
        Directories { root: root.to_path_buf(), logs: logs.to_path_buf() }
    }

    /// `<root>/pods`.
    pub(crate) fn pods(&self) -> PathBuf {
        self.root.join("pods")
    }

    /// `<root>/pods/<uid>`.
    pub(crate) fn pod(&self, uid: &str) -> PathBuf {
        self.pods().join(uid)
    }

    /// The pod's /etc/hosts.
    pub(crate) fn etc_hosts(&self, uid: &str) -> PathBuf {
        self.pod(uid).join("etc-hosts")
    }

    /// Termination log of one instance of a container.
    pub(crate) fn termination_log(&self, uid: &str, container: &str, attempt: u32) -> PathBuf {
        self.pod(uid).join("containers").join(container).join(format!("{attempt:08x}"))
    }

    /// Bind mounts of sub paths.
    pub(crate) fn sub_paths(&self, uid: &str) -> PathBuf {
        self.pod(uid).join("volume-subpaths")
    }

    /// Root of all logs.
    pub(crate) fn logs_root(&self) -> &Path {
        &self.logs
    }

    /// Logs of a pod.
    pub(crate) fn pod_logs(&self, pod: &Pod) -> PathBuf {
        self.logs.join(format!("{}_{}_{}", containers::namespace(pod), containers::name(pod), containers::uid(pod)))
    }

    /// Makes the pod's own directories.
    pub(crate) fn make_pod(&self, pod: &Pod) -> std::io::Result<()> {
        let folder = self.pod(containers::uid(pod));
        for part in ["volumes", "plugins", "containers"] {
            make_folder(&folder.join(part), 0o750)?;
        }
        make_folder(&self.pod_logs(pod), 0o755)
    }

    /// Makes log directory and termination log of one instance of a container.
    pub(crate) fn make_container(&self, pod: &Pod, container: &str, attempt: u32) -> std::io::Result<PathBuf> {
        make_folder(&self.pod_logs(pod).join(container), 0o755)?;
        let file = self.termination_log(containers::uid(pod), container, attempt);
        if let Some(folder) = file.parent() {
            make_folder(folder, 0o750)?;
        }
        let open = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o666).open(&file)?;
        // The container may run as anybody, and the umask may have taken the permission away.
        open.set_permissions(std::fs::Permissions::from_mode(0o666))?;
        Ok(file)
    }

    /// Writes the pod's /etc/hosts in place, since containers have the file itself mounted.
    pub(crate) fn write_etc_hosts(&self, uid: &str, text: &str) -> std::io::Result<PathBuf> {
        let path = self.etc_hosts(uid);
        if std::fs::read(&path).is_ok_and(|known| known == text.as_bytes()) {
            return Ok(path);
        }
        let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&path)?;
        file.write_all(text.as_bytes())?;
        file.set_permissions(std::fs::Permissions::from_mode(0o644))?;
        Ok(path)
    }

    /// Uids of pods that have a directory, or one of logs: the runtime may make that one for a container whose agent was
    /// killed.
    pub(crate) fn pods_on_disk(&self) -> Vec<String> {
        let logs = folders(&self.logs).filter_map(|name| Some(name.rsplit_once('_')?.1.to_owned()));
        folders(&self.pods()).chain(logs.filter(|uid| !uid.is_empty())).collect()
    }

    /// Removes the files of one instance of a container: log, rotated logs, termination log.
    pub(crate) fn remove_container_files(&self, uid: &str, container: &str, attempt: u32, log: &Path) {
        let _ = std::fs::remove_file(self.termination_log(uid, container, attempt));
        if !log.starts_with(&self.logs) {
            return;
        }
        let _ = std::fs::remove_file(log);
        let (Some(folder), Some(name)) = (log.parent(), log.file_name().and_then(|name| name.to_str())) else { return };
        let rotated = format!("{name}.");
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_name().to_str().is_some_and(|other| other.starts_with(&rotated)) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }

    /// Removes the logs of a pod that is gone, by its uid.
    pub(crate) fn remove_pod_logs(&self, uid: &str) {
        let ending = format!("_{uid}");
        for entry in std::fs::read_dir(&self.logs).into_iter().flatten().flatten() {
            if entry.file_name().to_str().is_some_and(|name| name.ends_with(&ending)) {
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
    }

    /// Removes the pod's directory, but never what is mounted in it.
    pub(crate) fn remove_pod(&self, uid: &str) -> std::io::Result<()> {
        let folder = self.pod(uid);
        if !folder.exists() {
            return Ok(());
        }
        let mounted = orlop_kernel::mount::mounts_below(&folder)?;
        if let Some(mount) = mounted.first() {
            return Err(std::io::Error::other(format!("{} is still mounted", mount.display())));
        }
        std::fs::remove_dir_all(&folder)
    }
}

/// Names of the folders in a folder.
fn folders(folder: &Path) -> impl Iterator<Item = String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter_map(|entry| entry.file_name().into_string().ok())
}

/// Makes a directory and those above it.
pub(crate) fn make_folder(path: &Path, mode: u32) -> std::io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(mode).create(path)
}
