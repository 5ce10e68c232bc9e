//! What is on disk: blobs by digest, layers by chain id, names, leases; each written whole or not at all.
//!
//! ```text
//! <state>/image/lock                      held by the one process that owns the store
//!               blobs/sha256/<hex>        manifests, indexes, configurations, exactly as served
//!               layers/<chain id hex>/    fs/ (the layer's files) and layer.json (written last: without it, no layer)
//!               names/<sha256 of name>    one record per name: tag, digest or bare id
//!               leases/<container id>     which layers a container stands on
//!               staging/                  what is being made; emptied at start
//!               quarantine/               damaged records, kept to be looked at
//! ```
//! The files of an artifact lie where layers do, below the digest of its manifest.
//! Compressed layers are not kept: they are unpacked while they stream by, and the diff id proves the result.
//!
//! What is listed is whole, whenever the process or the power ends, because each step waits for the one before it:
//!
//! - In: documents (file, rename, folder synced); each layer's files (the file system synced), its mark (file and folder
//!   synced), its rename into `layers/` (folder synced), lowest first; last the names (file, rename, folder synced).
//! - Out: names (folder synced), renames of layers out of `layers/` (folder synced), and only then their files.
//!
//! So a crash leaves layers and documents without a name, which the next start removes, never a name without its layers.
//! Should one be found, by damage, it is put aside and the image is not listed.

mod blobs;
mod file;
mod layers;
mod leases;
mod lock;
mod names;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

pub(crate) use layers::{LayerRecord, Staged};
pub(crate) use names::NameRecord;

use crate::digest::{Digest, chain_ids};
use crate::document::{Configuration, parse_configuration};
use crate::error::ImageError;

use leases::LeaseRecord;

/// The store of one process.
pub(crate) struct Store {
    root: PathBuf,
    index: Mutex<Index>,
    _lock: lock::StoreLock,
}

/// What the store holds, mirrored in memory; the disk is the truth after a restart.
#[derive(Default)]
pub(crate) struct Index {
    /// Records by name.
    pub names: BTreeMap<String, NameRecord>,
    /// Parsed configurations by digest, which is the image id.
    pub configurations: BTreeMap<Digest, Configuration>,
    /// Layers by chain id.
    pub layers: BTreeMap<Digest, LayerRecord>,
    /// Leases by container id.
    pub leases: BTreeMap<String, LeaseRecord>,
    /// Content that a running pull or import still needs, with the number of users.
    pub pinned: HashMap<Digest, usize>,
    /// Bytes of all blobs.
    pub blob_bytes: u64,
}

impl Index {
    /// Chain ids of an image's layers, lowest first; nothing for an unknown image.
    pub fn layers_of(&self, image: &Digest) -> Vec<Digest> {
        self.configurations.get(image).map(|configuration| chain_ids(&configuration.diff_ids)).unwrap_or_default()
    }
}

impl Store {
    /// Opens the store below `<state>/image`, or makes it. What is damaged is put aside; what is unreferenced is removed.
    pub fn open(state_dir: &Path) -> Result<Self, ImageError> {
        let root = state_dir.join("image");
        file::make_private_directory(&root)?;
        let lock = lock::StoreLock::take(&root)?;
        for folder in ["blobs", "blobs/sha256", "layers", "names", "leases", "staging", "quarantine"] {
            file::make_private_directory(&root.join(folder))?;
        }
        layers::empty_staging(&root)?;
        blobs::remove_unfinished(&root)?;
        let mut index = Index { layers: layers::load(&root)?, leases: leases::load(&root)?, ..Index::default() };
        let names = names::load(&root)?;
        for record in names {
            match complete(&root, &index, &record) {
                Ok(configuration) => {
                    index.configurations.insert(record.config, configuration);
                    index.names.insert(record.name.clone(), record);
                }
                Err(why) => {
                    tracing::warn!(image = %record.name, why, "image is incomplete and forgotten: pull it again");
                    file::quarantine(&root, &names::path_of(&root, &record.name));
                }
            }
        }
        let store = Self { root, index: Mutex::new(index), _lock: lock };
        store.collect_garbage()?;
        Ok(store)
    }

