//! From a claim to its volume: what has to be true before the volume is touched. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    NodeSelectorRequirement, NodeSelectorTerm, PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec, Pod,
    Volume,
};
use orlop_agent_core::containers;

/// Why a claim's volume can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ClaimError {
    /// It has no volume yet; that may change.
    #[error("error processing PVC {0}: PVC is not bound")]
    Unbound(String),
    /// It is going away.
    #[error("error processing PVC {0}: PVC is being deleted")]
    Deleted(String),
    /// It was made by somebody else under the name that the pod's volume has.
    #[error("error processing PVC {claim}: PVC was not created for pod {pod} (pod is not owner)")]
    NotOwner { claim: String, pod: String },
    /// The volume belongs to another claim.
    #[error("error processing PVC {claim}: PV {volume:?} is bound to another PVC")]
    Foreign { claim: String, volume: String },
    /// The volume is elsewhere.
    #[error("volume node affinity check failed: node {node:?} does not match the node affinity of PV {volume:?}")]
    Elsewhere { volume: String, node: String },
    /// A device where a folder is wanted, or the other way round.
    #[error("volume {volume} has volumeMode {mode}, but is specified in {field}")]
    Mode { volume: String, mode: &'static str, field: &'static str },
    /// Block devices.
    #[error("volume {0} has volumeMode Block, which is not served by this node yet; use volumeMode Filesystem")]
    Block(String),
    /// Some other kind of storage.
    #[error("PV {0:?} is of a kind that this node does not serve; there are csi, local and hostPath")]
    Unsupported(String),
}

/// Name and read-only wish of the claim behind a volume of a pod.
pub(crate) fn claim_of(pod: &Pod, volume: &Volume) -> (String, bool) {
    match &volume.persistent_volume_claim {
        Some(source) => (source.claim_name.clone(), source.read_only == Some(true)),
        None => (format!("{}-{}", containers::name(pod), volume.name), false),
    }
}

/// The name of the claim's volume, once it is bound. `fresh` is whether the pod does not have it yet.
pub(crate) fn bound_volume(
    pod: &Pod,
    volume: &Volume,
    claim: &PersistentVolumeClaim,
    fresh: bool,
) -> Result<String, ClaimError> {
    let full = format!("{}/{}", containers::namespace(pod), claim.metadata.name.as_deref().unwrap_or_default());
    if volume.ephemeral.is_some() {
        let owners = claim.metadata.owner_references.iter().flatten();
        if !owners.into_iter().any(|owner| owner.controller == Some(true) && owner.uid == containers::uid(pod)) {
            let pod = format!("{}/{}", containers::namespace(pod), containers::name(pod));
            return Err(ClaimError::NotOwner { claim: full, pod });
        }
    }
    if claim.metadata.deletion_timestamp.is_some() && fresh {
        return Err(ClaimError::Deleted(full));
    }
    let bound = claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound");
    let name = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone());
    name.filter(|name| bound && !name.is_empty()).ok_or(ClaimError::Unbound(full))
}

/// Checks a persistent volume against its claim, the node and the pod.
pub(crate) fn check_volume(
    claim: &PersistentVolumeClaim,
    volume: &PersistentVolume,
    node_name: &str,
    node_labels: &BTreeMap<String, String>,
    as_device: bool,
) -> Result<PersistentVolumeSpec, ClaimError> {
    let name = volume.metadata.name.clone().unwrap_or_default();
    let spec = volume.spec.clone().unwrap_or_default();
    let owner = spec.claim_ref.as_ref().and_then(|reference| reference.uid.as_deref());
    if owner.is_none() || owner != claim.metadata.uid.as_deref() {
        let (space, own) = (claim.metadata.namespace.as_deref(), claim.metadata.name.as_deref());
        let claim = format!("{}/{}", space.unwrap_or_default(), own.unwrap_or_default());
        return Err(ClaimError::Foreign { claim, volume: name });
    }
    let terms = spec.node_affinity.as_ref().and_then(|affinity| affinity.required.as_ref());
    if let Some(selector) = terms
        && !node_labels.is_empty()
        && !selector.node_selector_terms.iter().any(|term| matches_term(term, node_name, node_labels))
    {
        return Err(ClaimError::Elsewhere { volume: name, node: node_name.to_owned() });
    }
    match (spec.volume_mode.as_deref() == Some("Block"), as_device) {
        (true, true) => Err(ClaimError::Block(name)),
        (true, false) => Err(ClaimError::Mode { volume: name, mode: "Block", field: "volumeMounts" }),
        (false, true) => Err(ClaimError::Mode { volume: name, mode: "Filesystem", field: "volumeDevices" }),
        (false, false) if spec.csi.is_none() && spec.local.is_none() && spec.host_path.is_none() => {
            Err(ClaimError::Unsupported(name))
        }
        (false, false) => Ok(spec),
    }
}

