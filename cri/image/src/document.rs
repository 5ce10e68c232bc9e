//! The JSON documents of an image: index, manifest and configuration, OCI and Docker v2 schema 2, checked strictly.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// Largest index, manifest or configuration read, in bytes.
pub const DOCUMENT_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Most layers of an image: overlayfs stacks 500 at most.
pub const LAYERS_MAX: usize = 500;
/// Most entries of an index looked at.
const INDEX_ENTRIES_MAX: usize = 1000;

/// `application/vnd.oci.image.index.v1+json`.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// `application/vnd.oci.image.manifest.v1+json`.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// `application/vnd.oci.image.config.v1+json`.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Media type of the empty document `{}`, which artifacts put where something must stand.
pub const OCI_EMPTY: &str = "application/vnd.oci.empty.v1+json";
/// Docker's manifest list.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker's manifest, schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker's image configuration.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// A document is not what it must be: the field and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DocumentError(pub String);

/// A reference to content by digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Media type of the content.
    #[serde(default)]
    pub media_type: String,
    /// Digest of the content.
    pub digest: Digest,
    /// Size in bytes.
    pub size: u64,
    /// Platform, in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Annotations; layouts name images there.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// What an image runs on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// CPU, in Go's words: `amd64`, `arm64`.
    pub architecture: String,
    /// `linux`.
    pub os: String,
    /// Variant of the CPU: `v8`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// The platform of this machine.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "powerpc64" => "ppc64le",
            other => other,
        };
        Self { architecture: architecture.to_owned(), os: "linux".to_owned(), variant: None }
    }
}

/// What a manifest request may answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TopDocument {
    /// A choice of manifests by platform.
    Index(Vec<Descriptor>),
    /// The manifest of one image.
    Manifest(Manifest),
}

/// The manifest of one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The image's configuration.
    pub config: Descriptor,
    /// Layers, lowest first.
    pub layers: Vec<Descriptor>,
    /// What it is, if it is no image: any files, packed as an artifact.
    pub artifact_type: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    schema_version: Option<u64>,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    fs_layers: Option<serde_json::Value>,
}

/// Reads an index or a manifest. `content_type` is what the server or the descriptor said it is; a document that says
/// something else of itself, or is two things at once, is refused.
pub fn parse_top(bytes: &[u8], content_type: Option<&str>) -> Result<TopDocument, DocumentError> {
    let raw: RawDocument = serde_json::from_slice(bytes)
        .map_err(|error| DocumentError(format!("not valid JSON for a manifest: {error}")))?;
    if raw.fs_layers.is_some() || raw.schema_version == Some(1) {
        return Err(DocumentError(
            "schemaVersion 1 is no longer supported: push the image again with a current tool".into(),
        ));
    }
    if raw.schema_version != Some(2) {
        return Err(DocumentError("schemaVersion must be 2".into()));
    }
    let said = content_type
        .map(|value| value.split(';').next().unwrap_or_default().trim())
        .filter(|value| is_manifest_type(value));
    if let (Some(said), Some(own)) = (said, raw.media_type.as_deref())
        && said != own
    {
        return Err(DocumentError(format!("mediaType is {own}, but it was served as {said}")));
    }
    let kind = raw.media_type.as_deref().or(said);
    let is_index = raw.manifests.is_some();
    if is_index && (raw.config.is_some() || raw.layers.is_some()) {
        return Err(DocumentError("it has both manifests and config or layers: either an index or a manifest".into()));
    }
    match kind {
        Some(OCI_INDEX | DOCKER_LIST) if !is_index => {
            return Err(DocumentError("mediaType is that of an index, but manifests is missing".into()));
        }
        Some(OCI_MANIFEST | DOCKER_MANIFEST) if is_index => {
            return Err(DocumentError("mediaType is that of a manifest, but it has manifests".into()));
        }
        Some(OCI_INDEX | DOCKER_LIST | OCI_MANIFEST | DOCKER_MANIFEST) | None => {}
        Some(other) => {
            return Err(DocumentError(format!("mediaType {other} is neither an index nor a manifest of an image")));
        }
    }
    if let Some(manifests) = raw.manifests {
        if manifests.len() > INDEX_ENTRIES_MAX {
            return Err(DocumentError(format!(
                "manifests has {} entries, {INDEX_ENTRIES_MAX} at most",
                manifests.len()
            )));
        }
        return Ok(TopDocument::Index(manifests));
    }
    let config = raw.config.ok_or_else(|| DocumentError("config is missing".into()))?;
    let layers = raw.layers.unwrap_or_default();
    if layers.len() > LAYERS_MAX {
        return Err(DocumentError(format!("it has {} layers, {LAYERS_MAX} at most", layers.len())));
    }
    let artifact_type = artifact_type_of(raw.artifact_type, &config, &layers);
    if artifact_type.is_none() {
        check_image(&config, &layers)?;
    }
    Ok(TopDocument::Manifest(Manifest { config, layers, artifact_type }))
}

