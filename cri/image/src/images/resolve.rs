//! Finds images by name, id or the beginning of an id.

use std::collections::BTreeSet;

use super::{ImageRecord, Images};
use crate::digest::{Digest, chain_ids};
use crate::error::ImageError;
use crate::reference::{Reference, Target};
use crate::store::Index;

/// Fewest digits of an id that are looked up.
const ID_PREFIX_MIN: usize = 4;

impl Images {
    /// The image of a reference, an id or the beginning of an id; none if there is none.
    pub fn resolve(&self, name: &str) -> Result<Option<ImageRecord>, ImageError> {
        let index = self.store.index();
        let id = find(&index, name)?;
        Ok(id.and_then(|id| self.record(&index, &id)))
    }

    /// All images, by id.
    pub fn list(&self) -> Vec<ImageRecord> {
        let index = self.store.index();
        let ids: BTreeSet<Digest> = index.names.values().map(|record| record.config).collect();
        ids.iter().filter_map(|id| self.record(&index, id)).collect()
    }

    /// The configuration document of an image, or the manifest of an artifact, as it came; none if there is no such image.
    pub fn configuration_json(&self, id: &str) -> Option<serde_json::Value> {
        let bytes = self.store.read_blob(&super::parse_id(id).ok()?)?;
        serde_json::from_slice(&bytes).ok()
    }

    fn record(&self, index: &Index, id: &Digest) -> Option<ImageRecord> {
        let configuration = index.configurations.get(id)?;
        let names: Vec<_> = index.names.values().filter(|record| record.config == *id).collect();
        let (mut repo_tags, mut repo_digests) = (Vec::new(), Vec::new());
        for record in &names {
            match record.name.parse::<Reference>() {
                // An image without a name is kept under its id.
                Err(_) => {}
                Ok(reference) if matches!(reference.target(), Target::Tag(_)) => repo_tags.push(record.name.clone()),
                Ok(_) => repo_digests.push(record.name.clone()),
            }
        }
        let chain = chain_ids(&configuration.diff_ids);
        let mut lower_dirs: Vec<_> = chain.iter().rev().map(|chain| self.store.layer_path(chain)).collect();
        if lower_dirs.is_empty() {
            lower_dirs.push(self.store.root().join("empty"));
        }
        Some(ImageRecord {
            id: id.to_string(),
            size_bytes: names.iter().map(|record| record.size_bytes).max()?,
            config: configuration.defaults.clone(),
            architecture: configuration.architecture.clone(),
            lower_dirs,
            chain_id: chain.last().map(Digest::to_string),
            manifest_digest: names.iter().find_map(|record| record.manifest).map(|digest| digest.to_string()),
            pinned: self.policy().pins.hold(repo_tags.iter().chain(&repo_digests)),
            repo_tags,
            repo_digests,
            artifact_type: names.iter().find_map(|record| record.artifact_type.clone()),
        })
    }
}

fn find(index: &Index, name: &str) -> Result<Option<Digest>, ImageError> {
    let digits = name.strip_prefix("sha256:").unwrap_or(name);
    if let Ok(id) = format!("sha256:{digits}").parse::<Digest>()
        && index.names.values().any(|record| record.config == id)
    {
        return Ok(Some(id));
    }
    if let Ok(reference) = name.parse::<Reference>() {
        if let Some(record) = index.names.get(&reference.to_string()) {
            return Ok(Some(record.config));
        }
        // The manifest of our platform, where the name was pulled through an index.
        if let Target::Digest(digest) = reference.target() {
            let prefix = format!("{}@", reference.name());
            let same = index
                .names
                .values()
                .find(|record| record.manifest == Some(*digest) && record.name.starts_with(&prefix));
            if let Some(record) = same {
                return Ok(Some(record.config));
            }
        }
    }
    if digits.len() < ID_PREFIX_MIN || !digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return Ok(None);
    }
    let fitting: BTreeSet<Digest> =
        index.names.values().map(|record| record.config).filter(|config| config.hex().starts_with(digits)).collect();
    match fitting.len() {
        0 => Ok(None),
        1 => Ok(fitting.first().copied()),
        _ => Err(ImageError::Ambiguous(name.to_owned())),
    }
}
