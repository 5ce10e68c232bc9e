//! Blobs as streams that survive a cut connection: what is missing is asked for by Range.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::header::CONTENT_RANGE;
use reqwest::{Response, StatusCode};

use super::RegistryError;
use super::client::{Request, Session};
use super::sources::Sources;
use super::transport::chain;
use crate::digest::Digest;

/// Most resumptions of one blob, however much each of them brings.
const RESUMPTIONS_MAX: u32 = 100;

/// The bytes of one blob: exactly as many as its descriptor says. The digest is the reader's to check.
pub struct BlobStream {
    sources: Arc<Sources>,
    /// The server that is asked now.
    server: usize,
    digest: Digest,
    size: u64,
    offset: u64,
    /// Bytes of the present answer to pass over: a server without Range starts from the beginning.
    skip: u64,
    response: Option<Response>,
    failures: u32,
    resumptions: u32,
    /// When the reader last asked for bytes: what it does between is its own time.
    waiting_since: Instant,
}

impl BlobStream {
    /// A stream of the blob; nothing is asked for yet.
    pub fn new(sources: Arc<Sources>, digest: Digest, size: u64) -> Result<Self, RegistryError> {
        let server = sources.first(false)?;
        Ok(Self {
            sources,
            server,
            digest,
            size,
            offset: 0,
            skip: 0,
            response: None,
            failures: 0,
            resumptions: 0,
            waiting_since: Instant::now(),
        })
    }

    /// The server that the bytes come from.
    pub fn server(&self) -> String {
        self.session().registry.clone()
    }

    fn session(&self) -> &Session {
        self.sources.session(self.server)
    }

    /// The next bytes; none at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        self.waiting_since = Instant::now();
        loop {
            if self.offset == self.size && self.response.is_none() {
                return Ok(None);
            }
            let Some(mut response) = self.response.take() else {
                self.open_anywhere().await?;
                continue;
            };
            let stall = self.session().client.config.stall_timeout();
            match tokio::time::timeout(stall, response.chunk()).await {
                Ok(Ok(Some(chunk))) => {
                    self.response = Some(response);
                    if let Some(chunk) = self.take(chunk)? {
                        return Ok(Some(chunk));
                    }
                }
                Ok(Ok(None)) if self.offset == self.size => return Ok(None),
                // All bytes are there; that the connection then broke harms nothing.
                _ if self.offset == self.size => return Ok(None),
                Ok(Ok(None)) => self.failed("the stream ended early".into()).await?,
                Ok(Err(error)) => self.failed(chain(&error.without_url())).await?,
                Err(_) => self.failed(format!("no byte for {} s", stall.as_secs_f32())).await?,
            }
        }
    }

    fn take(&mut self, mut chunk: Bytes) -> Result<Option<Bytes>, RegistryError> {
        let skipped = self.skip.min(chunk.len() as u64);
        self.skip -= skipped;
        let _ = chunk.split_to(skipped as usize);
        if chunk.is_empty() {
            return Ok(None);
        }
        self.offset += chunk.len() as u64;
        if self.offset > self.size {
            return Err(self.wrong(format!("more than the {} bytes of its descriptor", self.size)));
        }
        self.failures = 0;
        Ok(Some(chunk))
    }

    fn wrong(&self, why: String) -> RegistryError {
        RegistryError::WrongContent { registry: self.server(), digest: self.digest.to_string(), why }
    }

    /// Notes a broken stream and waits before the next try, or turns to the next server, or gives up.
    async fn failed(&mut self, detail: String) -> Result<(), RegistryError> {
        self.failures += 1;
        self.resumptions += 1;
        let config = Arc::clone(&self.session().client.config);
        let patience_ended = self.waiting_since.elapsed() >= config.progress_timeout();
        if self.failures >= config.tries_max || self.resumptions > RESUMPTIONS_MAX || patience_ended {
            let error = RegistryError::Unavailable { registry: self.server(), tries: self.resumptions, detail };
            let error = self.at_this_byte(error);
            return self.turn_to_next(error);
        }
        tracing::debug!(registry = %self.server(), digest = %self.digest, offset = self.offset, detail, "blob is resumed");
        tokio::time::sleep(config.wait_before(self.failures)).await;
        Ok(())
    }

    /// Goes on with the next server, at the byte where this one failed.
    fn turn_to_next(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        self.server = self.sources.next(self.server, false, error)?;
        self.failures = 0;
        self.resumptions = 0;
        self.waiting_since = Instant::now();
        Ok(())
    }

    async fn open_anywhere(&mut self) -> Result<(), RegistryError> {
        match self.open().await {
            Ok(()) => Ok(()),
            Err(error) => {
                let error = self.at_this_byte(error);
                self.turn_to_next(error)
            }
        }
    }

    /// Says of which blob no answer came.
    fn at_this_byte(&self, error: RegistryError) -> RegistryError {
        let RegistryError::Unavailable { registry, tries, detail } = error else { return error };
        let detail = format!("{} at byte {} of {}: {detail}", self.digest, self.offset, self.size);
        RegistryError::Unavailable { registry, tries, detail }
    }

    async fn open(&mut self) -> Result<(), RegistryError> {
        let request = Request { path: format!("blobs/{}", self.digest), accept: &[], offset: self.offset };
        let response = self.session().get(&request).await?;
        let expected = if response.status() == StatusCode::PARTIAL_CONTENT {
            let range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok()).unwrap_or_default();
            if !range.starts_with(&format!("bytes {}-", self.offset)) {
                return Err(self.session().protocol(format!("asked for bytes from {}, got {range:.100}", self.offset)));
            }
            self.skip = 0;
            self.size - self.offset
        } else {
            self.skip = self.offset;
            self.size
        };
        if let Some(length) = response.content_length()
            && length != expected
        {
            return Err(self.wrong(format!("{length} bytes instead of {expected}")));
        }
        self.response = Some(response);
        Ok(())
    }
}
