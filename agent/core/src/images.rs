//! Images as the kubelet sees them: default tags, pull policies, credentials of registries.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Secret};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::credential_providers::{ProviderAnswer, UserAndPassword};
use crate::pull_records::PullSecret;

/// Why an image name can't be used; waiting reason `InvalidImageName`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("couldn't parse image name \"{image}\": {why}")]
pub struct ImageNameError {
    /// The name.
    pub image: String,
    /// What is wrong with it.
    pub why: &'static str,
}

/// When an image is pulled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullPolicy {
    /// Before each start.
    Always,
    /// When it is not there.
    IfNotPresent,
    /// Never.
    Never,
}

/// The image's name with `:latest` where it has neither tag nor digest.
pub fn image_name(image: &str) -> Result<String, ImageNameError> {
    let fail = |why| Err(ImageNameError { image: image.to_owned(), why });
    if image.is_empty() {
        return fail("it is empty");
    }
    if image.len() > 4096 || image.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return fail("invalid reference format");
    }
    let (name, digest) = image.split_once('@').map_or((image, None), |(name, digest)| (name, Some(digest)));
    if let Some(digest) = digest {
        let valid = digest.split_once(':').is_some_and(|(kind, hex)| {
            !kind.is_empty() && hex.len() >= 32 && hex.bytes().all(|b| b.is_ascii_hexdigit())
        });
        if !valid {
            return fail("invalid digest format");
        }
    }
    let last = name.rsplit('/').next().unwrap_or_default();
    let (repository, tag) = match last.rsplit_once(':') {
        Some((_, tag)) => (&name[..name.len() - tag.len() - 1], Some(tag)),
        None => (name, None),
    };
    if tag.is_some_and(|tag| {
        tag.is_empty()
            || tag.len() > 128
            || !tag.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
    }) {
        return fail("invalid tag format");
    }
    let parts: Vec<&str> = repository.split('/').collect();
    let has_host =
        parts.len() > 1 && (parts[0].contains(['.', ':']) || parts[0] == "localhost" || parts[0].starts_with('['));
    for part in parts.iter().skip(usize::from(has_host)) {
        if part.is_empty() {
            return fail("invalid reference format");
        }
        if part.bytes().any(|b| b.is_ascii_uppercase()) {
            return fail("repository name must be lowercase");
        }
        if !part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'.' | b'-')) {
            return fail("invalid reference format");
        }
    }
    Ok(if tag.is_none() && digest.is_none() { format!("{image}:latest") } else { image.to_owned() })
}

/// Pull policy of a container.
pub fn pull_policy(container: &Container) -> PullPolicy {
    policy_of(container.image_pull_policy.as_deref(), container.image.as_deref().unwrap_or_default())
}

/// A pull policy: as set, else Always for `:latest` and IfNotPresent for the rest.
pub fn policy_of(set: Option<&str>, image: &str) -> PullPolicy {
    match set {
        Some("Always") => PullPolicy::Always,
        Some("Never") => PullPolicy::Never,
        Some("IfNotPresent") => PullPolicy::IfNotPresent,
        _ => match image_name(image) {
            Ok(name) if name.ends_with(":latest") => PullPolicy::Always,
            _ => PullPolicy::IfNotPresent,
        },
    }
}

/// Credentials for a registry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegistryAuth {
    /// User name.
    pub username: String,
    /// Password.
    pub password: String,
    /// Token of an identity provider, in place of a password.
    pub identity_token: String,
    /// Token to send as it is.
    pub registry_token: String,
    /// Key of the entry, as the file has it.
    pub server: String,
    /// The pull secret that it is from; none for the node's own credentials.
    pub source: Option<PullSecret>,
}

impl RegistryAuth {
    /// What tells these credentials from others, in hex.
    fn hash(&self) -> String {
        let mut fields = serde_json::Map::new();
        let parts = [
            ("username", &self.username),
            ("password", &self.password),
            ("serveraddress", &self.server),
            ("identitytoken", &self.identity_token),
            ("registrytoken", &self.registry_token),
        ];
        for (name, value) in parts.into_iter().filter(|(_, value)| !value.is_empty()) {
            fields.insert(name.to_owned(), value.clone().into());
        }
        hex::encode(Sha256::digest(serde_json::Value::Object(fields).to_string().as_bytes()))
    }
}

