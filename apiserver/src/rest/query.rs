//! The query of a request, and the options that it and a body give.

use serde_json::Value;

use crate::error::{ApiError, FieldError};
use crate::object;

/// The parameters, in order.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Reads a query string.
    ///
    /// # Errors
    /// 400 when it is not well escaped.
    pub fn parse(text: &str) -> Result<Query, ApiError> {
        text.split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                Some((percent_decode(key, true)?, percent_decode(value, true)?))
            })
            .collect::<Option<Vec<_>>>()
            .map(Query)
            .ok_or_else(|| ApiError::bad_request("the query is not well escaped"))
    }

    /// The first value of a parameter, empty when there is none.
    pub fn get(&self, key: &str) -> &str {
        self.0.iter().find(|(other, _)| other == key).map_or("", |(_, value)| value)
    }

    /// All values of a parameter.
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(other, _)| other == key).map(|(_, value)| value.as_str())
    }

    /// True for `true`, `1` and a parameter without a value.
    pub fn flag(&self, key: &str) -> bool {
        self.0
            .iter()
            .find(|(other, _)| other == key)
            .is_some_and(|(_, value)| !matches!(value.as_str(), "false" | "0" | "False"))
    }

    /// True when the parameter is there.
    pub fn has(&self, key: &str) -> bool {
        self.0.iter().any(|(other, _)| other == key)
    }

    /// A number.
    ///
    /// # Errors
    /// 400 when it is none.
    pub fn number(&self, key: &str) -> Result<Option<i64>, ApiError> {
        match self.get(key) {
            "" => Ok(None),
            text => text
                .parse()
                .map(Some)
                .map_err(|_| ApiError::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax"))),
        }
    }

    /// A resource version; empty is none.
    ///
    /// # Errors
    /// 400 when it is no number.
    pub fn revision(&self, key: &str) -> Result<Option<u64>, ApiError> {
        match self.get(key) {
            "" => Ok(None),
            text => text
                .parse()
                .map(Some)
                .map_err(|_| {
                    ApiError::bad_request(format!(
                        "invalid resource version: {key}: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax"
                    ))
                }),
        }
    }

    /// True when nothing may be stored.
    ///
    /// # Errors
    /// 422 for another value than `All`.
    pub fn dry_run(&self, options: &str) -> Result<bool, ApiError> {
        let values: Vec<&str> = self.all("dryRun").filter(|value| !value.is_empty()).collect();
        check_dry_run(&values, options)
    }

    /// What happens to fields that are not known.
    ///
    /// # Errors
    /// 422 for another value than the three.
    pub fn field_validation(&self, options: &str) -> Result<FieldValidation, ApiError> {
        match self.get("fieldValidation") {
            "" | "Warn" => Ok(FieldValidation::Warn),
            "Strict" => Ok(FieldValidation::Strict),
            "Ignore" => Ok(FieldValidation::Ignore),
            other => Err(ApiError::invalid_options(
                options,
                FieldError::unsupported("fieldValidation", other, &["", "Ignore", "Strict", "Warn"]),
            )),
        }
    }

    /// The query without a leading `?`, escaped again.
    pub fn encode(&self) -> String {
        let pairs: Vec<String> =
            self.0.iter().map(|(key, value)| format!("{}={}", percent_encode(key), percent_encode(value))).collect();
        pairs.join("&")
    }

    /// Adds a parameter.
    pub fn push(&mut self, key: &str, value: &str) {
        self.0.push((key.into(), value.into()));
    }
}

fn check_dry_run(values: &[&str], options: &str) -> Result<bool, ApiError> {
    match values.iter().find(|value| **value != "All") {
        Some(_) => {
            let message = format!("Unsupported value: {values:?}: supported values: \"All\"");
            let error = FieldError { field: "dryRun".into(), reason: "FieldValueNotSupported", message };
            Err(ApiError::invalid_options(options, error))
        }
        None => Ok(!values.is_empty()),
    }
}

/// What happens to fields that are not known or there twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldValidation {
    /// They are taken out.
    Ignore,
    /// They are taken out and the client is warned.
    Warn,
    /// The request is refused.
    Strict,
}

