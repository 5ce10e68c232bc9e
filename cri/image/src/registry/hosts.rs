//! Registries by folders, in containerd's layout: where the content of a registry may be had from, in which order.

mod file;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::HeaderMap;
use reqwest::Url;

use super::trust::{NamedFile, Trust};

/// Most certificate files of a folder.
const FILES_MAX: usize = 100;

/// What a server may be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Capabilities {
    /// Content by digest.
    pub pull: bool,
    /// What a tag stands for.
    pub resolve: bool,
}

impl Capabilities {
    pub(super) const ALL: Self = Self { pull: true, resolve: true };
}

/// Settings of one server.
#[derive(Clone, Debug)]
pub(super) struct ServerSettings {
    /// Root of its API; none means the registry that the reference names.
    pub root: Option<Url>,
    pub capabilities: Capabilities,
    pub trust: Trust,
    /// Sent with every request to it.
    pub headers: HeaderMap,
    /// Longest time to connect.
    pub dial_timeout: Option<Duration>,
    /// Where its requests go through.
    pub proxy: Option<Url>,
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self {
            root: None,
            capabilities: Capabilities::ALL,
            trust: Trust::default(),
            headers: HeaderMap::new(),
            dial_timeout: None,
            proxy: None,
        }
    }
}

/// The servers of a registry in the order in which they are tried, the last one being the registry itself or what stands
/// in for it. None if no folder knows the registry.
pub(super) fn read(folders: &[PathBuf], registry: &str) -> Result<Option<Vec<ServerSettings>>, String> {
    for folder in folders {
        for name in names_of(registry) {
            let found = folder.join(name);
            match std::fs::metadata(&found) {
                Ok(metadata) if metadata.is_dir() => return read_folder(&found).map(Some),
                Ok(_) => return Err(format!("{}: it must be a folder", found.display())),
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
                Err(error) => return Err(format!("{}: {error}", found.display())),
            }
        }
    }
    Ok(None)
}

/// The folder names of a registry, best first.
fn names_of(registry: &str) -> Vec<String> {
    let port = registry.rsplit_once(':').filter(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()));
    let escaped = port.map(|(host, port)| format!("{host}_{port}_"));
    escaped.into_iter().chain([registry.to_owned(), "_default".to_owned()]).collect()
}

fn read_folder(folder: &Path) -> Result<Vec<ServerSettings>, String> {
    match file::read(folder)? {
        Some(servers) => Ok(servers),
        None => Ok(vec![ServerSettings { trust: read_certificates(folder)?, ..ServerSettings::default() }]),
    }
}

/// Docker's layout, where there is no `hosts.toml`: `*.crt` are authorities, `*.cert` with `*.key` are ours.
fn read_certificates(folder: &Path) -> Result<Trust, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)?.take(FILES_MAX + 1) {
        paths.push(entry.map_err(failed)?.path());
    }
    if paths.len() > FILES_MAX {
        return Err(format!("{}: it has more than {FILES_MAX} files", folder.display()));
    }
    paths.sort();
    let named = |path: &Path| NamedFile { setting: "certificate file".into(), path: path.to_path_buf() };
    let has = |path: &Path, extension: &str| path.extension().is_some_and(|found| found == extension);
    let mut trust = Trust::default();
    for path in &paths {
        if has(path, "crt") {
            trust.authorities.push(named(path));
        } else if has(path, "cert") {
            let key = path.with_extension("key");
            let key = paths.contains(&key).then(|| named(&key));
            trust.identities.push((named(path), key));
        }
    }
    Ok(trust)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_has_folder_names() {
        for (registry, names) in [
            ("docker.io", vec!["docker.io", "_default"]),
            ("a.example:5000", vec!["a.example_5000_", "a.example:5000", "_default"]),
            ("[::1]:5000", vec!["[::1]_5000_", "[::1]:5000", "_default"]),
            ("[::1]", vec!["[::1]", "_default"]),
        ] {
            assert_eq!(names_of(registry), names, "{registry}");
        }
    }

    #[test]
    fn the_first_folder_that_knows_the_registry_decides() {
        let directory = tempfile::tempdir().unwrap();
        let folder = |name: &str| directory.path().join(name);
        let write = |path: &str, text: &str| {
            let path = directory.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("a/one.example_5000_/hosts.toml", "server = \"https://escaped.example\"");
        write("a/one.example:5000/hosts.toml", "server = \"https://plain.example\"");
        write("b/two.example/hosts.toml", "server = \"https://two.example/x\"");
        write("b/_default/hosts.toml", "server = \"https://default.example\"");
        write("b/docker.example/ca.crt", "");
        write("b/docker.example/me.cert", "");
        write("b/docker.example/me.key", "");
        write("b/docker.example/both.cert", "");
        write("c/two.example/hosts.toml", "server = \"https://late.example\"");
        let folders = [folder("missing"), folder("a"), folder("b"), folder("c")];
        let last = |registry: &str| {
            let servers = read(&folders, registry).unwrap().unwrap();
            servers.last().unwrap().root.clone().map(|root| root.to_string())
        };
        assert_eq!(last("one.example:5000").as_deref(), Some("https://escaped.example/v2"));
        assert_eq!(last("two.example").as_deref(), Some("https://two.example/x/v2"));
        assert_eq!(last("other.example").as_deref(), Some("https://default.example/v2"));
        assert!(read(&folders[..2], "other.example").unwrap().is_none());
        let servers = read(&folders, "docker.example").unwrap().unwrap();
        let trust = &servers[0].trust;
        assert_eq!((trust.authorities.len(), trust.identities.len()), (1, 2));
        assert!(trust.identities[0].1.is_none() && trust.identities[1].1.is_some(), "{trust:?}");
    }
}
