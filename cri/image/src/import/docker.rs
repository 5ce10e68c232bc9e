//! `docker save` archives: `manifest.json` beside configurations and layer tars.

use serde::Deserialize;

use super::archive::Archive;
use super::{Found, FoundLayer};
use crate::document::{Compression, LAYERS_MAX};
use crate::error::ImageError;

/// Most images of one archive.
const IMAGES_MAX: usize = 1000;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

pub(super) fn read(archive: &Archive) -> Result<Vec<Found>, ImageError> {
    if !archive.has("manifest.json") {
        return Err(archive.wrong("it has neither index.json (OCI layout) nor manifest.json (docker save)"));
    }
    let bytes = archive.read("manifest.json")?;
    let entries: Vec<Entry> =
        serde_json::from_slice(&bytes).map_err(|error| archive.wrong(format!("manifest.json: {error}")))?;
    if entries.len() > IMAGES_MAX {
        return Err(archive.wrong(format!("manifest.json has {} images, {IMAGES_MAX} at most", entries.len())));
    }
    entries.into_iter().map(|entry| read_image(archive, entry)).collect()
}

fn read_image(archive: &Archive, entry: Entry) -> Result<Found, ImageError> {
    let layers = entry.layers.unwrap_or_default();
    if layers.len() > LAYERS_MAX {
        return Err(archive.wrong(format!("an image has {} layers, {LAYERS_MAX} at most", layers.len())));
    }
    Ok(Found {
        names: entry.repo_tags.unwrap_or_default(),
        target: None,
        manifest: None,
        documents: Vec::new(),
        config: archive.read(&entry.config)?,
        layers: layers
            .into_iter()
            .map(|member| FoundLayer { member, digest: None, compression: Compression::Sniff })
            .collect(),
    })
}
