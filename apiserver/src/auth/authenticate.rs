//! From a certificate or a token to a user.

use http::{HeaderMap, header};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{AUTHENTICATED, MASTERS, SERVICE_ACCOUNT_PREFIX, UNAUTHENTICATED, User};
use crate::api::Api;
use crate::error::ApiError;

/// The other end of a connection.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    /// Who its certificate says it is; the certificate has been checked against the authority.
    pub user: Option<User>,
}

impl Peer {
    /// Reads the subject of a checked certificate: common name is the user, organisations are groups.
    pub fn from_certificate(certificate: Option<&CertificateDer<'_>>) -> Peer {
        let user = certificate.and_then(|der| {
            let (_, certificate) = X509Certificate::from_der(der).ok()?;
            let subject = certificate.subject();
            let name = subject.iter_common_name().next()?.as_str().ok()?.to_string();
            let mut groups: Vec<String> =
                subject.iter_organization().filter_map(|group| group.as_str().ok()).map(String::from).collect();
            groups.push(AUTHENTICATED.into());
            Some(User { name, groups, ..User::default() }).filter(|user| !user.name.is_empty())
        });
        Peer { user }
    }
}

/// Who sends a request.
///
/// # Errors
/// 401 for a token that is not good; no credential at all is the anonymous user.
pub fn authenticate(api: &Api, peer: &Peer, headers: &HeaderMap) -> Result<User, ApiError> {
    let user = authenticate_itself(api, peer, headers)?;
    impersonate(user, headers)
}

/// The user that a master acts as, by the `Impersonate-` headers.
fn impersonate(user: User, headers: &HeaderMap) -> Result<User, ApiError> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_string();
    let name = text("impersonate-user");
    let groups: Vec<String> =
        headers.get_all("impersonate-group").iter().filter_map(|value| value.to_str().ok()).map(String::from).collect();
    if name.is_empty() {
        let without = !groups.is_empty() || headers.contains_key("impersonate-uid");
        return if without {
            Err(ApiError::bad_request("requested impersonation of groups or a UID without a user"))
        } else {
            Ok(user)
        };
    }
    if !user.is_in(MASTERS) {
        return Err(ApiError::forbidden_address(format!(
            "users {name:?} is forbidden: User {:?} cannot impersonate resource \"users\" in API group \"\" at the cluster scope",
            user.name
        )));
    }
    let mut groups = groups;
    if let Some((namespace, _)) = name.strip_prefix(SERVICE_ACCOUNT_PREFIX).and_then(|rest| rest.split_once(':'))
        && groups.is_empty()
    {
        groups = vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")];
    }
    let anonymous = name == User::anonymous().name;
    let class = if anonymous { UNAUTHENTICATED } else { AUTHENTICATED };
    if !groups.iter().any(|group| group == class) {
        groups.push(class.into());
    }
    let mut extra = std::collections::BTreeMap::new();
    for (key, value) in headers {
        if let (Some(key), Ok(value)) = (key.as_str().strip_prefix("impersonate-extra-"), value.to_str()) {
            let key = crate::rest::query::percent_decode(key, false).unwrap_or_else(|| key.to_string());
            extra.entry(key).or_insert_with(Vec::new).push(value.to_string());
        }
    }
    Ok(User { name, uid: text("impersonate-uid"), groups, extra })
}

fn authenticate_itself(api: &Api, peer: &Peer, headers: &HeaderMap) -> Result<User, ApiError> {
    if let Some(user) = &peer.user {
        return Ok(user.clone());
    }
    match bearer_token(headers) {
        Some(token) => api.tokens.check(api, &token, &[]).map(|checked| checked.user).map_err(|reason| {
            tracing::debug!(reason, "a token was refused");
            ApiError::unauthorized()
        }),
        None if headers.contains_key(header::AUTHORIZATION) => Err(ApiError::unauthorized()),
        None => Ok(User::anonymous()),
    }
}

/// The token of the `Authorization` header, or of the WebSocket subprotocol that browsers use.
fn bearer_token(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_string()).filter(|token| !token.is_empty())
}
