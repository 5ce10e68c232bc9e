//! Unpacks layers: decompress, check the diff id and extract, in one pass over the stream, by two threads.

mod decompress;
mod extract;
mod finish;
mod read_ahead;
mod tar_stream;
mod tree;

use std::io::Read;
use std::os::fd::AsFd;

pub use decompress::decompressed;
pub use finish::finish;
pub use tar_stream::{Entry, EntryKind, TarStream};
pub(crate) use tree::{measure, remove_tree};

use crate::digest::{Digest, Hasher};
use crate::document::Compression;

/// Bounds of one layer.
#[derive(Clone, Copy, Debug)]
pub struct UnpackLimits {
    /// Most bytes of the unpacked tar stream.
    pub bytes_max: u64,
    /// Most entries.
    pub entries_max: u64,
    /// Bytes that must stay free on the file system.
    pub free_bytes_min: u64,
}

impl Default for UnpackLimits {
    fn default() -> Self {
        Self { bytes_max: 64 << 30, entries_max: 2_000_000, free_bytes_min: 64 << 20 }
    }
}

/// A layer can't be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The stream can't be read or decompressed.
    #[error("reading the stream: {0}")]
    Read(#[source] std::io::Error),
    /// The tar stream is damaged or holds something that is refused.
    #[error("{0}")]
    Tar(String),
    /// An entry is refused.
    #[error("entry {entry:?} is refused: {why}")]
    Entry {
        /// Path in the archive.
        entry: String,
        /// What is wrong with it.
        why: String,
    },
    /// An entry can't be written.
    #[error("entry {entry:?}: {operation}: {source}")]
    Write {
        /// Path in the archive.
        entry: String,
        /// The system call.
        operation: &'static str,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The unpacked stream is not the one that the image's configuration names.
    #[error("unpacked content has digest {found}, but the configuration says {expected}")]
    DiffId {
        /// Digest found.
        found: Digest,
        /// Digest named by the configuration.
        expected: Digest,
    },
    /// A bound is passed.
    #[error("{0}")]
    TooLarge(String),
    /// The file system is full.
    #[error(
        "only {free_bytes} bytes are free on the image file system, {needed_bytes} must stay free: remove images or enlarge it"
    )]
    NoSpace {
        /// Bytes free.
        free_bytes: u64,
        /// Bytes that must stay free.
        needed_bytes: u64,
    },
}

/// What a layer left to do until the layers below it are there.
#[derive(Debug, Default)]
pub struct Leftover {
    /// Directories that the archive used without describing them, as paths inside the layer: they take owner and mode
    /// from the layers below.
    pub implied_directories: Vec<Vec<u8>>,
    /// Hard links (new path, target) whose target is in a layer below.
    pub links_down: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Reads a layer from `source` into the empty directory `root`. The source is read to its end, so that whoever feeds
/// it has seen (and hashed) every byte.
pub fn unpack(
    source: &mut (dyn Read + Send),
    compression: Compression,
    diff_id: &Digest,
    root: impl AsFd,
    limits: &UnpackLimits,
) -> Result<Leftover, UnpackError> {
    let mut scratch = vec![0; 64 * 1024];
    let hashed = HashingReader {
        inner: decompressed(&mut *source, compression)?,
        hasher: Hasher::new(),
        count: 0,
        limit: limits.bytes_max,
    };
    let (leftover, hashed) = read_ahead::beside(hashed, |stream| {
        let leftover = extract::extract(stream, root.as_fd(), limits)?;
        // Padding after the end mark belongs to the diff id.
        while stream.read(&mut scratch).map_err(read_error)? > 0 {}
        Ok(leftover)
    })
    .map_err(UnpackError::Read)?;
    let leftover = leftover?;
    let found = hashed.finish();
    while source.read(&mut scratch).map_err(read_error)? > 0 {}
    if found != *diff_id {
        return Err(UnpackError::DiffId { found, expected: *diff_id });
    }
    Ok(leftover)
}

/// Turns a read error back into the bound that it stands for.
pub(crate) fn read_error(error: std::io::Error) -> UnpackError {
    if error.kind() == std::io::ErrorKind::FileTooLarge {
        UnpackError::TooLarge(error.to_string())
    } else {
        UnpackError::Read(error)
    }
}

struct HashingReader<'a> {
    inner: Box<dyn Read + Send + 'a>,
    hasher: Hasher,
    count: u64,
    limit: u64,
}

impl HashingReader<'_> {
    fn finish(self) -> Digest {
        self.hasher.finish()
    }
}

impl Read for HashingReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.count += count as u64;
        if self.count > self.limit {
            let why = format!("the layer unpacks to more than {} bytes", self.limit);
            return Err(std::io::Error::new(std::io::ErrorKind::FileTooLarge, why));
        }
        Ok(count)
    }
}
