//! Progress of a pull, as a value that watchers read at their own pace.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::digest::Digest;

/// How far a pull is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullProgress {
    /// Layers, lowest first; empty until the manifest is known.
    pub layers: Vec<LayerProgress>,
}

/// How far one layer is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerProgress {
    /// Digest of the compressed layer.
    pub digest: Digest,
    /// Compressed bytes to fetch.
    pub total_bytes: u64,
    /// Compressed bytes fetched and unpacked so far.
    pub done_bytes: u64,
    /// What happens to it.
    pub stage: LayerStage,
}

/// What happens to a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LayerStage {
    /// Waits for its turn.
    Waiting,
    /// Is fetched and unpacked in one pass.
    Fetching,
    /// Is complete on disk.
    Done,
}

/// The writing side of a pull's progress.
#[derive(Clone)]
pub(crate) struct ProgressHub(Arc<watch::Sender<PullProgress>>);

impl ProgressHub {
    pub(crate) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(PullProgress::default())))
    }

    pub(crate) fn watch(&self) -> watch::Receiver<PullProgress> {
        self.0.subscribe()
    }

    pub(crate) fn start(&self, layers: impl Iterator<Item = (Digest, u64)>) {
        let layers = layers.map(|(digest, total_bytes)| LayerProgress {
            digest,
            total_bytes,
            done_bytes: 0,
            stage: LayerStage::Waiting,
        });
        self.0.send_replace(PullProgress { layers: layers.collect() });
    }

    pub(crate) fn fetched(&self, layer: usize, done_bytes: u64) {
        self.change(layer, |progress| {
            progress.stage = LayerStage::Fetching;
            progress.done_bytes = done_bytes;
        });
    }

    pub(crate) fn done(&self, layer: usize) {
        self.change(layer, |progress| {
            progress.stage = LayerStage::Done;
            progress.done_bytes = progress.total_bytes;
        });
    }

    fn change(&self, layer: usize, change: impl FnOnce(&mut LayerProgress)) {
        self.0.send_modify(|progress| {
            if let Some(layer) = progress.layers.get_mut(layer) {
                change(layer);
            }
        });
    }
}
