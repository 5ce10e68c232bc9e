//! Addresses: what the path of a request names.

use crate::error::ApiError;
use crate::registry::{self, Resource, Subresource};
use crate::rest::pages::CUSTOM_RESOURCES;

/// What a path names.
#[derive(Clone, Debug)]
pub enum Target {
    /// A resource, an object or a part of it.
    Resource(Address),
    /// Anything else: health, version, discovery, schemas.
    Page(Vec<String>),
}

/// A resource, an object or a part of it.
#[derive(Clone, Debug)]
pub struct Address {
    /// The resource's row.
    pub resource: &'static Resource,
    /// The namespace, empty for none or all.
    pub namespace: String,
    /// The object's name, empty for all.
    pub name: String,
    /// The part.
    pub subresource: Option<&'static Subresource>,
    /// What follows a part that is a proxy, with a leading slash or empty.
    pub rest: String,
}

impl Address {
    /// The address of an object.
    pub fn object(resource: &'static Resource, namespace: &str, name: &str) -> Address {
        Address { resource, namespace: namespace.into(), name: name.into(), subresource: None, rest: String::new() }
    }

    /// The part's name, or empty.
    pub fn part(&self) -> &'static str {
        self.subresource.map_or("", |part| part.name)
    }

    /// The verb that is authorised.
    pub fn verb(&self, method: &http::Method, watch: bool) -> &'static str {
        match method.as_str() {
            "POST" => "create",
            "PUT" => "update",
            "PATCH" => "patch",
            "DELETE" if self.name.is_empty() => "deletecollection",
            "DELETE" => "delete",
            // One object is read, whatever else is asked.
            _ if !self.name.is_empty() => "get",
            _ if watch => "watch",
            "GET" | "HEAD" => "list",
            _ => "get",
        }
    }
}

/// Reads a path.
///
/// # Errors
/// 400 for a part that can't be one, 404 for what is not served.
pub fn parse(path: &str) -> Result<Target, ApiError> {
    let parts: Vec<String> =
        path.trim_matches('/').split('/').filter(|_| path.len() > 1).map(decode).collect::<Result<_, _>>()?;
    let part = |index: usize| parts.get(index).map_or("", String::as_str);
    let (group, version, rest) = match part(0) {
        "api" if parts.len() > 2 => ("", part(1), &parts[2..]),
        // A list of nothing, without a type behind it.
        "apis" if path.trim_end_matches('/') == CUSTOM_RESOURCES => return Ok(Target::Page(parts)),
        "apis" if parts.len() > 3 => (part(1), part(2), &parts[3..]),
        _ => return Ok(Target::Page(parts)),
    };
    parse_resource(group, version, rest).map(Target::Resource)
}

fn parse_resource(group: &str, version: &str, parts: &[String]) -> Result<Address, ApiError> {
    for part in parts.iter().take(5) {
        check_part(part)?;
    }
    let part = |index: usize| parts.get(index).map_or("", String::as_str);
    let find = |plural: &str| registry::find(group, version, plural).ok_or_else(ApiError::no_such_address);
    // `namespaces/<name>/<part>` is a part of the namespace if it has one of that name.
    let scoped = part(0) == "namespaces"
        && parts.len() > 2
        && !(group.is_empty() && registry::core("namespaces").subresource(part(2)).is_some());
    let (namespace, parts) = if scoped { (part(1).to_string(), &parts[2..]) } else { (String::new(), parts) };
    let part = |index: usize| parts.get(index).map_or("", String::as_str);
    let resource = find(part(0))?;
    if scoped && !resource.namespaced {
        return Err(ApiError::no_such_address());
    }
    let name = part(1).to_string();
    if resource.namespaced && !name.is_empty() && namespace.is_empty() {
        return Err(ApiError::no_such_address());
    }
    let subresource = match part(2) {
        "" => None,
        given => Some(resource.subresource(given).ok_or_else(ApiError::no_such_address)?),
    };
    let rest = parts.get(3..).unwrap_or_default();
    if !rest.is_empty() && part(2) != "proxy" {
        return Err(ApiError::no_such_address());
    }
    let rest = rest.iter().map(|part| format!("/{part}")).collect();
    Ok(Address { resource, namespace, name, subresource, rest })
}

fn check_part(part: &str) -> Result<(), ApiError> {
    if part.is_empty() {
        return Err(ApiError::no_such_address());
    }
    if part == "." || part == ".." || part.contains(['/', '%']) || part.chars().any(char::is_control) {
        return Err(ApiError::bad_request(format!(
            "Invalid value: {part:?}: a part of the address may not be '.' or '..' and may not contain '/', '%' or control characters"
        )));
    }
    Ok(())
}

fn decode(part: &str) -> Result<String, ApiError> {
    super::query::percent_decode(part, false)
        .ok_or_else(|| ApiError::bad_request(format!("the address part {part:?} is not well escaped")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(path: &str) -> Address {
        match parse(path).unwrap() {
            Target::Resource(address) => address,
            Target::Page(parts) => panic!("{parts:?}"),
        }
    }

    #[test]
    fn paths_name_objects_and_parts() {
        let pod = address("/api/v1/namespaces/a/pods/x/log");
        assert_eq!(
            (pod.resource.plural, pod.namespace.as_str(), pod.name.as_str(), pod.part()),
            ("pods", "a", "x", "log")
        );
        let all = address("/api/v1/pods");
        assert_eq!((all.namespace.as_str(), all.name.as_str()), ("", ""));
        let namespace = address("/api/v1/namespaces/a/status");
        assert_eq!(
            (namespace.resource.plural, namespace.name.as_str(), namespace.part()),
            ("namespaces", "a", "status")
        );
        let lease = address("/apis/coordination.k8s.io/v1/namespaces/a/leases/x");
        assert_eq!((lease.resource.kind, lease.name.as_str()), ("Lease", "x"));
        let proxy = address("/api/v1/nodes/n/proxy/stats/summary");
        assert_eq!((proxy.part(), proxy.rest.as_str()), ("proxy", "/stats/summary"));
        assert!(matches!(parse("/apis/coordination.k8s.io/v1").unwrap(), Target::Page(_)));
        assert!(matches!(parse("/").unwrap(), Target::Page(parts) if parts.is_empty()));
    }

    #[test]
    fn what_is_not_served_or_escapes_is_refused() {
        for (path, code) in [
            ("/api/v1/foos", 404),
            ("/api/v1/namespaces/a/nodes/x", 404),
            ("/api/v1/pods/x", 404),
            ("/api/v1/namespaces/a/pods/x/foo", 404),
            ("/api/v1/namespaces/a/pods/..", 400),
            ("/api/v1/namespaces/a/pods/%2e%2e", 400),
            ("/api/v1/namespaces/a/pods/x%2fy", 400),
            ("/api/v1/namespaces/a/pods/%zz", 400),
            ("/api/v1/namespaces//pods", 404),
        ] {
            assert_eq!(parse(path).unwrap_err().code, code, "{path}");
        }
    }
}
