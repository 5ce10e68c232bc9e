//! Strategic merge: a document laid over another, lists merged by key, with the directives of kubectl.

use serde_json::{Map, Value};

use super::merge_keys::{ListStrategy, list_strategy};
use crate::openapi::{definitions, referred};

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const ORDER_PREFIX: &str = "$setElementOrder/";
const DELETE_PREFIX: &str = "$deleteFromPrimitiveList/";

/// Lays a patch over a document of the schema.
///
/// # Errors
/// What is wrong with the patch.
pub fn strategic_merge(document: &mut Value, patch: &Value, schema: &str) -> Result<(), String> {
    merge_value(document, patch, Some(schema), "")
}

/// The schema of a field.
fn field_schema(schema: Option<&str>, field: &str) -> Option<&'static Value> {
    definitions().get(schema?)?.get("properties")?.get(field)
}

/// The name of the schema that a field's schema, or its items', refers to.
fn inner_schema(field: Option<&'static Value>, items: bool) -> Option<&'static str> {
    let field = field?;
    referred(if items { field.get("items")? } else { field })
}

fn merge_value(old: &mut Value, patch: &Value, schema: Option<&str>, path: &str) -> Result<(), String> {
    let Value::Object(patch) = patch else {
        *old = patch.clone();
        return Ok(());
    };
    match patch.get(PATCH).and_then(Value::as_str) {
        None | Some("merge") => {}
        Some("replace") => {
            *old = Value::Object(without_directives(patch));
            return Ok(());
        }
        Some("delete") => {
            *old = Value::Object(Map::new());
            return Ok(());
        }
        Some(other) => {
            return Err(format!("unknown patch type: {other} in map: {}", go_text(&Value::Object(patch.clone()))));
        }
    }
    if !old.is_object() {
        *old = Value::Object(Map::new());
    }
    let Some(map) = old.as_object_mut() else { return Ok(()) };
    if let Some(kept) = patch.get(RETAIN_KEYS).and_then(Value::as_array) {
        map.retain(|key, _| kept.iter().any(|other| other.as_str() == Some(key)));
    }
    // The order of the lists whose order the patch sets, as it was.
    let ordered = patch.keys().filter_map(|key| key.strip_prefix(ORDER_PREFIX));
    let before: Map<String, Value> =
        ordered.filter_map(|field| Some((field.to_string(), map.get(field)?.clone()))).collect();
    merge_fields(map, patch, schema, path)?;
    for (key, order) in patch {
        if let Some(field) = key.strip_prefix(ORDER_PREFIX)
            && let Some(Value::Array(items)) = map.get_mut(field)
        {
            let type_name = schema.and_then(|name| name.rsplit('.').next()).unwrap_or_default();
            let Some(order) = order.as_array() else { return Err(format!("{ORDER_PREFIX}{field} is not a list")) };
            let before = before.get(field).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            set_order(items, order, before, list_strategy(type_name, field));
        }
    }
    Ok(())
}

fn merge_fields(
    map: &mut Map<String, Value>,
    patch: &Map<String, Value>,
    schema: Option<&str>,
    path: &str,
) -> Result<(), String> {
    let type_name = schema.and_then(|name| name.rsplit('.').next()).unwrap_or_default();
    for (key, value) in patch {
        if key == PATCH || key == RETAIN_KEYS || key.starts_with(ORDER_PREFIX) {
            continue;
        }
        if let Some(field) = key.strip_prefix(DELETE_PREFIX) {
            let (Some(Value::Array(items)), Some(gone)) = (map.get_mut(field), value.as_array()) else { continue };
            items.retain(|item| !gone.contains(item));
            continue;
        }
        let place = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        let field = field_schema(schema, key);
        match value {
            Value::Null => {
                map.remove(key);
            }
            Value::Array(items) => {
                let strategy = list_strategy(type_name, key);
                let old = map.entry(key.clone()).or_insert_with(|| Value::Array(Vec::new()));
                merge_list(old, items, strategy, inner_schema(field, true), &place)?;
            }
            Value::Object(_) => {
                let old = map.entry(key.clone()).or_insert_with(|| Value::Object(Map::new()));
                merge_value(old, value, inner_schema(field, false), &place)?;
                // A map that is told to go leaves nothing.
                if value.get(PATCH).and_then(Value::as_str) == Some("delete") {
                    map.remove(key);
                }
            }
            plain => {
                map.insert(key.clone(), plain.clone());
            }
        }
    }
    Ok(())
}

fn merge_list(
    old: &mut Value,
    patch: &[Value],
    strategy: ListStrategy,
    schema: Option<&str>,
    path: &str,
) -> Result<(), String> {
    let replaced = patch.iter().any(|item| item.get(PATCH).and_then(Value::as_str) == Some("replace"));
    let Some(items) = old.as_array_mut().filter(|_| strategy != ListStrategy::Replace && !replaced) else {
        let kept = patch
            .iter()
            .filter(|item| item.get(PATCH).is_none_or(|_| item.as_object().is_some_and(|map| map.len() > 1)));
        *old = Value::Array(kept.map(clean).collect());
        return Ok(());
    };
    let before = items.clone();
    match strategy {
        ListStrategy::ByKey(key) => {
            for item in patch {
                merge_item(items, item, key, schema, path)?;
            }
        }
        ListStrategy::Set | ListStrategy::Replace => {
            for item in patch {
                if !items.contains(item) {
                    items.push(item.clone());
                }
            }
        }
    }
    set_order(items, patch, &before, strategy);
    Ok(())
}

fn merge_item(items: &mut Vec<Value>, item: &Value, key: &str, schema: Option<&str>, path: &str) -> Result<(), String> {
    let Some(id) = item.get(key) else {
        return Err(format!("map: {} does not contain declared merge key: {key}", go_text(item)));
    };
    let position = items.iter().position(|other| other.get(key) == Some(id));
    if item.get(PATCH).and_then(Value::as_str) == Some("delete") {
        items.retain(|other| other.get(key) != Some(id));
        return Ok(());
    }
    match position {
        Some(position) => merge_value(&mut items[position], item, schema, path),
        None => {
            let mut fresh = Value::Object(Map::new());
            merge_value(&mut fresh, item, schema, path)?;
            items.push(fresh);
            Ok(())
        }
    }
}

/// Brings items into the order of a list; those that it does not name keep their own and go in front of a named one
/// only where they stood in front of it before.
fn set_order(items: &mut Vec<Value>, order: &[Value], before: &[Value], strategy: ListStrategy) {
    let id = |value: &Value| match strategy {
        ListStrategy::ByKey(key) => value.get(key).cloned().unwrap_or_default(),
        _ => value.clone(),
    };
    let rank = |list: &[Value], value: &Value| list.iter().position(|other| id(other) == id(value));
    let (mut named, mut others): (Vec<Value>, Vec<Value>) =
        items.drain(..).partition(|item| rank(order, item).is_some());
    named.sort_by_key(|item| rank(order, item));
    others.sort_by_key(|item| rank(before, item).unwrap_or(usize::MAX));
    let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
    loop {
        let first = match (others.peek(), named.peek()) {
            (Some(other), Some(item)) => match (rank(before, other), rank(before, item)) {
                (Some(other), Some(item)) if other < item => others.next(),
                _ => named.next(),
            },
            (Some(_), None) => others.next(),
            _ => named.next(),
        };
        match first {
            Some(item) => items.push(item),
            None => break,
        }
    }
}

/// A value as Go prints it: the text of kube-apiserver's own errors.
fn go_text(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let entries: Vec<String> = map.iter().map(|(key, value)| format!("{key}:{}", go_text(value))).collect();
            format!("map[{}]", entries.join(" "))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(go_text).collect::<Vec<_>>().join(" ")),
        Value::String(text) => text.clone(),
        Value::Null => "<nil>".into(),
        plain => plain.to_string(),
    }
}

