//! Addresses that are no resources: health, version, discovery, schemas, keys.

use http::{HeaderMap, Method, Response, StatusCode};
use serde_json::{Value, json};

use super::answer::{self, Accept, Body};
use super::query::Query;
use crate::api::Api;
use crate::discovery;
use crate::error::ApiError;
use crate::health;

/// The version of Kubernetes whose API is served.
pub const VERSION: &str = "v1.36.3+orlop";

/// Where definitions of custom resources would be.
pub const CUSTOM_RESOURCES: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

/// Answers a page.
///
/// # Errors
/// 404 for a page that is not there.
pub fn answer(
    api: &Api,
    path: &str,
    query: &Query,
    headers: &HeaderMap,
    method: &Method,
) -> Result<Response<Body>, ApiError> {
    if method != Method::GET && method != Method::HEAD {
        return Err(ApiError::method_not_allowed());
    }
    let path = path.trim_end_matches('/');
    if let Some(response) = health::answer(api, path, query) {
        return Ok(response);
    }
    if path == CUSTOM_RESOURCES {
        return Ok(page(&no_custom_resources(api)));
    }
    if let Some(response) = discovery::answer(api, path, headers)? {
        return Ok(response);
    }
    if let Some(response) = crate::openapi::answer(path, query, headers) {
        return Ok(response);
    }
    let document = match path {
        "/version" => version(),
        "/.well-known/openid-configuration" => json!({
            "issuer": api.tokens.issuer(),
            "jwks_uri": format!("https://{}/openid/v1/jwks", authority(api)),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        }),
        "/openid/v1/jwks" => api.tokens.key_set(),
        "" => {
            json!({"paths": ["/api", "/api/v1", "/apis", "/healthz", "/livez", "/openapi/v2", "/openapi/v3", "/readyz", "/version"]})
        }
        _ => return Err(ApiError::no_such_address()),
    };
    Ok(page(&document))
}

fn page(document: &Value) -> Response<Body> {
    answer::document(StatusCode::OK, document, Accept { shape: answer::Shape::Full, yaml: false, pretty: true })
}

/// There are none. kubectl looks among them before it says that a kind is unknown.
fn no_custom_resources(api: &Api) -> Value {
    json!({
        "kind": "CustomResourceDefinitionList", "apiVersion": "apiextensions.k8s.io/v1",
        "metadata": {"resourceVersion": api.store.revision().to_string()}, "items": [],
    })
}

/// Address and port where pods reach the API.
pub fn authority(api: &Api) -> String {
    std::net::SocketAddr::new(api.config.advertise_address, api.config.advertise_port).to_string()
}

fn version() -> Value {
    json!({
        "major": "1", "minor": "36", "emulationMajor": "1", "emulationMinor": "36", "minCompatibilityMajor": "1", "minCompatibilityMinor": "35",
        "gitVersion": VERSION, "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none", "compiler": "rustc", "platform": format!("linux/{}", architecture()),
    })
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