#[derive(Deserialize, Default)]
struct DockerEntry {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    auth: String,
    #[serde(default, rename = "identitytoken")]
    identity_token: String,
    #[serde(default, rename = "registrytoken")]
    registry_token: String,
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, DockerEntry>,
}

/// Credentials of several files, the most specific first.
#[derive(Clone, Debug, Default)]
pub struct Keyring {
    entries: Vec<(String, RegistryAuth)>,
}

impl Keyring {
    /// Adds the credentials of a pull secret. Returns whether it held any.
    pub fn add_secret(&mut self, secret: &Secret) -> bool {
        let data = |key: &str| secret.data.as_ref().and_then(|data| data.get(key)).map(|value| value.0.as_slice());
        let source = PullSecret {
            uid: secret.metadata.uid.clone().unwrap_or_default(),
            namespace: secret.metadata.namespace.clone().unwrap_or_default(),
            name: secret.metadata.name.clone().unwrap_or_default(),
            credential_hash: String::new(),
        };
        let entries = match secret.type_.as_deref() {
            Some("kubernetes.io/dockercfg") => data(".dockercfg").and_then(|bytes| serde_json::from_slice(bytes).ok()),
            _ => data(".dockerconfigjson")
                .and_then(|bytes| serde_json::from_slice::<DockerConfig>(bytes).ok())
                .map(|config| config.auths),
        };
        entries.is_some_and(|entries| self.add(entries, Some(&source)))
    }

    /// Adds a `config.json` (`{"auths": {...}}`). Returns whether it is one.
    pub fn add_config(&mut self, bytes: &[u8]) -> bool {
        let config = serde_json::from_slice::<DockerConfig>(bytes);
        config.map(|config| self.add(config.auths, None)).is_ok()
    }

    /// Adds a legacy `.dockercfg`. Returns whether it is one.
    pub fn add_legacy(&mut self, bytes: &[u8]) -> bool {
        let entries = serde_json::from_slice::<BTreeMap<String, DockerEntry>>(bytes);
        entries.map(|entries| self.add(entries, None)).is_ok()
    }

    /// Adds what a credential program gives.
    pub fn add_answer(&mut self, answer: &ProviderAnswer) {
        let entry = |(image, auth): (&String, &UserAndPassword)| {
            let (username, password) = (auth.username.clone(), auth.password.clone());
            (image.clone(), DockerEntry { username, password, ..DockerEntry::default() })
        };
        self.add(answer.auth.iter().map(entry).collect(), None);
    }

    fn add(&mut self, entries: BTreeMap<String, DockerEntry>, source: Option<&PullSecret>) -> bool {
        let before = self.entries.len();
        for (server, entry) in entries {
            let (mut username, mut password) = (entry.username, entry.password);
            if let Some(pair) = decode_base64(&entry.auth).and_then(|bytes| String::from_utf8(bytes).ok())
                && let Some((user, secret)) = pair.split_once(':')
            {
                username = user.to_owned();
                password = secret.trim_end_matches('\0').to_owned();
            }
            let pattern = server_pattern(&server);
            let mut auth = RegistryAuth {
                username,
                password,
                identity_token: entry.identity_token,
                registry_token: entry.registry_token,
                server,
                source: None,
            };
            auth.source = source.map(|source| PullSecret { credential_hash: auth.hash(), ..source.clone() });
            self.entries.push((pattern, auth));
        }
        self.entries.sort_by_key(|(pattern, _)| std::cmp::Reverse(pattern.matches('/').count() * 1000 + pattern.len()));
        self.entries.len() > before
    }

    /// Credentials to try for an image, the most specific first.
    pub fn lookup(&self, image: &str) -> Vec<RegistryAuth> {
        let name = full_name(image);
        self.entries.iter().filter(|(pattern, _)| matches(pattern, &name)).map(|(_, auth)| auth.clone()).collect()
    }
}

/// Whether an image is one of those that a pattern (`host[:port][/path]`, `*` in parts of the host) stands for.
pub(crate) fn matches_image(pattern: &str, image: &str) -> bool {
    matches(&server_pattern(pattern), &full_name(image))
}

/// Registry of an image: `docker.io` where it names none.
pub(crate) fn registry_of(image: &str) -> String {
    full_name(image).split('/').next().unwrap_or_default().to_owned()
}

