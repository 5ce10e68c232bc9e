//! Kubernetes' protobuf form of objects: what Go clients send; read into the same documents as JSON.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

/// Media type of the form.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";
/// First bytes of a body.
const MAGIC: [u8; 4] = *b"k8s\0";
/// Depth of messages in messages (the types need about fifteen).
const DEPTH_MAX: usize = 64;

/// Marks of a field; see `fields.txt`.
#[derive(Clone, Copy, Debug)]
struct Field {
    repeated: bool,
    map: bool,
    inline: bool,
    zero_left_out: bool,
    kind: &'static str,
    name: &'static str,
}

type Message = BTreeMap<u32, Field>;

static MESSAGES: LazyLock<BTreeMap<&'static str, Message>> = LazyLock::new(|| {
    let mut messages: BTreeMap<&'static str, Message> = BTreeMap::new();
    let mut current = "";
    for line in include_str!("protobuf/fields.txt").lines().filter(|line| !line.starts_with('#')) {
        let Some(line) = line.strip_prefix("  ") else {
            current = line;
            messages.entry(current).or_default();
            continue;
        };
        let mut words = line.split(' ');
        let (Some(number), Some(marks), Some(kind), Some(name)) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            continue;
        };
        let field = Field {
            repeated: marks.contains('*'),
            map: marks.contains('%'),
            inline: marks.contains('^'),
            zero_left_out: marks.contains('?'),
            kind,
            name,
        };
        if let (Ok(number), Some(message)) = (number.parse(), messages.get_mut(current)) {
            message.insert(number, field);
        }
    }
    messages
});

/// Reads a body: `apiVersion` and `kind` are what it says, the rest is read by the schema of that name.
///
/// # Errors
/// What is wrong with the bytes.
pub fn decode(bytes: &[u8], schema: &str) -> Result<Value, String> {
    let rest = bytes.strip_prefix(&MAGIC).ok_or("the body does not begin as Kubernetes' protobuf form does")?;
    let mut document = json!({});
    let mut raw: &[u8] = &[];
    for field in Fields(rest) {
        match field? {
            (1, Wire::Bytes(meta)) => {
                for field in Fields(meta) {
                    match field? {
                        (1, Wire::Bytes(text)) => document["apiVersion"] = json!(utf8(text)?),
                        (2, Wire::Bytes(text)) => document["kind"] = json!(utf8(text)?),
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(body)) => raw = body,
            (3, Wire::Bytes(encoding)) if !encoding.is_empty() => return Err("an encoded body is not read".into()),
            _ => {}
        }
    }
    let Some(message) = MESSAGES.get(schema) else { return Err(format!("{schema} is not read in this form")) };
    let Value::Object(map) = &mut document else { return Err("not an object".into()) };
    decode_message(raw, message, map, 0)?;
    Ok(document)
}

fn utf8(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes).map_err(|_| "text that is not UTF-8".to_string())
}

/// A value on the wire.
enum Wire<'a> {
    Number(u64),
    Fixed([u8; 8]),
    Bytes(&'a [u8]),
}

/// The fields of a message, one after the other.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Result<u64, String> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let (first, rest) = self.0.split_first().ok_or("the body is cut")?;
            self.0 = rest;
            value |= u64::from(first & 0x7f).checked_shl(shift).unwrap_or(0);
            if first & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("a number of more than 64 bits".into())
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or("the body is cut")?;
        self.0 = rest;
        Ok(taken)
    }

    fn field(&mut self) -> Result<(u32, Wire<'a>), String> {
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).map_err(|_| "a field number that can't be")?;
        let wire = match tag & 7 {
            0 => Wire::Number(self.varint()?),
            1 => Wire::Fixed(self.take(8)?.try_into().map_err(|_| "the body is cut")?),
            2 => {
                let count = usize::try_from(self.varint()?).map_err(|_| "the body is cut")?;
                Wire::Bytes(self.take(count)?)
            }
            5 => {
                self.take(4)?;
                Wire::Number(0)
            }
            other => return Err(format!("wire type {other}")),
        };
        Ok((number, wire))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Wire<'a>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

