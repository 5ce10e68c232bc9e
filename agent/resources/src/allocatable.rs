//! What of the machine pods may have: capacity less what is kept for the system and for eviction.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Amounts of the resources that every node has, in the kernel's units.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    /// CPU in thousandths.
    pub cpu_millis: i64,
    /// Memory in bytes.
    pub memory_bytes: i64,
    /// Disk of the node's root file system in bytes.
    pub ephemeral_storage_bytes: i64,
    /// Huge pages in bytes by size (`2Mi`).
    pub hugepages_bytes: BTreeMap<String, i64>,
    /// Pods.
    pub pods: i64,
}

/// An eviction threshold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Threshold {
    /// A fixed amount.
    Bytes(i64),
    /// A share of the capacity.
    Percent(f64),
}

impl Threshold {
    /// The amount, of this capacity.
    pub fn of(self, capacity: i64) -> i64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => (capacity as f64 * percent / 100.0) as i64,
        }
    }
}

/// What pods may not have.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeReserve {
    /// `systemReserved`.
    pub system: Amounts,
    /// `kubeReserved`.
    pub kube: Amounts,
    /// Hard eviction threshold `memory.available`.
    pub memory_eviction: Threshold,
    /// Hard eviction threshold `nodefs.available`.
    pub disk_eviction: Threshold,
}

/// Nothing reserved, and the kubelet's default thresholds: 100Mi of memory, 10 % of the disk.
impl Default for NodeReserve {
    fn default() -> Self {
        Self {
            system: Amounts::default(),
            kube: Amounts::default(),
            memory_eviction: Threshold::Bytes(100 << 20),
            disk_eviction: Threshold::Percent(10.0),
        }
    }
}

/// What pods may have. Never below zero; huge pages come out of memory.
pub fn allocatable(capacity: &Amounts, reserve: &NodeReserve) -> Amounts {
    let less = |total: i64, parts: &[i64]| parts.iter().fold(total, |left, part| left.saturating_sub(*part)).max(0);
    let hugepages: i64 = capacity.hugepages_bytes.values().sum();
    let (system, kube) = (&reserve.system, &reserve.kube);
    let eviction = reserve.memory_eviction.of(capacity.memory_bytes);
    let disk_eviction = reserve.disk_eviction.of(capacity.ephemeral_storage_bytes);
    Amounts {
        cpu_millis: less(capacity.cpu_millis, &[system.cpu_millis, kube.cpu_millis]),
        memory_bytes: less(capacity.memory_bytes, &[system.memory_bytes, kube.memory_bytes, eviction, hugepages]),
        ephemeral_storage_bytes: less(
            capacity.ephemeral_storage_bytes,
            &[system.ephemeral_storage_bytes, kube.ephemeral_storage_bytes, disk_eviction],
        ),
        hugepages_bytes: capacity.hugepages_bytes.clone(),
        pods: capacity.pods,
    }
}

/// Memory that the cgroup of all pods is limited to: capacity less what is reserved. The eviction threshold stays inside,
/// so that eviction acts before the kernel does.
pub fn pods_memory_bytes(capacity: &Amounts, reserve: &NodeReserve) -> i64 {
    (capacity.memory_bytes - reserve.system.memory_bytes - reserve.kube.memory_bytes).max(0)
}

impl Amounts {
    /// As the Node object has them.
    pub fn quantities(&self) -> BTreeMap<String, Quantity> {
        let mut quantities = BTreeMap::from([
            ("cpu".to_owned(), milli_quantity(self.cpu_millis)),
            ("memory".to_owned(), binary_quantity(self.memory_bytes)),
            ("ephemeral-storage".to_owned(), binary_quantity(self.ephemeral_storage_bytes)),
            ("pods".to_owned(), Quantity(self.pods.to_string())),
        ]);
        quantities.extend(
            self.hugepages_bytes.iter().map(|(size, bytes)| (format!("hugepages-{size}"), binary_quantity(*bytes))),
        );
        quantities
    }
}

/// Thousandths in canonical form: `2`, `1900m`.
pub fn milli_quantity(millis: i64) -> Quantity {
    Quantity(if millis % 1000 == 0 { (millis / 1000).to_string() } else { format!("{millis}m") })
}

/// Bytes in canonical form: the largest binary suffix that leaves a whole number.
pub fn binary_quantity(bytes: i64) -> Quantity {
    let (mut value, mut suffix) = (bytes, "");
    for next in ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"] {
        if value == 0 || value % 1024 != 0 {
            break;
        }
        (value, suffix) = (value / 1024, next);
    }
    Quantity(format!("{value}{suffix}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Amounts {
        Amounts {
            cpu_millis: 4000,
            memory_bytes: 8 << 30,
            ephemeral_storage_bytes: 1000,
            hugepages_bytes: BTreeMap::new(),
            pods: 110,
        }
    }

    #[test]
    fn reserves_and_thresholds_are_taken_off() {
        let table: [(&str, NodeReserve, i64, i64, i64); 3] = [
            ("defaults", NodeReserve::default(), 4000, (8 << 30) - (100 << 20), 900),
            (
                "reserved",
                NodeReserve {
                    system: Amounts {
                        cpu_millis: 100,
                        memory_bytes: 1 << 30,
                        ephemeral_storage_bytes: 50,
                        ..Amounts::default()
                    },
                    kube: Amounts {
                        cpu_millis: 200,
                        memory_bytes: 1 << 30,
                        ephemeral_storage_bytes: 50,
                        ..Amounts::default()
                    },
                    memory_eviction: Threshold::Percent(25.0),
                    disk_eviction: Threshold::Bytes(100),
                },
                3700,
                4 << 30,
                800,
            ),
            (
                "more than there is",
                NodeReserve {
                    system: Amounts {
                        cpu_millis: 9000,
                        memory_bytes: 9 << 30,
                        ephemeral_storage_bytes: 9000,
                        ..Amounts::default()
                    },
                    ..NodeReserve::default()
                },
                0,
                0,
                0,
            ),
        ];
        for (name, reserve, cpu, memory, disk) in table {
            let left = allocatable(&machine(), &reserve);
            assert_eq!(
                (left.cpu_millis, left.memory_bytes, left.ephemeral_storage_bytes, left.pods),
                (cpu, memory, disk, 110),
                "{name}"
            );
        }
    }

    #[test]
    fn huge_pages_come_out_of_memory() {
        let mut capacity = machine();
        capacity.hugepages_bytes.insert("2Mi".into(), 1 << 30);
        let left =
            allocatable(&capacity, &NodeReserve { memory_eviction: Threshold::Bytes(0), ..NodeReserve::default() });
        assert_eq!((left.memory_bytes, left.hugepages_bytes["2Mi"]), (7 << 30, 1 << 30));
        assert_eq!(pods_memory_bytes(&capacity, &NodeReserve::default()), 8 << 30);
        assert_eq!(left.quantities()["hugepages-2Mi"], Quantity("1Gi".into()));
    }

    #[test]
    fn quantities_are_canonical() {
        for (millis, text) in [(2000, "2"), (1900, "1900m"), (0, "0"), (500, "500m")] {
            assert_eq!(milli_quantity(millis).0, text);
        }
        for (bytes, text) in [
            (0, "0"),
            (1023, "1023"),
            (1024, "1Ki"),
            (24_689_212 * 1024, "24689212Ki"),
            (8 << 30, "8Gi"),
            (3 << 19, "1536Ki"),
        ] {
            assert_eq!(binary_quantity(bytes).0, text);
        }
    }
}
