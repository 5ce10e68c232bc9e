//! Image references: `[registry/]repository[:tag][@digest]`, normalised as every Kubernetes runtime does.

use std::fmt;
use std::str::FromStr;

use crate::digest::Digest;

/// Registry of references that name none.
pub const DEFAULT_REGISTRY: &str = "docker.io";
/// Tag of references that name neither tag nor digest.
pub const DEFAULT_TAG: &str = "latest";

/// Longest registry and repository together, in bytes (distribution spec's name grammar).
const NAME_BYTES_MAX: usize = 255;
/// Longest tag in bytes.
const TAG_BYTES_MAX: usize = 128;
/// Longest whole reference looked at, in bytes.
const REFERENCE_BYTES_MAX: usize = 4096;

/// A normalised reference: the registry is always there, and exactly one of tag and digest decides what is pulled.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    target: Target,
}

/// What a reference points to inside its repository.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// A tag, which may move.
    Tag(String),
    /// A digest. A tag beside it says nothing and is dropped.
    Digest(Digest),
}

/// The text is no image reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{reference}\" {why}")]
pub struct ReferenceError {
    /// What was given, cut to 200 characters.
    pub reference: String,
    /// What is wrong with it, which part, and what it must look like.
    pub why: String,
}

impl ReferenceError {
    fn new(reference: &str, why: String) -> Self {
        Self { reference: reference.chars().take(200).collect(), why }
    }
}

impl Reference {
    /// Host, and port where one is given: `docker.io`, `127.0.0.1:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Path below the registry: `library/busybox`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Tag or digest.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// `registry/repository`, without tag and digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The same repository at a digest.
    pub fn at_digest(&self, digest: Digest) -> Self {
        Self { registry: self.registry.clone(), repository: self.repository.clone(), target: Target::Digest(digest) }
    }

    /// Parses a reference that says its registry; nobody shall guess one.
    pub fn parse_with_registry(text: &str) -> Result<Self, ReferenceError> {
        let reference: Self = text.parse()?;
        if split_host(text).is_some() {
            return Ok(reference);
        }
        let why = format!(
            "names no registry: write {}, or set short_names = \"{DEFAULT_REGISTRY}\"",
            // As it was written, without a tag that was not.
            if reference.repository.starts_with("library/") && !text.starts_with("library/") {
                format!("{DEFAULT_REGISTRY}/library/{text}")
            } else {
                format!("{DEFAULT_REGISTRY}/{text}")
            }
        );
        Err(ReferenceError::new(text, why))
    }

    /// What stands after `/manifests/` in the registry's URL.
    pub fn manifest_name(&self) -> String {
        match &self.target {
            Target::Tag(tag) => tag.clone(),
            Target::Digest(digest) => digest.to_string(),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            Target::Tag(tag) => write!(f, "{}/{}:{tag}", self.registry, self.repository),
            Target::Digest(digest) => write!(f, "{}/{}@{digest}", self.registry, self.repository),
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        parse(text).map_err(|why| ReferenceError::new(text, format!("is no image reference: {why}")))
    }
}

fn parse(text: &str) -> Result<Reference, String> {
    if text.is_empty() {
        return Err("it is empty".into());
    }
    if text.len() > REFERENCE_BYTES_MAX {
        return Err(format!("it is {} bytes long, {REFERENCE_BYTES_MAX} at most", text.len()));
    }
    if is_id(text.strip_prefix("sha256:").unwrap_or(text)) {
        return Err("it is an image id, which names no registry".into());
    }
    let (named, digest) = match text.split_once('@') {
        Some((named, digest)) => (named, Some(digest.parse::<Digest>().map_err(|error| error.to_string())?)),
        None => (text, None),
    };
    // A colon after the last slash starts a tag; one before it belongs to the registry's port.
    let path_start = named.rfind('/').map_or(0, |slash| slash + 1);
    let (name, tag) = match named[path_start..].find(':') {
        Some(colon) => (&named[..path_start + colon], Some(&named[path_start + colon + 1..])),
        None => (named, None),
    };
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    let (registry, repository) = split_registry(name)?;
    if registry.len() + 1 + repository.len() > NAME_BYTES_MAX {
        return Err(format!("registry and repository are longer than {NAME_BYTES_MAX} bytes"));
    }
    let target = match (digest, tag) {
        (Some(digest), _) => Target::Digest(digest),
        (None, Some(tag)) => Target::Tag(tag.to_owned()),
        (None, None) => Target::Tag(DEFAULT_TAG.to_owned()),
    };
    Ok(Reference { registry, repository, target })
}

fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Splits the registry off and fills in `docker.io` and `library/`.
fn split_registry(name: &str) -> Result<(String, String), String> {
    let (registry, repository) = match split_host(name) {
        Some((host, rest)) => {
            check_registry(host)?;
            (host, rest)
        }
        None => (DEFAULT_REGISTRY, name),
    };
    let registry = if registry == "index.docker.io" { DEFAULT_REGISTRY } else { registry };
    for component in repository.split('/') {
        check_component(component)?;
    }
    if registry == DEFAULT_REGISTRY && !repository.contains('/') {
        return Ok((registry.to_owned(), format!("library/{repository}")));
    }
    Ok((registry.to_owned(), repository.to_owned()))
}

/// Splits off the host, where there is one. Only what can't be a repository's component is a host: it has a dot or a port,
/// or is localhost, or upper case.
fn split_host(name: &str) -> Option<(&str, &str)> {
    name.split_once('/').filter(|(first, _)| {
        first.contains(['.', ':']) || *first == "localhost" || first.bytes().any(|byte| byte.is_ascii_uppercase())
    })
}

/// Host (name, IPv4 or `[IPv6]`) and optional port.
fn check_registry(registry: &str) -> Result<(), String> {
    let wrong = || format!("registry \"{registry}\" must be a host name or address, with an optional port");
    let (host, port) = if let Some(rest) = registry.strip_prefix('[') {
        let (address, after) = rest.split_once(']').ok_or_else(wrong)?;
        address.parse::<std::net::Ipv6Addr>().map_err(|_| wrong())?;
        (None, after.strip_prefix(':').or(if after.is_empty() { None } else { Some("x") }))
    } else {
        match registry.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(registry), None),
        }
    };
    if let Some(host) = host {
        let label_ok = |label: &str| {
            !label.is_empty()
                && label.len() <= 63
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        };
        if !host.split('.').all(label_ok) {
            return Err(wrong());
        }
    }
    match port {
        Some(port)
            if port.is_empty()
                || !port.bytes().all(|b| b.is_ascii_digit())
                || port.parse::<u16>().unwrap_or(0) == 0 =>
        {
            Err(wrong())
        }
        _ => Ok(()),
    }
}