/// An empty term matches nothing.
fn matches_term(term: &NodeSelectorTerm, node_name: &str, labels: &BTreeMap<String, String>) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let by_name = |wanted: &NodeSelectorRequirement| wanted.key == "metadata.name" && matches(wanted, Some(node_name));
    (!expressions.is_empty() || !fields.is_empty())
        && expressions.iter().all(|wanted| matches(wanted, labels.get(&wanted.key).map(String::as_str)))
        && fields.iter().all(by_name)
}

fn matches(wanted: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = wanted.values.as_deref().unwrap_or_default();
    let listed = value.is_some_and(|value| values.iter().any(|other| other == value));
    let number = |text: &str| text.parse::<i64>().ok();
    let than = || Some((number(value?)?, number(values.first()?)?));
    match wanted.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => than().is_some_and(|(own, other)| own > other),
        "Lt" => than().is_some_and(|(own, other)| own < other),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn claim(value: serde_json::Value) -> PersistentVolumeClaim {
        serde_json::from_value(value).unwrap()
    }

    fn pod() -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}})).unwrap()
    }

    #[test]
    fn a_claim_must_be_bound_and_the_pods_own() {
        let named: Volume =
            serde_json::from_value(json!({"name": "v", "persistentVolumeClaim": {"claimName": "c"}})).unwrap();
        let own: Volume = serde_json::from_value(json!({"name": "v", "ephemeral": {}})).unwrap();
        assert_eq!(claim_of(&pod(), &named), ("c".into(), false));
        assert_eq!(claim_of(&pod(), &own), ("p-v".into(), false));
        let bound = json!({"metadata": {"name": "c"}, "spec": {"volumeName": "pv"}, "status": {"phase": "Bound"}});
        assert_eq!(bound_volume(&pod(), &named, &claim(bound.clone()), true).unwrap(), "pv");
        let mut pending = bound.clone();
        pending["status"]["phase"] = json!("Pending");
        assert_eq!(
            bound_volume(&pod(), &named, &claim(pending), true).unwrap_err().to_string(),
            "error processing PVC n/c: PVC is not bound"
        );
        let mut deleted = bound.clone();
        deleted["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        assert!(matches!(bound_volume(&pod(), &named, &claim(deleted.clone()), true), Err(ClaimError::Deleted(_))));
        assert!(bound_volume(&pod(), &named, &claim(deleted), false).is_ok(), "a pod that has it keeps it");
        assert!(matches!(bound_volume(&pod(), &own, &claim(bound.clone()), true), Err(ClaimError::NotOwner { .. })));
        let mut owned = bound;
        owned["metadata"]["ownerReferences"] =
            json!([{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u", "controller": true}]);
        assert!(bound_volume(&pod(), &own, &claim(owned), true).is_ok());
    }

    #[test]
    fn a_volume_must_be_the_claims_and_here() {
        let claim = claim(json!({"metadata": {"name": "c", "namespace": "n", "uid": "1"}}));
        let labels = BTreeMap::from([("zone".to_owned(), "a".to_owned()), ("size".to_owned(), "5".to_owned())]);
        let check = |spec: serde_json::Value, device| {
            let volume: PersistentVolume =
                serde_json::from_value(json!({"metadata": {"name": "pv"}, "spec": spec})).unwrap();
            check_volume(&claim, &volume, "me", &labels, device)
        };
        let spec = |uid: &str| json!({"claimRef": {"uid": uid}, "hostPath": {"path": "/x"}});
        assert!(check(spec("1"), false).is_ok());
        assert!(matches!(check(spec("2"), false), Err(ClaimError::Foreign { .. })));
        assert!(matches!(check(json!({"hostPath": {"path": "/x"}}), false), Err(ClaimError::Foreign { .. })));
        assert!(matches!(check(spec("1"), true), Err(ClaimError::Mode { field: "volumeDevices", .. })));
        let mut block = spec("1");
        block["volumeMode"] = json!("Block");
        assert!(matches!(check(block.clone(), false), Err(ClaimError::Mode { field: "volumeMounts", .. })));
        assert!(matches!(check(block, true), Err(ClaimError::Block(_))));
        assert!(matches!(
            check(json!({"claimRef": {"uid": "1"}, "nfs": {"server": "s", "path": "/"}}), false),
            Err(ClaimError::Unsupported(_))
        ));
        for (operator, key, values, want) in [
            ("In", "zone", vec!["a", "b"], true),
            ("In", "zone", vec!["b"], false),
            ("NotIn", "zone", vec!["b"], true),
            ("Exists", "zone", vec![], true),
            ("DoesNotExist", "zone", vec![], false),
            ("Gt", "size", vec!["4"], true),
            ("Lt", "size", vec!["4"], false),
            ("Odd", "size", vec![], false),
        ] {
            let mut here = spec("1");
            here["nodeAffinity"] = json!({"required": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": key, "operator": operator, "values": values}]}
            ]}});
            assert_eq!(check(here, false).is_ok(), want, "{operator} {key}");
        }
    }
}