/// Media type of a document that [`parse_top`] has accepted: its own word, else the server's, else by its form.
pub fn document_type(bytes: &[u8], content_type: Option<&str>) -> Option<String> {
    let raw: RawDocument = serde_json::from_slice(bytes).ok()?;
    let said = content_type
        .map(|value| value.split(';').next().unwrap_or_default().trim())
        .filter(|value| is_manifest_type(value))
        .map(str::to_owned);
    let by_form = if raw.manifests.is_some() { OCI_INDEX } else { OCI_MANIFEST };
    Some(raw.media_type.or(said).unwrap_or_else(|| by_form.to_owned()))
}

fn is_manifest_type(value: &str) -> bool {
    matches!(value, OCI_INDEX | OCI_MANIFEST | DOCKER_LIST | DOCKER_MANIFEST)
}

/// What an artifact is. A manifest whose configuration is not an image's is one; so is one that says it is something, unless
/// all of its layers are an image's.
fn artifact_type_of(said: Option<String>, config: &Descriptor, layers: &[Descriptor]) -> Option<String> {
    let said = said.filter(|said| !said.is_empty());
    if !matches!(config.media_type.as_str(), "" | OCI_CONFIG | DOCKER_CONFIG) {
        return Some(said.unwrap_or_else(|| config.media_type.clone()));
    }
    said.filter(|_| layers.iter().any(|layer| Compression::of(&layer.media_type).is_err()))
}

fn check_image(config: &Descriptor, layers: &[Descriptor]) -> Result<(), DocumentError> {
    if config.size > DOCUMENT_BYTES_MAX {
        return Err(DocumentError(format!("config.size is {} bytes, {DOCUMENT_BYTES_MAX} at most", config.size)));
    }
    for (number, layer) in layers.iter().enumerate() {
        Compression::of(&layer.media_type).map_err(|error| DocumentError(format!("layers[{number}].{error}")))?;
    }
    Ok(())
}

/// How a layer is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip (RFC 1952).
    Gzip,
    /// Zstandard (RFC 8878).
    Zstd,
    /// The first bytes tell.
    Sniff,
}

impl Compression {
    /// The packing that a layer's media type names.
    pub fn of(media_type: &str) -> Result<Self, DocumentError> {
        if media_type.contains("encrypted") {
            return Err(DocumentError(format!("mediaType {media_type}: encrypted layers are not supported")));
        }
        match media_type {
            "application/vnd.oci.image.layer.v1.tar" | "application/vnd.oci.image.layer.nondistributable.v1.tar" => {
                Ok(Self::None)
            }
            "application/vnd.oci.image.layer.v1.tar+gzip"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip" => Ok(Self::Gzip),
            "application/vnd.oci.image.layer.v1.tar+zstd"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd" => Ok(Self::Zstd),
            // Docker's tools write any packing under one name.
            "application/vnd.docker.image.rootfs.diff.tar"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => Ok(Self::Sniff),
            other => Err(DocumentError(format!("mediaType {other:?} is no layer of a container image"))),
        }
    }
}

