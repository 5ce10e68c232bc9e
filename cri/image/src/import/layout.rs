//! OCI image layouts (OCI image spec, "Image Layout").

use serde::Deserialize;

use super::archive::Archive;
use super::{Found, FoundLayer};
use crate::digest::Digest;
use crate::document::{Compression, Descriptor, Manifest, Platform, TopDocument, choose, parse_top};
use crate::error::ImageError;

/// Deepest nesting of indexes followed.
const INDEX_DEPTH_MAX: usize = 3;

/// Annotations that name an image, the full name first.
const NAME_ANNOTATIONS: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

/// Tags of a `docker save` archive that is a layout as well: its `ref.name` has the bare tag only.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerEntry {
    config: String,
    repo_tags: Option<Vec<String>>,
}

pub(super) fn read(archive: &Archive) -> Result<Vec<Found>, ImageError> {
    let index = archive.read("index.json")?;
    let TopDocument::Index(entries) =
        parse_top(&index, None).map_err(|error| archive.wrong(format!("index.json: {error}")))?
    else {
        return Err(archive.wrong("index.json is no index"));
    };
    let host = Platform::host();
    let foreign = |entry: &Descriptor| {
        entry.platform.as_ref().is_some_and(|p| p.os != host.os || p.architecture != host.architecture)
    };
    let own: Vec<Descriptor> = entries.iter().filter(|entry| !foreign(entry)).cloned().collect();
    if own.is_empty() {
        let entry = choose(&entries, &host).map_err(|error| archive.wrong(format!("index.json: {error}")))?;
        return Ok(vec![read_image(archive, entry, &host)?]);
    }
    own.iter().map(|entry| read_image(archive, entry, &host)).collect()
}

fn member(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn read_blob(archive: &Archive, digest: &Digest) -> Result<Vec<u8>, ImageError> {
    let bytes = archive.read(&member(digest))?;
    match Digest::of(&bytes) {
        found if found == *digest => Ok(bytes),
        found => {
            Err(archive.wrong(format!("blob {digest} has other content, of digest {found}: the archive is damaged")))
        }
    }
}

fn read_image(archive: &Archive, entry: &Descriptor, host: &Platform) -> Result<Found, ImageError> {
    let target = entry.digest;
    let mut names: Vec<String> = NAME_ANNOTATIONS
        .iter()
        .filter_map(|key| entry.annotations.get(*key))
        // A bare tag (`latest`) names no repository.
        .filter(|name| name.contains([':', '/']))
        .take(1)
        .cloned()
        .collect();
    let mut current = entry.clone();
    let mut documents = Vec::new();
    for _ in 0..INDEX_DEPTH_MAX {
        let bytes = read_blob(archive, &current.digest)?;
        let kind = Some(current.media_type.as_str()).filter(|kind| !kind.is_empty());
        let top =
            parse_top(&bytes, kind).map_err(|error| archive.wrong(format!("manifest {}: {error}", current.digest)))?;
        documents.push((current.digest, bytes));
        match top {
            TopDocument::Index(entries) => {
                current = choose(&entries, host)
                    .map_err(|error| archive.wrong(format!("index {}: {error}", current.digest)))?
                    .clone();
            }
            TopDocument::Manifest(Manifest { artifact_type: Some(kind), .. }) => {
                let why = format!("{target} is an artifact ({kind}), not a container image: pull it from a registry");
                return Err(archive.wrong(why));
            }
            TopDocument::Manifest(manifest) => {
                if names.is_empty() {
                    names = docker_names(archive, &manifest.config.digest);
                }
                let layer = |layer: &Descriptor| {
                    let compression = Compression::of(&layer.media_type).map_err(|error| archive.wrong(error.0))?;
                    Ok(FoundLayer { member: member(&layer.digest), digest: Some(layer.digest), compression })
                };
                return Ok(Found {
                    names,
                    target: Some(target),
                    manifest: Some(current.digest),
                    documents,
                    config: read_blob(archive, &manifest.config.digest)?,
                    layers: manifest.layers.iter().map(layer).collect::<Result<_, ImageError>>()?,
                });
            }
        }
    }
    Err(archive.wrong(format!("indexes are nested deeper than {INDEX_DEPTH_MAX}")))
}

fn docker_names(archive: &Archive, config: &Digest) -> Vec<String> {
    if !archive.has("manifest.json") {
        return Vec::new();
    }
    let entries: Vec<DockerEntry> =
        archive.read("manifest.json").ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
    let hex = config.hex();
    entries.into_iter().find(|entry| entry.config.contains(&hex)).and_then(|entry| entry.repo_tags).unwrap_or_default()
}