fn without_directives(map: &Map<String, Value>) -> Map<String, Value> {
    map.iter().filter(|(key, _)| !key.starts_with('$')).map(|(key, value)| (key.clone(), clean(value))).collect()
}

/// A value of a patch without its directives.
fn clean(value: &Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(without_directives(map)),
        Value::Array(items) => Value::Array(items.iter().map(clean).collect()),
        plain => plain.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn merged(mut document: Value, patch: Value) -> Value {
        strategic_merge(&mut document, &patch, "io.k8s.api.core.v1.Pod").unwrap();
        document
    }

    #[test]
    fn lists_are_merged_by_key() {
        let pod = json!({"spec": {"containers": [{"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}]}, {"name": "b"}]}});
        let patch =
            json!({"spec": {"containers": [{"name": "a", "image": "2", "env": [{"name": "Y", "value": "2"}]}]}});
        assert_eq!(
            merged(pod.clone(), patch),
            json!({"spec": {"containers": [{"name": "a", "image": "2", "env": [{"name": "Y", "value": "2"}, {"name": "X", "value": "1"}]}, {"name": "b"}]}})
        );
        let patch = json!({"spec": {"containers": [{"name": "b", "$patch": "delete"}], "$setElementOrder/containers": [{"name": "a"}]}});
        assert_eq!(merged(pod, patch)["spec"]["containers"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn directives() {
        let pod = json!({"metadata": {"finalizers": ["a", "b"], "labels": {"x": "1", "y": "2"}}, "spec": {"volumes": [{"name": "v", "emptyDir": {}}], "tolerations": [{"key": "a"}]}});
        let done = merged(
            pod,
            json!({
                "metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "labels": {"x": null, "z": "3"}},
                "spec": {"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/x"}}], "tolerations": [{"key": "b"}]},
            }),
        );
        assert_eq!(done["metadata"], json!({"finalizers": ["b"], "labels": {"y": "2", "z": "3"}}));
        assert_eq!(done["spec"]["volumes"], json!([{"name": "v", "hostPath": {"path": "/x"}}]));
        assert_eq!(done["spec"]["tolerations"], json!([{"key": "b"}]));
    }

    #[test]
    fn order_is_set() {
        let pod = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}, {"name": "c"}]}});
        let done = merged(
            pod,
            json!({"spec": {"$setElementOrder/containers": [{"name": "c"}, {"name": "a"}], "containers": [{"name": "c", "image": "x"}]}}),
        );
        let names: Vec<&str> =
            done["spec"]["containers"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["b", "c", "a"], "what is not named stays in front of what came after it");
    }

    #[test]
    fn conditions_of_a_status() {
        let pod =
            json!({"status": {"conditions": [{"type": "Ready", "status": "False"}, {"type": "X", "status": "True"}]}});
        let done = merged(
            pod,
            json!({"status": {"$setElementOrder/conditions": [{"type": "Ready"}, {"type": "X"}], "conditions": [{"type": "Ready", "status": "True"}], "phase": "Running"}}),
        );
        assert_eq!(
            done["status"]["conditions"],
            json!([{"type": "Ready", "status": "True"}, {"type": "X", "status": "True"}])
        );
    }

    #[test]
    fn what_has_no_key_is_refused() {
        let mut pod = json!({});
        let patch = json!({"spec": {"containers": [{"image": "x"}]}});
        assert!(
            strategic_merge(&mut pod, &patch, "io.k8s.api.core.v1.Pod")
                .unwrap_err()
                .contains("declared merge key: name")
        );
    }
}
