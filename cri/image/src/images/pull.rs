//! One pull: manifest, platform, configuration, layers, names.

use std::sync::Arc;

use super::layers::LayerJob;
use super::manifest::Found;
use super::{Images, blocking};
use crate::digest::{Digest, chain_ids};
use crate::document::{Configuration, Descriptor, Platform, check_layer_count, parse_configuration};
use crate::error::ImageError;
use crate::progress::ProgressHub;
use crate::reference::{Reference, Target};
use crate::registry::{Credentials, FetchedDocument, RegistryError, Sources};
use crate::store::NameRecord;

impl Images {
    pub(super) async fn pull_now(
        &self,
        reference: &Reference,
        credentials: Option<Credentials>,
        progress: &ProgressHub,
    ) -> Result<String, ImageError> {
        let registry = |source: RegistryError| ImageError::Registry { reference: reference.to_string(), source };
        let policy = self.policy();
        let sources = policy.client.sources(reference, credentials).await.map_err(registry)?;
        let found = self.find_manifest(&sources, reference).await?;
        policy.verifiers.check(&found.candidate(&reference.to_string())).await?;
        if found.manifest.artifact_type.is_some() {
            return self.pull_artifact(&sources, reference, &found, progress).await;
        }
        self.pull_image(&sources, reference, &found, progress).await
    }

    async fn pull_image(
        &self,
        sources: &Arc<Sources>,
        reference: &Reference,
        found: &Found,
        progress: &ProgressHub,
    ) -> Result<String, ImageError> {
        let registry = |source: RegistryError| ImageError::Registry { reference: reference.to_string(), source };
        let image = reference.to_string();
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
        self.write_documents(&found.documents, Some((config.digest, bytes))).await?;
        let jobs = layer_jobs(&found.manifest.layers, &configuration.diff_ids, &chain)
            .map_err(|error| document("manifest".into(), error))?;
        self.fetch_layers(sources, &image, &jobs, progress).await?;

        let size_bytes = config.size + found.manifest.layers.iter().map(|layer| layer.size).sum::<u64>();
        self.name_found(reference, found, config.digest, size_bytes, configuration).await?;
        Ok(config.digest.to_string())
    }

    /// Writes the names that a pull brings: the reference's own, and the digest that it stands for.
    pub(super) async fn name_found(
        &self,
        reference: &Reference,
        found: &Found,
        id: Digest,
        size_bytes: u64,
        configuration: Configuration,
    ) -> Result<(), ImageError> {
        let record = |name: String| {
            let artifact_type = found.manifest.artifact_type.clone();
            NameRecord::new(name, Some(found.target), Some(found.digest), id, size_bytes).with_type(artifact_type)
        };
        let mut records = vec![record(reference.at_digest(found.target).to_string())];
        if matches!(reference.target(), Target::Tag(_)) {
            records.push(record(reference.to_string()));
        }
        let store = Arc::clone(&self.store);
        blocking(move || store.name_image(records, configuration)).await
    }

    pub(super) async fn write_documents(
        &self,
        documents: &[FetchedDocument],
        config: Option<(Digest, Vec<u8>)>,
    ) -> Result<(), ImageError> {
        let mut blobs: Vec<(Digest, Vec<u8>)> =
            documents.iter().map(|document| (document.digest, document.bytes.clone())).collect();
        blobs.extend(config);
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