fn decode_message(bytes: &[u8], message: &Message, out: &mut Map<String, Value>, depth: usize) -> Result<(), String> {
    if depth > DEPTH_MAX {
        return Err("messages too deep in messages".into());
    }
    for field in Fields(bytes) {
        let (number, wire) = field?;
        let Some(field) = message.get(&number) else { continue };
        if field.inline {
            if let (Wire::Bytes(inner), Some(message)) = (wire, MESSAGES.get(field.kind)) {
                decode_message(inner, message, out, depth + 1)?;
            }
            continue;
        }
        if field.map {
            let Wire::Bytes(entry) = wire else { return Err(format!("{} is no map", field.name)) };
            let (key, value) = decode_entry(entry, field.kind, depth)?;
            let slot = out.entry(field.name).or_insert_with(|| json!({}));
            if let Value::Object(map) = slot {
                map.insert(key, value);
            }
            continue;
        }
        if field.repeated {
            let slot = out.entry(field.name).or_insert_with(|| json!([]));
            let Value::Array(items) = slot else { continue };
            match wire {
                // Numbers may be packed.
                Wire::Bytes(packed) if matches!(field.kind, "int32" | "int64" | "bool") => {
                    let mut numbers = Fields(packed);
                    while !numbers.0.is_empty() {
                        items.push(decode_value(Wire::Number(numbers.varint()?), field.kind, depth)?);
                    }
                }
                wire => items.push(decode_value(wire, field.kind, depth)?),
            }
            continue;
        }
        let value = decode_value(wire, field.kind, depth)?;
        let zero = matches!(&value, Value::Null) || (field.zero_left_out && is_zero(&value));
        if !zero {
            out.insert(field.name.into(), value);
        }
    }
    Ok(())
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::String(text) => text.is_empty(),
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_f64() == Some(0.0),
        _ => false,
    }
}

fn decode_entry(entry: &[u8], kind: &str, depth: usize) -> Result<(String, Value), String> {
    let (mut key, mut value) = (String::new(), Value::Null);
    for field in Fields(entry) {
        match field? {
            (1, Wire::Bytes(text)) => key = utf8(text)?.into(),
            (2, wire) => value = decode_value(wire, kind, depth)?,
            _ => {}
        }
    }
    if value.is_null() {
        value = if matches!(kind, "string" | "bytes") { json!("") } else { Value::Null };
    }
    Ok((key, value))
}

fn decode_value(wire: Wire<'_>, kind: &str, depth: usize) -> Result<Value, String> {
    Ok(match (kind, wire) {
        ("string", Wire::Bytes(text)) => json!(utf8(text)?),
        ("bytes", Wire::Bytes(bytes)) => json!(STANDARD.encode(bytes)),
        ("bool", Wire::Number(number)) => json!(number != 0),
        ("int32" | "int64", Wire::Number(number)) => json!(number.cast_signed()),
        ("uint32" | "uint64", Wire::Number(number)) => json!(number),
        ("double", Wire::Fixed(bytes)) => json!(f64::from_le_bytes(bytes)),
        ("Time" | "MicroTime", Wire::Bytes(bytes)) => decode_time(bytes, kind == "MicroTime")?,
        ("Quantity", Wire::Bytes(bytes)) => decode_quantity(bytes)?,
        ("IntOrString", Wire::Bytes(bytes)) => decode_int_or_string(bytes)?,
        ("FieldsV1" | "RawExtension", Wire::Bytes(bytes)) => decode_json(bytes)?,
        ("Strings", Wire::Bytes(bytes)) => {
            let items: Result<Vec<Value>, String> = Fields(bytes)
                .filter_map(|field| match field {
                    Ok((1, Wire::Bytes(text))) => Some(utf8(text).map(|text| json!(text))),
                    Ok(_) => None,
                    Err(error) => Some(Err(error)),
                })
                .collect();
            Value::Array(items?)
        }
        (kind, Wire::Bytes(bytes)) => {
            let message = MESSAGES.get(kind).ok_or_else(|| format!("{kind} is not known"))?;
            let mut inner = Map::new();
            decode_message(bytes, message, &mut inner, depth + 1)?;
            Value::Object(inner)
        }
        (kind, _) => return Err(format!("a value that is no {kind}")),
    })
}

