//! One pull: manifest, platform, configuration, layers, names.

use crate::digest::{Digest, chain_ids};
use crate::document::{
    Descriptor, Manifest, Platform, TopDocument, check_layer_count, choose, document_type, parse_configuration,
    parse_top,
};
use crate::error::ImageError;
use crate::images::layers::LayerJob;
use crate::images::verify::Candidate;
use crate::images::{Images, blocking};
use crate::progress::ProgressHub;
use crate::reference::{Reference, Target};
use crate::registry::{Credentials, FetchedDocument, RegistryError, Sources};
use crate::store::NameRecord;
use std::sync::Arc;

/// Deepest nesting of indexes followed.
const INDEX_DEPTH_MAX: usize = 3;

/// A manifest and everything that led to it.
struct Found {
    /// Digest of what the name stands for.
    target: Digest,
    /// Digest of the platform's manifest.
    digest: Digest,
    manifest: Manifest,
    /// All documents on the way, to be stored.
    documents: Vec<FetchedDocument>,
}

impl Found {
    /// What verifiers are asked about: what the name stands for, so an index where there is one.
    fn candidate<'a>(&self, name: &'a str) -> Candidate<'a> {
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
    pub(super) async fn pull_now(
        &self,
        reference: &Reference,
        credentials: Option<Credentials>,
        progress: &ProgressHub,
    ) -> Result<String, ImageError> {
        let registry = |source: RegistryError| ImageError::Registry { reference: reference.to_string(), source };
        let sources = self.client.sources(reference, credentials).await.map_err(registry)?;
        let found = self.find_manifest(&sources, reference).await?;
        let image = reference.to_string();
        self.verifiers.check(&found.candidate(&image)).await?;
        let document = |what: String, error: crate::document::DocumentError| ImageError::Document {
            image: image.clone(),
            what,
            why: error.0,
        };

        let config = found.manifest.config.clone();
        let bytes = match self.store.read_blob(&config.digest) {
            Some(bytes) => bytes,
            None => sources.fetch_small_blob(&config).await.map_err(registry)?,
        };
        let what = format!("configuration {}", config.digest);
        let configuration = parse_configuration(&bytes).map_err(|error| document(what.clone(), error))?;
        check_layer_count(&found.manifest, &configuration).map_err(|error| document(what, error))?;
        let host = Platform::host();
        if !configuration.architecture.is_empty() && configuration.architecture != host.architecture {
            tracing::warn!(
                image,
                architecture = configuration.architecture,
                host = host.architecture,
                "image is made for another architecture"
            );
        }

        let chain = chain_ids(&configuration.diff_ids);
        let documents = found.documents.iter().map(|document| document.digest);
        let _pins = self.store.pin(chain.iter().copied().chain(documents).chain([config.digest]));
        self.write_documents(&found.documents, config.digest, bytes).await?;
        let jobs = layer_jobs(&found.manifest.layers, &configuration.diff_ids, &chain)
            .map_err(|error| document("manifest".into(), error))?;
        self.fetch_layers(&sources, &image, &jobs, progress).await?;

        let size_bytes = config.size + found.manifest.layers.iter().map(|layer| layer.size).sum::<u64>();
        let record =
            |name: String| NameRecord::new(name, Some(found.target), Some(found.digest), config.digest, size_bytes);
        let mut records = vec![record(reference.at_digest(found.target).to_string())];
        if matches!(reference.target(), Target::Tag(_)) {
            records.push(record(reference.to_string()));
        }
        let store = Arc::clone(&self.store);
        blocking(move || store.name_image(records, configuration)).await?;
        Ok(config.digest.to_string())
    }

    /// Follows a name to the manifest of our platform.
    async fn find_manifest(&self, sources: &Sources, reference: &Reference) -> Result<Found, ImageError> {
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

    async fn write_documents(
        &self,
        documents: &[FetchedDocument],
        config: Digest,
        config_bytes: Vec<u8>,
    ) -> Result<(), ImageError> {
        let mut blobs: Vec<(Digest, Vec<u8>)> =
            documents.iter().map(|document| (document.digest, document.bytes.clone())).collect();
        blobs.push((config, config_bytes));
        let store = Arc::clone(&self.store);
        blocking(move || blobs.iter().try_for_each(|(digest, bytes)| store.write_blob(digest, bytes))).await
    }
}

fn layer_jobs(
    layers: &[Descriptor],
    diff_ids: &[Digest],
    chain: &[Digest],
) -> Result<Vec<LayerJob>, crate::document::DocumentError> {
    layers
        .iter()
        .zip(diff_ids.iter().zip(chain))
        .map(|(layer, (diff_id, chain_id))| {
            let compression = crate::document::Compression::of(&layer.media_type)?;
            Ok(LayerJob { digest: layer.digest, size: layer.size, compression, diff_id: *diff_id, chain_id: *chain_id })
        })
        .collect()
}
