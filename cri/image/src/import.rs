//! Loads images from archives: OCI layouts (directory or tar) and `docker save` tars.

mod archive;
mod docker;
mod layout;

use std::io::Read;
use std::path::Path;

use crate::digest::{Digest, Hasher, chain_ids};
use crate::document::{Compression, Configuration, parse_configuration};
use crate::error::ImageError;
use crate::images::complete_layer;
use crate::reference::{Reference, Target};
use crate::store::{LayerRecord, NameRecord, Store};
use crate::unpack::{UnpackLimits, unpack};

use archive::Archive;

/// An image found in an archive.
struct Found {
    /// Names given inside the archive.
    names: Vec<String>,
    /// Digest of the top document and of the manifest, where there are such.
    target: Option<Digest>,
    manifest: Option<Digest>,
    /// Documents to store.
    documents: Vec<(Digest, Vec<u8>)>,
    /// Configuration, exactly as in the archive.
    config: Vec<u8>,
    /// Members with the layers, lowest first.
    layers: Vec<FoundLayer>,
}

struct FoundLayer {
    member: String,
    /// Digest that the member must have; a `docker save` archive has none.
    digest: Option<Digest>,
    compression: Compression,
}

/// Imports every image of an archive; see [`crate::Images::import`].
pub(crate) fn import(
    store: &Store,
    limits: &UnpackLimits,
    path: &Path,
    names: &[String],
) -> Result<Vec<String>, ImageError> {
    let given: Vec<Reference> = names.iter().map(|name| name.parse()).collect::<Result<_, _>>()?;
    let archive = Archive::open(path, &store.root().join("staging"), limits)?;
    let found = if archive.has("index.json") { layout::read(&archive)? } else { docker::read(&archive)? };
    if !given.is_empty() && found.len() != 1 {
        return Err(
            archive.wrong(format!("a name was given, but the archive has {} images: leave the name out", found.len()))
        );
    }
    found.into_iter().map(|image| import_one(store, limits, &archive, image, &given)).collect()
}

fn import_one(
    store: &Store,
    limits: &UnpackLimits,
    archive: &Archive,
    found: Found,
    given: &[Reference],
) -> Result<String, ImageError> {
    let id = Digest::of(&found.config);
    let configuration =
        parse_configuration(&found.config).map_err(|error| archive.wrong(format!("configuration {id}: {error}")))?;
    if configuration.diff_ids.len() != found.layers.len() {
        let why = format!(
            "it has {} layers, but the configuration {id} names {}",
            found.layers.len(),
            configuration.diff_ids.len()
        );
        return Err(archive.wrong(why));
    }
    let chain = chain_ids(&configuration.diff_ids);
    let documents = found.documents.iter().map(|(digest, _)| *digest);
    let _pins = store.pin(chain.iter().copied().chain(documents).chain([id]));
    for (digest, bytes) in &found.documents {
        store.write_blob(digest, bytes)?;
    }
    store.write_blob(&id, &found.config)?;
    let mut size_bytes = found.config.len() as u64;
    for (number, layer) in found.layers.iter().enumerate() {
        size_bytes += archive.size(&layer.member)?;
        if !store.index().layers.contains_key(&chain[number]) {
            import_layer(store, limits, archive, layer, &configuration, &chain, number)?;
        }
    }
    let names = names_of(&found, given, &id, archive);
    let records =
        names.into_iter().map(|name| NameRecord::new(name, found.target, found.manifest, id, size_bytes)).collect();
    store.name_image(records, configuration)?;
    Ok(id.to_string())
}

fn import_layer(
    store: &Store,
    limits: &UnpackLimits,
    archive: &Archive,
    layer: &FoundLayer,
    configuration: &Configuration,
    chain: &[Digest],
    number: usize,
) -> Result<(), ImageError> {
    let diff_id = configuration.diff_ids[number];
    let shown = layer.digest.unwrap_or(diff_id);
    let image = archive.path().display().to_string();
    let staged = store.stage_layer()?;
    let files = staged.open_files()?;
    let mut source = HashedReader { inner: archive.reader(&layer.member)?, hasher: Hasher::new() };
    let unpacked = unpack(&mut source, layer.compression, &diff_id, &files, limits);
    let found = source.hasher.finish();
    if unpacked.is_ok() && layer.digest.is_some_and(|digest| digest != found) {
        return Err(
            archive.wrong(format!("layer {shown} has other content, of digest {found}: the archive is damaged"))
        );
    }
    let failed = |source| ImageError::Layer { image: image.clone(), layer: shown, source };
    let leftover = unpacked.map_err(failed)?;
    complete_layer(store, staged, &leftover, &chain[..number], LayerRecord::new(chain[number], diff_id), failed)
}

/// The names to record: those given, those of the archive, or the bare id.
fn names_of(found: &Found, given: &[Reference], id: &Digest, archive: &Archive) -> Vec<String> {
    let mut names: Vec<String> = given.iter().map(Reference::to_string).collect();
    if names.is_empty() {
        for name in &found.names {
            match name.parse::<Reference>() {
                Ok(reference) if matches!(reference.target(), Target::Tag(_)) || found.target.is_some() => {
                    names.push(reference.to_string())
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(archive = %archive.path().display(), %error, "a name in the archive is ignored")
                }
            }
        }
    }
    if names.is_empty() {
        names.push(id.to_string());
    }
    names.sort();
    names.dedup();
    names
}

struct HashedReader<'a> {
    inner: Box<dyn Read + Send + 'a>,
    hasher: Hasher,
}

impl Read for HashedReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}
