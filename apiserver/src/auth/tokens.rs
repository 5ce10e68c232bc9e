//! Service-account tokens: JSON web tokens signed with ES256, bound to a pod, a secret or a node.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
};
use serde_json::{Value, json};

use super::{AUTHENTICATED, SERVICE_ACCOUNT_PREFIX, User};
use crate::api::Api;
use crate::error::{ApiError, FieldError};
use crate::object;
use crate::pki::{self, PkiError};
use crate::registry;
use crate::storage::ObjectKey;

/// Shortest life of a token (TokenRequest validation), in seconds.
const LIFE_SECONDS_MIN: i64 = 600;
/// Longest life of a token, in seconds.
const LIFE_SECONDS_MAX: i64 = 1 << 32;
/// Life of a token that names none, in seconds.
const LIFE_SECONDS_DEFAULT: i64 = 3600;
/// Clocks may differ by so much, in seconds.
const LEEWAY_SECONDS: i64 = 10;
/// A pod whose grace has ended so long ago no longer vouches for its token, in seconds.
const DELETED_GRACE_SECONDS: i64 = 60;

/// What a client asks for.
pub type TokenRequest = Value;

/// The key that signs and checks tokens.
pub struct Tokens {
    key: EcdsaKeyPair,
    key_id: String,
    issuer: String,
    random: SystemRandom,
}

/// A good token.
#[derive(Debug)]
pub struct Checked {
    /// Who it says.
    pub user: User,
    /// The audiences that were asked for and that it is for.
    pub audiences: Vec<String>,
}

