//! What the machine has and may give away, from the kubelet's settings.

use std::collections::BTreeMap;
use std::path::Path;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use orlop_agent_core::quantity::{milli, units};
use orlop_agent_resources::{Amounts, MachineError, NodeReserve, Threshold, allocatable, read_machine};

use crate::kubelet_config::KubeletConfiguration;

/// Why the node's resources can't be told.
#[derive(Debug, thiserror::Error)]
pub enum ResourcesError {
    /// A setting is no amount.
    #[error("{field}: {value:?} is no amount of {resource}")]
    Amount {
        /// The setting.
        field: &'static str,
        /// The resource or signal.
        resource: String,
        /// What it says.
        value: String,
    },
    /// The machine can't be read.
    #[error(transparent)]
    Machine(#[from] MachineError),
}

/// Capacity and allocatable of the node.
pub(crate) struct NodeAmounts {
    pub(crate) capacity: Amounts,
    pub(crate) allocatable: Amounts,
}

/// Reads the machine; `root` is the kubelet's root directory, whose disk counts. Blocking.
pub(crate) fn read_amounts(config: &KubeletConfiguration, root: &Path) -> Result<NodeAmounts, ResourcesError> {
    let reserve = reserve(config)?;
    let mut capacity = read_machine(root, config.max_pods)?;
    if config.pods_per_core > 0 {
        capacity.pods = capacity.pods.min(config.pods_per_core.saturating_mul(capacity.cpu_millis / 1000));
    }
    let allocatable = allocatable(&capacity, &reserve);
    Ok(NodeAmounts { capacity, allocatable })
}

fn reserve(config: &KubeletConfiguration) -> Result<NodeReserve, ResourcesError> {
    let mut reserve = NodeReserve {
        system: amounts("systemReserved", &config.system_reserved)?,
        kube: amounts("kubeReserved", &config.kube_reserved)?,
        ..NodeReserve::default()
    };
    if !config.eviction_hard.is_empty() {
        // As with the kubelet, a map that is given stands for the whole of it.
        (reserve.memory_eviction, reserve.disk_eviction) = (Threshold::Bytes(0), Threshold::Bytes(0));
    }
    for (signal, text) in &config.eviction_hard {
        let threshold = threshold(text).ok_or_else(|| ResourcesError::Amount {
            field: "evictionHard",
            resource: signal.clone(),
            value: text.clone(),
        })?;
        match signal.as_str() {
            "memory.available" => reserve.memory_eviction = threshold,
            "nodefs.available" => reserve.disk_eviction = threshold,
            _ => {}
        }
    }
    Ok(reserve)
}

fn threshold(text: &str) -> Option<Threshold> {
    match text.strip_suffix('%') {
        Some(percent) => percent.parse().ok().filter(|value| (0.0..=100.0).contains(value)).map(Threshold::Percent),
        None => units(&Quantity(text.to_owned())).ok().filter(|bytes| *bytes >= 0).map(Threshold::Bytes),
    }
}

fn amounts(field: &'static str, map: &BTreeMap<String, String>) -> Result<Amounts, ResourcesError> {
    let mut found = Amounts::default();
    for (resource, text) in map {
        let wrong = || ResourcesError::Amount { field, resource: resource.clone(), value: text.clone() };
        let quantity = Quantity(text.clone());
        let value = if resource == "cpu" { milli(&quantity) } else { units(&quantity) };
        let value = value.ok().filter(|value| *value >= 0).ok_or_else(wrong)?;
        match resource.as_str() {
            "cpu" => found.cpu_millis = value,
            "memory" => found.memory_bytes = value,
            "ephemeral-storage" => found.ephemeral_storage_bytes = value,
            "pid" => {}
            _ => return Err(wrong()),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(system: &[(&str, &str)], eviction: &[(&str, &str)]) -> KubeletConfiguration {
        let map = |list: &[(&str, &str)]| list.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        KubeletConfiguration { system_reserved: map(system), eviction_hard: map(eviction), ..Default::default() }
    }

    #[test]
    fn settings_become_amounts() {
        let found = reserve(&config(&[("cpu", "500m"), ("memory", "1Gi")], &[("memory.available", "5%")])).unwrap();
        assert_eq!((found.system.cpu_millis, found.system.memory_bytes), (500, 1 << 30));
        assert_eq!((found.memory_eviction, found.disk_eviction), (Threshold::Percent(5.0), Threshold::Bytes(0)));
        assert_eq!(reserve(&config(&[], &[])).unwrap(), NodeReserve::default());
        for (system, eviction, word) in [
            (&[("cpu", "much")][..], &[][..], "systemReserved"),
            (&[("gpu", "1")], &[], "gpu"),
            (&[], &[("memory.available", "101%")], "evictionHard"),
        ] {
            assert!(reserve(&config(system, eviction)).unwrap_err().to_string().contains(word));
        }
    }
}
