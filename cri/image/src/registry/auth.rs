//! Answers to a registry's challenge: basic credentials, or a token from the server that it names.
//!
//! Credentials go to the registry itself and to token servers of its own domain. Everything else is refused, because
//! a registry (or whoever answers in its place) could otherwise send our secrets anywhere.

use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{StatusCode, Url};
use serde::Deserialize;

use super::RegistryError;
use super::challenge::Challenge;
use super::client::{Session, authority, error_detail};
use super::config::{Credentials, host_of, is_loopback};
use super::transport::chain;

/// Largest answer of a token server, in bytes.
const TOKEN_BYTES_MAX: usize = 1024 * 1024;

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

/// A header value that is never logged; none if it holds characters that no header may have.
pub(super) fn secret_header(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// What to send as `Authorization` after a 401 with these challenges.
pub(super) async fn answer(
    session: &Session,
    challenges: &[Challenge],
    detail: &str,
) -> Result<HeaderValue, RegistryError> {
    let bearer = challenges.iter().find(|challenge| matches!(challenge, Challenge::Bearer { .. }));
    if let Some(Challenge::Bearer { realm, service, scope }) = bearer {
        return fetch_token(session, realm, service.as_deref(), scope.as_deref()).await;
    }
    let unauthorized = || RegistryError::Unauthorized { registry: session.registry.clone(), detail: detail.to_owned() };
    if !challenges.contains(&Challenge::Basic) {
        return Err(unauthorized());
    }
    session.credentials().await?.and_then(basic).ok_or_else(unauthorized)
}

fn basic(credentials: &Credentials) -> Option<HeaderValue> {
    if credentials.username.is_empty() {
        return None;
    }
    secret_header(&format!("Basic {}", STANDARD.encode(format!("{}:{}", credentials.username, credentials.password))))
}

/// Whether an address is link-local: cloud metadata services live there.
pub(super) fn is_link_local(authority: &str) -> bool {
    match host_of(authority).parse() {
        Ok(IpAddr::V4(address)) => address.is_link_local(),
        Ok(IpAddr::V6(address)) => {
            address.is_unicast_link_local() || address.to_ipv4_mapped().is_some_and(|v4| v4.is_link_local())
        }
        Err(_) => false,
    }
}

/// Whether a token server may be asked at all.
fn check_realm(session: &Session, realm: &str) -> Result<Url, RegistryError> {
    let refuse = |why: String| RegistryError::Challenge { registry: session.registry.clone(), why };
    let url = Url::parse(realm).map_err(|error| refuse(format!("realm {realm:.200}: {error}")))?;
    let host = authority(&url);
    let registry_is_local = session.endpoint.is_local_and_plain();
    match url.scheme() {
        "https" => {}
        "http" if registry_is_local && is_loopback(&host) => {}
        _ => return Err(refuse(format!("realm {realm:.200} must be https"))),
    }
    if is_link_local(&host) {
        return Err(refuse(format!("realm {realm:.200} is a link-local address")));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(refuse("realm has credentials in its URL".into()));
    }
    Ok(url)
}

/// Whether the registry's credentials may be shown to a token server: the same host, its domain, or one that the
/// configuration names.
fn may_see_credentials(session: &Session, url: &Url) -> bool {
    let token_authority = authority(url);
    let token_host = host_of(&token_authority);
    let registry_authority = authority(&session.endpoint.root);
    let registry_host = host_of(&registry_authority);
    if token_host == registry_host {
        return true;
    }
    let configured = session.client.config.host(&session.registry).token_hosts;
    if configured.iter().any(|allowed| allowed == token_host || *allowed == token_authority) {
        return true;
    }
    if registry_host.parse::<IpAddr>().is_ok() || token_host.parse::<IpAddr>().is_ok() {
        return false;
    }
    // registry-1.docker.io -> auth.docker.io, registry.gitlab.com -> gitlab.com
    let domain = match registry_host.split_once('.') {
        Some((_, parent)) if parent.contains('.') => parent,
        _ => registry_host,
    };
    token_host == domain || token_host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'))
}

async fn fetch_token(
    session: &Session,
    realm: &str,
    service: Option<&str>,
    scope: Option<&str>,
) -> Result<HeaderValue, RegistryError> {
    let mut url = check_realm(session, realm)?;
    let credentials = session.credentials().await?;
    if credentials.is_some() && !may_see_credentials(session, &url) {
        return Err(RegistryError::Challenge {
            registry: session.registry.clone(),
            why: format!(
                "its token server {0} is not of its domain, so our credentials are not sent there; add {0} to tokenHosts of the registry if it may have them",
                authority(&url)
            ),
        });
    }
    let own_scope = format!("repository:{}:pull", session.repository);
    let scope = scope.unwrap_or(&own_scope);
    let client = session.http(&url)?;
    let identity_token = credentials.map(|given| given.identity_token.as_str()).filter(|token| !token.is_empty());
    let builder = if let Some(token) = identity_token {
        let mut form = Url::parse("form:").map_err(|error| session.protocol(error.to_string()))?;
        form.query_pairs_mut()
            .append_pair("grant_type", "refresh_token")
            .append_pair("service", service.unwrap_or_default())
            .append_pair("client_id", "orlop")
            .append_pair("scope", scope)
            .append_pair("refresh_token", token);
        client
            .post(url.clone())
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(form.query().unwrap_or_default().to_owned())
    } else {
        {
            let mut query = url.query_pairs_mut();
            if let Some(service) = service {
                query.append_pair("service", service);
            }
            query.append_pair("scope", scope);
        }
        let builder = client.get(url.clone());
        match credentials.and_then(basic) {
            Some(value) => builder.header(AUTHORIZATION, value),
            None => builder,
        }
    };
    read_token(session, &authority(&url), builder).await
}

async fn read_token(
    session: &Session,
    token_server: &str,
    builder: reqwest::RequestBuilder,
) -> Result<HeaderValue, RegistryError> {
    let config = &session.client.config;
    let mut tries = 0;
    loop {
        tries += 1;
        let Some(attempt) = builder.try_clone() else {
            return Err(session.protocol("token request can't be repeated"));
        };
        let outcome = tokio::time::timeout(config.stall_timeout(), attempt.send()).await;
        let detail = match outcome {
            Ok(Ok(response)) if response.status().is_success() => {
                return token_of(session, token_server, response).await;
            }
            Ok(Ok(response)) if matches!(response.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
                let detail = format!("token server {token_server}: {}", error_detail(response).await);
                return Err(RegistryError::Unauthorized { registry: session.registry.clone(), detail });
            }
            Ok(Ok(response))
                if response.status().is_server_error() || response.status() == StatusCode::TOO_MANY_REQUESTS =>
            {
                format!("token server {token_server}: {}", response.status())
            }
            Ok(Ok(response)) => {
                return Err(session.protocol(format!("token server {token_server} answers {}", response.status())));
            }
            Ok(Err(error)) => format!("token server {token_server}: {}", chain(&error.without_url())),
            Err(_) => format!("token server {token_server} gives no answer"),
        };
        if tries >= config.tries_max {
            return Err(RegistryError::Unavailable { registry: session.registry.clone(), tries, detail });
        }
        tokio::time::sleep(config.wait_before(tries)).await;
    }
}

async fn token_of(
    session: &Session,
    token_server: &str,
    mut response: reqwest::Response,
) -> Result<HeaderValue, RegistryError> {
    let wrong = |why: String| session.protocol(format!("token server {token_server}: {why}"));
    let mut body = Vec::new();
    loop {
        match tokio::time::timeout(session.client.config.stall_timeout(), response.chunk()).await {
            Ok(Ok(Some(chunk))) => body.extend_from_slice(&chunk),
            Ok(Ok(None)) => break,
            Ok(Err(error)) => return Err(wrong(chain(&error.without_url()))),
            Err(_) => return Err(wrong("the answer stalls".into())),
        }
        if body.len() > TOKEN_BYTES_MAX {
            return Err(wrong(format!("the answer is longer than {TOKEN_BYTES_MAX} bytes")));
        }
    }
    let answer: TokenAnswer =
        serde_json::from_slice(&body).map_err(|error| wrong(format!("the answer is no token: {error}")))?;
    let token = answer.token.or(answer.access_token).filter(|token| !token.is_empty());
    let token = token.ok_or_else(|| wrong("the answer has neither token nor access_token".into()))?;
    secret_header(&format!("Bearer {token}"))
        .ok_or_else(|| wrong("the token has characters that no header may have".into()))
}
