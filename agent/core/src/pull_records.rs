//! Who may use an image that is on the node already: records of the credentials that images were pulled with, as a kubelet
//! keeps them.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// `apiVersion` of the records.
const API_VERSION: &str = "kubelet.config.k8s.io/v1beta1";
/// A pod that is let in by another secret than those on record is noted as long as there are fewer of them.
const NOTED_SECRETS: usize = 100;

/// Whose access to images that are there is checked (`imagePullCredentialsVerificationPolicy`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum VerificationPolicy {
    /// Nobody's.
    NeverVerify,
    /// That to images which this agent has pulled; others were put there for everybody.
    #[default]
    NeverVerifyPreloadedImages,
    /// That to all images but these: repositories, or `.../*` for all that begin so.
    NeverVerifyAllowlistedImages(Vec<String>),
    /// That to all images.
    AlwaysVerify,
}

impl VerificationPolicy {
    /// The policy of that name.
    ///
    /// # Errors
    /// In words, naming the field.
    pub fn new(name: &str, allowed: &[String]) -> Result<VerificationPolicy, String> {
        let policy = match name {
            "" | "NeverVerifyPreloadedImages" => VerificationPolicy::NeverVerifyPreloadedImages,
            "NeverVerify" => VerificationPolicy::NeverVerify,
            "AlwaysVerify" => VerificationPolicy::AlwaysVerify,
            "NeverVerifyAllowlistedImages" => VerificationPolicy::NeverVerifyAllowlistedImages(allowed.to_vec()),
            other => {
                return Err(format!(
                    "imagePullCredentialsVerificationPolicy: {other:?} is none of NeverVerify, \
                     NeverVerifyPreloadedImages, NeverVerifyAllowlistedImages and AlwaysVerify"
                ));
            }
        };
        let listed = matches!(policy, VerificationPolicy::NeverVerifyAllowlistedImages(_));
        if listed == allowed.is_empty() {
            return Err(
                "preloadedImagesVerificationAllowlist: goes with NeverVerifyAllowlistedImages, and only with it"
                    .to_owned(),
            );
        }
        for pattern in allowed {
            check_pattern(pattern).map_err(|why| format!("preloadedImagesVerificationAllowlist: {pattern:?} {why}"))?;
        }
        Ok(policy)
    }

    fn asks(&self, image: &str, pulled_here: bool) -> bool {
        match self {
            VerificationPolicy::NeverVerify => false,
            VerificationPolicy::NeverVerifyPreloadedImages => pulled_here,
            VerificationPolicy::AlwaysVerify => true,
            VerificationPolicy::NeverVerifyAllowlistedImages(allowed) => {
                let name = repository(image);
                !allowed.iter().any(|pattern| match pattern.strip_suffix('*') {
                    Some(stem) => name.starts_with(stem),
                    None => name == pattern,
                })
            }
        }
    }
}

fn check_pattern(pattern: &str) -> Result<(), &'static str> {
    let stem = pattern.strip_suffix("/*").unwrap_or(pattern);
    if stem.is_empty() || stem.chars().any(char::is_whitespace) {
        return Err("names no registry");
    }
    if stem.contains('*') {
        return Err("may have '*' only as '/*' at its end");
    }
    if stem == pattern && repository(pattern) != pattern {
        return Err("may have neither tag nor digest");
    }
    Ok(())
}

/// An image's name without tag and digest, as it was given.
pub fn repository(image: &str) -> &str {
    let name = image.split('@').next().unwrap_or_default();
    let last = name.rfind('/').map_or(0, |at| at + 1);
    name[last..].find(':').map_or(name, |at| &name[..last + at])
}

/// What an image of the node was pulled with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PulledRecord {
    kind: String,
    api_version: String,
    last_updated_time: Timestamp,
    /// The image, as the runtime names it.
    pub image_ref: String,
    /// Credentials by the image's name without tag and digest.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub credential_mapping: BTreeMap<String, PullCredentials>,
}

/// Credentials that have opened an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PullCredentials {
    /// Pull secrets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kubernetes_secrets: Vec<PullSecret>,
    /// Service accounts whose tokens have; kept as they are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kubernetes_service_accounts: Vec<serde_json::Value>,
    /// None were needed, or those of the node: every pod may use the image.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub node_pods_accessible: bool,
}

/// A pull secret, and a hash of what it said.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PullSecret {
    /// Its uid.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Hash of the credentials for the image, in hex.
    pub credential_hash: String,
}

impl PullSecret {
    fn is(&self, other: &PullSecret) -> bool {
        (&self.uid, &self.namespace, &self.name) == (&other.uid, &other.namespace, &other.name)
    }
}