impl Tokens {
    /// Reads the key.
    ///
    /// # Errors
    /// When the file can't be read or holds no ECDSA P-256 key.
    pub fn open(path: &Path, issuer: &str) -> Result<Tokens, PkiError> {
        let der = pki::read_key(path)?;
        let random = SystemRandom::new();
        let key =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.secret_der(), &random).map_err(|error| {
                PkiError::Damaged { path: path.into(), reason: format!("not an ECDSA P-256 key: {error}") }
            })?;
        let digest = ring::digest::digest(&ring::digest::SHA256, key.public_key().as_ref());
        Ok(Tokens { key_id: URL_SAFE_NO_PAD.encode(digest.as_ref()), key, issuer: issuer.into(), random })
    }

    /// The issuer: also the audience of the API itself.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// The public key as a JSON web key set.
    pub fn key_set(&self) -> Value {
        let point = self.key.public_key().as_ref();
        let (x, y) = (point.get(1..33).unwrap_or_default(), point.get(33..65).unwrap_or_default());
        json!({"keys": [{
            "use": "sig", "kty": "EC", "kid": self.key_id, "crv": "P-256", "alg": "ES256",
            "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
        }]})
    }

    /// Signs claims.
    fn sign(&self, claims: &Value) -> Result<String, ApiError> {
        let header = json!({"alg": "ES256", "kid": self.key_id, "typ": "JWT"});
        let text =
            format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims.to_string()));
        let signature = self
            .key
            .sign(&self.random, text.as_bytes())
            .map_err(|_| ApiError::internal("the token could not be signed"))?;
        Ok(format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref())))
    }

    /// Checks signature, time, audience, and that what the token is bound to is still there.
    ///
    /// # Errors
    /// Why the token is not good.
    pub fn check(&self, api: &Api, token: &str, audiences: &[String]) -> Result<Checked, String> {
        let claims = self.claims(token)?;
        let now = Timestamp::now().as_second();
        let number = |name: &str| claims.get(name).and_then(Value::as_i64);
        if object::text(&claims, "/iss") != self.issuer {
            return Err("another issuer".into());
        }
        if number("exp").is_none_or(|end| end + LEEWAY_SECONDS < now) {
            return Err("the token has expired".into());
        }
        if number("nbf").is_some_and(|begin| begin - LEEWAY_SECONDS > now) {
            return Err("the token is not valid yet".into());
        }
        let own = [self.issuer.clone()];
        let wanted = if audiences.is_empty() { &own[..] } else { audiences };
        let given = object::strings(&claims, "/aud");
        let matching: Vec<String> =
            wanted.iter().filter(|audience| given.contains(&audience.as_str())).cloned().collect();
        if matching.is_empty() {
            return Err(format!("the token is for {given:?}, not for {wanted:?}"));
        }
        let bound = claims.get("kubernetes.io").cloned().unwrap_or_default();
        let user = self.user(api, &bound, &claims, now)?;
        Ok(Checked { user, audiences: matching })
    }

    fn claims(&self, token: &str) -> Result<Value, String> {
        let mut parts = token.splitn(3, '.');
        let (Some(header), Some(payload), Some(signature)) = (parts.next(), parts.next(), parts.next()) else {
            return Err("not a token".into());
        };
        let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|_| "not base64".to_string());
        let read = |text: &str| -> Result<Value, String> {
            serde_json::from_slice(&decode(text)?).map_err(|_| "not JSON".to_string())
        };
        if object::text(&read(header)?, "/alg") != "ES256" {
            return Err("another algorithm than ES256".into());
        }
        let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.key.public_key().as_ref());
        let signed = &token.as_bytes()[..header.len() + 1 + payload.len()];
        public.verify(signed, &decode(signature)?).map_err(|_| "the signature is not ours".to_string())?;
        read(payload)
    }

    fn user(&self, api: &Api, bound: &Value, claims: &Value, now: i64) -> Result<User, String> {
        let namespace = object::text(bound, "/namespace");
        let account = object::text(bound, "/serviceaccount/name");
        let found = self.must_exist(
            api,
            "serviceaccounts",
            namespace,
            account,
            object::text(bound, "/serviceaccount/uid"),
            now,
        )?;
        let mut user = User {
            name: format!("{SERVICE_ACCOUNT_PREFIX}{namespace}:{account}"),
            uid: object::uid(&found).into(),
            groups: vec![
                "system:serviceaccounts".into(),
                format!("system:serviceaccounts:{namespace}"),
                AUTHENTICATED.into(),
            ],
            ..User::default()
        };
        let mut add = |key: &str, value: &str| {
            user.extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value.to_string()]);
        };
        add("credential-id", &format!("JTI={}", object::text(claims, "/jti")));
        if let Some(pod) = bound.get("pod") {
            let (name, uid) = (object::text(pod, "/name"), object::text(pod, "/uid"));
            self.must_exist(api, "pods", namespace, name, uid, now)?;
            add("pod-name", name);
            add("pod-uid", uid);
        }
        if let Some(secret) = bound.get("secret") {
            self.must_exist(
                api,
                "secrets",
                namespace,
                object::text(secret, "/name"),
                object::text(secret, "/uid"),
                now,
            )?;
        }
        if let Some(node) = bound.get("node") {
            let (name, uid) = (object::text(node, "/name"), object::text(node, "/uid"));
            // The node of a pod's token is told, not checked: the pod is.
            if bound.get("pod").is_none() {
                self.must_exist(api, "nodes", "", name, uid, now)?;
            }
            add("node-name", name);
            if !uid.is_empty() {
                add("node-uid", uid);
            }
        }
        Ok(user)
    }

    fn must_exist(
        &self,
        api: &Api,
        plural: &str,
        namespace: &str,
        name: &str,
        uid: &str,
        now: i64,
    ) -> Result<Value, String> {
        let key = ObjectKey::new(registry::core(plural), namespace, name);
        let found = api.store.get_value(&key).map_err(|error| error.to_string())?;
        let found = found
            .filter(|found| object::uid(found) == uid)
            .ok_or_else(|| format!("its {plural} {namespace}/{name} is gone"))?;
        match object::time(&found, "/metadata/deletionTimestamp") {
            Some(gone) if gone.as_second() + DELETED_GRACE_SECONDS < now => {
                Err(format!("its {plural} {namespace}/{name} has been deleted"))
            }
            _ => Ok(found),
        }
    }
}