/// Chooses the entry of an index for a platform: an exact variant first, then any entry of the architecture.
pub fn choose<'a>(entries: &'a [Descriptor], wanted: &Platform) -> Result<&'a Descriptor, DocumentError> {
    let fits = |entry: &&Descriptor| match &entry.platform {
        Some(platform) => platform.os == wanted.os && platform.architecture == wanted.architecture,
        None => false,
    };
    let variant =
        |entry: &&Descriptor| entry.platform.as_ref().is_some_and(|platform| platform.variant == wanted.variant);
    if let Some(entry) = entries.iter().filter(fits).find(variant).or_else(|| entries.iter().find(fits)) {
        return Ok(entry);
    }
    // Layouts of one image often leave the platform out.
    if let [only] = entries
        && only.platform.is_none()
    {
        return Ok(only);
    }
    let offered: Vec<String> = entries
        .iter()
        .filter_map(|entry| entry.platform.as_ref())
        .filter(|platform| platform.os != "unknown")
        .take(20)
        .map(|platform| format!("{}/{}", platform.os, platform.architecture))
        .collect();
    Err(DocumentError(format!(
        "it has no manifest for {}/{}; it offers {}",
        wanted.os,
        wanted.architecture,
        offered.join(", ")
    )))
}

/// What an image says about how to run it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerDefaults {
    /// `USER`: name, uid, `user:group`; as the image has it, unchecked.
    pub user: String,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Entry point.
    pub entrypoint: Vec<String>,
    /// Default arguments, or the command where there is no entry point.
    pub cmd: Vec<String>,
    /// Working directory, unchecked; empty means `/`.
    pub working_dir: String,
    /// Paths declared as volumes, unchecked.
    pub volumes: Vec<String>,
    /// Signal to stop with: `SIGQUIT`, `3`; empty means SIGTERM.
    pub stop_signal: String,
    /// Labels of the image. Never a control input of the runtime.
    pub labels: BTreeMap<String, String>,
    /// `80/tcp`.
    pub exposed_ports: Vec<String>,
}

/// The parsed configuration of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configuration {
    /// Platform of the image.
    pub architecture: String,
    /// How to run it.
    pub defaults: ContainerDefaults,
    /// Digests of the unpacked layers, lowest first.
    pub diff_ids: Vec<Digest>,
}

impl Configuration {
    /// What stands in for the configuration of an artifact: its files lie in one layer that its manifest names.
    pub fn of_artifact(manifest: Digest) -> Self {
        Self { architecture: String::new(), defaults: ContainerDefaults::default(), diff_ids: vec![manifest] }
    }
}

type PathSet = BTreeMap<String, serde_json::Value>;

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
struct RawDefaults {
    user: Option<String>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
    volumes: Option<PathSet>,
    stop_signal: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    exposed_ports: Option<PathSet>,
}

#[derive(Deserialize)]
struct RawConfiguration {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    config: Option<RawDefaults>,
    rootfs: RawRootfs,
}

#[derive(Deserialize)]
struct RawRootfs {
    #[serde(rename = "type")]
    kind: String,
    diff_ids: Option<Vec<Digest>>,
}

/// Reads an image configuration.
pub fn parse_configuration(bytes: &[u8]) -> Result<Configuration, DocumentError> {
    let raw: RawConfiguration = serde_json::from_slice(bytes)
        .map_err(|error| DocumentError(format!("not a valid image configuration: {error}")))?;
    if !raw.os.is_empty() && raw.os != "linux" {
        return Err(DocumentError(format!("os is {}: only linux images run here", raw.os)));
    }
    if raw.rootfs.kind != "layers" {
        return Err(DocumentError(format!("rootfs.type is {:?}: it must be \"layers\"", raw.rootfs.kind)));
    }
    let diff_ids = raw.rootfs.diff_ids.unwrap_or_default();
    if diff_ids.len() > LAYERS_MAX {
        return Err(DocumentError(format!("rootfs.diff_ids has {} entries, {LAYERS_MAX} at most", diff_ids.len())));
    }
    let defaults = raw.config.unwrap_or_default();
    Ok(Configuration {
        architecture: raw.architecture,
        diff_ids,
        defaults: ContainerDefaults {
            user: defaults.user.unwrap_or_default(),
            env: defaults.env.unwrap_or_default(),
            entrypoint: defaults.entrypoint.unwrap_or_default(),
            cmd: defaults.cmd.unwrap_or_default(),
            working_dir: defaults.working_dir.unwrap_or_default(),
            volumes: defaults.volumes.unwrap_or_default().into_keys().collect(),
            stop_signal: defaults.stop_signal.unwrap_or_default(),
            labels: defaults.labels.unwrap_or_default(),
            exposed_ports: defaults.exposed_ports.unwrap_or_default().into_keys().collect(),
        },
    })
}

