//! emptyDir: a folder, memory or huge pages that live as long as the pod; also what contents of the API are put into.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use orlop_agent_core::containers::all_containers;
use orlop_agent_core::quantity::units;
use orlop_agent_core::resources::pod_limit;
use orlop_kernel::mount::{self, Attributes, FsOption};
use orlop_kernel::path;

use crate::file::{FileError, failed, make_folder};

/// Where an emptyDir's bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Medium {
    /// On the disk of the node.
    Disk,
    /// In memory, of that many bytes at most where a bound is known.
    Memory(Option<i64>),
    /// In huge pages of that size.
    HugePages(String),
}

/// Why an emptyDir can't be as its pod says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MediumError {
    /// The medium is not one.
    #[error("emptyDir.medium {0:?} is not known; there are \"\", Memory, HugePages and HugePages-<size>")]
    Unknown(String),
    /// The size can't be read.
    #[error("emptyDir.sizeLimit: {0}")]
    Size(String),
    /// Which huge pages?
    #[error("emptyDir.medium HugePages needs containers that ask for huge pages of one size; they ask for {0} sizes")]
    HugePages(usize),
}

/// The medium of an emptyDir, with its size bounded by the pod's memory limit and what the node can give.
pub(crate) fn medium(
    source: Option<&EmptyDirVolumeSource>,
    pod: &Pod,
    allocatable: &BTreeMap<String, Quantity>,
) -> Result<Medium, MediumError> {
    let limit = source.and_then(|source| source.size_limit.as_ref());
    let limit = limit.map(|limit| units(limit).map_err(|error| MediumError::Size(error.to_string()))).transpose()?;
    match source.and_then(|source| source.medium.as_deref()).unwrap_or_default() {
        "" => Ok(Medium::Disk),
        "Memory" => Ok(Medium::Memory(memory_bytes(limit, pod, allocatable))),
        "HugePages" => {
            let sizes = huge_page_sizes(pod);
            match (sizes.len(), sizes.into_iter().next()) {
                (1, Some(size)) => Ok(Medium::HugePages(size)),
                (count, _) => Err(MediumError::HugePages(count)),
            }
        }
        other => match other.strip_prefix("HugePages-") {
            Some(size) if !size.is_empty() => Ok(Medium::HugePages(size.to_owned())),
            _ => Err(MediumError::Unknown(other.to_owned())),
        },
    }
}

/// Bytes that a memory volume of the pod may have.
pub(crate) fn memory_bytes(limit: Option<i64>, pod: &Pod, allocatable: &BTreeMap<String, Quantity>) -> Option<i64> {
    let node = allocatable.get("memory").and_then(|memory| units(memory).ok());
    [limit, pod_limit(pod, "memory"), node].into_iter().flatten().filter(|bytes| *bytes > 0).min()
}

fn huge_page_sizes(pod: &Pod) -> BTreeSet<String> {
    let resources = all_containers(pod).filter_map(|container| container.container.resources.clone());
    let names = resources.flat_map(|resources| resources.limits.unwrap_or_default().into_keys());
    names.filter_map(|name| name.strip_prefix("hugepages-").map(str::to_owned)).collect()
}

/// The mark that a volume has been made in full (kubelet `volumeutil.SetReady`).
pub(crate) fn ready_mark(marks: &Path, name: &str) -> PathBuf {
    marks.join(name).join("ready")
}

/// Makes the folder, empty the first time; what containers have written or changed stays. Returns whether it is new.
pub(crate) fn make(folder: &Path, mark: &Path, medium: &Medium) -> Result<bool, FileError> {
    let in_place = *medium == Medium::Disk || mount::is_mount_point(folder).map_err(failed("look at", folder))?;
    if in_place && mark.exists() && folder.is_dir() {
        return Ok(false);
    }
    make_folder(folder, 0o777)?;
    match medium {
        Medium::Disk => {}
        Medium::Memory(bytes) => mount_memory(folder, *bytes)?,
        Medium::HugePages(size) => mount_at(folder, "hugetlbfs", &[FsOption::Value("pagesize", size)])?,
    }
    // The mount has a mode of its own.
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o777)).map_err(failed("open up", folder))?;
    Ok(true)
}

/// Sets the mark, when all of the volume is made.
pub(crate) fn set_ready(mark: &Path) -> Result<(), FileError> {
    if let Some(folder) = mark.parent() {
        make_folder(folder, 0o750)?;
    }
    std::fs::write(mark, "").map_err(failed("write", mark))
}

/// Mounts memory at a folder; fine when something is mounted.
fn mount_memory(folder: &Path, bytes: Option<i64>) -> Result<(), FileError> {
    let size = bytes.map(|bytes| bytes.to_string());
    let mut options: Vec<FsOption<'_>> = size.iter().map(|size| FsOption::Value("size", size)).collect();
    options.push(FsOption::Flag("noswap"));
    let first = mount_at(folder, "tmpfs", &options);
    if first.is_ok() {
        return first;
    }
    // Kernels before 6.4 can't keep memory volumes out of swap.
    options.pop();
    mount_at(folder, "tmpfs", &options)
}

fn mount_at(folder: &Path, kind: &str, options: &[FsOption<'_>]) -> Result<(), FileError> {
    if mount::is_mount_point(folder).map_err(failed("look at", folder))? {
        return Ok(());
    }
    let detached = mount::new_filesystem(kind, kind, options, Attributes::empty())
        .map_err(failed("make the file system for", folder))?;
    let target = path::open_root(folder).map_err(|error| failed("open", folder)(std::io::Error::other(error)))?;
    mount::attach(&detached, &target).map_err(failed("mount at", folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_medium_and_its_size() {
        let pod: Pod = serde_json::from_value(serde_json::json!({"spec": {"containers": [
            {"name": "a", "resources": {"limits": {"memory": "100", "hugepages-2Mi": "4Mi"}}}
        ]}}))
        .unwrap();
        let free = Pod::default();
        let node = BTreeMap::from([("memory".to_owned(), Quantity("1k".into()))]);
        let source = |medium: &str, limit: Option<&str>| EmptyDirVolumeSource {
            medium: Some(medium.into()),
            size_limit: limit.map(|limit| Quantity(limit.into())),
        };
        for (pod, source, want) in [
            (&pod, source("", Some("5")), Ok(Medium::Disk)),
            (&pod, source("Memory", None), Ok(Medium::Memory(Some(100)))),
            (&pod, source("Memory", Some("50")), Ok(Medium::Memory(Some(50)))),
            (&free, source("Memory", Some("5000")), Ok(Medium::Memory(Some(1000)))),
            (&pod, source("HugePages", None), Ok(Medium::HugePages("2Mi".into()))),
            (&free, source("HugePages", None), Err(MediumError::HugePages(0))),
            (&free, source("HugePages-1Gi", None), Ok(Medium::HugePages("1Gi".into()))),
            (&free, source("Tape", None), Err(MediumError::Unknown("Tape".into()))),
        ] {
            assert_eq!(medium(Some(&source), pod, &node), want, "{source:?}");
        }
        assert_eq!(medium(None, &free, &node), Ok(Medium::Disk));
        assert!(matches!(medium(Some(&source("Memory", Some("x"))), &free, &node), Err(MediumError::Size(_))));
    }
}