    /// `<state>/image`.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The index, for one short look or change.
    pub fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Keeps content from being collected while the guard lives.
    pub fn pin(&self, content: impl IntoIterator<Item = Digest>) -> Pins<'_> {
        let content: Vec<Digest> = content.into_iter().collect();
        let mut index = self.index();
        for digest in &content {
            *index.pinned.entry(*digest).or_default() += 1;
        }
        Pins { store: self, content }
    }

    /// Writes the names of an image whose content is complete.
    pub fn name_image(&self, records: Vec<NameRecord>, configuration: Configuration) -> Result<(), ImageError> {
        for record in &records {
            names::write(&self.root, record)?;
        }
        let mut index = self.index();
        for record in records {
            index.configurations.insert(record.config, configuration.clone());
            index.names.insert(record.name.clone(), record);
        }
        Ok(())
    }

    /// Forgets all names of an image, then removes what nothing refers to any more. Tells whether there was one.
    pub fn remove_image(&self, id: &Digest) -> Result<bool, ImageError> {
        let names: Vec<String> = {
            let index = self.index();
            index.names.values().filter(|record| record.config == *id).map(|record| record.name.clone()).collect()
        };
        for name in &names {
            names::remove(&self.root, name)?;
            self.index().names.remove(name);
        }
        names::sync(&self.root)?;
        self.collect_garbage()?;
        Ok(!names.is_empty())
    }

    /// Writes a lease on the layers of an image. None if there is no such image.
    pub fn lease(&self, container_id: &str, image_id: Digest) -> Result<Option<()>, ImageError> {
        let record = {
            // Looked up and entered under one lock: from here on, no collection takes the layers.
            let mut index = self.index();
            if !index.names.values().any(|record| record.config == image_id) {
                return Ok(None);
            }
            let layers = index.layers_of(&image_id);
            let record = LeaseRecord { container_id: container_id.to_owned(), image_id, layers };
            index.leases.insert(record.container_id.clone(), record.clone());
            record
        };
        if let Err(error) = leases::write(&self.root, &record) {
            self.index().leases.remove(container_id);
            return Err(error);
        }
        Ok(Some(()))
    }

    /// Ends a lease. Absent is fine.
    pub fn release(&self, container_id: &str) -> Result<(), ImageError> {
        leases::remove(&self.root, container_id)?;
        if self.index().leases.remove(container_id).is_some() {
            self.collect_garbage()?;
        }
        Ok(())
    }

    /// Removes layers and blobs that no name, lease or running pull refers to.
    pub fn collect_garbage(&self) -> Result<(), ImageError> {
        self.collect_older_than(Duration::ZERO)
    }

    /// The same, but layers that were made a short while ago stay: the next try of a pull that failed may need them.
    pub fn collect_older_than(&self, age: Duration) -> Result<(), ImageError> {
        let mut index = self.index();
        let mut blobs: BTreeSet<Digest> = index.pinned.keys().copied().collect();
        let mut layers = blobs.clone();
        for record in index.names.values() {
            blobs.extend([Some(record.config), record.manifest, record.target].into_iter().flatten());
            layers.extend(index.layers_of(&record.config));
        }
        layers.extend(index.leases.values().flat_map(|lease| lease.layers.iter().copied()));
        index.configurations.retain(|id, _| blobs.contains(id));
        let unused = index.layers.keys().filter(|chain| !layers.contains(chain));
        let lost: Vec<Digest> = unused.filter(|chain| layers::is_older(&self.root, chain, age)).copied().collect();
        // Upper layers first: a layer whose parent is gone is no use.
        for chain in &lost {
            layers::discard(&self.root, chain)?;
            index.layers.remove(chain);
        }
        if !lost.is_empty() {
            layers::sync(&self.root)?;
        }
        index.blob_bytes = blobs::retain(&self.root, &blobs)?;
        drop(index);
        layers::empty_staging_of_discarded(&self.root)
    }

    /// Stores a document under its digest; the bytes are checked.
    pub fn write_blob(&self, digest: &Digest, bytes: &[u8]) -> Result<(), ImageError> {
        let added = blobs::write(&self.root, digest, bytes)?;
        self.index().blob_bytes += added;
        Ok(())
    }

    /// A document by digest, checked; none if it is absent or damaged (and then removed).
    pub fn read_blob(&self, digest: &Digest) -> Option<Vec<u8>> {
        blobs::read(&self.root, digest)
    }

    /// An empty place to unpack a layer into.
    pub fn stage_layer(&self) -> Result<Staged, ImageError> {
        layers::stage(&self.root)
    }

    /// Makes a staged layer final under its chain id: synced, marked, renamed.
    pub fn commit_layer(&self, staged: Staged, record: LayerRecord) -> Result<(), ImageError> {
        let chain = record.chain_id;
        let record = layers::commit(&self.root, staged, record)?;
        self.index().layers.insert(chain, record);
        Ok(())
    }

    /// Directory of a layer's files.
    pub fn layer_path(&self, chain: &Digest) -> PathBuf {
        layers::files_of(&self.root, chain)
    }
}

/// Whether everything of a named image is there; its configuration if so.
fn complete(root: &Path, index: &Index, record: &NameRecord) -> Result<Configuration, String> {
    let bytes =
        blobs::read(root, &record.config).ok_or_else(|| format!("document {} is lost or damaged", record.config))?;
    let configuration = match record.artifact_type {
        Some(_) => Configuration::of_artifact(record.config),
        None => parse_configuration(&bytes).map_err(|error| error.to_string())?,
    };
    match chain_ids(&configuration.diff_ids).iter().find(|chain| !index.layers.contains_key(chain)) {
        Some(chain) => Err(format!("layer {chain} is lost")),
        None => Ok(configuration),
    }
}

/// Content kept from collection; see [`Store::pin`].
pub(crate) struct Pins<'a> {
    store: &'a Store,
    content: Vec<Digest>,
}

impl Drop for Pins<'_> {
    fn drop(&mut self) {
        let mut index = self.store.index();
        for digest in &self.content {
            if let Some(count) = index.pinned.get_mut(digest) {
                *count -= 1;
                if *count == 0 {
                    index.pinned.remove(digest);
                }
            }
        }
    }
}
