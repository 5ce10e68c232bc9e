//! Authentication of bearer tokens and authorisation of requests to the kubelet port, asked of the API server.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::{Api, PostParams};
use orlop_agent_core::ports::{Access, PortError, PortFuture, User};
use sha2::{Digest, Sha256};

use crate::client::{ApiClients, within};

/// How long one review may take; somebody waits for it with an open connection.
const REVIEW_DEADLINE: Duration = Duration::from_secs(10);
/// Answers kept at most per kind of review.
const ANSWERS_MAX: usize = 1024;

/// How long answers are believed (KubeletConfiguration `authentication.webhook` and `authorization.webhook`).
#[derive(Clone, Copy, Debug)]
pub struct AccessLives {
    /// A token's user: `cacheTTL`.
    pub token: Duration,
    /// A permission: `cacheAuthorizedTTL`.
    pub allowed: Duration,
    /// A refusal: `cacheUnauthorizedTTL`.
    pub denied: Duration,
}

impl Default for AccessLives {
    fn default() -> Self {
        Self { token: Duration::from_secs(120), allowed: Duration::from_secs(300), denied: Duration::from_secs(30) }
    }
}

/// Who wants to do what.
#[derive(Clone, PartialEq, Eq, Hash)]
struct PermissionKey {
    name: String,
    uid: String,
    groups: Vec<String>,
    verb: String,
    subresource: String,
}

/// The `Access` port on the API server.
pub struct ApiAccess {
    clients: ApiClients,
    node_name: String,
    lives: AccessLives,
    /// By SHA-256 of the token: tokens themselves are not kept.
    users: Answers<[u8; 32], Option<User>>,
    permissions: Answers<PermissionKey, bool>,
}

impl std::fmt::Debug for ApiAccess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiAccess").field("node_name", &self.node_name).finish_non_exhaustive()
    }
}

impl ApiAccess {
    /// Reviews about the node.
    pub fn new(clients: ApiClients, node_name: &str, lives: AccessLives) -> Arc<Self> {
        Arc::new(Self {
            clients,
            node_name: node_name.to_owned(),
            lives,
            users: Answers::default(),
            permissions: Answers::default(),
        })
    }

    async fn review_token(&self, token: &str) -> Result<Option<User>, PortError> {
        let key: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        if let Some(user) = self.users.get(&key) {
            return Ok(user);
        }
        let review = TokenReview {
            spec: TokenReviewSpec { token: token.to_owned(), audiences: None },
            ..TokenReview::default()
        };
        let api: Api<TokenReview> = Api::all(self.clients.requests.clone());
        let params = PostParams::default();
        let answer = within("review a bearer token", REVIEW_DEADLINE, api.create(&params, &review))
            .await
            .map_err(|error| error.to_port("TokenReview", ""))?;
        let status = answer.status.unwrap_or_default();
        let user = status.user.filter(|_| status.authenticated == Some(true)).map(|user| User {
            name: user.username.unwrap_or_default(),
            uid: user.uid.unwrap_or_default(),
            groups: user.groups.unwrap_or_default(),
        });
        let life = if user.is_some() { self.lives.token } else { self.lives.denied.min(self.lives.token) };
        self.users.put(key, user.clone(), life);
        Ok(user)
    }

    async fn review_access(&self, user: &User, verb: &str, subresource: &str) -> Result<bool, PortError> {
        let key = PermissionKey {
            name: user.name.clone(),
            uid: user.uid.clone(),
            groups: user.groups.clone(),
            verb: verb.to_owned(),
            subresource: subresource.to_owned(),
        };
        if let Some(allowed) = self.permissions.get(&key) {
            return Ok(allowed);
        }
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(user.name.clone()),
                uid: Some(user.uid.clone()).filter(|uid| !uid.is_empty()),
                groups: Some(user.groups.clone()),
                resource_attributes: Some(ResourceAttributes {
                    version: Some("v1".to_owned()),
                    resource: Some("nodes".to_owned()),
                    subresource: Some(subresource.to_owned()),
                    name: Some(self.node_name.clone()),
                    verb: Some(verb.to_owned()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let api: Api<SubjectAccessReview> = Api::all(self.clients.requests.clone());
        let params = PostParams::default();
        let answer = within("review access to the node", REVIEW_DEADLINE, api.create(&params, &review))
            .await
            .map_err(|error| error.to_port("SubjectAccessReview", ""))?;
        let allowed = answer.status.is_some_and(|status| status.allowed && status.denied != Some(true));
        self.permissions.put(key, allowed, if allowed { self.lives.allowed } else { self.lives.denied });
        Ok(allowed)
    }
}

impl Access for ApiAccess {
    fn authenticate<'a>(&'a self, token: &'a str) -> PortFuture<'a, Result<Option<User>, PortError>> {
        Box::pin(self.review_token(token))
    }

    fn authorize<'a>(
        &'a self,
        user: &'a User,
        verb: &'a str,
        subresource: &'a str,
    ) -> PortFuture<'a, Result<bool, PortError>> {
        Box::pin(self.review_access(user, verb, subresource))
    }
}

/// Answers with an end of life each, bounded in number.
struct Answers<K, V>(Mutex<HashMap<K, (Instant, V)>>);

impl<K, V> Default for Answers<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash + Clone, V: Clone> Answers<K, V> {
    fn get(&self, key: &K) -> Option<V> {
        let answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        answers.get(key).filter(|(until, _)| *until > Instant::now()).map(|(_, value)| value.clone())
    }

    fn put(&self, key: K, value: V, life: Duration) {
        let now = Instant::now();
        let mut answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() >= ANSWERS_MAX {
            answers.retain(|_, (until, _)| *until > now);
        }
        if answers.len() >= ANSWERS_MAX
            && let Some(soonest) = answers.iter().min_by_key(|(_, (until, _))| *until).map(|(key, _)| key.clone())
        {
            answers.remove(&soonest);
        }
        answers.insert(key, (now + life, value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_end_and_are_bounded() {
        let answers = Answers::default();
        answers.put(1, "old", Duration::ZERO);
        assert_eq!(answers.get(&1), None);
        for n in 0..ANSWERS_MAX + 100 {
            answers.put(n, "new", Duration::from_secs(60));
        }
        assert_eq!(answers.0.lock().unwrap().len(), ANSWERS_MAX);
        assert_eq!(answers.get(&(ANSWERS_MAX + 99)), Some("new"));
    }
}
