//! Whether a node is one that a pod may be on: its selector, its required affinity, and taints that end pods.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, Pod, Taint, Toleration};

use crate::containers::spec;

/// Whether the node is of the kind that selector and required affinity ask for.
pub(super) fn selects(pod: &Pod, node_name: &str, labels: &BTreeMap<String, String>) -> bool {
    let Some(spec) = spec(pod) else { return true };
    let selector = spec.node_selector.iter().flatten();
    if selector.into_iter().any(|(key, value)| labels.get(key) != Some(value)) {
        return false;
    }
    let required = spec
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref())
        .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    required.is_none_or(|required| required.node_selector_terms.iter().any(|term| fits(term, node_name, labels)))
}

/// A term that asks for nothing fits no node.
fn fits(term: &NodeSelectorTerm, node_name: &str, labels: &BTreeMap<String, String>) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let name = |key: &str| (key == "metadata.name").then_some(node_name);
    !(expressions.is_empty() && fields.is_empty())
        && expressions.iter().all(|want| holds(want, labels.get(&want.key).map(String::as_str)))
        && fields.iter().all(|want| holds(want, name(&want.key)))
}

fn holds(want: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = want.values.as_deref().unwrap_or_default();
    let listed = value.is_some_and(|value| values.iter().any(|known| known == value));
    let numbers = || Some((value?.parse::<i64>().ok()?, values.first()?.parse::<i64>().ok()?));
    match want.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => numbers().is_some_and(|(value, bound)| value > bound),
        "Lt" => numbers().is_some_and(|(value, bound)| value < bound),
        _ => false,
    }
}

/// Whether the pod bears every taint that ends pods (`NoExecute`); the others are the scheduler's business.
pub(super) fn tolerates(pod: &Pod, taints: &[Taint]) -> bool {
    let tolerations = spec(pod).and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
    taints
        .iter()
        .filter(|taint| taint.effect == "NoExecute")
        .all(|taint| tolerations.iter().any(|toleration| bears(toleration, taint)))
}

fn bears(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let (effect, key) = (text(&toleration.effect), text(&toleration.key));
    let value = match text(&toleration.operator).as_str() {
        "" | "Equal" => text(&toleration.value) == text(&taint.value),
        "Exists" => true,
        _ => false,
    };
    (effect.is_empty() || effect == taint.effect) && (key.is_empty() || key == taint.key) && value
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }

    #[test]
    fn operators_of_required_affinity() {
        let labels = BTreeMap::from([("disk".to_owned(), "ssd".to_owned()), ("cores".to_owned(), "8".to_owned())]);
        let expression = |key: &str, operator: &str, values: &[&str]| json!([{"matchExpressions": [{"key": key, "operator": operator, "values": values}]}]);
        let field = |operator: &str, values: &[&str]| json!([{"matchFields": [{"key": "metadata.name", "operator": operator, "values": values}]}]);
        for (terms, want) in [
            (expression("disk", "In", &["hdd", "ssd"]), true),
            (expression("disk", "In", &["hdd"]), false),
            (expression("disk", "NotIn", &["hdd"]), true),
            (expression("zone", "NotIn", &["a"]), true),
            (expression("zone", "Exists", &[]), false),
            (expression("zone", "DoesNotExist", &[]), true),
            (expression("cores", "Gt", &["4"]), true),
            (expression("cores", "Lt", &["4"]), false),
            (expression("disk", "Gt", &["4"]), false),
            (expression("disk", "Near", &["ssd"]), false),
            (field("In", &["n1"]), true),
            (field("NotIn", &["n1"]), false),
            (json!([]), false),
            (json!([{}]), false),
            (json!([{}, {"matchExpressions": [{"key": "disk", "operator": "Exists"}]}]), true),
            (
                json!([{"matchExpressions": [{"key": "disk", "operator": "Exists"}, {"key": "zone", "operator": "Exists"}]}]),
                false,
            ),
        ] {
            let affinity = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}});
            let pod = pod(json!({"containers": [], "affinity": affinity}));
            assert_eq!(selects(&pod, "n1", &labels), want, "{terms}");
        }
    }

    #[test]
    fn tolerations_of_taints() {
        let taint = |effect: &str| Taint {
            key: "k".into(),
            value: Some("v".into()),
            effect: effect.into(),
            ..Taint::default()
        };
        for (tolerations, effect, want) in [
            (json!([]), "NoSchedule", true),
            (json!([]), "NoExecute", false),
            (json!([{"operator": "Exists"}]), "NoExecute", true),
            (json!([{"operator": "Exists", "effect": "NoSchedule"}]), "NoExecute", false),
            (json!([{"key": "k", "value": "v"}]), "NoExecute", true),
            (json!([{"key": "k", "value": "w"}]), "NoExecute", false),
            (json!([{"key": "k", "operator": "Exists", "effect": "NoExecute"}]), "NoExecute", true),
            (json!([{"key": "other", "operator": "Exists"}]), "NoExecute", false),
        ] {
            let pod = pod(json!({"containers": [], "tolerations": tolerations}));
            assert_eq!(tolerates(&pod, &[taint(effect)]), want, "{tolerations} {effect}");
        }
    }
}
