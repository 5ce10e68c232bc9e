//! What can go wrong with an image, with the object named and the fix where there is one.

use std::path::PathBuf;

use crate::digest::Digest;
use crate::reference::ReferenceError;
use crate::registry::RegistryError;
use crate::unpack::UnpackError;

/// An operation on images failed.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The reference can't be parsed.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// No image of this store has the name or id.
    #[error("image \"{0}\" not found")]
    NotFound(String),
    /// An id prefix fits several images.
    #[error("image id prefix \"{0}\" is ambiguous: give more digits")]
    Ambiguous(String),
    /// The registry refused, failed or answered nonsense.
    #[error("failed to pull image \"{reference}\": {source}")]
    Registry {
        /// Normalised reference.
        reference: String,
        /// The cause.
        #[source]
        source: RegistryError,
    },
    /// A manifest, index or configuration is wrong.
    #[error("image \"{image}\": {what} is refused: {why}")]
    Document {
        /// Reference or file.
        image: String,
        /// Kind and digest of the document.
        what: String,
        /// The field and what is wrong.
        why: String,
    },
    /// A layer can't be unpacked.
    #[error("image \"{image}\": layer {layer}: {source}")]
    Layer {
        /// Reference or file.
        image: String,
        /// Digest of the layer as the manifest names it.
        layer: Digest,
        /// The cause.
        #[source]
        source: UnpackError,
    },
    /// A file of the store can't be read or written.
    #[error("image store: {operation} {path}: {source}", path = path.display())]
    Store {
        /// What was done: `write`, `open`, …
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// Another process owns the store.
    #[error("image store {path} is in use by {owner}: stop that program, talk to it through its socket, or choose another state directory", path = path.display())]
    Locked {
        /// The store.
        path: PathBuf,
        /// `process 123`, or what the lock file says.
        owner: String,
    },
    /// An archive or layout to import is not readable as one.
    #[error("{path}: {why}", path = path.display())]
    Archive {
        /// The archive.
        path: PathBuf,
        /// What is wrong, and what was expected.
        why: String,
    },
    /// The configuration of images is wrong.
    #[error("image configuration: {0}")]
    Configuration(String),
    /// An image verifier says no, or can't say yes.
    #[error("image \"{image}\" is refused by verifier {verifier}: {reason}", verifier = verifier.display())]
    Verification {
        /// Normalised reference.
        image: String,
        /// The program, or the folder of them.
        verifier: PathBuf,
        /// What it said.
        reason: String,
    },
    /// A worker thread ended without an answer.
    #[error("image worker: {0}")]
    Worker(String),
}

impl ImageError {
    /// Wraps an I/O error of the store.
    pub(crate) fn store(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Store { operation, path, source }
    }
}
