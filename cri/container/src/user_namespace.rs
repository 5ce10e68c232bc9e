//! The user namespace of a pod: which ids of the machine its ids are.

use std::os::fd::OwnedFd;

use orlop_kernel::procfs::Procfs;
use orlop_kernel::{namespace, process, socket};
use rustix::thread::LinkNameSpaceType;
use serde::{Deserialize, Serialize};

use crate::config::IdMapping;
use crate::stage::{self, StageError, Step};

/// Ranges that the kernel takes of one map.
const RANGES_MAX: usize = 340;

/// The ids of a user namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UserMappings {
    /// Users.
    pub uid_mappings: Vec<IdMapping>,
    /// Groups.
    pub gid_mappings: Vec<IdMapping>,
}

impl UserMappings {
    /// Checks both lists.
    ///
    /// # Errors
    /// Names the field.
    pub fn check(&self) -> Result<(), String> {
        check_mappings("user.uidMappings", &self.uid_mappings)?;
        check_mappings("user.gidMappings", &self.gid_mappings)
    }

    /// The machine's number of a user inside.
    ///
    /// # Errors
    /// When the namespace has no such user.
    pub(crate) fn host_uid(&self, uid: u32) -> Result<u32, StageError> {
        host_id(&self.uid_mappings, uid)
            .ok_or("the pod's user namespace doesn't map it")
            .step(format!("find the user {uid}"))
    }

    /// The machine's number of a group inside.
    ///
    /// # Errors
    /// When the namespace has no such group.
    pub(crate) fn host_gid(&self, gid: u32) -> Result<u32, StageError> {
        host_id(&self.gid_mappings, gid)
            .ok_or("the pod's user namespace doesn't map it")
            .step(format!("find the group {gid}"))
    }
}

/// A user namespace that exists.
#[derive(Debug)]
pub struct UserNamespace {
    /// A descriptor of it.
    pub namespace: OwnedFd,
    /// Its ids.
    pub mappings: UserMappings,
}

impl UserNamespace {
    /// Makes one that no process is in: for mounts that show its ids. Only for a process of one thread.
    pub(crate) fn make(mappings: &UserMappings) -> Result<UserNamespace, StageError> {
        let (ours, theirs) = socket::message_pair().step("make a socket")?;
        match process::clone(process::new::USER)
            .step("make a user namespace (see /proc/sys/user/max_user_namespaces)")?
        {
            process::Side::Child => {
                // It holds the namespace until its parent has closed the socket, or is gone.
                drop(ours);
                let _ = stage::receive(&theirs);
                std::process::exit(0)
            }
            process::Side::Parent { pidfd, .. } => {
                drop(theirs);
                // This process may have numbers of its own already, and `/proc` has the machine's.
                let made = Procfs::open().step("open /proc").and_then(|procfs| {
                    let pid = procfs.number_of(&pidfd).step("find the holder of the user namespace")?;
                    UserNamespace::of(&procfs, pid, mappings)
                });
                drop(ours);
                process::wait_for(&pidfd);
                made
            }
        }
    }

    /// Gives the user namespace of a process its ids and opens it.
    pub(crate) fn of(procfs: &Procfs, pid: i32, mappings: &UserMappings) -> Result<UserNamespace, StageError> {
        let maps = [("uid_map", &mappings.uid_mappings), ("gid_map", &mappings.gid_mappings)];
        for (file, ranges) in maps {
            procfs.write(&format!("{pid}/{file}"), &map_text(ranges)).step(format!("write the {file}"))?;
        }
        let path = format!("/proc/{pid}/ns/user");
        let namespace = namespace::open(path.as_ref()).step("open the pod's user namespace")?;
        Ok(UserNamespace { namespace, mappings: mappings.clone() })
    }

    /// Moves this process in, where it has all rights over what the pod owns and none over anything of the machine.
    pub(crate) fn enter(&self) -> Result<(), StageError> {
        namespace::join(&self.namespace, LinkNameSpaceType::User).step("join the pod's user namespace")?;
        // The keyring so far belongs to the machine's root.
        process::join_new_keyring();
        Ok(())
    }
}

fn host_id(mappings: &[IdMapping], id: u32) -> Option<u32> {
    let range = mappings.iter().find(|range| id >= range.container_id && id - range.container_id < range.size)?;
    range.host_id.checked_add(id - range.container_id)
}

/// A list as the kernel's `uid_map` and `gid_map` take it.
pub(crate) fn map_text(mappings: &[IdMapping]) -> String {
    mappings.iter().map(|range| format!("{} {} {}\n", range.container_id, range.host_id, range.size)).collect()
}

/// Checks a list: not empty, no id twice, and a root inside, who owns the pod's namespaces.
pub(crate) fn check_mappings(field: &str, mappings: &[IdMapping]) -> Result<(), String> {
    if mappings.is_empty() || mappings.len() > RANGES_MAX {
        return Err(format!("{field}: wants 1 to {RANGES_MAX} ranges, not {}", mappings.len()));
    }
    // The last number means "no id" to the kernel.
    let fits = |first: u32, size: u32| first.checked_add(size).is_some();
    if let Some(bad) =
        mappings.iter().find(|r| r.size == 0 || !fits(r.container_id, r.size) || !fits(r.host_id, r.size))
    {
        return Err(format!("{field}: {} ids from {} (host {}) is no range", bad.size, bad.container_id, bad.host_id));
    }
    let overlap = |a: u32, b: u32, one: &IdMapping, other: &IdMapping| a < b + other.size && b < a + one.size;
    for (at, one) in mappings.iter().enumerate() {
        for other in &mappings[..at] {
            if overlap(one.container_id, other.container_id, one, other)
                || overlap(one.host_id, other.host_id, one, other)
            {
                return Err(format!(
                    "{field}: the ranges from {} and {} overlap",
                    other.container_id, one.container_id
                ));
            }
        }
    }
    match host_id(mappings, 0) {
        None => Err(format!("{field}: id 0 of the container must be mapped")),
        Some(0) => Err(format!("{field}: the container's root must not be the machine's")),
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(ranges: &[(u32, u32, u32)]) -> Vec<IdMapping> {
        ranges
            .iter()
            .map(|(inside, host, size)| IdMapping { container_id: *inside, host_id: *host, size: *size })
            .collect()
    }

    #[test]
    fn ids_are_found_in_their_range() {
        let mappings = list(&[(0, 100_000, 1000), (5000, 300_000, 2)]);
        for (inside, host) in
            [(0, Some(100_000)), (999, Some(100_999)), (1000, None), (5001, Some(300_001)), (5002, None)]
        {
            assert_eq!(host_id(&mappings, inside), host);
        }
        assert_eq!(map_text(&mappings), "0 100000 1000\n5000 300000 2\n");
        check_mappings("f", &mappings).unwrap();
    }

    #[test]
    fn lists_that_are_none_are_refused() {
        for (ranges, words) in [
            (&[][..], "1 to 340"),
            (&[(0, 1, 0)], "no range"),
            (&[(0, u32::MAX, 2)], "no range"),
            (&[(1, 1000, 10)], "id 0"),
            (&[(0, 0, 10)], "must not be the machine's"),
            (&[(0, 1000, 10), (9, 5000, 10)], "overlap"),
            (&[(0, 1000, 10), (10, 1009, 10)], "overlap"),
        ] {
            let said = check_mappings("f", &list(ranges)).expect_err(words);
            assert!(said.contains(words), "{said}");
        }
    }
}
