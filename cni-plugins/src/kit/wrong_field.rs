//! Which field of a configuration is wrong: a reader of JSON only says what it expected.

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::Result;
use crate::kit::CniError;

/// How many changes are tried to find a field.
const TRIES_MAX: usize = 2000;

/// Reads a value; an error names the field below `name` that is wrong.
pub(crate) fn read<T: DeserializeOwned>(name: &str, value: &Value) -> Result<T> {
    T::deserialize(value).map_err(|error| {
        let mut tries = TRIES_MAX;
        let field = find::<T>(value, &mut Vec::new(), &mut tries).unwrap_or_default();
        match format!("{name}{field}").trim_start_matches('.') {
            "" => CniError::field("the configuration", error),
            field => CniError::field(field, error),
        }
    })
}

/// A step into a value.
#[derive(Clone)]
enum Step {
    Field(String),
    Entry(usize),
}

/// The innermost place that alone makes the value wrong: with something else there it is right.
fn find<T: DeserializeOwned>(value: &Value, place: &mut Vec<Step>, tries: &mut usize) -> Option<String> {
    let children: Vec<Step> = match at(&mut value.clone(), place) {
        Some(Value::Object(fields)) => fields.keys().cloned().map(Step::Field).collect(),
        Some(Value::Array(entries)) => (0..entries.len()).map(Step::Entry).collect(),
        _ => vec![],
    };
    for child in children {
        place.push(child);
        if let Some(found) = find::<T>(value, place, tries) {
            return Some(found);
        }
        place.pop();
    }
    for other in [Value::Null, json!(false), json!(1), json!(""), json!([]), json!({})] {
        *tries = tries.checked_sub(1)?;
        let mut changed = value.clone();
        if let Some(there) = at(&mut changed, place) {
            *there = other;
        }
        if T::deserialize(&changed).is_ok() {
            return Some(place.iter().map(Step::to_string).collect());
        }
    }
    None
}

/// What is at a place.
fn at<'a>(value: &'a mut Value, place: &[Step]) -> Option<&'a mut Value> {
    place.iter().try_fold(value, |value, step| match step {
        Step::Field(name) => value.get_mut(name),
        Step::Entry(index) => value.get_mut(index),
    })
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Step::Field(name) => write!(f, ".{name}"),
            Step::Entry(index) => write!(f, "[{index}]"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    struct Inner {
        _port: u16,
        _address: Option<IpAddr>,
    }

    #[derive(Debug, Deserialize)]
    struct Outer {
        #[serde(default)]
        _on: bool,
        _inner: Vec<Inner>,
    }

    #[test]
    fn the_wrong_field_is_named() {
        for (value, field) in [
            (json!({"_on": "yes", "_inner": []}), "conf._on: "),
            (json!({"_inner": [{"_port": 1}, {"_port": "80"}]}), "conf._inner[1]._port: "),
            (json!({"_inner": [{"_port": 1, "_address": "x"}]}), "conf._inner[0]._address: "),
            (json!({"_inner": 7}), "conf._inner: "),
            (json!([]), "conf: "),
        ] {
            let error = read::<Outer>("conf", &value).unwrap_err();
            assert!(error.message.starts_with(field), "{value}: {}", error.message);
        }
        assert!(read::<Outer>("", &json!({})).unwrap_err().message.starts_with("the configuration: "));
    }
}