/// An image is about to be pulled: what is there after a crash was pulled here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PullIntent {
    kind: String,
    api_version: String,
    /// The image, as the pod names it.
    pub image: String,
}

impl PullIntent {
    /// An intent to pull an image.
    pub fn new(image: &str) -> PullIntent {
        PullIntent { kind: "ImagePullIntent".into(), api_version: API_VERSION.into(), image: image.to_owned() }
    }
}

/// What follows for a pod that asks for an image which is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageAccess {
    /// It may use it.
    Granted,
    /// It may, and its secret is to be noted with the image.
    GrantedBy(PullSecret),
    /// It must show that it may, by pulling.
    Denied,
}

/// Whether a pod may use an image that is there. `record` and `intended` are what is known of pulls of this image,
/// `secrets` gives the pod's own for it.
pub fn image_access(
    policy: &VerificationPolicy,
    image: &str,
    record: Option<&PulledRecord>,
    intended: bool,
    secrets: &[PullSecret],
) -> ImageAccess {
    if !policy.asks(image, record.is_some() || intended) {
        return ImageAccess::Granted;
    }
    let Some(known) = record.and_then(|record| record.credential_mapping.get(repository(image))) else {
        return ImageAccess::Denied;
    };
    if known.node_pods_accessible {
        return ImageAccess::Granted;
    }
    for secret in secrets {
        for noted in &known.kubernetes_secrets {
            let same_content = !noted.credential_hash.is_empty() && noted.credential_hash == secret.credential_hash;
            match (same_content, noted.is(secret)) {
                (true, true) => return ImageAccess::Granted,
                // The same credentials in another secret, or other credentials in the secret that has opened it before.
                (true, false) | (false, true) if known.kubernetes_secrets.len() < NOTED_SECRETS => {
                    return ImageAccess::GrantedBy(secret.clone());
                }
                (true, false) => return ImageAccess::Granted,
                _ => {}
            }
        }
    }
    ImageAccess::Denied
}

