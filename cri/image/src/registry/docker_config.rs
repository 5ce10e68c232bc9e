//! Docker's `config.json`: credentials by registry, in the file itself or kept by helper programs.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

use super::config::{Credentials, is_meant_for};
use super::trust::read_bounded;
use crate::program::{Call, quote, run};
use crate::reference::DEFAULT_REGISTRY;

/// Largest file read, in bytes.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Largest answer of a helper, in bytes.
const ANSWER_BYTES_MAX: usize = 256 * 1024;
/// How long a helper may take.
const HELPER_TIMEOUT: Duration = Duration::from_secs(20);
/// How Docker calls its own registry.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";
/// What helpers say when they have nothing for a server.
const NOTHING_FOUND: &str = "credentials not found";

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct DockerConfig {
    auths: BTreeMap<String, Entry>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

impl Entry {
    fn is_empty(&self) -> bool {
        [&self.auth, &self.username, &self.password, &self.identitytoken, &self.registrytoken]
            .iter()
            .all(|text| text.is_empty())
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

/// The credentials for a repository of a registry; none if there is no such file, or nothing in it fits.
pub(super) async fn find(path: &Path, registry: &str, repository: &str) -> Result<Option<Credentials>, String> {
    let wrong = |why: String| format!("{}: {why}", path.display());
    let bytes = match path.symlink_metadata() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        _ => read_bounded(path, FILE_BYTES_MAX).map_err(wrong)?,
    };
    let config: DockerConfig = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
    let own = config.cred_helpers.iter().find(|(server, _)| is_meant_for(server, registry));
    let helpers = own.map(|(_, name)| ("credHelpers", name)).into_iter().chain([("credsStore", &config.creds_store)]);
    for (key, name) in helpers.filter(|(_, name)| !name.is_empty()) {
        let found = ask_helper(name, registry).await.map_err(|why| wrong(format!("{key}: {why}")))?;
        if found.is_some() {
            return Ok(found);
        }
    }
    entry_for(&config.auths, registry, repository).map_err(wrong)
}

/// The entry of the longest path that the repository is in: `registry/team` before `registry`.
fn entry_for(auths: &BTreeMap<String, Entry>, registry: &str, repository: &str) -> Result<Option<Credentials>, String> {
    let fitting = auths.iter().filter(|(server, _)| is_meant_for(server, registry));
    let scoped = fitting.filter_map(|(server, entry)| {
        let path = path_of(server);
        let inside = path.is_empty()
            || repository.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        inside.then_some((path.len(), server, entry))
    });
    let Some((_, server, entry)) = scoped.max_by_key(|(length, _, entry)| (*length, !entry.is_empty())) else {
        return Ok(None);
    };
    let mut credentials = match entry.auth.as_str() {
        "" => Credentials::basic(&entry.username, &entry.password),
        auth => Credentials::from_encoded(auth)
            .ok_or_else(|| format!("auths.\"{server}\".auth must be user:password in base64"))?,
    };
    credentials.identity_token.clone_from(&entry.identitytoken);
    credentials.registry_token.clone_from(&entry.registrytoken);
    // An entry without a word in it says that a helper has them.
    Ok(Some(credentials).filter(|found| !found.is_empty()))
}

/// The repository part of a key: nothing for `https://registry/v2/`.
fn path_of(server: &str) -> &str {
    let bare = server.trim_start_matches("https://").trim_start_matches("http://");
    let path = bare.split_once('/').map_or("", |(_, path)| path).trim_end_matches('/');
    if matches!(path, "v1" | "v2") { "" } else { path }
}

async fn ask_helper(name: &str, registry: &str) -> Result<Option<Credentials>, String> {
    if name.contains(['/', '\0']) || name.starts_with('.') {
        return Err(format!("{name:?} is no name of a helper: it is the part after docker-credential-"));
    }
    let program = format!("docker-credential-{name}");
    let server = if registry == DEFAULT_REGISTRY { DOCKER_HUB } else { registry };
    let call = Call {
        program: program.as_ref(),
        arguments: &["get"],
        input: server.as_bytes(),
        output_bytes_max: ANSWER_BYTES_MAX,
        timeout: HELPER_TIMEOUT,
    };
    let ended = run(&call).await.map_err(|error| format!("{program}: {error}"))?;
    if !ended.status.success() {
        let said = if ended.stdout.is_empty() { &ended.stderr } else { &ended.stdout };
        if String::from_utf8_lossy(said).contains(NOTHING_FOUND) {
            return Ok(None);
        }
        return Err(format!("{program} get {server} failed ({}): {}", ended.status, quote(said)));
    }
    // What it said may hold the secret: only where reading stopped is told.
    let answer: HelperAnswer = serde_json::from_slice(&ended.stdout).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        format!("{program} get {server} gave no {{Username, Secret}} in JSON (line {line}, column {column})")
    })?;
    let credentials = match answer.username.as_str() {
        "<token>" => Credentials { identity_token: answer.secret, ..Credentials::default() },
        username => Credentials::basic(username, answer.secret),
    };
    Ok(Some(credentials).filter(|found| !found.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entry_of_the_longest_path_fits() {
        let text = r#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "aHViOng="},
            "r.example": {"auth": "YWxsOng="},
            "r.example/team": {"username": "team", "password": "x"},
            "https://r.example/v2/": {},
            "other.example:5000": {"identitytoken": "t"},
            "bad.example": {"auth": "!"}
        }}"#;
        let config: DockerConfig = serde_json::from_str(text).unwrap();
        let user = |registry: &str, repository: &str| {
            entry_for(&config.auths, registry, repository).unwrap().map(|found| found.username)
        };
        for (registry, repository, expected) in [
            ("docker.io", "library/a", Some("hub")),
            ("r.example", "team/app", Some("team")),
            ("r.example", "team", Some("team")),
            ("r.example", "teams/app", Some("all")),
            ("other.example:5000", "a", Some("")),
            ("other.example", "a", None),
        ] {
            assert_eq!(user(registry, repository).as_deref(), expected, "{registry}/{repository}");
        }
        assert!(entry_for(&config.auths, "bad.example", "a").unwrap_err().contains("bad.example"));
    }
}