/// Lower-case letters and digits, separated by one `.`, one or two `_`, or any number of `-`.
fn check_component(component: &str) -> Result<(), String> {
    let wrong = || {
        format!(
            "repository component \"{component}\" must be lower-case letters and digits, separated by single \".\", \"_\", \"__\" or dashes"
        )
    };
    let mut separator = String::new();
    let mut seen_word = false;
    for c in component.chars() {
        if c.is_ascii_lowercase() || c.is_ascii_digit() {
            let allowed = separator.is_empty()
                || matches!(separator.as_str(), "." | "_" | "__")
                || separator.bytes().all(|byte| byte == b'-');
            if !allowed || (!separator.is_empty() && !seen_word) {
                return Err(wrong());
            }
            separator.clear();
            seen_word = true;
        } else if matches!(c, '.' | '_' | '-') {
            separator.push(c);
        } else {
            return Err(wrong());
        }
    }
    if seen_word && separator.is_empty() { Ok(()) } else { Err(wrong()) }
}

fn check_tag(tag: &str) -> Result<(), String> {
    let first_ok = tag.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let all_ok = tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'));
    if !first_ok || !all_ok || tag.len() > TAG_BYTES_MAX {
        let shown: String = tag.chars().take(150).collect();
        return Err(format!(
            "tag \"{shown}\" must be 1 to {TAG_BYTES_MAX} letters, digits, \"_\", \".\" or \"-\", and not start with \".\" or \"-\""
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn references_are_normalised() {
        let table = [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("user/app", "docker.io/user/app:latest"),
            ("index.docker.io/busybox", "docker.io/library/busybox:latest"),
            ("docker.io/busybox", "docker.io/library/busybox:latest"),
            ("localhost/app", "localhost/app:latest"),
            ("localhost:5000/app:v1", "localhost:5000/app:v1"),
            ("127.0.0.1:5000/a/b/c", "127.0.0.1:5000/a/b/c:latest"),
            ("[::1]:5000/app", "[::1]:5000/app:latest"),
            ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
            ("a__b/c.d-e--f", "docker.io/a__b/c.d-e--f:latest"),
            ("Host/app", "Host/app:latest"),
        ];
        for (given, normal) in table {
            let parsed: Reference = given.parse().unwrap_or_else(|error| panic!("{given}: {error}"));
            assert_eq!(parsed.to_string(), normal, "{given}");
            assert_eq!(normal.parse::<Reference>().unwrap(), parsed, "{given} stays the same when parsed again");
        }
        let both: Reference = format!("busybox:1.36@{DIGEST}").parse().unwrap();
        assert_eq!(both.to_string(), format!("docker.io/library/busybox@{DIGEST}"), "a digest beats a tag");
    }

    #[test]
    fn short_names_are_refused_where_a_registry_must_be_said() {
        let by_digest = format!("busybox@{DIGEST}");
        let advice = format!("docker.io/library/{by_digest}");
        for (short, full) in [
            ("busybox", "docker.io/library/busybox"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("user/app", "docker.io/user/app"),
            ("library/app", "docker.io/library/app"),
            (&by_digest, &advice),
        ] {
            let error = Reference::parse_with_registry(short).unwrap_err().to_string();
            let expected = format!("\"{short}\" names no registry: write {full}, or set short_names = \"docker.io\"");
            assert_eq!(error, expected);
            assert_eq!(Reference::parse_with_registry(full).unwrap(), short.parse().unwrap());
        }
        for full in ["docker.io/busybox", "localhost/app", "a.example/app:1"] {
            Reference::parse_with_registry(full).unwrap();
        }
        let error = Reference::parse_with_registry("a b").unwrap_err().to_string();
        assert!(error.starts_with("\"a b\" is no image reference: "), "{error}");
    }

    #[test]
    fn bad_references_are_refused() {
        let long_tag = format!("a:{}", "x".repeat(129));
        let long_name = format!("example.com/{}", "x".repeat(250));
        let table = [
            "",
            ":tag",
            "a:",
            "a@",
            "a@sha256:00",
            "UPPER",
            "a//b",
            "/a",
            "a/",
            "a b",
            "a/../b",
            "../a",
            "a.",
            ".a",
            "a___b",
            "a..b",
            "-a",
            "a:-x",
            "a:.x",
            "http://host/a",
            "host.example:0/a",
            "host.example:99999/a",
            "-host.example/a",
            "host.example:x/a",
            "[::g]/a",
            "[::1]x/a",
            "a\n",
            "a@sha512:00",
            "é/a",
            &long_tag,
            &long_name,
            DIGEST,
            &DIGEST[7..],
        ];
        for given in table {
            assert!(given.parse::<Reference>().is_err(), "{given:?} must be refused");
        }
    }
}
