//! A document against its schema: unknown fields taken out and noted, wrong types refused, the rest in the form that
//! a typed server would give it back.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::definitions::{REFERENCE_PREFIX, definitions};
use super::zero_fields::zero_fields;
use crate::quantity::Quantity;

/// Unknown fields noted at most.
const UNKNOWN_MAX: usize = 100;

/// What was found.
#[derive(Debug, Default)]
pub struct Report {
    /// Paths of fields that the schema does not have.
    pub unknown: Vec<String>,
}

/// Brings a document into the form of the schema.
///
/// # Errors
/// The text of a decoder's error when a value has the wrong type.
pub fn normalize(document: &mut Value, schema: &str) -> Result<Report, String> {
    let mut report = Report::default();
    let Some(definition) = definitions().get(schema) else { return Ok(report) };
    Walk { report: &mut report }.value(document, definition, "", schema)?;
    Ok(report)
}

struct Walk<'a> {
    report: &'a mut Report,
}

/// The schema behind a reference, with the name of its type.
fn resolve<'a>(schema: &'a Value, owner: &'a str) -> (&'a Value, &'a str) {
    match schema.get("$ref").and_then(Value::as_str).and_then(|reference| reference.strip_prefix(REFERENCE_PREFIX)) {
        Some(name) => (definitions().get(name).unwrap_or(&Value::Null), name),
        None => (schema, owner),
    }
}

fn described(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn mismatch(value: &Value, path: &str, owner: &str, wanted: &str) -> String {
    let owner = owner.rsplit('.').next().unwrap_or(owner);
    let plain: String = {
        // Go names the field without indexes.
        let mut inside = false;
        path.chars()
            .filter(|c| match c {
                '[' => {
                    inside = true;
                    false
                }
                ']' => {
                    inside = false;
                    false
                }
                _ => !inside,
            })
            .collect()
    };
    let shown = match value {
        // A number is shown where numbers fit, but not this one.
        Value::Number(number) if wanted.starts_with("int") => format!("number {number}"),
        other => described(other).to_string(),
    };
    format!("json: cannot unmarshal {shown} into Go struct field {owner}.{plain} of type {wanted}")
}

impl Walk<'_> {
    fn value(&mut self, value: &mut Value, schema: &Value, path: &str, owner: &str) -> Result<(), String> {
        let (schema, name) = resolve(schema, owner);
        if name.ends_with(".resource.Quantity") {
            return quantity(value);
        }
        if name.ends_with(".meta.v1.MicroTime") {
            return micro_time(value, path, owner);
        }
        if schema.get("x-kubernetes-int-or-string").is_some() {
            return match value {
                Value::String(_) => Ok(()),
                Value::Number(number) if number.is_i64() => Ok(()),
                other => Err(mismatch(other, path, owner, "intstr.IntOrString")),
            };
        }
        let format = schema.get("format").and_then(Value::as_str).unwrap_or_default();
        match schema.get("type").and_then(Value::as_str) {
            Some("object") if schema.get("properties").is_some() => self.object(value, schema, path, name),
            Some("object") => match schema.get("additionalProperties") {
                Some(inner) if inner.is_object() => self.map(value, inner, path, owner),
                _ if value.is_object() => Ok(()),
                _ => Err(mismatch(value, path, owner, "map[string]interface {}")),
            },
            Some("array") => self.array(value, schema.get("items").unwrap_or(&Value::Null), path, owner),
            Some("string") => string(value, format, path, owner),
            Some("boolean") if !value.is_boolean() => Err(mismatch(value, path, owner, "bool")),
            Some("integer") => integer(value, format, path, owner),
            Some("number") if !value.is_number() => Err(mismatch(value, path, owner, "float64")),
            _ => Ok(()),
        }
    }

    fn object(&mut self, value: &mut Value, schema: &Value, path: &str, owner: &str) -> Result<(), String> {
        let go_name = owner.rsplit('.').next().unwrap_or(owner);
        let Value::Object(map) = value else { return Err(mismatch(value, path, owner, &format!("v1.{go_name}"))) };
        let Some(Value::Object(properties)) = schema.get("properties") else { return Ok(()) };
        let mut kept = Map::new();
        for (key, mut inner) in std::mem::take(map) {
            let place = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            let Some(property) = properties.get(&key) else {
                if self.report.unknown.len() < UNKNOWN_MAX {
                    self.report.unknown.push(place);
                }
                continue;
            };
            if inner.is_null() {
                continue;
            }
            self.value(&mut inner, property, &place, owner)?;
            if !is_left_out(&inner, property) {
                kept.insert(key, inner);
            }
        }
        for (field, zero) in zero_fields(owner, schema) {
            if !kept.contains_key(field) {
                kept.insert(field.to_string(), zero);
            }
        }
        *map = kept;
        Ok(())
    }

    fn map(&mut self, value: &mut Value, inner: &Value, path: &str, owner: &str) -> Result<(), String> {
        let plain = inner.get("type").and_then(Value::as_str) == Some("string") && inner.get("format").is_none();
        let wanted = if plain { "map[string]string" } else { "map" };
        let Value::Object(map) = value else { return Err(mismatch(value, path, owner, wanted)) };
        for entry in map.values_mut() {
            if entry.is_null() {
                // A null entry is the zero value to a typed decoder.
                *entry = if inner.get("type").and_then(Value::as_str) == Some("string") { "".into() } else { continue };
            }
            self.value(entry, inner, path, owner)?;
        }
        Ok(())
    }

    fn array(&mut self, value: &mut Value, inner: &Value, path: &str, owner: &str) -> Result<(), String> {
        let Value::Array(items) = value else {
            let item = match resolve(inner, "").1 {
                "" => "string".to_string(),
                name => format!("v1.{}", name.rsplit('.').next().unwrap_or(name)),
            };
            return Err(mismatch(value, path, owner, &format!("[]{item}")));
        };
        for (index, item) in items.iter_mut().enumerate() {
            if item.is_null() && resolve(inner, "").0.get("properties").is_some() {
                *item = Value::Object(Map::new());
            }
            self.value(item, inner, &format!("{path}[{index}]"), owner)?;
        }
        Ok(())
    }
}