/// The record after an image was opened by these credentials; none without news.
pub fn recorded(
    record: Option<&PulledRecord>,
    image: &str,
    image_ref: &str,
    credentials: Option<PullCredentials>,
    now: Timestamp,
) -> Option<PulledRecord> {
    let mut next = record.cloned().unwrap_or_else(|| PulledRecord {
        kind: "ImagePulledRecord".into(),
        api_version: API_VERSION.into(),
        last_updated_time: now,
        image_ref: image_ref.to_owned(),
        credential_mapping: BTreeMap::new(),
    });
    if let Some(credentials) = credentials {
        let known = next.credential_mapping.entry(repository(image).to_owned()).or_default();
        if known.node_pods_accessible || credentials.node_pods_accessible {
            *known = PullCredentials { node_pods_accessible: true, ..PullCredentials::default() };
        } else {
            for secret in credentials.kubernetes_secrets {
                known.kubernetes_secrets.retain(|noted| !noted.is(&secret));
                known.kubernetes_secrets.push(secret);
            }
            known
                .kubernetes_secrets
                .sort_by(|a, b| (&a.namespace, &a.name, &a.uid).cmp(&(&b.namespace, &b.name, &b.uid)));
        }
    }
    if record == Some(&next) {
        return None;
    }
    next.last_updated_time = Timestamp::from_second(now.as_second()).unwrap_or(now);
    Some(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(name: &str, hash: &str) -> PullSecret {
        PullSecret { uid: format!("u-{name}"), namespace: "ns".into(), name: name.into(), credential_hash: hash.into() }
    }

    fn with(secrets: &[PullSecret]) -> PullCredentials {
        PullCredentials { kubernetes_secrets: secrets.to_vec(), ..PullCredentials::default() }
    }

    fn record(credentials: Option<PullCredentials>) -> PulledRecord {
        recorded(None, "r.example/a:1", "sha256:1", credentials, Timestamp::UNIX_EPOCH).unwrap()
    }

    #[test]
    fn names_lose_tag_and_digest() {
        for (image, want) in [
            ("a", "a"),
            ("a:1", "a"),
            ("r.example:5000/a", "r.example:5000/a"),
            ("r.example:5000/a:1@sha256:2", "r.example:5000/a"),
            ("a@sha256:2", "a"),
        ] {
            assert_eq!(repository(image), want);
        }
    }

    #[test]
    fn policies_ask_for_different_images() {
        let preloaded = VerificationPolicy::default();
        let allowed = ["r.example/ok".to_owned(), "r.example/base/*".to_owned()];
        let listed = VerificationPolicy::new("NeverVerifyAllowlistedImages", &allowed).unwrap();
        for (policy, image, pulled_here, asks) in [
            (&VerificationPolicy::NeverVerify, "a", true, false),
            (&preloaded, "a", false, false),
            (&preloaded, "a", true, true),
            (&VerificationPolicy::AlwaysVerify, "a", false, true),
            (&listed, "r.example/ok:1", true, false),
            (&listed, "r.example/base/x@sha256:1", true, false),
            (&listed, "r.example/okay", false, true),
            (&listed, "r.example/base", false, true),
        ] {
            assert_eq!(policy.asks(image, pulled_here), asks, "{policy:?} {image} {pulled_here}");
        }
        for (name, allowed, valid) in [
            ("", vec![], true),
            ("AlwaysVerify", vec![], true),
            ("Sometimes", vec![], false),
            ("AlwaysVerify", vec!["a"], false),
            ("NeverVerifyAllowlistedImages", vec![], false),
            ("NeverVerifyAllowlistedImages", vec!["r.example/*"], true),
            ("NeverVerifyAllowlistedImages", vec!["r.example/a:1"], false),
            ("NeverVerifyAllowlistedImages", vec!["r.*/a"], false),
            ("NeverVerifyAllowlistedImages", vec!["/*"], false),
        ] {
            let allowed: Vec<String> = allowed.into_iter().map(str::to_owned).collect();
            assert_eq!(VerificationPolicy::new(name, &allowed).is_ok(), valid, "{name} {allowed:?}");
        }
    }

    #[test]
    fn a_pod_uses_what_its_own_secret_has_opened() {
        let policy = VerificationPolicy::default();
        let by_secret = record(Some(with(&[secret("s", "h1")])));
        let by_node = record(Some(PullCredentials { node_pods_accessible: true, ..PullCredentials::default() }));
        let by_nobody = record(None);
        let image = "r.example/a:2";
        for (what, record, image, secrets, want) in [
            ("preloaded", None, image, vec![], ImageAccess::Granted),
            ("its secret", Some(&by_secret), image, vec![secret("s", "h1")], ImageAccess::Granted),
            ("a copy", Some(&by_secret), image, vec![secret("t", "h1")], ImageAccess::GrantedBy(secret("t", "h1"))),
            ("renewed", Some(&by_secret), image, vec![secret("s", "h2")], ImageAccess::GrantedBy(secret("s", "h2"))),
            ("another", Some(&by_secret), image, vec![secret("t", "h2")], ImageAccess::Denied),
            ("none", Some(&by_secret), image, vec![], ImageAccess::Denied),
            ("another name", Some(&by_secret), "r.example/b", vec![secret("s", "h1")], ImageAccess::Denied),
            ("open to all", Some(&by_node), image, vec![], ImageAccess::Granted),
            ("unknown circumstances", Some(&by_nobody), image, vec![secret("s", "h1")], ImageAccess::Denied),
        ] {
            assert_eq!(image_access(&policy, image, record, false, &secrets), want, "{what}");
        }
        assert_eq!(image_access(&policy, image, None, true, &[]), ImageAccess::Denied, "pulled before a crash");
    }

    #[test]
    fn records_grow_and_are_a_kubelets() {
        let now = Timestamp::from_second(1_729_513_600).unwrap();
        let first = record(Some(with(&[secret("s", "h1")])));
        let next = |credentials| recorded(Some(&first), "r.example/a:2", "sha256:1", Some(credentials), now);
        assert_eq!(next(with(&[secret("s", "h1")])), None, "no news");
        let secrets = |record: &PulledRecord| record.credential_mapping["r.example/a"].kubernetes_secrets.clone();
        assert_eq!(secrets(&next(with(&[secret("s", "h2")])).unwrap()), [secret("s", "h2")]);
        assert_eq!(secrets(&next(with(&[secret("r", "h3")])).unwrap()), [secret("r", "h3"), secret("s", "h1")]);
        let open = PullCredentials { node_pods_accessible: true, ..PullCredentials::default() };
        let all = next(open.clone()).unwrap();
        assert_eq!(all.credential_mapping["r.example/a"], open);
        let text = r#"{"kind":"ImagePulledRecord","apiVersion":"kubelet.config.k8s.io/v1beta1","lastUpdatedTime":"2024-10-21T12:26:40Z","imageRef":"sha256:1","credentialMapping":{"r.example/a":{"nodePodsAccessible":true}}}"#;
        assert_eq!(serde_json::to_string(&all).unwrap(), text);
        assert_eq!(serde_json::from_str::<PulledRecord>(text).unwrap(), all);
    }
}
