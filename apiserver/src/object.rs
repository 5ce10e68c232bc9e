//! Reading and writing an object's document without a type: metadata first of all.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Map, Value};

/// Text at a pointer, or nothing.
pub fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// Number at a pointer.
pub fn number(object: &Value, pointer: &str) -> Option<i64> {
    object.pointer(pointer).and_then(Value::as_i64)
}

/// `metadata.name`.
pub fn name(object: &Value) -> &str {
    text(object, "/metadata/name")
}

/// `metadata.namespace`.
pub fn namespace(object: &Value) -> &str {
    text(object, "/metadata/namespace")
}

/// `metadata.uid`.
pub fn uid(object: &Value) -> &str {
    text(object, "/metadata/uid")
}

/// `metadata.resourceVersion` as a number; 0 when there is none.
pub fn revision(object: &Value) -> u64 {
    text(object, "/metadata/resourceVersion").parse().unwrap_or(0)
}

/// `metadata.finalizers`.
pub fn finalizers(object: &Value) -> Vec<&str> {
    strings(object, "/metadata/finalizers")
}

/// True when a deletion has been asked for.
pub fn is_terminating(object: &Value) -> bool {
    !text(object, "/metadata/deletionTimestamp").is_empty()
}

/// Items at a pointer; none when it is missing.
pub fn items<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// Strings of the array at a pointer.
pub fn strings<'a>(object: &'a Value, pointer: &str) -> Vec<&'a str> {
    items(object, pointer).iter().filter_map(Value::as_str).collect()
}

/// The map at a key, made when missing.
pub fn map<'a>(object: &'a mut Value, key: &str) -> &'a mut Map<String, Value> {
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    let slot =
        object.as_object_mut().expect("made above").entry(key.to_string()).or_insert_with(|| Value::Object(Map::new()));
    if !slot.is_object() {
        *slot = Value::Object(Map::new());
    }
    slot.as_object_mut().expect("made above")
}

/// `metadata`, made when missing.
pub fn metadata(object: &mut Value) -> &mut Map<String, Value> {
    map(object, "metadata")
}

/// Sets a key that is missing.
pub fn default(object: &mut Value, key: &str, value: impl FnOnce() -> Value) {
    if let Some(map) = object.as_object_mut() {
        map.entry(key.to_string()).or_insert_with(value);
    }
}

/// Removes a key of the object.
pub fn remove(object: &mut Value, key: &str) -> Option<Value> {
    object.as_object_mut().and_then(|map| map.remove(key))
}

/// Copies a key from another object, or removes it where the other has none.
pub fn copy_key(from: &Value, to: &mut Value, key: &str) {
    match from.get(key) {
        Some(value) => to[key] = value.clone(),
        None => {
            remove(to, key);
        }
    }
}

/// Now, as metadata shows it: seconds, UTC.
pub fn now() -> String {
    time_text(Timestamp::now())
}

/// A time as metadata shows it.
pub fn time_text(at: Timestamp) -> String {
    jiff::fmt::strtime::format("%Y-%m-%dT%H:%M:%SZ", &at.to_zoned(TimeZone::UTC)).unwrap_or_default()
}

/// Now with microseconds, as leases and events show it.
pub fn now_micro() -> String {
    jiff::fmt::strtime::format("%Y-%m-%dT%H:%M:%S.%6fZ", &Timestamp::now().to_zoned(TimeZone::UTC)).unwrap_or_default()
}

/// A time at a pointer.
pub fn time(object: &Value, pointer: &str) -> Option<Timestamp> {
    text(object, pointer).parse().ok()
}

/// Sets or replaces a condition by its type; `lastTransitionTime` moves only when the status does.
pub fn set_condition(object: &mut Value, kind: &str, status: &str, reason: &str, message: &str) {
    let mut condition = serde_json::json!({"type": kind, "status": status, "lastTransitionTime": now()});
    if !reason.is_empty() {
        condition["reason"] = reason.into();
    }
    if !message.is_empty() {
        condition["message"] = message.into();
    }
    // Pods have one more time, which nothing sets.
    if object.pointer("/spec/containers").is_some() {
        condition["lastProbeTime"] = Value::Null;
    }
    let conditions = map(object, "status").entry("conditions").or_insert_with(|| Value::Array(Vec::new()));
    let Some(conditions) = conditions.as_array_mut() else { return };
    match conditions.iter_mut().find(|other| text(other, "/type") == kind) {
        Some(other) => {
            if text(other, "/status") == status
                && let Some(since) = other.get("lastTransitionTime")
            {
                condition["lastTransitionTime"] = since.clone();
            }
            *other = condition;
        }
        None => conditions.push(condition),
    }
}
