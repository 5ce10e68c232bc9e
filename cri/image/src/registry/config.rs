//! Configuration of registries, per host.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine;
use serde::{Deserialize, Serialize};

/// How registries are reached.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct RegistriesConfig {
    /// Settings by host, with port where the reference has one: `registry.example.com`, `127.0.0.1:5000`.
    pub hosts: BTreeMap<String, HostConfig>,
    /// Folders in containerd's layout, `<folder>/<host>[:port]/hosts.toml`: mirrors, servers and certificates by registry.
    /// They are read when a pull begins; the first folder that knows the registry, or has a `_default`, decides.
    pub hosts_dirs: Vec<PathBuf>,
    /// Show the credentials that a pull brings to the registry's mirrors too, as containerd does. Without it a mirror gets
    /// only those that are configured for its own host.
    pub mirrors_get_credentials: bool,
    /// Docker's `config.json`, asked for credentials where neither the pull nor `hosts` has some. Its helpers are run.
    pub docker_config: Option<PathBuf>,
    /// Longest time to connect, in seconds.
    pub connect_timeout_seconds: u64,
    /// A pull that gets no byte of an answer or a layer for so long fails, in seconds. Within it, what stalls is asked for
    /// again up to `tries_max` times.
    pub progress_timeout_seconds: u64,
    /// Tries of one request, and of one stretch of a blob without progress.
    pub tries_max: u32,
    /// First wait between tries, in milliseconds; doubled each time, up to 10 s.
    pub retry_base_milliseconds: u64,
    /// Longest `Retry-After` that is waited for within a pull, in seconds.
    pub retry_after_max_seconds: u64,
}

impl Default for RegistriesConfig {
    fn default() -> Self {
        Self {
            hosts: BTreeMap::new(),
            hosts_dirs: Vec::new(),
            mirrors_get_credentials: false,
            docker_config: None,
            connect_timeout_seconds: 15,
            progress_timeout_seconds: 300,
            tries_max: 5,
            retry_base_milliseconds: 250,
            retry_after_max_seconds: 30,
        }
    }
}

/// Settings of one registry.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct HostConfig {
    /// Plain http instead of https. Unset: http for loopback addresses without `caFile`, https for everything else.
    pub plain_http: Option<bool>,
    /// PEM file of certificates to trust besides the system's.
    pub ca_file: Option<PathBuf>,
    /// Credentials used when the pull brings none.
    pub credentials: Option<Credentials>,
    /// Further hosts that may receive this registry's credentials as token servers.
    pub token_hosts: Vec<String>,
}

/// What a registry may be shown to prove who we are. Debug output hides the secrets.
#[derive(Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Credentials {
    /// User name.
    pub username: String,
    /// Password.
    pub password: String,
    /// Refresh token for an OAuth2 token server, instead of a password.
    pub identity_token: String,
    /// Bearer token for the registry itself.
    pub registry_token: String,
}

impl Credentials {
    /// Whether there is anything in them.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// From the `auth` field of a Docker configuration: `user:password` in base64. None if it is nothing of that kind.
    pub fn from_encoded(auth: &str) -> Option<Self> {
        let bytes = base64::engine::general_purpose::STANDARD.decode(auth.trim()).ok()?;
        let text = String::from_utf8(bytes).ok()?;
        let (username, password) = text.split_once(':')?;
        Some(Self::basic(username, password.trim_end_matches('\0')))
    }

    /// From user name and password.
    pub fn basic(username: impl Into<String>, password: impl Into<String>) -> Self {
        Self { username: username.into(), password: password.into(), ..Self::default() }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

impl RegistriesConfig {
    /// Settings of a host; the default ones where it has none.
    pub fn host(&self, registry: &str) -> HostConfig {
        self.hosts.get(registry).cloned().unwrap_or_default()
    }

    /// Whether a registry is spoken to in plain http, as far as its settings here say.
    pub fn is_plain_http(&self, registry: &str) -> bool {
        let host = self.host(registry);
        host.plain_http.unwrap_or_else(|| is_loopback(registry) && host.ca_file.is_none())
    }

    /// Longest time without a byte, over all tries.
    pub(crate) fn progress_timeout(&self) -> Duration {
        Duration::from_secs(self.progress_timeout_seconds.max(1))
    }

    /// Longest time without a byte in one try.
    pub(crate) fn stall_timeout(&self) -> Duration {
        self.progress_timeout() / self.tries_max.max(1)
    }

    /// The wait before try number `try_number` (1 is the first repeat).
    pub(crate) fn wait_before(&self, try_number: u32) -> Duration {
        let doubled = self.retry_base_milliseconds.saturating_mul(1 << try_number.saturating_sub(1).min(10));
        Duration::from_millis(doubled.min(10_000))
    }
}

/// Host of `host[:port]`, without brackets of IPv6.
pub(crate) fn host_of(authority: &str) -> &str {
    if let Some(rest) = authority.strip_prefix('[') {
        return rest.split(']').next().unwrap_or(rest);
    }
    authority.split(':').next().unwrap_or(authority)
}

/// Whether a registry is on this machine.
pub(crate) fn is_loopback(authority: &str) -> bool {
    let host = host_of(authority);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Whether credentials for `server` (`https://index.docker.io/v1/`, `host:port`) are meant for a reference's registry.
pub fn is_meant_for(server: &str, registry: &str) -> bool {
    let host =
        server.trim_start_matches("https://").trim_start_matches("http://").split('/').next().unwrap_or_default();
    let normal = |host: &str| match host {
        "index.docker.io" | "registry-1.docker.io" => crate::reference::DEFAULT_REGISTRY.to_owned(),
        other => other.to_ascii_lowercase(),
    };
    normal(host) == normal(registry)
}

/// Where the registry of a reference is really served.
pub(crate) fn endpoint_host(registry: &str) -> &str {
    if registry == crate::reference::DEFAULT_REGISTRY { "registry-1.docker.io" } else { registry }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_plain_without_being_asked() {
        let mut config = RegistriesConfig::default();
        config
            .hosts
            .insert("localhost:5001".into(), HostConfig { ca_file: Some("/ca.pem".into()), ..HostConfig::default() });
        config.hosts.insert("plain.example".into(), HostConfig { plain_http: Some(true), ..HostConfig::default() });
        for (registry, plain) in [
            ("127.0.0.1:5000", true),
            ("[::1]:5000", true),
            ("localhost", true),
            ("localhost:5001", false),
            ("plain.example", true),
            ("registry.example", false),
            ("127.0.0.1.example", false),
        ] {
            assert_eq!(config.is_plain_http(registry), plain, "{registry}");
        }
    }

    #[test]
    fn credentials_are_for_one_registry() {
        for (server, registry, meant) in [
            ("https://index.docker.io/v1/", "docker.io", true),
            ("https://a.example:5000/v2/", "a.example:5000", true),
            ("a.example", "b.example", false),
            ("a.example", "a.example.evil", false),
        ] {
            assert_eq!(is_meant_for(server, registry), meant, "{server} {registry}");
        }
        assert_eq!(Credentials::from_encoded("bWU6YTpi"), Some(Credentials::basic("me", "a:b")));
        assert_eq!(Credentials::from_encoded("%%"), None);
    }

    #[test]
    fn secrets_stay_out_of_debug_output() {
        let text = format!(
            "{:?}",
            Credentials { identity_token: "s1".into(), registry_token: "s2".into(), ..Credentials::basic("me", "s3") }
        );
        assert!(text.contains("me") && !["s1", "s2", "s3"].iter().any(|secret| text.contains(secret)), "{text}");
    }
}