/// Answers a TokenRequest for a service account.
///
/// # Errors
/// What the API answers.
pub fn issue_token(api: &Api, namespace: &str, name: &str, mut request: TokenRequest) -> Result<Value, ApiError> {
    let accounts = registry::core("serviceaccounts");
    let account = api
        .store
        .get_value(&ObjectKey::new(accounts, namespace, name))
        .map_err(|error| ApiError::from_store(error, accounts, name))?
        .ok_or_else(|| ApiError::not_found(accounts, name))?;
    let seconds = object::number(&request, "/spec/expirationSeconds").unwrap_or(LIFE_SECONDS_DEFAULT);
    let mut errors = Vec::new();
    if seconds < LIFE_SECONDS_MIN {
        errors.push(FieldError::invalid(
            "spec.expirationSeconds",
            seconds,
            "may not specify a duration less than 10 minutes",
        ));
    }
    if seconds > LIFE_SECONDS_MAX {
        errors.push(FieldError::invalid(
            "spec.expirationSeconds",
            seconds,
            "may not specify a duration larger than 2^32 seconds",
        ));
    }
    if !errors.is_empty() {
        return Err(ApiError::invalid_kind(
            "TokenRequest.authentication.k8s.io",
            "authentication.k8s.io",
            "TokenRequest",
            "",
            &errors,
        ));
    }
    let mut audiences: Vec<String> =
        object::strings(&request, "/spec/audiences").into_iter().map(String::from).collect();
    if audiences.is_empty() {
        audiences.push(api.tokens.issuer.clone());
    }
    let now = Timestamp::now();
    let mut bound = json!({"namespace": namespace, "serviceaccount": {"name": name, "uid": object::uid(&account)}});
    if let Some(reference) = request.pointer("/spec/boundObjectRef") {
        bind(api, &mut bound, namespace, name, reference)?;
    }
    let end = now.as_second() + seconds;
    let claims = json!({
        "iss": api.tokens.issuer, "aud": audiences, "sub": format!("{SERVICE_ACCOUNT_PREFIX}{namespace}:{name}"),
        "iat": now.as_second(), "nbf": now.as_second(), "exp": end, "jti": uuid::Uuid::new_v4().to_string(),
        "kubernetes.io": bound,
    });
    let spec = object::map(&mut request, "spec");
    spec.insert("audiences".into(), json!(audiences));
    spec.insert("expirationSeconds".into(), json!(seconds));
    let until = Timestamp::from_second(end).unwrap_or(Timestamp::MAX);
    request["status"] = json!({"token": api.tokens.sign(&claims)?, "expirationTimestamp": object::time_text(until)});
    request["kind"] = json!("TokenRequest");
    request["apiVersion"] = json!("authentication.k8s.io/v1");
    request["metadata"] = json!({"name": name, "namespace": namespace, "creationTimestamp": object::now(), "uid": uuid::Uuid::new_v4().to_string()});
    object::default(&mut request["spec"], "boundObjectRef", || Value::Null);
    Ok(request)
}

/// Puts what the token is bound to into its claims.
fn bind(api: &Api, bound: &mut Value, namespace: &str, account: &str, reference: &Value) -> Result<(), ApiError> {
    let (kind, name, uid) =
        (object::text(reference, "/kind"), object::text(reference, "/name"), object::text(reference, "/uid"));
    let (plural, namespace, claim) = match kind {
        "Pod" => ("pods", namespace, "pod"),
        "Secret" => ("secrets", namespace, "secret"),
        "Node" => ("nodes", "", "node"),
        other => {
            let version = object::text(reference, "/apiVersion");
            let version = if version.contains('/') { version.to_string() } else { format!("/{version}") };
            return Err(ApiError::bad_request(format!("cannot bind token to object of type {version}, Kind={other}")));
        }
    };
    let resource = registry::core(plural);
    let found = api
        .store
        .get_value(&ObjectKey::new(resource, namespace, name))
        .map_err(|error| ApiError::from_store(error, resource, name))?
        .ok_or_else(|| ApiError::not_found(resource, name))?;
    if !uid.is_empty() && uid != object::uid(&found) {
        let why = format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
        );
        return Err(ApiError::conflict(resource, name, &why));
    }
    if kind == "Pod" {
        let used = object::text(&found, "/spec/serviceAccountName");
        if used != account {
            return Err(ApiError::bad_request(format!(
                "cannot bind token for serviceaccount {account:?} to pod running with different serviceaccount name."
            )));
        }
        let node = object::text(&found, "/spec/nodeName");
        if !node.is_empty() {
            let key = ObjectKey::new(registry::core("nodes"), "", node);
            let node_uid = api.store.get_value(&key).ok().flatten().map(|node| object::uid(&node).to_string());
            bound["node"] = json!({"name": node});
            if let Some(uid) = node_uid {
                bound["node"]["uid"] = json!(uid);
            }
        }
    }
    bound[claim] = json!({"name": name, "uid": object::uid(&found)});
    Ok(())
}
