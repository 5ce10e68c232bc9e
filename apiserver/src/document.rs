//! Reading request bodies: JSON or YAML into a document, with keys that are there twice noted.

use std::cell::RefCell;
use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Duplicate keys noted at most.
const DUPLICATES_MAX: usize = 100;

/// A document and the paths of keys that are there twice; the last one counts.
#[derive(Debug, Default)]
pub struct Document {
    /// The document.
    pub value: Value,
    /// Paths of keys that are there twice.
    pub duplicates: Vec<String>,
}

impl Document {
    /// Reads JSON.
    ///
    /// # Errors
    /// The parser's text, with line and column.
    pub fn from_json(bytes: &[u8]) -> Result<Document, String> {
        serde_json::from_slice(bytes).map_err(|error| error.to_string())
    }

    /// Reads one YAML document; aliases and depth are bounded.
    ///
    /// # Errors
    /// The parser's text.
    pub fn from_yaml(bytes: &[u8]) -> Result<Document, String> {
        serde_saphyr::from_slice(bytes).map_err(|error| error.to_string())
    }
}

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Document, D::Error> {
        let duplicates = RefCell::new(Vec::new());
        let value = Seed { path: &Path::Root, duplicates: &duplicates }.deserialize(deserializer)?;
        Ok(Document { value, duplicates: duplicates.into_inner() })
    }
}

/// Where the reader is; a list on the stack, written out only when needed.
enum Path<'a> {
    Root,
    Key(&'a Path<'a>, &'a str),
    Index(&'a Path<'a>, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Path::Root => Ok(()),
            Path::Key(Path::Root, key) => write!(out, "{key}"),
            Path::Key(parent, key) => write!(out, "{parent}.{key}"),
            Path::Index(parent, index) => write!(out, "{parent}[{index}]"),
        }
    }
}

struct Seed<'a> {
    path: &'a Path<'a>,
    duplicates: &'a RefCell<Vec<String>>,
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a value")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number that is not finite"))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        loop {
            let path = Path::Index(self.path, items.len());
            match seq.next_element_seed(Seed { path: &path, duplicates: self.duplicates })? {
                Some(item) => items.push(item),
                None => return Ok(Value::Array(items)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            let path = Path::Key(self.path, &key);
            let value = access.next_value_seed(Seed { path: &path, duplicates: self.duplicates })?;
            if map.contains_key(&key) && self.duplicates.borrow().len() < DUPLICATES_MAX {
                self.duplicates.borrow_mut().push(path.to_string());
            }
            merge(&mut map, key, value);
        }
        Ok(Value::Object(map))
    }
}

/// The last value of a key counts, but objects are read into one another.
fn merge(map: &mut Map<String, Value>, key: String, value: Value) {
    match (map.get_mut(&key), value) {
        (Some(Value::Object(before)), Value::Object(after)) => {
            for (key, value) in after {
                merge(before, key, value);
            }
        }
        (_, value) => {
            map.insert(key, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn duplicates_are_noted_with_their_path() {
        let read = Document::from_json(br#"{"a":[{"b":1,"b":2}],"c":null}"#).unwrap();
        assert_eq!(read.value, json!({"a": [{"b": 2}], "c": null}));
        assert_eq!(read.duplicates, ["a[0].b"]);
    }

    #[test]
    fn yaml_is_read_and_bombs_are_refused() {
        let read = Document::from_yaml(b"a: {b: [1, x, true, null, 0.5]}\nc: \"1\"\n").unwrap();
        assert_eq!(read.value, json!({"a": {"b": [1, "x", true, null, 0.5]}, "c": "1"}));
        let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
        for level in 1..12 {
            bomb.push_str(&format!("a{level}: &a{level} [{}]\n", vec![format!("*a{}", level - 1); 10].join(",")));
        }
        assert!(Document::from_yaml(bomb.as_bytes()).is_err());
        assert!(Document::from_json("[".repeat(100_000).as_bytes()).is_err());
        assert!(Document::from_yaml("[".repeat(100_000).as_bytes()).is_err());
    }
}
