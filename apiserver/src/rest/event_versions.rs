//! Events have two forms, `v1` and `events.k8s.io/v1`; the first one is kept.

use serde_json::Value;

use crate::object;

/// Name in `v1`, name in `events.k8s.io/v1`.
const RENAMED: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
];

/// From the form that is kept.
pub fn from_core(mut event: Value) -> Value {
    for (core, other) in RENAMED {
        if let Some(value) = object::remove(&mut event, core) {
            event[other] = value;
        }
    }
    // The one form writes what is empty, the other does not.
    for key in ["reportingController", "reportingInstance"] {
        if event.get(key).and_then(Value::as_str) == Some("") {
            object::remove(&mut event, key);
        }
    }
    event
}

/// To the form that is kept.
pub fn to_core(mut event: Value) -> Value {
    for (core, other) in RENAMED {
        if let Some(value) = object::remove(&mut event, other) {
            event[core] = value;
        }
    }
    event
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn there_and_back() {
        let kept = json!({"involvedObject": {"name": "x"}, "message": "m", "count": 2, "reason": "r"});
        let shown = from_core(kept.clone());
        assert_eq!(shown, json!({"regarding": {"name": "x"}, "note": "m", "deprecatedCount": 2, "reason": "r"}));
        assert_eq!(to_core(shown), kept);
    }
}
