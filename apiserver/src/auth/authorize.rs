//! What a user may do: masters everything, a node its own, everybody else what is about itself.

use super::{AUTHENTICATED, MASTERS, User, node_rules};
use crate::api::Api;
use crate::error::ApiError;
use crate::registry::{self, Resource};

pub use node_rules::check_node_write;

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub struct Attributes {
    /// `get`, `list`, …
    pub verb: String,
    /// API group.
    pub group: String,
    /// Plural name; empty for an address that is no resource.
    pub resource: String,
    /// Part of the resource.
    pub subresource: String,
    /// Namespace, empty for all or none.
    pub namespace: String,
    /// Name, empty for all.
    pub name: String,
    /// Address that is no resource.
    pub path: String,
    /// Field selector of a list or watch, so far as it requires a value.
    pub required_fields: Vec<(String, String)>,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Yes.
    Allowed,
    /// No, with more to say or not.
    Denied(String),
}

impl Decision {
    fn no() -> Decision {
        Decision::Denied(String::new())
    }
}

/// Addresses that everybody may read.
const OPEN_PAGES: [&str; 4] = ["/healthz", "/livez", "/readyz", "/version"];
/// Addresses that every known client may read (the ClusterRole `system:discovery`).
const DISCOVERY_PAGES: [&str; 8] =
    ["/api", "/apis", "/openapi", "/version", "/healthz", "/livez", "/readyz", "/.well-known/openid-configuration"];
/// Resources by which every known client asks about itself (the ClusterRole `system:basic-user`).
const SELF_REVIEWS: [(&str, &str); 3] = [
    ("authorization.k8s.io", "selfsubjectaccessreviews"),
    ("authorization.k8s.io", "selfsubjectrulesreviews"),
    ("authentication.k8s.io", "selfsubjectreviews"),
];

/// Decides.
pub fn authorize(api: &Api, user: &User, asked: &Attributes) -> Decision {
    if user.is_in(MASTERS) {
        return Decision::Allowed;
    }
    if asked.resource.is_empty() {
        return authorize_page(user, asked);
    }
    if !user.is_in(AUTHENTICATED) {
        return Decision::no();
    }
    if asked.verb == "create" && SELF_REVIEWS.contains(&(asked.group.as_str(), asked.resource.as_str())) {
        return Decision::Allowed;
    }
    if user.node().is_some() {
        return node_rules::authorize(api, user, asked);
    }
    Decision::no()
}

fn authorize_page(user: &User, asked: &Attributes) -> Decision {
    let reads = matches!(asked.verb.as_str(), "get" | "head");
    let below = |page: &&str| asked.path == **page || asked.path.starts_with(&format!("{page}/"));
    let open = OPEN_PAGES.iter().any(below);
    let discovery = user.is_in(AUTHENTICATED) && (DISCOVERY_PAGES.iter().any(below) || asked.path == "/openid/v1/jwks");
    if reads && (open || discovery) { Decision::Allowed } else { Decision::no() }
}

/// The error of a denial.
pub fn forbidden(user: &User, asked: &Attributes, why: &str) -> ApiError {
    let why = if why.is_empty() { String::new() } else { format!(": {why}") };
    if asked.resource.is_empty() {
        return ApiError::forbidden_address(format!(
            "forbidden: User {:?} cannot {} path {:?}{why}",
            user.name, asked.verb, asked.path
        ));
    }
    let part = if asked.subresource.is_empty() { String::new() } else { format!("/{}", asked.subresource) };
    let scope = if asked.namespace.is_empty() {
        "at the cluster scope".to_string()
    } else {
        format!("in the namespace {:?}", asked.namespace)
    };
    let text = format!(
        "User {:?} cannot {} resource \"{}{part}\" in API group {:?} {scope}{why}",
        user.name, asked.verb, asked.resource, asked.group
    );
    match row(asked) {
        Some(resource) => ApiError::forbidden(resource, &asked.name, &text),
        None => ApiError::forbidden_address(text),
    }
}

fn row(asked: &Attributes) -> Option<&'static Resource> {
    registry::all().find(|resource| resource.group == asked.group && resource.plural == asked.resource)
}
