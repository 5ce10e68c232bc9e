//! Endpoints and endpoint slices: defaults and validation.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::names;
use crate::error::FieldError;
use crate::object;

/// Endpoints of one slice.
const ENDPOINTS_MAX: usize = 1000;
/// Addresses of one endpoint.
const ADDRESSES_MAX: usize = 100;

/// Defaults of a slice.
pub fn default_slice(new: &mut Value) {
    for port in new.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        object::default(port, "name", || json!(""));
        object::default(port, "protocol", || json!("TCP"));
    }
}

/// Defaults of endpoints.
pub fn default_endpoints(new: &mut Value) {
    for subset in new.get_mut("subsets").and_then(Value::as_array_mut).into_iter().flatten() {
        for port in subset.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
            object::default(port, "protocol", || json!("TCP"));
        }
    }
}

/// Checks a slice.
pub fn validate_slice(new: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let kind = object::text(new, "/addressType");
    match kind {
        "IPv4" | "IPv6" | "FQDN" => {}
        "" => errors.push(FieldError::required("addressType", "")),
        other => errors.push(FieldError::unsupported("addressType", other, &["FQDN", "IPv4", "IPv6"])),
    }
    for (index, port) in object::items(new, "/ports").iter().enumerate() {
        let name = object::text(port, "/name");
        if !name.is_empty() && !names::is_label(name) {
            errors.push(FieldError::invalid(format!("ports[{index}].name"), name, names::LABEL_TEXT));
        }
        let protocol = object::text(port, "/protocol");
        if !matches!(protocol, "TCP" | "UDP" | "SCTP") {
            errors.push(FieldError::unsupported(format!("ports[{index}].protocol"), protocol, &["SCTP", "TCP", "UDP"]));
        }
    }
    let endpoints = object::items(new, "/endpoints");
    if endpoints.len() > ENDPOINTS_MAX {
        let message = format!("Too many: {}: must have at most {ENDPOINTS_MAX} items", endpoints.len());
        errors.push(FieldError { field: "endpoints".into(), reason: "FieldValueTooMany", message });
    }
    for (index, endpoint) in endpoints.iter().enumerate() {
        validate_addresses(endpoint, kind, &format!("endpoints[{index}].addresses"), &mut errors);
    }
    errors
}

fn validate_addresses(endpoint: &Value, kind: &str, path: &str, errors: &mut Vec<FieldError>) {
    let addresses = object::strings(endpoint, "/addresses");
    if addresses.is_empty() {
        errors.push(FieldError::required(path, "must contain at least 1 address"));
    }
    if addresses.len() > ADDRESSES_MAX {
        let message = format!("Too many: {}: must have at most {ADDRESSES_MAX} items", addresses.len());
        errors.push(FieldError { field: path.into(), reason: "FieldValueTooMany", message });
    }
    for (index, address) in addresses.iter().enumerate() {
        let parsed = address.parse::<IpAddr>();
        let text = match (kind, parsed) {
            ("IPv4" | "IPv6", Err(_)) => "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            ("IPv4", Ok(IpAddr::V6(_))) => "must be an IPv4 address",
            ("IPv6", Ok(IpAddr::V4(_))) => "must be an IPv6 address",
            ("FQDN", _) if !names::is_subdomain(address.trim_end_matches('.')) => names::SUBDOMAIN_TEXT,
            _ => continue,
        };
        errors.push(FieldError::invalid(format!("{path}[{index}]"), *address, text));
    }
}