/// An image's name with its registry: `docker.io/library/x` for `x`.
fn full_name(image: &str) -> String {
    let name = image.split('@').next().unwrap_or_default();
    match name.split_once('/') {
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => name.to_owned(),
        Some(_) => format!("docker.io/{name}"),
        None => format!("docker.io/library/{name}"),
    }
}

fn server_pattern(server: &str) -> String {
    let bare = server.trim_start_matches("https://").trim_start_matches("http://");
    let bare = bare.trim_end_matches('/').trim_end_matches("/v1").trim_end_matches("/v2").trim_end_matches('/');
    match bare {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        other => other.to_owned(),
    }
}

/// Host parts match one by one, `*` within a part; the port must be equal; the path must begin with the pattern's.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern_host, pattern_path) = pattern.split_once('/').unwrap_or((pattern, ""));
    let (host, path) = name.split_once('/').unwrap_or((name, ""));
    let split = |text: &str| {
        text.rsplit_once(':')
            .map_or((text.to_owned(), String::new()), |(host, port)| (host.to_owned(), port.to_owned()))
    };
    let ((pattern_host, pattern_port), (host, port)) = (split(pattern_host), split(host));
    let (want, have): (Vec<&str>, Vec<&str>) = (pattern_host.split('.').collect(), host.split('.').collect());
    pattern_port == port
        && want.len() == have.len()
        && want.iter().zip(&have).all(|(want, have)| glob(want, have))
        && path.starts_with(pattern_path)
}

fn glob(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((head, tail)) => {
            let Some(rest) = text.strip_prefix(head) else { return false };
            (0..=rest.len()).filter(|at| rest.is_char_boundary(*at)).any(|at| glob(tail, &rest[at..]))
        }
    }
}

fn decode_base64(text: &str) -> Option<Vec<u8>> {
    if text.is_empty() {
        return None;
    }
    let mut out = Vec::with_capacity(text.len() * 3 / 4);
    let (mut bits, mut count) = (0_u32, 0_u32);
    for byte in text.trim().bytes().filter(|byte| *byte != b'=' && !byte.is_ascii_whitespace()) {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_get_a_tag_or_an_error() {
        let digest = format!("a@sha256:{}", "0".repeat(64));
        for (image, want) in [
            ("nginx", Some("nginx:latest")),
            ("nginx:1", Some("nginx:1")),
            ("localhost:5000/a/b", Some("localhost:5000/a/b:latest")),
            ("Host.example:5000/a", Some("Host.example:5000/a:latest")),
            (&*digest, Some(&*digest)),
            ("", None),
            ("Nginx", None),
            ("a b", None),
            ("a//b", None),
            ("a:", None),
            ("a@sha256:xyz", None),
        ] {
            assert_eq!(image_name(image).ok().as_deref(), want, "{image}");
        }
    }

    #[test]
    fn policies_follow_the_tag() {
        for (image, policy, want) in [
            ("a", None, PullPolicy::Always),
            ("a:latest", None, PullPolicy::Always),
            ("a:1", None, PullPolicy::IfNotPresent),
            ("a", Some("Never"), PullPolicy::Never),
            ("a", Some("IfNotPresent"), PullPolicy::IfNotPresent),
        ] {
            let container = Container {
                image: Some(image.into()),
                image_pull_policy: policy.map(str::to_owned),
                ..Container::default()
            };
            assert_eq!(pull_policy(&container), want, "{image} {policy:?}");
        }
    }

    #[test]
    fn credentials_are_found_by_host_and_path() {
        let mut keyring = Keyring::default();
        let config = br#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "aHViOnB3"},
            "registry.example:5000": {"username": "a", "password": "b"},
            "registry.example:5000/team": {"username": "t", "password": "b"},
            "*.cloud.example": {"username": "c", "password": "d"}}}"#;
        assert!(keyring.add_config(config));
        for (image, users) in [
            ("nginx:1", vec!["hub"]),
            ("me/x", vec!["hub"]),
            ("registry.example:5000/x", vec!["a"]),
            ("registry.example:5000/team/x@sha256:1", vec!["t", "a"]),
            ("eu.cloud.example/x", vec!["c"]),
            ("cloud.example/x", vec![]),
            ("registry.example/x", vec![]),
        ] {
            let found: Vec<String> = keyring.lookup(image).into_iter().map(|auth| auth.username).collect();
            assert_eq!(found, users, "{image}");
        }
    }
}
