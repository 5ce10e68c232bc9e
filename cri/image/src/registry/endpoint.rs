//! The servers that a registry's content may be had from, made of all settings when a pull begins.

use std::time::Duration;

use http::HeaderMap;
use reqwest::Url;

use super::RegistryError;
use super::client::authority;
use super::config::{RegistriesConfig, endpoint_host, is_loopback};
use super::hosts::{self, Capabilities, ServerSettings};
use super::trust::{LoadedTrust, NamedFile, Trust};

/// One server: the registry itself, what stands in for it, or a mirror.
pub(super) struct Endpoint {
    /// Root of its API, without a slash at the end: `https://registry.example/v2`.
    pub root: Url,
    /// How messages and settings call it: the registry as references name it, or `host[:port]` of the mirror.
    pub name: String,
    /// Whether it is tried before the registry itself.
    pub is_mirror: bool,
    pub capabilities: Capabilities,
    pub trust: LoadedTrust,
    pub headers: HeaderMap,
    pub connect_timeout: Duration,
    /// Where its requests go through; none leaves it to the environment.
    pub proxy: Option<Url>,
    /// The registry, told to a server that has another name (`?ns=`).
    pub namespace: Option<String>,
}

/// The endpoints of a registry, in the order in which they are tried. Reads files.
pub(super) fn endpoints(config: &RegistriesConfig, registry: &str) -> Result<Vec<Endpoint>, RegistryError> {
    let wrong = |why: String| RegistryError::Configuration { registry: registry.to_owned(), why };
    let mut servers =
        hosts::read(&config.hosts_dirs, registry).map_err(wrong)?.unwrap_or_else(|| vec![ServerSettings::default()]);
    let last = servers.pop().unwrap_or_default();
    let mut endpoints = Vec::new();
    for mirror in servers {
        endpoints.push(endpoint(config, registry, mirror, true).map_err(wrong)?);
    }
    endpoints.push(endpoint(config, registry, last, false).map_err(wrong)?);
    Ok(endpoints)
}

fn endpoint(
    config: &RegistriesConfig,
    registry: &str,
    server: ServerSettings,
    is_mirror: bool,
) -> Result<Endpoint, String> {
    let (root, name) = match server.root {
        Some(root) => {
            let authority = authority(&root);
            let is_itself = authority == endpoint_host(registry);
            (root, if is_itself { registry.to_owned() } else { authority })
        }
        None => (default_root(config, registry, &server.trust)?, registry.to_owned()),
    };
    let mut trust = server.trust;
    if let Some(path) = config.host(&name).ca_file {
        trust.authorities.push(NamedFile { setting: "caFile".into(), path });
    }
    let namespace = (name != registry).then(|| registry.to_owned());
    let connect_timeout = server.dial_timeout.unwrap_or_else(|| Duration::from_secs(config.connect_timeout_seconds));
    Ok(Endpoint {
        root,
        name,
        is_mirror,
        capabilities: server.capabilities,
        trust: trust.load()?,
        headers: server.headers,
        connect_timeout,
        proxy: server.proxy,
        namespace,
    })
}

/// The registry's own API. Certificates in its folder mean https, on loopback too.
fn default_root(config: &RegistriesConfig, registry: &str, trust: &Trust) -> Result<Url, String> {
    let asked = config.host(registry).plain_http;
    let plain = asked.unwrap_or_else(|| config.is_plain_http(registry) && trust.is_ordinary());
    let scheme = if plain { "http" } else { "https" };
    let text = format!("{scheme}://{}/v2", endpoint_host(registry));
    Url::parse(&text).map_err(|error| format!("{text}: {error}"))
}

impl Endpoint {
    /// Whether it is on this machine and spoken to in plain http.
    pub(super) fn is_local_and_plain(&self) -> bool {
        self.root.scheme() == "http" && is_loopback(&authority(&self.root))
    }

    /// The URL of a path below a repository.
    pub(super) fn url(&self, repository: &str, path: &str) -> Url {
        let mut url = self.root.clone();
        url.set_path(&format!("{}/{repository}/{path}", self.root.path().trim_end_matches('/')));
        if let Some(namespace) = &self.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        url
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::HostConfig;

    #[test]
    fn a_registry_without_folders_is_its_own_only_server() {
        let mut config = RegistriesConfig::default();
        config.hosts.insert("plain.example".into(), HostConfig { plain_http: Some(true), ..HostConfig::default() });
        for (registry, url) in [
            ("docker.io", "https://registry-1.docker.io/v2/a/b/manifests/1"),
            ("plain.example", "http://plain.example/v2/a/b/manifests/1"),
            ("127.0.0.1:5000", "http://127.0.0.1:5000/v2/a/b/manifests/1"),
            ("[::1]:5000", "http://[::1]:5000/v2/a/b/manifests/1"),
        ] {
            let found = endpoints(&config, registry).unwrap();
            assert_eq!(found.len(), 1);
            assert_eq!(found[0].url("a/b", "manifests/1").as_str(), url);
            assert!(found[0].name == registry && !found[0].is_mirror);
        }
    }

    #[test]
    fn mirrors_are_told_the_registry() {
        let directory = tempfile::tempdir().unwrap();
        let folder = directory.path().join("docker.io");
        std::fs::create_dir(&folder).unwrap();
        let text = "server = \"https://registry-1.docker.io\"\n[host.\"http://m.example:5000/sub\"]\n[host.\"https://o.example/x\"]\noverride_path = true";
        std::fs::write(folder.join("hosts.toml"), text).unwrap();
        let config = RegistriesConfig { hosts_dirs: vec![directory.path().into()], ..RegistriesConfig::default() };
        let found = endpoints(&config, "docker.io").unwrap();
        let urls: Vec<String> =
            found.iter().map(|endpoint| endpoint.url("library/a", "manifests/1").to_string()).collect();
        assert_eq!(
            urls,
            [
                "http://m.example:5000/sub/v2/library/a/manifests/1?ns=docker.io",
                "https://o.example/x/library/a/manifests/1?ns=docker.io",
                "https://registry-1.docker.io/v2/library/a/manifests/1",
            ]
        );
        let names: Vec<&str> = found.iter().map(|endpoint| endpoint.name.as_str()).collect();
        assert_eq!(names, ["m.example:5000", "o.example", "docker.io"]);
    }

    #[test]
    fn missing_certificates_are_named_with_their_setting() {
        let directory = tempfile::tempdir().unwrap();
        let folder = directory.path().join("_default");
        std::fs::create_dir(&folder).unwrap();
        let path = folder.join("hosts.toml");
        let config = RegistriesConfig { hosts_dirs: vec![directory.path().into()], ..RegistriesConfig::default() };
        for (text, parts) in [
            ("[host.\"https://m\"]\nca = \"no.pem\"", ["host.\"https://m\".ca", "_default/no.pem: No such file"]),
            ("client = \"hosts.toml\"", ["client", "no certificate in PEM form"]),
            ("ca = \"hosts.toml\"", ["ca", "no certificate in PEM form"]),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = endpoints(&config, "r.example").err().unwrap().to_string();
            assert!(error.contains(path.to_str().unwrap()), "{error}");
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        }
    }
}
