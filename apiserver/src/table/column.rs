//! Columns, and cells that many tables have.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::duration::human;
use crate::object;

/// A column.
pub(super) struct Column {
    name: &'static str,
    kind: &'static str,
    format: &'static str,
    description: &'static str,
    priority: u8,
}

/// Columns and the cells of an object in their order.
pub(super) struct Layout {
    pub(super) columns: &'static [Column],
    pub(super) cells: fn(&Value, Timestamp) -> Vec<Value>,
}

impl Column {
    /// The column as clients see it.
    pub(super) fn definition(&self) -> Value {
        let Column { name, kind, format, description, priority } = self;
        json!({"name": name, "type": kind, "format": format, "description": description, "priority": priority})
    }

    /// The same column, shown only when more is asked for (`-o wide`).
    pub(super) const fn wide(self) -> Column {
        Column { priority: 1, ..self }
    }

    /// The same column of numbers.
    pub(super) const fn integer(self) -> Column {
        Column { kind: "integer", ..self }
    }

    /// The same column of yes and no.
    pub(super) const fn boolean(self) -> Column {
        Column { kind: "boolean", ..self }
    }

    /// The same column, named as the object's name.
    pub(super) const fn naming(self) -> Column {
        Column { format: "name", ..self }
    }
}

/// A column of text.
pub(super) const fn column(name: &'static str, description: &'static str) -> Column {
    Column { name, kind: "string", format: "", description, priority: 0 }
}

/// The column of the name.
pub(super) const NAME: Column = column("Name", "Name of the object; unique in its namespace.").naming();
/// The column of the age.
pub(super) const AGE: Column = column("Age", "Time since the object was made.");

/// The object's name.
pub(super) fn name(object: &Value) -> Value {
    json!(object::name(object))
}

/// Time since the object was made.
pub(super) fn age(object: &Value, now: Timestamp) -> Value {
    json!(since(object, "/metadata/creationTimestamp", now))
}

/// Time since what a pointer says.
pub(super) fn since(object: &Value, pointer: &str, now: Timestamp) -> String {
    match object::time(object, pointer) {
        Some(at) => human(now.duration_since(at).as_secs()),
        None => "<unknown>".into(),
    }
}

/// Text at a pointer, or what stands for nothing.
pub(super) fn text_or(object: &Value, pointer: &str, nothing: &str) -> String {
    let text = object::text(object, pointer);
    if text.is_empty() { nothing.into() } else { text.into() }
}

/// Truth at a pointer.
pub(super) fn flag(object: &Value, pointer: &str, missing: bool) -> bool {
    object.pointer(pointer).and_then(Value::as_bool).unwrap_or(missing)
}