/// Empty lists and maps are not written by a typed server; empty structures are, they may mean something.
fn is_left_out(value: &Value, property: &Value) -> bool {
    match value {
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty() && property.get("additionalProperties").is_some(),
        _ => false,
    }
}

fn string(value: &mut Value, format: &str, path: &str, owner: &str) -> Result<(), String> {
    let Value::String(text) = value else { return Err(mismatch(value, path, owner, "string")) };
    match format {
        "byte" => match STANDARD.decode(text.as_bytes()) {
            Ok(_) => Ok(()),
            Err(base64::DecodeError::InvalidByte(offset, _) | base64::DecodeError::InvalidLastSymbol(offset, _)) => {
                Err(format!("illegal base64 data at input byte {offset}"))
            }
            Err(_) => {
                // Line breaks are allowed in what a decoder of Go reads.
                let joined: String = text.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
                match STANDARD.decode(joined.as_bytes()) {
                    Ok(_) => {
                        *text = joined;
                        Ok(())
                    }
                    Err(_) => Err(format!("illegal base64 data at input byte {}", text.len())),
                }
            }
        },
        "date-time" if text.parse::<jiff::Timestamp>().is_err() => {
            Err(format!("parsing time {text:?} as \"2006-01-02T15:04:05Z07:00\": cannot parse {text:?} as \"2006\""))
        }
        _ => Ok(()),
    }
}

/// A time with exactly six digits behind the second.
fn micro_time(value: &mut Value, path: &str, owner: &str) -> Result<(), String> {
    const LAYOUT: &str = "2006-01-02T15:04:05.000000Z07:00";
    let Value::String(text) = value else { return Err(mismatch(value, path, owner, "string")) };
    let refuse = |found: &str, wanted: &str| {
        Err(format!("parsing time {text:?} as {LAYOUT:?}: cannot parse {found:?} as {wanted:?}"))
    };
    if text.parse::<jiff::Timestamp>().is_err() {
        return refuse(text, "2006");
    }
    let rest = text.get(19..).unwrap_or_default();
    let digits = rest.strip_prefix('.').map_or(0, |rest| rest.bytes().take_while(u8::is_ascii_digit).count());
    if digits == 6 { Ok(()) } else { refuse(rest, ".000000") }
}

fn integer(value: &mut Value, format: &str, path: &str, owner: &str) -> Result<(), String> {
    let wanted = if format == "int32" { "int32" } else { "int64" };
    let Value::Number(number) = &*value else { return Err(mismatch(value, path, owner, wanted)) };
    // YAML and some clients write whole numbers as floats.
    let whole =
        number.as_i64().or_else(|| number.as_f64().filter(|f| f.fract() == 0.0 && f.abs() < 9e15).map(|f| f as i64));
    match whole {
        Some(whole) if wanted == "int64" || i32::try_from(whole).is_ok() => {
            *value = whole.into();
            Ok(())
        }
        _ => Err(mismatch(value, path, owner, wanted)),
    }
}

fn quantity(value: &mut Value) -> Result<(), String> {
    let text = match &*value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => String::new(),
    };
    match Quantity::parse(&text) {
        Some(quantity) => {
            *value = quantity.canonical().into();
            Ok(())
        }
        None => {
            Err("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'".into())
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const POD: &str = "io.k8s.api.core.v1.Pod";

    #[test]
    fn unknown_fields_are_noted_and_taken_out() {
        let mut pod = json!({"metadata": {"labels": {}}, "spec": {"containers": [{"name": "a", "imag": "x", "volumeMounts": []}], "volumes": [{"name": "v", "emptyDir": {}}]}, "x": 1});
        let report = normalize(&mut pod, POD).unwrap();
        assert_eq!(report.unknown, ["spec.containers[0].imag", "x"]);
        assert_eq!(
            pod,
            json!({"metadata": {}, "spec": {"containers": [{"name": "a"}], "volumes": [{"name": "v", "emptyDir": {}}]}})
        );
    }

    #[test]
    fn quantities_become_canonical() {
        let mut pod =
            json!({"spec": {"containers": [{"name": "a", "resources": {"limits": {"cpu": 0.5, "memory": "1024Mi"}}}]}});
        normalize(&mut pod, POD).unwrap();
        assert_eq!(pod["spec"]["containers"][0]["resources"]["limits"], json!({"cpu": "500m", "memory": "1Gi"}));
    }

    #[test]
    fn wrong_types_are_told_as_go_does() {
        let mut pod = json!({"spec": {"containers": [{"name": "a", "ports": [{"containerPort": "x"}]}]}});
        assert_eq!(
            normalize(&mut pod, POD).unwrap_err(),
            "json: cannot unmarshal string into Go struct field ContainerPort.spec.containers.ports.containerPort of type int32"
        );
        let mut pod = json!({"spec": {"containers": "x"}});
        assert!(normalize(&mut pod, POD).unwrap_err().contains("PodSpec.spec.containers of type []v1.Container"));
    }
}
