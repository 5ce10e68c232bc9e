//! The quality of service class of a pod.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::object;
use crate::quantity::Quantity;

fn amounts(resources: &Value, key: &str) -> BTreeMap<&'static str, i128> {
    ["cpu", "memory"]
        .into_iter()
        .filter_map(|name| Some((name, Quantity::parse(resources.get(key)?.get(name)?.as_str()?)?.milli())))
        .filter(|(_, amount)| *amount > 0)
        .collect()
}

/// `Guaranteed`, `Burstable` or `BestEffort`, from the spec of a pod.
pub fn class(spec: &Value) -> &'static str {
    let mut any = false;
    let mut all_limited = true;
    let (mut requests, mut limits) = (BTreeMap::new(), BTreeMap::new());
    let mut look = |resources: &Value| {
        let (requested, limited) = (amounts(resources, "requests"), amounts(resources, "limits"));
        any |= !requested.is_empty() || !limited.is_empty();
        all_limited &= limited.len() == 2;
        for (name, amount) in requested {
            *requests.entry(name).or_insert(0) += amount;
        }
        for (name, amount) in limited {
            *limits.entry(name).or_insert(0) += amount;
        }
    };
    match spec.get("resources").filter(|resources| resources.as_object().is_some_and(|map| !map.is_empty())) {
        Some(resources) => look(resources),
        None => {
            for container in object::items(spec, "/containers").iter().chain(object::items(spec, "/initContainers")) {
                look(container.get("resources").unwrap_or(&Value::Null));
            }
        }
    }
    if !any {
        "BestEffort"
    } else if all_limited && requests == limits {
        "Guaranteed"
    } else {
        "Burstable"
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn classes() {
        let of = |resources: Value| class(&json!({"containers": [{"name": "a", "resources": resources}]}));
        assert_eq!(of(json!({})), "BestEffort");
        assert_eq!(of(json!({"requests": {"cpu": "1"}})), "Burstable");
        let both = json!({"cpu": "1", "memory": "1Gi"});
        assert_eq!(of(json!({"requests": both, "limits": both})), "Guaranteed");
        assert_eq!(of(json!({"limits": {"cpu": "1"}, "requests": {"cpu": "1"}})), "Burstable");
    }
}