fn decode_time(bytes: &[u8], micro: bool) -> Result<Value, String> {
    let (mut seconds, mut nanos) = (0i64, 0i32);
    for field in Fields(bytes) {
        match field? {
            (1, Wire::Number(number)) => seconds = number.cast_signed(),
            (2, Wire::Number(number)) => nanos = i32::try_from(number.cast_signed()).unwrap_or(0),
            _ => {}
        }
    }
    // No time at all is an empty message.
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let at = Timestamp::new(seconds, nanos).map_err(|error| error.to_string())?;
    let format = if micro { "%Y-%m-%dT%H:%M:%S.%6fZ" } else { "%Y-%m-%dT%H:%M:%SZ" };
    let text =
        jiff::fmt::strtime::format(format, &at.to_zoned(jiff::tz::TimeZone::UTC)).map_err(|error| error.to_string())?;
    Ok(json!(text))
}

fn decode_quantity(bytes: &[u8]) -> Result<Value, String> {
    for field in Fields(bytes) {
        if let (1, Wire::Bytes(text)) = field? {
            return Ok(json!(utf8(text)?));
        }
    }
    Ok(json!("0"))
}

fn decode_int_or_string(bytes: &[u8]) -> Result<Value, String> {
    let (mut is_text, mut number, mut text) = (false, 0i64, "");
    for field in Fields(bytes) {
        match field? {
            (1, Wire::Number(kind)) => is_text = kind == 1,
            (2, Wire::Number(value)) => number = value.cast_signed(),
            (3, Wire::Bytes(value)) => text = utf8(value)?,
            _ => {}
        }
    }
    Ok(if is_text { json!(text) } else { json!(number) })
}

/// Bytes of JSON in field 1.
fn decode_json(bytes: &[u8]) -> Result<Value, String> {
    for field in Fields(bytes) {
        if let (1, Wire::Bytes(raw)) = field? {
            return serde_json::from_slice(raw).map_err(|error| error.to_string());
        }
    }
    Ok(Value::Null)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_field(number: u8, bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2, u8::try_from(bytes.len()).unwrap()];
        out.extend_from_slice(bytes);
        out
    }

    #[test]
    fn a_config_map_is_read() {
        let mut metadata = bytes_field(1, b"x");
        metadata.extend(bytes_field(2, b""));
        metadata.extend(bytes_field(8, b""));
        let mut entry = bytes_field(1, b"k");
        entry.extend(bytes_field(2, b"v"));
        let mut raw = bytes_field(1, &metadata);
        raw.extend(bytes_field(2, &entry));
        let mut meta = bytes_field(1, b"v1");
        meta.extend(bytes_field(2, b"ConfigMap"));
        let mut body = MAGIC.to_vec();
        body.extend(bytes_field(1, &meta));
        body.extend(bytes_field(2, &raw));
        let read = decode(&body, "io.k8s.api.core.v1.ConfigMap").unwrap();
        assert_eq!(
            read,
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "data": {"k": "v"}})
        );
        for cut in 4..body.len() {
            // Never a panic, whatever the cut.
            let _ = decode(&body[..cut], "io.k8s.api.core.v1.ConfigMap");
        }
        assert!(decode(b"x", "io.k8s.api.core.v1.ConfigMap").is_err());
    }

    #[test]
    fn the_table_names_only_fields_of_the_schemas() {
        for (name, message) in MESSAGES.iter() {
            let Some(schema) = crate::openapi::definitions().get(*name) else { continue };
            let Some(properties) = schema.get("properties").and_then(Value::as_object) else { continue };
            for field in message.values().filter(|field| !field.inline) {
                assert!(properties.contains_key(field.name), "{name}.{}", field.name);
            }
        }
    }
}
