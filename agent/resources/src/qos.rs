//! QoS classes in the cgroup tree, and the CPU shares of their parents.

use std::collections::BTreeMap;

/// Parent of all pods, below the configured root.
pub const KUBEPODS: &str = "kubepods";
/// Shares of a class without requests (kubelet `MinShares`).
pub const SHARES_MIN: u64 = 2;
/// Most shares that the kernel takes.
pub const SHARES_MAX: u64 = 262_144;

/// A QoS class as the tree knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Directly below `kubepods`.
    Guaranteed,
    /// Below `kubepods/burstable`.
    Burstable,
    /// Below `kubepods/besteffort`.
    BestEffort,
}

impl Class {
    /// All classes.
    pub const ALL: [Self; 3] = [Self::Guaranteed, Self::Burstable, Self::BestEffort];

    /// From `status.qosClass`.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "Guaranteed" => Some(Self::Guaranteed),
            "Burstable" => Some(Self::Burstable),
            "BestEffort" => Some(Self::BestEffort),
            _ => None,
        }
    }

    /// Cgroup of the class below the root prefix: `/kubepods/burstable`.
    pub fn path(self, root: &str) -> String {
        match self {
            Self::Guaranteed => format!("{root}/{KUBEPODS}"),
            Self::Burstable => format!("{root}/{KUBEPODS}/burstable"),
            Self::BestEffort => format!("{root}/{KUBEPODS}/besteffort"),
        }
    }

    /// Cgroup of a pod of the class.
    pub fn pod_path(self, root: &str, uid: &str) -> String {
        format!("{}/pod{uid}", self.path(root))
    }
}

/// Shares of the burstable class: the sum of its pods' requests. The best-effort class always has the least.
pub fn burstable_shares(pods: &BTreeMap<String, (Class, u64)>) -> u64 {
    // A pod without a CPU request counts nothing, though its own cgroup has the minimum.
    let requests = pods.values().filter(|(class, shares)| *class == Class::Burstable && *shares > SHARES_MIN);
    requests.map(|(_, shares)| *shares).fold(0, u64::saturating_add).clamp(SHARES_MIN, SHARES_MAX)
}

/// Whether a uid may become part of a path: uids of the API and hashes of static pods are letters, digits and dashes.
pub fn is_uid(uid: &str) -> bool {
    !uid.is_empty()
        && uid.len() <= 128
        && uid.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_the_kubelet() {
        assert_eq!(Class::Guaranteed.pod_path("", "u"), "/kubepods/podu");
        assert_eq!(Class::Burstable.pod_path("", "u"), "/kubepods/burstable/podu");
        assert_eq!(Class::BestEffort.pod_path("/orlop", "u"), "/orlop/kubepods/besteffort/podu");
    }

    #[test]
    fn burstable_shares_are_the_sum_of_requests() {
        let pods =
            |list: &[(Class, u64)]| list.iter().enumerate().map(|(number, pod)| (number.to_string(), *pod)).collect();
        let table: [(&[(Class, u64)], u64); 4] = [
            (&[], 2),
            (&[(Class::Guaranteed, 1024), (Class::BestEffort, 2)], 2),
            (&[(Class::Burstable, 512), (Class::Burstable, 256), (Class::Burstable, 2)], 768),
            (&[(Class::Burstable, 262_144), (Class::Burstable, 1024)], 262_144),
        ];
        for (list, shares) in table {
            assert_eq!(burstable_shares(&pods(list)), shares, "{list:?}");
        }
    }

    #[test]
    fn uids_never_leave_their_place() {
        assert!(is_uid("0b2b6c2e-7d3f-4f0c-8a53-2d4c6b0a1e11") && is_uid("4a0b"));
        for uid in ["", "..", "a/b", "a.b", "a\n", &"x".repeat(200)] {
            assert!(!is_uid(uid), "{uid:?}");
        }
    }
}
