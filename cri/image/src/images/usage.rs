//! What each image takes on disk, and what would come back if it went.

use std::collections::BTreeMap;

use super::Images;
use crate::digest::Digest;
use crate::store::Index;

/// What one image takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImageUsage {
    /// Bytes on disk of all its layers.
    pub disk_bytes: u64,
    /// Inodes of all its layers.
    pub inodes: u64,
    /// Bytes of the layers that no other image has.
    pub own_disk_bytes: u64,
    /// Inodes of the layers that no other image has.
    pub own_inodes: u64,
}

impl Images {
    /// What each image takes, by image id, from the sizes measured when layers were unpacked.
    pub fn usage(&self) -> BTreeMap<String, ImageUsage> {
        let index = self.store.index();
        let mut layers: BTreeMap<Digest, Vec<Digest>> = BTreeMap::new();
        let mut users: BTreeMap<Digest, u32> = BTreeMap::new();
        for record in index.names.values() {
            if layers.contains_key(&record.config) {
                continue;
            }
            let chain = index.layers_of(&record.config);
            for layer in &chain {
                *users.entry(*layer).or_default() += 1;
            }
            layers.insert(record.config, chain);
        }
        let usage = |chain: &[Digest]| sum(&index, chain, |layer| users.get(layer) == Some(&1));
        layers.iter().map(|(id, chain)| (id.to_string(), usage(chain))).collect()
    }
}

fn sum(index: &Index, chain: &[Digest], is_own: impl Fn(&Digest) -> bool) -> ImageUsage {
    let mut usage = ImageUsage::default();
    for layer in chain {
        let Some(record) = index.layers.get(layer) else { continue };
        usage.disk_bytes += record.disk_bytes;
        usage.inodes += record.inodes;
        if is_own(layer) {
            usage.own_disk_bytes += record.disk_bytes;
            usage.own_inodes += record.inodes;
        }
    }
    usage
}
