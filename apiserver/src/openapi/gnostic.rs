//! The OpenAPI version 2 document in protobuf (the messages of gnostic's `openapi.v2`): the one form that Go's
//! discovery client reads. Field numbers are wire facts of `OpenAPIv2.proto`.

use serde_json::{Map, Value};

/// Media type of the form, as clients have asked for it since 1.10.
pub(super) const MEDIA_TYPE: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
/// The same with a dot, which is a well-formed media type.
pub(super) const MEDIA_TYPE_NEW: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// Encodes a document.
pub(super) fn encode(document: &Value) -> Vec<u8> {
    let mut out = Message::default();
    out.text(1, document.get("swagger"));
    out.message(2, |info| {
        info.text(1, document.pointer("/info/title"));
        info.text(2, document.pointer("/info/version"));
    });
    out.message(8, |paths| {
        for (path, item) in entries(document, "paths") {
            paths.message(2, |named| {
                named.string(1, path);
                named.message(2, |out| path_item(item, out));
            });
        }
    });
    out.message(9, |definitions| named_schemas(document, "definitions", definitions));
    out.0
}

fn entries<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    value.get(key).and_then(Value::as_object).map(Map::iter).into_iter().flatten()
}

fn items<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// A message under construction.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push((number as u8 & 0x7f) | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }

    fn bytes(&mut self, field: u32, bytes: &[u8]) {
        self.varint(u64::from(field << 3 | 2));
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn string(&mut self, field: u32, text: &str) {
        if !text.is_empty() {
            self.bytes(field, text.as_bytes());
        }
    }

    fn text(&mut self, field: u32, value: Option<&Value>) {
        self.string(field, value.and_then(Value::as_str).unwrap_or_default());
    }

    fn flag(&mut self, field: u32, value: Option<&Value>) {
        if value.and_then(Value::as_bool) == Some(true) {
            self.varint(u64::from(field << 3));
            self.varint(1);
        }
    }

    fn message(&mut self, field: u32, fill: impl FnOnce(&mut Message)) {
        let mut inner = Message::default();
        fill(&mut inner);
        self.bytes(field, &inner.0);
    }

    /// Keys that begin with `x-`, each with its value as text.
    fn extensions(&mut self, field: u32, value: &Value) {
        for (key, value) in value.as_object().into_iter().flatten().filter(|(key, _)| key.starts_with("x-")) {
            self.message(field, |named| {
                named.string(1, key);
                named.message(2, |any| any.string(2, &value.to_string()));
            });
        }
    }
}

fn named_schemas(owner: &Value, key: &str, out: &mut Message) {
    for (name, value) in entries(owner, key) {
        out.message(1, |named| {
            named.string(1, name);
            named.message(2, |out| schema(value, out));
        });
    }
}

fn schema(value: &Value, out: &mut Message) {
    out.text(1, value.get("$ref"));
    out.text(2, value.get("format"));
    out.text(4, value.get("description"));
    for name in items(value, "required") {
        out.text(19, Some(name));
    }
    if let Some(inner) = value.get("additionalProperties").filter(|inner| inner.is_object()) {
        out.message(21, |either| either.message(1, |out| schema(inner, out)));
    }
    if value.get("type").is_some_and(Value::is_string) {
        out.message(22, |kind| kind.text(1, value.get("type")));
    }
    if let Some(inner) = value.get("items") {
        out.message(23, |list| list.message(1, |out| schema(inner, out)));
    }
    if value.get("properties").is_some() {
        out.message(25, |properties| named_schemas(value, "properties", properties));
    }
    out.extensions(31, value);
}

fn path_item(item: &Value, out: &mut Message) {
    for (field, method) in [(2, "get"), (3, "put"), (4, "post"), (5, "delete"), (8, "patch")] {
        if let Some(found) = item.get(method) {
            out.message(field, |out| operation(found, out));
        }
    }
    for found in items(item, "parameters") {
        out.message(9, |either| either.message(1, |out| parameter(found, out)));
    }
}

fn operation(value: &Value, out: &mut Message) {
    for tag in items(value, "tags") {
        out.text(1, Some(tag));
    }
    out.text(5, value.get("operationId"));
    for media in items(value, "produces") {
        out.text(6, Some(media));
    }
    for media in items(value, "consumes") {
        out.text(7, Some(media));
    }
    for found in items(value, "parameters") {
        out.message(8, |either| either.message(1, |out| parameter(found, out)));
    }
    out.message(9, |responses| {
        for (code, response) in entries(value, "responses") {
            responses.message(1, |named| {
                named.string(1, code);
                named.message(2, |either| {
                    either.message(1, |out| {
                        out.text(1, response.get("description"));
                        if let Some(found) = response.get("schema") {
                            out.message(2, |either| either.message(1, |out| schema(found, out)));
                        }
                    });
                });
            });
        }
    });
    out.extensions(13, value);
}

fn parameter(value: &Value, out: &mut Message) {
    let place = value.get("in").and_then(Value::as_str).unwrap_or_default();
    if place == "body" {
        out.message(1, |body| {
            body.text(2, value.get("name"));
            body.string(3, place);
            body.flag(4, value.get("required"));
            body.message(5, |out| schema(value.get("schema").unwrap_or(&Value::Null), out));
        });
        return;
    }
    // Parameters of the query and of the path differ in the number of their type.
    let (kind, type_field) = if place == "path" { (4, 5) } else { (3, 6) };
    out.message(2, |either| {
        either.message(kind, |inner| {
            inner.flag(1, value.get("required"));
            inner.string(2, place);
            inner.text(4, value.get("name"));
            inner.text(type_field, value.get("type"));
        });
    });
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn bytes_of_a_small_document() {
        let document =
            json!({"swagger": "2.0", "info": {"title": "t", "version": "v"}, "definitions": {"a": {"type": "object"}}});
        let expected =
            b"\x0a\x032.0\x12\x06\x0a\x01t\x12\x01v\x42\x00\x4a\x12\x0a\x10\x0a\x01a\x12\x0b\xb2\x01\x08\x0a\x06object";
        assert_eq!(encode(&document), expected);
    }
}
