//! Service-account tokens bound to pods: asked by TokenRequest, kept, renewed at 80 % of their life.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::api::{Api, PostParams};
use orlop_agent_core::ports::{PodSet, PortError};
use tokio::sync::Mutex as AsyncMutex;

use crate::client::{ApiClients, REQUEST_DEADLINE, within};

/// Tokens are renewed after this share of their life (kubelet's token manager).
const RENEW_SHARE: f64 = 0.8;
/// Tokens older than this are renewed however long they live.
const RENEW_AGE: SignedDuration = SignedDuration::from_hours(24);
/// After a failed renewal of a token that is still good, the next try comes no sooner.
const RETRY_INTERVAL: SignedDuration = SignedDuration::from_secs(10);

/// What a token is for. The namespace and account are in it because a mirror pod's uid may be reused by mistake.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct TokenKey {
    pod_uid: String,
    namespace: String,
    account: String,
    audience: String,
    expiration_seconds: i64,
}

#[derive(Clone)]
struct Token {
    text: String,
    issued: Timestamp,
    expires: Timestamp,
    /// No try before this.
    not_before: Timestamp,
}

/// What to do about a token.
#[derive(Debug, PartialEq, Eq)]
enum Freshness {
    Good,
    Renew,
    Expired,
}

impl Token {
    fn freshness(&self, now: Timestamp) -> Freshness {
        if now >= self.expires {
            return Freshness::Expired;
        }
        let life = self.expires.duration_since(self.issued);
        let age = now.duration_since(self.issued);
        let due = age.as_secs_f64() >= life.as_secs_f64() * RENEW_SHARE || age >= RENEW_AGE;
        if due && now >= self.not_before { Freshness::Renew } else { Freshness::Good }
    }
}

type Slot = Arc<AsyncMutex<Option<Token>>>;

/// Tokens by pod, account, audience and asked-for life. Only in memory.
pub(crate) struct TokenCache {
    clients: ApiClients,
    slots: Mutex<HashMap<TokenKey, Slot>>,
}

impl TokenCache {
    pub(crate) fn new(clients: ApiClients) -> Self {
        Self { clients, slots: Mutex::default() }
    }

    /// The token, from memory or new. A failed renewal is no failure while the old token is good.
    pub(crate) async fn token(&self, pod: &Pod, audience: &str, expiration_seconds: i64) -> Result<String, PortError> {
        let key = key(pod, audience, expiration_seconds)?;
        let slot = {
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            slots.entry(key.clone()).or_default().clone()
        };
        let mut slot = slot.lock().await;
        let now = Timestamp::now();
        let freshness = slot.as_ref().map_or(Freshness::Expired, |token| token.freshness(now));
        if freshness == Freshness::Good
            && let Some(token) = slot.as_ref()
        {
            return Ok(token.text.clone());
        }
        match (self.request(pod, &key).await, freshness, slot.as_mut()) {
            (Ok(token), _, _) => {
                let text = token.text.clone();
                *slot = Some(token);
                Ok(text)
            }
            (Err(error), Freshness::Renew, Some(old)) => {
                tracing::warn!(pod = %key.pod_uid, account = %key.account, %error, "a service-account token could not be renewed; the old one is still good");
                old.not_before = now + RETRY_INTERVAL;
                Ok(old.text.clone())
            }
            (Err(error), _, _) => Err(error),
        }
    }

    /// Forgets the tokens of pods that are gone.
    pub(crate) fn retire(&self, pods: &PodSet) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        // A slot that somebody holds is being filled for a pod that the caller still has.
        slots.retain(|key, slot| pods.pods.contains_key(&key.pod_uid) || Arc::strong_count(slot) > 1);
    }

    async fn request(&self, pod: &Pod, key: &TokenKey) -> Result<Token, PortError> {
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: Some(key.audience.clone())
                    .filter(|audience| !audience.is_empty())
                    .map(|audience| vec![audience]),
                expiration_seconds: Some(key.expiration_seconds),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: pod.metadata.name.clone(),
                    uid: Some(key.pod_uid.clone()),
                }),
            }),
            ..TokenRequest::default()
        };
        let api: Api<ServiceAccount> = Api::namespaced(self.clients.requests.clone(), &key.namespace);
        let full_name = format!("{}/{}", key.namespace, key.account);
        let what = format!("request a token of service account {full_name}");
        let params = PostParams::default();
        let sent = api.create_subresource::<_, TokenRequest>("token", &key.account, &params, &request);
        let answer =
            within(&what, REQUEST_DEADLINE, sent).await.map_err(|error| error.to_port("ServiceAccount", &full_name))?;
        let (text, expires) = answer
            .status
            .and_then(|status| Some((status.token.filter(|text| !text.is_empty())?, status.expiration_timestamp?.0)))
            .ok_or_else(|| PortError::Unavailable {
                what,
                message: "the answer holds no token with an end of life".to_owned(),
            })?;
        let issued = Timestamp::now();
        Ok(Token { text, issued, expires, not_before: issued })
    }
}

fn key(pod: &Pod, audience: &str, expiration_seconds: i64) -> Result<TokenKey, PortError> {
    let missing = |field: &str| PortError::Invalid {
        what: "request a service-account token".to_owned(),
        message: format!("the pod has no {field}"),
    };
    let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone()).filter(|name| !name.is_empty());
    Ok(TokenKey {
        pod_uid: pod.metadata.uid.clone().ok_or_else(|| missing("metadata.uid"))?,
        namespace: pod.metadata.namespace.clone().ok_or_else(|| missing("metadata.namespace"))?,
        account: account.unwrap_or_else(|| "default".to_owned()),
        audience: audience.to_owned(),
        expiration_seconds,
    })
}

/// How often those who write tokens to disk should ask again.
pub const TOKEN_CHECK_INTERVAL: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_renewed_at_four_fifths_of_their_life_or_after_a_day() {
        let issued: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let token = |life_seconds: i64, retry_seconds: i64| Token {
            text: "t".to_owned(),
            issued,
            expires: issued + SignedDuration::from_secs(life_seconds),
            not_before: issued + SignedDuration::from_secs(retry_seconds),
        };
        let cases = [
            (3600, 0, 0, Freshness::Good),
            (3600, 0, 2879, Freshness::Good),
            (3600, 0, 2880, Freshness::Renew),
            (3600, 3000, 2880, Freshness::Good),
            (3600, 3000, 3000, Freshness::Renew),
            (3600, 0, 3600, Freshness::Expired),
            (3600, 9999, 3600, Freshness::Expired),
            (31_536_000, 0, 86_399, Freshness::Good),
            (31_536_000, 0, 86_400, Freshness::Renew),
        ];
        for (life, retry, age, want) in cases {
            let got = token(life, retry).freshness(issued + SignedDuration::from_secs(age));
            assert_eq!(got, want, "life {life} s, no retry before {retry} s, age {age} s");
        }
    }
}
