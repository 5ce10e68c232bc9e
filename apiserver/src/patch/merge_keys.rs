//! Which lists are merged and by which key: facts of the Kubernetes types (`patchStrategy`, `patchMergeKey`).

/// How a list is merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListStrategy {
    /// The patch's list takes the place of the old one.
    Replace,
    /// Items are merged by a key.
    ByKey(&'static str),
    /// A set of plain values.
    Set,
}

/// Type, field, key; an empty key is a set of plain values.
const TABLE: &[(&str, &str, &str)] = &[
    ("Container", "env", "name"),
    ("Container", "ports", "containerPort"),
    ("Container", "volumeDevices", "devicePath"),
    ("Container", "volumeMounts", "mountPath"),
    ("CSINodeSpec", "drivers", "name"),
    ("ContainerStatus", "allocatedResourcesStatus", "name"),
    ("ContainerStatus", "volumeMounts", "mountPath"),
    ("EphemeralContainer", "env", "name"),
    ("EphemeralContainer", "ports", "containerPort"),
    ("EphemeralContainer", "volumeDevices", "devicePath"),
    ("EphemeralContainer", "volumeMounts", "mountPath"),
    ("NamespaceStatus", "conditions", "type"),
    ("NodeSpec", "podCIDRs", ""),
    ("NodeStatus", "addresses", "type"),
    ("NodeStatus", "conditions", "type"),
    ("ObjectMeta", "finalizers", ""),
    ("ObjectMeta", "ownerReferences", "uid"),
    ("PersistentVolumeClaimStatus", "conditions", "type"),
    ("PodSpec", "containers", "name"),
    ("PodSpec", "ephemeralContainers", "name"),
    ("PodSpec", "hostAliases", "ip"),
    ("PodSpec", "imagePullSecrets", "name"),
    ("PodSpec", "initContainers", "name"),
    ("PodSpec", "resourceClaims", "name"),
    ("PodSpec", "schedulingGates", "name"),
    ("PodSpec", "topologySpreadConstraints", "topologyKey"),
    ("PodSpec", "volumes", "name"),
    ("PodStatus", "conditions", "type"),
    ("PodStatus", "hostIPs", "ip"),
    ("PodStatus", "podIPs", "ip"),
    ("PodStatus", "resourceClaimStatuses", "name"),
    ("ServiceAccount", "secrets", "name"),
    ("ServiceSpec", "ports", "port"),
    ("ServiceStatus", "conditions", "type"),
];

/// Fields whose items keep only what a patch names in `$retainKeys`; published with the schemas.
pub const RETAIN_KEYS: &[(&str, &str)] =
    &[("PodSpec", "resourceClaims"), ("PodSpec", "volumes"), ("PodStatus", "resourceClaimStatuses")];

/// How a field of a type (the last part of its schema's name) is merged.
pub fn list_strategy(type_name: &str, field: &str) -> ListStrategy {
    match TABLE.iter().find(|(owner, name, _)| *owner == type_name && *name == field) {
        Some((.., "")) => ListStrategy::Set,
        Some((.., key)) => ListStrategy::ByKey(key),
        None => ListStrategy::Replace,
    }
}
