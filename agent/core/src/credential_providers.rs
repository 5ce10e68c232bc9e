//! Programs of the node that give credentials for registries: which of them is asked for an image, and what it answers.

use std::collections::{BTreeMap, BTreeSet};

use jiff::SignedDuration;
use serde::{Deserialize, Deserializer, Serialize};

use crate::images::{matches_image, registry_of};

/// Versions of the configuration.
const CONFIG_VERSIONS: [&str; 3] =
    ["kubelet.config.k8s.io/v1", "kubelet.config.k8s.io/v1beta1", "kubelet.config.k8s.io/v1alpha1"];
/// Versions of what is said to the programs.
const API_VERSIONS: [&str; 3] = [
    "credentialprovider.kubelet.k8s.io/v1",
    "credentialprovider.kubelet.k8s.io/v1beta1",
    "credentialprovider.kubelet.k8s.io/v1alpha1",
];

/// A program that gives credentials.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CredentialProvider {
    /// Its name, which is that of its file.
    pub name: String,
    /// Images that it is asked for: `host[:port][/path]`, with `*` in parts of the host.
    #[serde(default)]
    pub match_images: Vec<String>,
    /// How long its answer is good, if it does not say.
    #[serde(default, deserialize_with = "duration")]
    pub default_cache_duration: Option<SignedDuration>,
    /// What it speaks.
    #[serde(default)]
    pub api_version: String,
    /// Its arguments.
    #[serde(default)]
    pub args: Vec<String>,
    /// Variables for it, besides those of the agent.
    #[serde(default)]
    pub env: Vec<ProviderVariable>,
    #[serde(default)]
    token_attributes: Option<serde_json::Value>,
}

/// A variable for a program.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ProviderVariable {
    /// Name.
    pub name: String,
    /// Value.
    #[serde(default)]
    pub value: String,
}

fn duration<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SignedDuration>, D::Error> {
    let Some(text) = Option::<String>::deserialize(from)? else { return Ok(None) };
    text.parse().map(Some).map_err(|_| serde::de::Error::custom(format!("{text:?} is no duration")))
}

/// Reads one file of the configuration (`CredentialProviderConfig`).
///
/// # Errors
/// In words, naming the field.
pub fn parse_providers(mut document: serde_json::Value) -> Result<Vec<CredentialProvider>, String> {
    let text = |field: &str| document[field].as_str().unwrap_or_default().to_owned();
    if text("kind") != "CredentialProviderConfig" {
        return Err(format!("kind: CredentialProviderConfig is needed, not {:?}", text("kind")));
    }
    if !CONFIG_VERSIONS.contains(&text("apiVersion").as_str()) {
        return Err(format!("apiVersion: {:?} is none of {}", text("apiVersion"), CONFIG_VERSIONS.join(", ")));
    }
    let providers: Vec<CredentialProvider> =
        serde_json::from_value(document["providers"].take()).map_err(|error| format!("providers: {error}"))?;
    if providers.is_empty() {
        return Err("providers: at least one is needed".to_owned());
    }
    for provider in &providers {
        check(provider).map_err(|why| format!("providers[{}].{why}", provider.name))?;
    }
    check_names(&providers)?;
    Ok(providers)
}

/// Checks that no two programs, of one file or of several, have the same name.
///
/// # Errors
/// In words, with the name.
pub fn check_names(providers: &[CredentialProvider]) -> Result<(), String> {
    let mut names = BTreeSet::new();
    match providers.iter().find(|provider| !names.insert(&provider.name)) {
        Some(twice) => Err(format!("providers: two of them are named {:?}", twice.name)),
        None => Ok(()),
    }
}

