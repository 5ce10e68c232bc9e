//! Label and field selectors.

use crate::error::ApiError;
use crate::registry::Resource;
use crate::storage::Selectable;

/// One requirement of a label selector.
#[derive(Clone, Debug, PartialEq, Eq)]
enum LabelRequirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Missing(String),
    Greater(String, i64),
    Less(String, i64),
}

/// What a list or a watch shows.
#[derive(Clone, Debug, Default)]
pub struct Selector {
    labels: Vec<LabelRequirement>,
    /// Field, value, and whether it must be equal.
    fields: Vec<(&'static str, String, bool)>,
}

impl Selector {
    /// Reads both selectors.
    ///
    /// # Errors
    /// 400 for what can't be read, or a field that the resource does not let be selected.
    pub fn parse(resource: &Resource, labels: &str, fields: &str) -> Result<Selector, ApiError> {
        let labels = parse_labels(labels)
            .map_err(|reason| ApiError::bad_request(format!("unable to parse requirement: {reason}")))?;
        let mut found = Vec::new();
        for term in fields.split(',').filter(|term| !term.trim().is_empty()) {
            let (field, value, equal) = parse_field(term).ok_or_else(|| {
                ApiError::bad_request(format!("invalid selector: '{fields}'; can't understand '{term}'"))
            })?;
            let known = ["metadata.name", "metadata.namespace"]
                .into_iter()
                .chain(resource.selectable_fields.iter().map(|(name, _)| *name))
                .find(|name| *name == field);
            let Some(known) = known else {
                return Err(ApiError::bad_request(match resource.selectable_fields.is_empty() {
                    true => format!(
                        "{field:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
                    ),
                    false => format!("field label not supported: {field}"),
                }));
            };
            found.push((known, value, equal));
        }
        Ok(Selector { labels, fields: found })
    }

    /// True when everything matches.
    pub fn is_everything(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// The value that a field must have, when the selector says so.
    pub fn required_field(&self, field: &str) -> Option<&str> {
        self.fields.iter().find(|(name, _, equal)| *name == field && *equal).map(|(_, value, _)| value.as_str())
    }

    /// True when an object matches.
    pub fn matches(&self, object: &Selectable) -> bool {
        self.fields.iter().all(|(field, value, equal)| {
            let found = object.fields.iter().find(|(name, _)| name == field).map_or("", |(_, value)| value.as_str());
            (found == value) == *equal
        }) && self.labels.iter().all(|requirement| matches_label(requirement, object))
    }
}

fn matches_label(requirement: &LabelRequirement, object: &Selectable) -> bool {
    let number = |key: &String| object.labels.get(key).and_then(|value| value.parse::<i64>().ok());
    match requirement {
        LabelRequirement::In(key, values) => object.labels.get(key).is_some_and(|value| values.contains(value)),
        LabelRequirement::NotIn(key, values) => object.labels.get(key).is_none_or(|value| !values.contains(value)),
        LabelRequirement::Exists(key) => object.labels.contains_key(key),
        LabelRequirement::Missing(key) => !object.labels.contains_key(key),
        LabelRequirement::Greater(key, bound) => number(key).is_some_and(|value| value > *bound),
        LabelRequirement::Less(key, bound) => number(key).is_some_and(|value| value < *bound),
    }
}

fn parse_field(term: &str) -> Option<(String, String, bool)> {
    let (field, value, equal) = if let Some((field, value)) = term.split_once("!=") {
        (field, value, false)
    } else if let Some((field, value)) = term.split_once("==") {
        (field, value, true)
    } else {
        let (field, value) = term.split_once('=')?;
        (field, value, true)
    };
    Some((field.trim().into(), value.trim().into(), equal))
}

fn parse_labels(text: &str) -> Result<Vec<LabelRequirement>, String> {
    split_outside_parentheses(text)
        .into_iter()
        .map(|term| term.trim().to_string())
        .filter(|term| !term.is_empty())
        .map(|term| parse_label(&term))
        .collect()
}

fn split_outside_parentheses(text: &str) -> Vec<&str> {
    let (mut found, mut depth, mut start) = (Vec::new(), 0u32, 0);
    for (index, character) in text.char_indices() {
        match character {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                found.push(&text[start..index]);
                start = index + 1;
            }
            _ => {}
        }
    }
    found.push(&text[start..]);
    found
}

fn parse_label(term: &str) -> Result<LabelRequirement, String> {
    if let Some(key) = term.strip_prefix('!') {
        return Ok(LabelRequirement::Missing(check_key(key)?));
    }
    if let Some((head, values)) = term.strip_suffix(')').and_then(|term| term.split_once('(')) {
        let values: Vec<String> = values.split(',').map(|value| value.trim().to_string()).collect();
        let mut words = head.split_whitespace();
        let key = check_key(words.next().unwrap_or_default())?;
        return match (words.next(), words.next()) {
            (Some("in"), None) => Ok(LabelRequirement::In(key, values)),
            (Some("notin"), None) => Ok(LabelRequirement::NotIn(key, values)),
            _ => Err(format!("found {term:?}, expected: in, notin")),
        };
    }
    let number = |text: &str| text.trim().parse::<i64>().map_err(|_| format!("{text:?} is not an integer"));
    if let Some((key, value)) = term.split_once("!=") {
        return Ok(LabelRequirement::NotIn(check_key(key)?, vec![value.trim().into()]));
    }
    if let Some((key, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
        return Ok(LabelRequirement::In(check_key(key)?, vec![value.trim().into()]));
    }
    if let Some((key, value)) = term.split_once('>') {
        return Ok(LabelRequirement::Greater(check_key(key)?, number(value)?));
    }
    if let Some((key, value)) = term.split_once('<') {
        return Ok(LabelRequirement::Less(check_key(key)?, number(value)?));
    }
    Ok(LabelRequirement::Exists(check_key(term)?))
}

fn check_key(key: &str) -> Result<String, String> {
    let key = key.trim();
    let good =
        !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/'));
    if good { Ok(key.into()) } else { Err(format!("invalid label key {key:?}")) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::registry;

    #[test]
    fn selectors_select() {
        let pods = registry::core("pods");
        let object = Selectable::of(
            pods,
            &json!({"metadata": {"name": "x", "namespace": "a", "labels": {"app": "web", "n": "5"}}, "spec": {"nodeName": "one"}}),
        );
        for (labels, fields, expected) in [
            ("", "", true),
            ("app=web", "", true),
            ("app==web,n", "", true),
            ("app!=web", "", false),
            ("app in (api, web),tier notin (x)", "", true),
            ("!app", "", false),
            ("!tier", "", true),
            ("n>4", "", true),
            ("n<5", "", false),
            ("", "spec.nodeName=one,metadata.name!=y", true),
            ("", "spec.nodeName!=one", false),
            ("", "spec.hostNetwork=false", true),
        ] {
            let selector = Selector::parse(pods, labels, fields).unwrap();
            assert_eq!(selector.matches(&object), expected, "{labels} {fields}");
        }
        for (labels, fields) in [("a b", ""), ("app in web", ""), ("", "spec.foo=1"), ("", "x"), ("=x", "")] {
            assert!(Selector::parse(pods, labels, fields).is_err(), "{labels} {fields}");
        }
    }
}
