//! Manifests, indexes and configurations: small documents, read whole and checked by digest.

use std::sync::Arc;

use http::header::CONTENT_TYPE;

use super::client::{Request, Session};
use super::sources::Sources;
use super::transport::chain;
use super::{BlobStream, RegistryError};
use crate::digest::Digest;
use crate::document::{DOCKER_LIST, DOCKER_MANIFEST, DOCUMENT_BYTES_MAX, Descriptor, OCI_INDEX, OCI_MANIFEST};

/// A document as a registry served it.
#[derive(Clone, Debug)]
pub struct FetchedDocument {
    /// The exact bytes.
    pub bytes: Vec<u8>,
    /// Their digest.
    pub digest: Digest,
    /// What the server says they are.
    pub content_type: Option<String>,
}

impl Session {
    /// Fetches an index or manifest by tag or digest. With a digest the bytes are checked against it.
    pub async fn fetch_manifest(&self, name: &str) -> Result<FetchedDocument, RegistryError> {
        let mut tries = 0;
        loop {
            tries += 1;
            let detail = match self.try_fetch_manifest(name).await? {
                Ok(document) => return Ok(document),
                Err(detail) => detail,
            };
            if tries >= self.client.config.tries_max {
                return Err(RegistryError::Unavailable { registry: self.registry.clone(), tries, detail });
            }
            tokio::time::sleep(self.client.config.wait_before(tries)).await;
        }
    }

    async fn try_fetch_manifest(&self, name: &str) -> Result<Result<FetchedDocument, String>, RegistryError> {
        let request = Request {
            path: format!("manifests/{name}"),
            accept: &[OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST],
            offset: 0,
        };
        let mut response = self.get(&request).await?;
        let too_large = || self.protocol(format!("manifest {name} is larger than {DOCUMENT_BYTES_MAX} bytes"));
        if response.content_length().is_some_and(|length| length > DOCUMENT_BYTES_MAX) {
            return Err(too_large());
        }
        let mut bytes = Vec::new();
        loop {
            match tokio::time::timeout(self.client.config.stall_timeout(), response.chunk()).await {
                Ok(Ok(Some(chunk))) => bytes.extend_from_slice(&chunk),
                Ok(Ok(None)) => break,
                Ok(Err(error)) => return Ok(Err(chain(&error.without_url()))),
                Err(_) => return Ok(Err(format!("manifest {name} stalls"))),
            }
            if bytes.len() as u64 > DOCUMENT_BYTES_MAX {
                return Err(too_large());
            }
        }
        let digest = Digest::of(&bytes);
        let header = |key| {
            response.headers().get(key).and_then(|value: &http::HeaderValue| value.to_str().ok()).map(str::to_owned)
        };
        let announced = header("docker-content-digest").filter(|value| value.starts_with("sha256:"));
        for expected in name.starts_with("sha256:").then(|| name.to_owned()).into_iter().chain(announced) {
            if expected != digest.to_string() {
                let why = format!("the bytes have digest {digest}");
                return Err(RegistryError::WrongContent { registry: self.registry.clone(), digest: expected, why });
            }
        }
        Ok(Ok(FetchedDocument { bytes, digest, content_type: header(CONTENT_TYPE.as_str()) }))
    }
}

impl Sources {
    /// Fetches an index or manifest by tag or digest from the first server that has it.
    pub async fn fetch_manifest(&self, name: &str) -> Result<FetchedDocument, RegistryError> {
        let by_tag = !name.starts_with("sha256:");
        let mut server = self.first(by_tag)?;
        loop {
            match self.session(server).fetch_manifest(name).await {
                Ok(document) => return Ok(document),
                Err(error) => server = self.next(server, by_tag, error)?,
            }
        }
    }

    /// Fetches a small blob whole: an image's configuration.
    pub async fn fetch_small_blob(self: &Arc<Self>, descriptor: &Descriptor) -> Result<Vec<u8>, RegistryError> {
        if descriptor.size > DOCUMENT_BYTES_MAX {
            let why = format!("{} is {} bytes, {DOCUMENT_BYTES_MAX} at most", descriptor.digest, descriptor.size);
            return Err(RegistryError::Protocol { registry: self.registry().to_owned(), why });
        }
        for _ in 0..self.spares() {
            match self.try_fetch_small_blob(descriptor).await {
                Err(error) if self.turn_from_liar(&error) => {}
                outcome => return outcome,
            }
        }
        self.try_fetch_small_blob(descriptor).await
    }

    async fn try_fetch_small_blob(self: &Arc<Self>, descriptor: &Descriptor) -> Result<Vec<u8>, RegistryError> {
        let mut stream = BlobStream::new(Arc::clone(self), descriptor.digest, descriptor.size)?;
        let mut bytes = Vec::new();
        while let Some(chunk) = stream.next().await? {
            bytes.extend_from_slice(&chunk);
        }
        let digest = Digest::of(&bytes);
        if digest != descriptor.digest {
            return Err(RegistryError::WrongContent {
                registry: stream.server(),
                digest: descriptor.digest.to_string(),
                why: format!("the bytes have digest {digest}"),
            });
        }
        Ok(bytes)
    }
}