fn check(provider: &CredentialProvider) -> Result<(), String> {
    let name = &provider.name;
    if name.is_empty() || name.contains(['/', ' ']) || name == "." || name == ".." {
        return Err(format!("name: {name:?} is no name of a program"));
    }
    if !API_VERSIONS.contains(&provider.api_version.as_str()) {
        return Err(format!("apiVersion: {:?} is none of {}", provider.api_version, API_VERSIONS.join(", ")));
    }
    if provider.match_images.is_empty() || provider.match_images.iter().any(|image| image.contains("://")) {
        return Err("matchImages: at least one host is needed, without https://".to_owned());
    }
    match provider.default_cache_duration {
        None => return Err("defaultCacheDuration: is missing".to_owned()),
        Some(duration) if duration.is_negative() => return Err("defaultCacheDuration: is less than 0".to_owned()),
        Some(_) => {}
    }
    if provider.token_attributes.is_some() {
        return Err("tokenAttributes: this agent gives no tokens of service accounts to programs".to_owned());
    }
    Ok(())
}

impl CredentialProvider {
    /// Whether it is asked for this image.
    pub fn serves(&self, image: &str) -> bool {
        self.match_images.iter().any(|pattern| matches_image(pattern, image))
    }

    /// What it is asked.
    pub fn request(&self, image: &str) -> String {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Request<'a> {
            kind: &'static str,
            api_version: &'a str,
            image: &'a str,
        }
        let request = Request { kind: "CredentialProviderRequest", api_version: &self.api_version, image };
        serde_json::to_string(&request).unwrap_or_default()
    }

    /// Reads its answer.
    ///
    /// # Errors
    /// In words that hold nothing of the answer: there are credentials in it.
    pub fn parse_answer(&self, bytes: &[u8]) -> Result<ProviderAnswer, String> {
        let answer: Answer = serde_json::from_slice(bytes)
            .map_err(|error| format!("its answer is no CredentialProviderResponse (line {})", error.line()))?;
        if answer.kind != "CredentialProviderResponse" || answer.api_version != self.api_version {
            return Err(format!("its answer is no CredentialProviderResponse of {}", self.api_version));
        }
        let scope = match answer.cache_key_type.as_str() {
            "Image" => AnswerScope::Image,
            "Registry" => AnswerScope::Registry,
            "Global" => AnswerScope::Global,
            _ => return Err("cacheKeyType of its answer is none of Image, Registry and Global".to_owned()),
        };
        let lasts = answer.cache_duration.or(self.default_cache_duration).unwrap_or(SignedDuration::ZERO);
        Ok(ProviderAnswer { scope, lasts, auth: answer.auth.unwrap_or_default() })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    #[serde(default)]
    kind: String,
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    cache_key_type: String,
    #[serde(default, deserialize_with = "duration")]
    cache_duration: Option<SignedDuration>,
    #[serde(default)]
    auth: Option<BTreeMap<String, UserAndPassword>>,
}

/// A user name and a password.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
pub struct UserAndPassword {
    /// User name.
    #[serde(default)]
    pub username: String,
    /// Password.
    #[serde(default)]
    pub password: String,
}

impl std::fmt::Debug for UserAndPassword {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("UserAndPassword(..)")
    }
}

/// What an answer is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerScope {
    /// The image that was asked for.
    Image,
    /// All images of its registry.
    Registry,
    /// All images.
    Global,
}

impl AnswerScope {
    /// All scopes, the narrowest first.
    pub const ALL: [AnswerScope; 3] = [AnswerScope::Image, AnswerScope::Registry, AnswerScope::Global];

    /// Under what an answer for this image is kept.
    pub fn key(self, image: &str) -> String {
        match self {
            AnswerScope::Image => image.to_owned(),
            AnswerScope::Registry => format!("registry {}", registry_of(image)),
            AnswerScope::Global => "global".to_owned(),
        }
    }
}

