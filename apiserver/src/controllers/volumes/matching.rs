//! Which existing volume fits a claim.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::object;
use crate::quantity::Quantity;

/// The volume that the claim names, that names the claim, or the smallest that fits.
pub(super) fn volume_for<'a>(
    claim: &Value,
    volumes: &'a [Value],
    taken: &BTreeSet<String>,
    waits: bool,
) -> Option<&'a Value> {
    let free = |volume: &&Value| !taken.contains(object::name(volume)) && !object::is_terminating(volume);
    let prebound = |volume: &&Value| {
        object::text(volume, "/spec/claimRef/name") == object::name(claim)
            && object::text(volume, "/spec/claimRef/namespace") == object::namespace(claim)
            && matches!(object::text(volume, "/spec/claimRef/uid"), uid if uid.is_empty() || uid == object::uid(claim))
    };
    let named = object::text(claim, "/spec/volumeName");
    if !named.is_empty() {
        let unclaimed = |volume: &&Value| object::text(volume, "/spec/claimRef/name").is_empty() || prebound(volume);
        return volumes.iter().filter(free).find(|volume| object::name(volume) == named && unclaimed(volume));
    }
    if let Some(volume) = volumes.iter().filter(free).find(prebound) {
        return Some(volume);
    }
    if waits {
        return None;
    }
    volumes
        .iter()
        .filter(free)
        .filter(|volume| volume.pointer("/spec/claimRef").is_none() && fits(claim, volume))
        .min_by_key(|volume| size(volume, "/spec/capacity/storage"))
}

fn size(object: &Value, pointer: &str) -> i128 {
    Quantity::parse(object::text(object, pointer)).map_or(0, |size| size.units())
}

fn fits(claim: &Value, volume: &Value) -> bool {
    let modes = object::strings(volume, "/spec/accessModes");
    let labels = volume.pointer("/metadata/labels");
    let selected = claim.pointer("/spec/selector/matchLabels").and_then(Value::as_object).is_none_or(|wanted| {
        wanted.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
    });
    object::text(volume, "/spec/storageClassName") == object::text(claim, "/spec/storageClassName")
        && object::text(volume, "/spec/volumeMode") == object::text(claim, "/spec/volumeMode")
        && object::strings(claim, "/spec/accessModes").iter().all(|mode| modes.contains(mode))
        && size(volume, "/spec/capacity/storage") >= size(claim, "/spec/resources/requests/storage")
        && selected
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn volume(name: &str, size: &str, claim: Option<&str>) -> Value {
        let mut volume = json!({"metadata": {"name": name}, "spec": {"capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem", "storageClassName": "s"}});
        if let Some(claim) = claim {
            volume["spec"]["claimRef"] = json!({"name": claim, "namespace": "a"});
        }
        volume
    }

    #[test]
    fn the_smallest_that_fits() {
        let claim = json!({"metadata": {"name": "c", "namespace": "a", "uid": "u"}, "spec": {"storageClassName": "s", "volumeMode": "Filesystem", "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "2Gi"}}}});
        let volumes = [
            volume("small", "1Gi", None),
            volume("large", "9Gi", None),
            volume("right", "2Gi", None),
            volume("other", "2Gi", Some("x")),
        ];
        let none = BTreeSet::new();
        assert_eq!(object::name(volume_for(&claim, &volumes, &none, false).unwrap()), "right");
        assert!(volume_for(&claim, &volumes, &none, true).is_none());
        let mut volumes = volumes.to_vec();
        volumes.push(volume("mine", "1Gi", Some("c")));
        assert_eq!(object::name(volume_for(&claim, &volumes, &none, true).unwrap()), "mine");
    }
}
