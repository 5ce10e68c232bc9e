//! Making equal what may differ, and telling what then still does.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use regex::Regex;
use serde_json::Value;

use crate::case::Answer;

/// Keys that only the server's own software, time or random source decides.
const DROPPED: [&str; 2] = ["managedFields", "storageVersionHash"];

/// Patterns in texts, and what stands for them.
static PATTERNS: LazyLock<Vec<(Regex, &'static str)>> = LazyLock::new(|| {
    [
        (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "<uid>"),
        (r"-----BEGIN [^\x00]*", "<certificate>"),
        (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "<time>"),
        (r"^((\d+[ydhms]){1,2}|<invalid>)$", "<age>"),
        (r"kube-api-access-[a-z0-9]{5}", "kube-api-access-<random>"),
        (r"^10\.97\.0\.\d+$", "<cluster ip>"),
        (r"([Rr]esource version[^0-9]*)\d+( \(\d+\))?", "$1<revision>"),
        (r"(\(current: |current: )\d+", "$1<revision>"),
        (r"ResourceVersion in record \(\d+\)", "ResourceVersion in record (<revision>)"),
        (r#"(?s)(patch: |^)Invalid value: "\{.*\}": "#, "${1}Invalid value: <document>: "),
        (r":3[0-2]\d{3}/", ":<node port>/"),
    ]
    .into_iter()
    .map(|(pattern, stand_in)| (Regex::new(pattern).unwrap(), stand_in))
    .collect()
});

/// The document with what may differ made equal.
fn normal(key: &str, value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let generated = map.get("generateName").and_then(Value::as_str).map(str::to_string);
            let entries = map.iter().filter(|(key, _)| !DROPPED.contains(&key.as_str()));
            Value::Object(
                entries
                    .map(|(key, value)| {
                        let value = match (key.as_str(), &generated, value) {
                            ("name", Some(stem), Value::String(name)) if name.starts_with(stem.as_str()) => {
                                format!("{stem}<random>").into()
                            }
                            // Ours are words about the same column.
                            ("description", _, _) if map.contains_key("priority") => "<text>".into(),
                            _ => normal(key, value),
                        };
                        (key.clone(), value)
                    })
                    .collect(),
            )
        }
        Value::Array(items) => {
            let mut items: Vec<Value> =
                items.iter().filter(|item| !is_made_by_controllers(item)).map(|item| normal(key, item)).collect();
            // The order of several faults says nothing.
            if key == "causes" {
                items.sort_by_key(Value::to_string);
            }
            Value::Array(items)
        }
        Value::String(_) if matches!(key, "resourceVersion" | "continue") && value.as_str() != Some("") => {
            format!("<{key}>").into()
        }
        Value::Number(number) if matches!(key, "nodePort" | "healthCheckNodePort") && number.as_i64() > Some(0) => {
            "<node port>".into()
        }
        Value::String(text) => PATTERNS
            .iter()
            .fold(text.clone(), |text, (pattern, stand_in)| pattern.replace_all(&text, *stand_in).into_owned())
            .into(),
        other => other.clone(),
    }
}

/// The certificate of the authority, which the controller manager makes in every namespace.
fn is_made_by_controllers(item: &Value) -> bool {
    ["/metadata/name", "/object/metadata/name"]
        .iter()
        .any(|name| item.pointer(name).and_then(Value::as_str) == Some("kube-root-ca.crt"))
}

/// Several faults are told in the causes; the message only repeats them.
fn without_repetition(mut body: Value) -> Value {
    let several = body.pointer("/details/causes").and_then(Value::as_array).is_some_and(|causes| causes.len() > 1);
    if several && let Some((head, _)) = body["message"].as_str().and_then(|message| message.split_once(" is invalid: "))
    {
        body["message"] = format!("{head} is invalid: <causes>").into();
    }
    body
}

/// What differs, as pointer, real value, own value.
pub fn differences(real: &Answer, own: &Answer, ignored: &BTreeMap<String, String>) -> Vec<String> {
    let mut found = Vec::new();
    if real.code != own.code && !ignored.contains_key("/code") {
        found.push(format!("code: {} | {}", real.code, own.code));
    }
    if real.media != own.media && !ignored.contains_key("media") {
        found.push(format!("media: {} | {}", real.media, own.media));
    }
    if real.warnings != own.warnings && !ignored.contains_key("warnings") {
        found.push(format!("warnings: {:?} | {:?}", real.warnings, own.warnings));
    }
    let (real, own) = (without_repetition(normal("", &real.body)), without_repetition(normal("", &own.body)));
    compare("", &real, &own, ignored, &mut found);
    found
}

/// Takes out of the real lists what ours does not have.
pub fn narrow(real: &mut Value, own: &Value, subset: &BTreeMap<String, String>) {
    for (pointer, key) in subset {
        let id = |item: &Value| if key.starts_with('/') { item.pointer(key).cloned() } else { item.get(key).cloned() };
        let own: Vec<Option<Value>> =
            own.pointer(pointer).and_then(Value::as_array).into_iter().flatten().map(id).collect();
        let Some(list) = real.pointer_mut(pointer).and_then(Value::as_array_mut) else { continue };
        list.retain(|item| own.contains(&id(item)));
        // Inside the groups that both have, a version or resource that ours does not serve.
        for item in list {
            if let Some(versions) = item.get_mut("versions").and_then(Value::as_array_mut) {
                versions.retain(|version| version["version"] == "v1");
            }
        }
    }
}

fn is_ignored(pointer: &str, ignored: &BTreeMap<String, String>) -> bool {
    ignored.keys().any(|pattern| {
        let (pattern, pointer): (Vec<&str>, Vec<&str>) = (pattern.split('/').collect(), pointer.split('/').collect());
        pattern.len() == pointer.len()
            && pattern.iter().zip(&pointer).all(|(pattern, part)| *pattern == "*" || pattern == part)
    })
}

fn compare(pointer: &str, real: &Value, own: &Value, ignored: &BTreeMap<String, String>, found: &mut Vec<String>) {
    if real == own || is_ignored(pointer, ignored) {
        return;
    }
    match (real, own) {
        (Value::Object(first), Value::Object(second)) => {
            let mut keys: Vec<&String> = first.keys().chain(second.keys()).collect();
            keys.sort();
            keys.dedup();
            for key in keys {
                let at = format!("{pointer}/{}", key.replace('~', "~0").replace('/', "~1"));
                match (first.get(key), second.get(key)) {
                    (Some(first), Some(second)) => compare(&at, first, second, ignored, found),
                    _ if is_ignored(&at, ignored) => {}
                    (Some(first), None) => found.push(format!("{at}: {first} | missing")),
                    (None, Some(second)) => found.push(format!("{at}: missing | {second}")),
                    (None, None) => {}
                }
            }
        }
        (Value::Array(first), Value::Array(second)) if first.len() == second.len() => {
            for (index, (first, second)) in first.iter().zip(second).enumerate() {
                compare(&format!("{pointer}/{index}"), first, second, ignored, found);
            }
        }
        _ => found.push(format!("{pointer}: {real} | {own}")),
    }
}