/// What happens to what an object owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Propagation {
    /// It is deleted afterwards.
    #[default]
    Background,
    /// It is deleted first.
    Foreground,
    /// It stays.
    Orphan,
}

/// The options of a deletion.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    /// Time that the object gets, in seconds.
    pub grace_period_seconds: Option<i64>,
    /// What happens to what it owns.
    pub propagation: Propagation,
    /// The UID that it must have.
    pub uid: Option<String>,
    /// The revision that it must have.
    pub revision: Option<String>,
    /// Nothing is stored.
    pub dry_run: bool,
}

impl DeleteOptions {
    /// Reads the options from a body, else from the query.
    ///
    /// # Errors
    /// 400 or 422 for values that can't be.
    pub fn read(query: &Query, body: Option<&Value>) -> Result<DeleteOptions, ApiError> {
        let Some(body) = body else {
            return Ok(DeleteOptions {
                grace_period_seconds: query.number("gracePeriodSeconds")?,
                propagation: propagation(
                    query.get("propagationPolicy"),
                    query.has("orphanDependents").then(|| query.flag("orphanDependents")),
                )?,
                dry_run: query.dry_run("DeleteOptions")?,
                ..DeleteOptions::default()
            });
        };
        let precondition =
            |pointer: &str| Some(object::text(body, pointer)).filter(|text| !text.is_empty()).map(String::from);
        Ok(DeleteOptions {
            grace_period_seconds: object::number(body, "/gracePeriodSeconds"),
            propagation: propagation(
                object::text(body, "/propagationPolicy"),
                body.get("orphanDependents").and_then(Value::as_bool),
            )?,
            uid: precondition("/preconditions/uid"),
            revision: precondition("/preconditions/resourceVersion"),
            dry_run: check_dry_run(&object::strings(body, "/dryRun"), "DeleteOptions")?
                || query.dry_run("DeleteOptions")?,
        })
    }
}

fn propagation(text: &str, orphan: Option<bool>) -> Result<Propagation, ApiError> {
    if orphan.is_some() && !text.is_empty() {
        let error = FieldError::invalid(
            "propagationPolicy",
            text,
            "orphanDependents and deletionPropagation cannot be both set",
        );
        return Err(ApiError::invalid_options("DeleteOptions", error));
    }
    match text {
        "" if orphan == Some(true) => Ok(Propagation::Orphan),
        "" | "Background" => Ok(Propagation::Background),
        "Foreground" => Ok(Propagation::Foreground),
        "Orphan" => Ok(Propagation::Orphan),
        other => {
            let error =
                FieldError::unsupported("propagationPolicy", other, &["Foreground", "Background", "Orphan", "nil"]);
            Err(ApiError::invalid_options("DeleteOptions", error))
        }
    }
}

/// Undoes percent escapes; in a query a plus is a space.
pub fn percent_decode(text: &str, query: bool) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let high = char::from(bytes.next()?).to_digit(16)?;
                let low = char::from(bytes.next()?).to_digit(16)?;
                out.push(u8::try_from(high * 16 + low).ok()?);
            }
            b'+' if query => out.push(b' '),
            other => out.push(other),
        }
    }
    String::from_utf8(out).ok()
}

/// Escapes everything but what never needs it.
pub fn percent_encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_read_and_written() {
        let query = Query::parse("command=ls&command=-l+%2Ftmp&watch&limit=5&x=%ff").unwrap_err();
        assert_eq!(query.code, 400);
        let query = Query::parse("command=ls&command=-l+%2Ftmp&watch&limit=5&f=false").unwrap();
        assert_eq!(query.all("command").collect::<Vec<_>>(), ["ls", "-l /tmp"]);
        assert!(query.flag("watch") && !query.flag("f") && !query.flag("none"));
        assert_eq!(query.number("limit").unwrap(), Some(5));
        assert_eq!(query.encode(), "command=ls&command=-l%20%2Ftmp&watch=&limit=5&f=false");
    }
}
