//! Layers of a pull: fetched and unpacked side by side, made final from the bottom up.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::{Buf, Bytes};
use tokio::sync::{Semaphore, mpsc, watch};

use super::{Images, blocking};
use crate::digest::{Digest, Hasher};
use crate::document::Compression;
use crate::error::ImageError;
use crate::progress::ProgressHub;
use crate::registry::{BlobStream, RegistryError, Sources};
use crate::store::{LayerRecord, Staged};
use crate::unpack::{Leftover, UnpackError, finish, unpack};

/// Chunks between the network and the unpacking thread.
const CHUNKS_QUEUED: usize = 32;
/// Bytes still fetched after unpacking failed, to learn whether the registry sent the wrong bytes.
const DIAGNOSIS_BYTES_MAX: u64 = 32 << 20;

/// One layer to fetch.
#[derive(Clone, Debug)]
pub(super) struct LayerJob {
    pub digest: Digest,
    pub size: u64,
    pub compression: Compression,
    pub diff_id: Digest,
    pub chain_id: Digest,
}

/// What the layers of one pull share.
struct PullOfLayers<'a> {
    sources: &'a Arc<Sources>,
    image: &'a str,
    jobs: &'a [LayerJob],
    progress: &'a ProgressHub,
    /// How many layers are complete, from the bottom.
    finished: watch::Sender<usize>,
    permits: Semaphore,
}

/// One lock per layer being made, so that two images with a common base fetch it once.
#[derive(Default)]
pub(super) struct LayerLocks(Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>);

impl LayerLocks {
    pub(super) fn of(&self, chain: Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        locks.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = locks.get(&chain).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::default();
        locks.insert(chain, Arc::downgrade(&lock));
        lock
    }
}

impl Images {
    /// Brings all layers onto the disk. Returns at the first failure; what is complete by then stays for the next try.
    pub(super) async fn fetch_layers(
        &self,
        sources: &Arc<Sources>,
        image: &str,
        jobs: &[LayerJob],
        progress: &ProgressHub,
    ) -> Result<(), ImageError> {
        progress.start(jobs.iter().map(|job| (job.digest, job.size)));
        let pull = PullOfLayers {
            sources,
            image,
            jobs,
            progress,
            finished: watch::Sender::new(0),
            permits: Semaphore::new(self.policy().parallel_layers),
        };
        let works = (0..jobs.len()).map(|number| self.fetch_one(&pull, number));
        futures::future::try_join_all(works).await.map(|_| ())
    }

    async fn fetch_one(&self, pull: &PullOfLayers<'_>, number: usize) -> Result<(), ImageError> {
        let job = &pull.jobs[number];
        let worker = |error: &dyn std::error::Error| ImageError::Worker(error.to_string());
        // The layer's lock before the permits: a waiter for another pull's layer must not keep a permit from it.
        let lock = self.layer_locks.of(job.chain_id);
        let _locked = lock.lock().await;
        let known = self.store.index().layers.contains_key(&job.chain_id);
        let unpacked = if known {
            None
        } else {
            let _own = pull.permits.acquire().await.map_err(|error| worker(&error))?;
            let _common = self.permits.acquire().await.map_err(|error| worker(&error))?;
            Some(self.layer_from_anywhere(pull, job, number).await?)
        };
        let mut below = pull.finished.subscribe();
        below.wait_for(|count| *count >= number).await.map_err(|error| worker(&error))?;
        if let Some((staged, leftover)) = unpacked {
            let chain: Vec<Digest> = pull.jobs[..number].iter().map(|job| job.chain_id).collect();
            self.commit(pull.image, job, staged, leftover, chain).await?;
        }
        pull.finished.send_replace(number + 1);
        pull.progress.done(number);
        Ok(())
    }

    /// Begins anew with the other servers when a mirror gives wrong bytes.
    async fn layer_from_anywhere(
        &self,
        pull: &PullOfLayers<'_>,
        job: &LayerJob,
        number: usize,
    ) -> Result<(Staged, Leftover), ImageError> {
        for _ in 0..pull.sources.spares() {
            match self.stream_layer(pull, job, number).await {
                Err(ImageError::Registry { source, .. }) if pull.sources.turn_from_liar(&source) => {}
                outcome => return outcome,
            }
        }
        self.stream_layer(pull, job, number).await
    }

