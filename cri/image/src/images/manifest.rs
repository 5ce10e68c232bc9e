//! From a name to the manifest of our platform.

use super::Images;
use super::verify::Candidate;
use crate::digest::Digest;
use crate::document::{Descriptor, Manifest, Platform, TopDocument, choose, document_type, parse_top};
use crate::error::ImageError;
use crate::reference::Reference;
use crate::registry::{FetchedDocument, RegistryError, Sources};

/// Deepest nesting of indexes followed.
const INDEX_DEPTH_MAX: usize = 3;

/// A manifest and everything that led to it.
pub(super) struct Found {
    /// Digest of what the name stands for.
    pub target: Digest,
    /// Digest of the platform's manifest.
    pub digest: Digest,
    pub manifest: Manifest,
    /// All documents on the way, to be stored.
    pub documents: Vec<FetchedDocument>,
}

impl Found {
    /// What verifiers are asked about: what the name stands for, so an index where there is one.
    pub(super) fn candidate<'a>(&self, name: &'a str) -> Candidate<'a> {
        let top = self.documents.first();
        let own = top.and_then(|top| document_type(&top.bytes, top.content_type.as_deref()));
        Candidate {
            name,
            digest: self.target.to_string(),
            media_type: own.unwrap_or_default(),
            size: top.map_or(0, |top| top.bytes.len() as u64),
        }
    }
}

impl Images {
    /// Follows a name to the manifest of our platform.
    pub(super) async fn find_manifest(&self, sources: &Sources, reference: &Reference) -> Result<Found, ImageError> {
        let image = reference.to_string();
        let registry = |source: RegistryError| ImageError::Registry { reference: image.clone(), source };
        let mut documents: Vec<FetchedDocument> = Vec::new();
        let mut name = reference.manifest_name();
        let mut expected: Option<Descriptor> = None;
        for _ in 0..INDEX_DEPTH_MAX {
            let fetched = sources.fetch_manifest(&name).await.map_err(registry)?;
            let refuse = |why: String| ImageError::Document {
                image: image.clone(),
                what: format!("manifest {}", fetched.digest),
                why,
            };
            let served_as = expected
                .as_ref()
                .map(|entry| entry.media_type.as_str())
                .filter(|kind| !kind.is_empty())
                .or(fetched.content_type.as_deref());
            let top = parse_top(&fetched.bytes, served_as).map_err(|error| refuse(error.0))?;
            if let Some(entry) = &expected
                && entry.size != fetched.bytes.len() as u64
            {
                return Err(refuse(format!("it has {} bytes, but its index says {}", fetched.bytes.len(), entry.size)));
            }
            match top {
                TopDocument::Index(entries) => {
                    let entry = choose(&entries, &Platform::host()).map_err(|error| refuse(error.0))?.clone();
                    name = entry.digest.to_string();
                    expected = Some(entry);
                    documents.push(fetched);
                }
                TopDocument::Manifest(manifest) => {
                    let target = documents.first().map_or(fetched.digest, |top| top.digest);
                    let digest = fetched.digest;
                    documents.push(fetched);
                    return Ok(Found { target, digest, manifest, documents });
                }
            }
        }
        Err(ImageError::Document {
            image,
            what: "index".into(),
            why: format!("indexes are nested deeper than {INDEX_DEPTH_MAX}"),
        })
    }
}