/// Checks that a manifest and its configuration speak of the same number of layers.
pub fn check_layer_count(manifest: &Manifest, configuration: &Configuration) -> Result<(), DocumentError> {
    let (layers, diff_ids) = (manifest.layers.len(), configuration.diff_ids.len());
    if layers == diff_ids {
        return Ok(());
    }
    Err(DocumentError(format!(
        "the manifest has {layers} layers, but the configuration's rootfs.diff_ids has {diff_ids}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn manifest(extra: &str) -> String {
        format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"{OCI_CONFIG}","digest":"{D}","size":2}},"layers":[]{extra}}}"#
        )
    }

    #[test]
    fn confused_documents_are_refused() {
        assert!(matches!(parse_top(manifest("").as_bytes(), Some(OCI_MANIFEST)), Ok(TopDocument::Manifest(_))));
        let table = [
            (manifest(r#","manifests":[]"#), None, "both manifests"),
            (manifest(&format!(r#","mediaType":"{OCI_INDEX}""#)), None, "manifests is missing"),
            (manifest(&format!(r#","mediaType":"{OCI_MANIFEST}""#)), Some(OCI_INDEX), "served as"),
            (manifest(r#","mediaType":"text/html""#), None, "neither an index"),
            (r#"{"schemaVersion":1,"fsLayers":[]}"#.to_owned(), None, "schemaVersion 1"),
            (r#"{"schemaVersion":2}"#.to_owned(), None, "config is missing"),
            ("<html>".to_owned(), None, "not valid JSON"),
            (manifest("").replace("sha256:e3", "sha256:../"), None, "no digest"),
        ];
        for (text, content_type, part) in table {
            let error = parse_top(text.as_bytes(), content_type).unwrap_err();
            assert!(error.0.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn the_platform_decides_among_manifests() {
        let entry = |architecture: &str, variant: Option<&str>, size| Descriptor {
            media_type: OCI_MANIFEST.into(),
            digest: D.parse().unwrap(),
            size,
            platform: Some(Platform {
                architecture: architecture.into(),
                os: "linux".into(),
                variant: variant.map(str::to_owned),
            }),
            annotations: BTreeMap::new(),
        };
        let wanted = Platform { architecture: "arm64".into(), os: "linux".into(), variant: None };
        let entries = [entry("amd64", None, 1), entry("arm64", Some("v8"), 2), entry("arm64", None, 3)];
        assert_eq!(choose(&entries, &wanted).unwrap().size, 3);
        assert_eq!(choose(&entries[..2], &wanted).unwrap().size, 2);
        assert!(choose(&entries[..1], &wanted).unwrap_err().0.contains("linux/amd64"));
    }

    #[test]
    fn null_lists_of_a_configuration_are_empty() {
        let text = r#"{"architecture":"amd64","os":"linux","config":{"Cmd":["sh"],"Entrypoint":null,"Env":null},"rootfs":{"type":"layers","diff_ids":null}}"#;
        let parsed = parse_configuration(text.as_bytes()).unwrap();
        assert_eq!(parsed.defaults.cmd, ["sh"]);
        assert!(parsed.diff_ids.is_empty());
        assert!(parse_configuration(text.replace("linux", "windows").as_bytes()).is_err());
    }
}