    /// Fetches and unpacks in one pass: the network side hashes what arrives, the unpacking side what comes out.
    async fn stream_layer(
        &self,
        pull: &PullOfLayers<'_>,
        job: &LayerJob,
        number: usize,
    ) -> Result<(Staged, Leftover), ImageError> {
        let (chunks, queue) = mpsc::channel(CHUNKS_QUEUED);
        let (store, limits, compression, diff_id) =
            (Arc::clone(&self.store), self.limits, job.compression, job.diff_id);
        let worker = tokio::task::spawn_blocking(move || {
            let staged = store.stage_layer()?;
            let files = staged.open_files()?;
            let mut reader = ChunkReader { queue, chunk: Bytes::new() };
            Ok::<_, ImageError>(
                unpack(&mut reader, compression, &diff_id, &files, &limits).map(|leftover| (staged, leftover)),
            )
        });
        let fetched = self.fetch(pull.sources, job, chunks, |done| pull.progress.fetched(number, done)).await;
        let unpacked = worker.await.map_err(|error| ImageError::Worker(error.to_string()))??;
        // Wrong bytes explain a failed unpacking, not the other way round.
        fetched.map_err(|source| ImageError::Registry { reference: pull.image.to_owned(), source })?;
        unpacked.map_err(|source| ImageError::Layer { image: pull.image.to_owned(), layer: job.digest, source })
    }

    async fn fetch(
        &self,
        sources: &Arc<Sources>,
        job: &LayerJob,
        chunks: mpsc::Sender<Bytes>,
        progress: impl Fn(u64),
    ) -> Result<(), RegistryError> {
        let mut stream = BlobStream::new(Arc::clone(sources), job.digest, job.size)?;
        let mut hasher = Hasher::new();
        let (mut done, mut unread) = (0, 0);
        while let Some(chunk) = stream.next().await? {
            hasher.update(&chunk);
            done += chunk.len() as u64;
            progress(done);
            let length = chunk.len() as u64;
            if unread > 0 || chunks.send(chunk).await.is_err() {
                unread += length;
                if unread > DIAGNOSIS_BYTES_MAX {
                    return Ok(());
                }
            }
        }
        let found = hasher.finish();
        if found == job.digest {
            return Ok(());
        }
        Err(RegistryError::WrongContent {
            registry: stream.server(),
            digest: job.digest.to_string(),
            why: format!("the bytes have digest {found}"),
        })
    }

    async fn commit(
        &self,
        image: &str,
        job: &LayerJob,
        staged: Staged,
        leftover: Leftover,
        below: Vec<Digest>,
    ) -> Result<(), ImageError> {
        let store = Arc::clone(&self.store);
        let (image, digest, record) = (image.to_owned(), job.digest, LayerRecord::new(job.chain_id, job.diff_id));
        blocking(move || {
            complete_layer(&store, staged, &leftover, &below, record, |source| ImageError::Layer {
                image,
                layer: digest,
                source,
            })
        })
        .await
    }
}

/// Adds to a layer what it needs from the ones below it (`below`, lowest first) and makes it final.
pub(crate) fn complete_layer(
    store: &crate::store::Store,
    staged: Staged,
    leftover: &Leftover,
    below: &[Digest],
    record: LayerRecord,
    failed: impl FnOnce(UnpackError) -> ImageError,
) -> Result<(), ImageError> {
    if !leftover.implied_directories.is_empty() || !leftover.links_down.is_empty() {
        let mut lower: Vec<OwnedFd> = Vec::with_capacity(below.len());
        for chain in below.iter().rev() {
            let path = store.layer_path(chain);
            lower.push(File::open(&path).map_err(ImageError::store("open", path))?.into());
        }
        finish(staged.open_files()?, leftover, &lower).map_err(failed)?;
    }
    store.commit_layer(staged, record)
}

/// The unpacking thread's end of the queue.
struct ChunkReader {
    queue: mpsc::Receiver<Bytes>,
    chunk: Bytes,
}

impl Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.queue.blocking_recv() {
                Some(chunk) => self.chunk = chunk,
                None => return Ok(0),
            }
        }
        let count = self.chunk.len().min(buffer.len());
        self.chunk.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}