/// An answer of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProviderAnswer {
    /// What it is good for.
    pub scope: AnswerScope,
    /// How long it is good; zero is only now.
    pub lasts: SignedDuration,
    /// Credentials by images, as in a Docker configuration.
    pub auth: BTreeMap<String, UserAndPassword>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(change: impl FnOnce(&mut serde_json::Value)) -> serde_json::Value {
        let mut provider = json!({
            "name": "ecr", "matchImages": ["*.dkr.example", "r.example:5000/team"], "defaultCacheDuration": "12h",
            "apiVersion": API_VERSIONS[0], "args": ["get"], "env": [{"name": "A", "value": "1"}]
        });
        change(&mut provider);
        json!({"kind": "CredentialProviderConfig", "apiVersion": CONFIG_VERSIONS[0], "providers": [provider]})
    }

    fn provider() -> CredentialProvider {
        parse_providers(config(|_| {})).unwrap().remove(0)
    }

    #[test]
    fn configurations_are_checked() {
        assert_eq!(provider().default_cache_duration, Some(SignedDuration::from_hours(12)));
        for (field, value) in [
            ("name", json!("a/b")),
            ("name", json!("..")),
            ("matchImages", json!([])),
            ("matchImages", json!(["https://r.example"])),
            ("defaultCacheDuration", json!(null)),
            ("defaultCacheDuration", json!("soon")),
            ("defaultCacheDuration", json!("-1s")),
            ("apiVersion", json!("v1")),
            ("tokenAttributes", json!({"serviceAccountTokenAudience": "x"})),
        ] {
            let error = parse_providers(config(|provider| provider[field] = value.clone())).unwrap_err();
            assert!(error.contains(field) || error.contains("duration"), "{field} {value}: {error}");
        }
        let mut twice = config(|_| {});
        let same = twice["providers"][0].clone();
        twice["providers"].as_array_mut().unwrap().push(same);
        assert!(parse_providers(twice).unwrap_err().contains("ecr"));
        assert!(parse_providers(json!({"kind": "Pod"})).is_err());
    }

    #[test]
    fn images_find_their_program() {
        for (image, want) in [
            ("eu.dkr.example/a:1", true),
            ("dkr.example/a", false),
            ("r.example:5000/team/a@sha256:1", true),
            ("r.example:5000/other", false),
            ("r.example/team/a", false),
        ] {
            assert_eq!(provider().serves(image), want, "{image}");
        }
    }

    #[test]
    fn answers_are_read_and_never_shown() {
        let provider = provider();
        assert_eq!(
            provider.request("a"),
            r#"{"kind":"CredentialProviderRequest","apiVersion":"credentialprovider.kubelet.k8s.io/v1","image":"a"}"#
        );
        let answer = |scope: &str, lasts: serde_json::Value, version: &str| {
            let value = json!({"kind": "CredentialProviderResponse", "apiVersion": version, "cacheKeyType": scope,
                "cacheDuration": lasts, "auth": {"*.dkr.example": {"username": "u", "password": "secret"}}});
            provider.parse_answer(value.to_string().as_bytes())
        };
        let good = answer("Registry", json!("5m0s"), API_VERSIONS[0]).unwrap();
        assert_eq!((good.scope, good.lasts), (AnswerScope::Registry, SignedDuration::from_mins(5)));
        assert_eq!(good.auth["*.dkr.example"].password, "secret");
        assert!(!format!("{good:?}").contains("secret"));
        assert_eq!(answer("Global", json!(null), API_VERSIONS[0]).unwrap().lasts, SignedDuration::from_hours(12));
        for error in [
            answer("Sometimes", json!("5m"), API_VERSIONS[0]).unwrap_err(),
            answer("Image", json!("secret"), API_VERSIONS[0]).unwrap_err(),
            answer("Image", json!("5m"), API_VERSIONS[1]).unwrap_err(),
            provider.parse_answer(b"secret").unwrap_err(),
        ] {
            assert!(!error.contains("secret"), "{error}");
        }
        let image = "r.example:5000/team/a:1";
        assert_eq!(AnswerScope::ALL.map(|scope| scope.key(image)), [image, "registry r.example:5000", "global"]);
    }
}
