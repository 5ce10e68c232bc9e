//! Service-account tokens for drivers that ask for them (`CSIDriver.spec.tokenRequests`).

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::storage::v1::TokenRequest;
use serde_json::json;

use crate::config::VolumesConfig;

/// Key of the tokens in the volume's context or secrets (kubelet).
pub(super) const KEY: &str = "csi.storage.k8s.io/serviceAccount.tokens";
/// Life of a token when nothing is said, in seconds.
const DEFAULT_SECONDS: i64 = 3600;

/// The tokens as JSON, by audience; none when none are asked for.
///
/// # Errors
/// When the API gives no token.
pub(super) async fn collect(
    config: &VolumesConfig,
    pod: &Pod,
    requests: &[TokenRequest],
) -> Result<Option<String>, String> {
    if requests.is_empty() {
        return Ok(None);
    }
    let mut tokens = BTreeMap::new();
    for request in requests {
        let seconds = request.expiration_seconds.unwrap_or(DEFAULT_SECONDS);
        let token = config.objects.token(pod, &request.audience, seconds).await;
        let token = token.map_err(|error| format!("failed to fetch token: {error}"))?;
        let expires = expiry(&token);
        tokens.insert(request.audience.clone(), json!({"token": token, "expirationTimestamp": expires}));
    }
    serde_json::to_string(&tokens).map(Some).map_err(|error| error.to_string())
}

/// The end of a token's life, as its own claims say; none for one that is no JWT.
fn expiry(token: &str) -> Option<String> {
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&claims).ok()?;
    let seconds = claims.get("exp")?.as_i64()?;
    Some(jiff::Timestamp::from_second(seconds).ok()?.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_token_is_in_its_claims() {
        let token = format!("x.{}.y", URL_SAFE_NO_PAD.encode(r#"{"exp":1700000000}"#));
        assert_eq!(expiry(&token).as_deref(), Some("2023-11-14T22:13:20Z"));
        for opaque in ["", "abc", "a.b.c", "a.e30.c"] {
            assert_eq!(expiry(opaque), None, "{opaque:?}");
        }
    }
}
