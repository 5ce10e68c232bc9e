//! Artifacts: any files under a manifest, each in a file of its own, named as the manifest says.

use std::collections::BTreeSet;
use std::fs::{OpenOptions, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use tokio::io::AsyncWriteExt;
use tokio::sync::Semaphore;

use super::manifest::Found;
use super::{Images, blocking};
use crate::digest::{Digest, Hasher};
use crate::document::{Configuration, Descriptor, OCI_EMPTY};
use crate::error::ImageError;
use crate::progress::ProgressHub;
use crate::reference::Reference;
use crate::registry::{BlobStream, RegistryError, Sources};
use crate::store::{LayerRecord, Staged};
use crate::unpack::UnpackError;

/// The annotation that names a file.
const TITLE: &str = "org.opencontainers.image.title";
/// Longest name of a file and of one part of it, in bytes, and most parts.
const NAME_BYTES_MAX: usize = 1024;
const PART_BYTES_MAX: usize = 255;
const PARTS_MAX: usize = 16;

impl Images {
    /// Brings the files of an artifact onto the disk and names it. Its id is the digest of its manifest: configurations of
    /// artifacts are often the same empty document.
    pub(super) async fn pull_artifact(
        &self,
        sources: &Arc<Sources>,
        reference: &Reference,
        found: &Found,
        progress: &ProgressHub,
    ) -> Result<String, ImageError> {
        let id = found.digest;
        let image = reference.to_string();
        let refuse = |why: String| ImageError::Document { image: image.clone(), what: format!("manifest {id}"), why };
        let files = files_of(&found.manifest.layers).map_err(refuse)?;
        let size_bytes = files.iter().fold(0, |sum: u64, (_, layer)| sum.saturating_add(layer.size));
        if size_bytes > self.limits.bytes_max {
            return Err(refuse(format!("its files have {size_bytes} bytes, {} at most", self.limits.bytes_max)));
        }
        self.check_space(&image, id, size_bytes)?;
        progress.start(files.iter().map(|(_, layer)| (layer.digest, layer.size)));
        let lock = self.layer_locks.of(id);
        let _locked = lock.lock().await;
        let _pins = self.store.pin(found.documents.iter().map(|document| document.digest).chain([id]));
        self.write_documents(&found.documents, None).await?;
        if !self.store.index().layers.contains_key(&id) {
            let staged = self.fetch_files(sources, &image, &files, progress).await?;
            let store = Arc::clone(&self.store);
            blocking(move || store.commit_layer(staged, LayerRecord::new(id, id))).await?;
        }
        (0..files.len()).for_each(|number| progress.done(number));
        self.name_found(reference, found, id, size_bytes, Configuration::of_artifact(id)).await?;
        Ok(id.to_string())
    }

    /// The size is known before: what has no room is not begun.
    fn check_space(&self, image: &str, manifest: Digest, size_bytes: u64) -> Result<(), ImageError> {
        let root = self.store.root();
        let stat = rustix::fs::statvfs(root).map_err(|error| ImageError::store("look at", root)(error.into()))?;
        let free_bytes = stat.f_bavail.saturating_mul(stat.f_frsize);
        let needed_bytes = size_bytes.saturating_add(self.limits.free_bytes_min);
        if free_bytes >= needed_bytes || self.store.index().layers.contains_key(&manifest) {
            return Ok(());
        }
        let source = UnpackError::NoSpace { free_bytes, needed_bytes };
        Err(ImageError::Layer { image: image.to_owned(), layer: manifest, source })
    }

    async fn fetch_files(
        &self,
        sources: &Arc<Sources>,
        image: &str,
        files: &[(String, &Descriptor)],
        progress: &ProgressHub,
    ) -> Result<Staged, ImageError> {
        let store = Arc::clone(&self.store);
        let staged = blocking(move || store.stage_layer()).await?;
        let root = staged.files_path();
        let permits = Semaphore::new(self.policy().parallel_layers);
        let (permits, root) = (&permits, &root);
        let works = files.iter().enumerate().map(|(number, (name, layer))| async move {
            let _own = permits.acquire().await.map_err(|error| ImageError::Worker(error.to_string()))?;
            let _common = self.permits.acquire().await.map_err(|error| ImageError::Worker(error.to_string()))?;
            fetch_file(sources, image, layer, root, name, |done| progress.fetched(number, done)).await
        });
        futures::future::try_join_all(works).await?;
        Ok(staged)
    }
}

/// Writes one file below a directory that is nobody else's yet, and checks its digest.
async fn fetch_file(
    sources: &Arc<Sources>,
    image: &str,
    layer: &Descriptor,
    root: &Path,
    name: &str,
    progress: impl Fn(u64),
) -> Result<(), ImageError> {
    let registry = |source: RegistryError| ImageError::Registry { reference: image.to_owned(), source };
    let mut stream = BlobStream::new(Arc::clone(sources), layer.digest, layer.size).map_err(registry)?;
    let path = root.join(name);
    let (folder, place) = (root.to_path_buf(), name.to_owned());
    let file = blocking(move || create(&folder, &place)).await?;
    let mut file = tokio::fs::File::from_std(file);
    let (mut hasher, mut done) = (Hasher::new(), 0);
    while let Some(chunk) = stream.next().await.map_err(registry)? {
        hasher.update(&chunk);
        done += chunk.len() as u64;
        file.write_all(&chunk).await.map_err(ImageError::store("write", &path))?;
        progress(done);
    }
    file.flush().await.map_err(ImageError::store("write", &path))?;
    let found = hasher.finish();
    if found == layer.digest {
        return Ok(());
    }
    Err(registry(RegistryError::WrongContent {
        registry: stream.server(),
        digest: layer.digest.to_string(),
        why: format!("the bytes have digest {found}"),
    }))
}

/// Makes a file and its folders, readable for everybody whatever our umask is.
fn create(root: &Path, name: &str) -> Result<std::fs::File, ImageError> {
    for folder in ancestors(name).map(|folder| root.join(folder)) {
        match std::fs::create_dir(&folder) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            made => made.map_err(ImageError::store("create", &folder))?,
        }
        let mode = Permissions::from_mode(0o755);
        std::fs::set_permissions(&folder, mode).map_err(ImageError::store("set mode of", &folder))?;
    }
    let path = root.join(name);
    let file = OpenOptions::new().write(true).create_new(true).open(&path);
    let file = file.map_err(ImageError::store("create", &path))?;
    file.set_permissions(Permissions::from_mode(0o644)).map_err(ImageError::store("set mode of", &path))?;
    Ok(file)
}

/// The files of an artifact: each layer under its title, where that is a good one and not taken, else under its digest.
fn files_of(layers: &[Descriptor]) -> Result<Vec<(String, &Descriptor)>, String> {
    let (mut files, mut folders) = (BTreeSet::new(), BTreeSet::new());
    let mut found = Vec::new();
    // The empty document stands where a list must not be empty.
    for layer in layers.iter().filter(|layer| layer.media_type != OCI_EMPTY) {
        let by_digest = name_of(&layer.digest);
        let title = layer.annotations.get(TITLE).filter(|title| is_good_name(title));
        let free = |name: &str| {
            !files.contains(name) && !folders.contains(name) && ancestors(name).all(|folder| !files.contains(folder))
        };
        let name = match title.filter(|title| free(title)) {
            Some(title) => title.clone(),
            None if free(&by_digest) => by_digest,
            None if found.iter().any(|(_, other): &(String, &Descriptor)| other.digest == layer.digest) => continue,
            None => return Err(format!("two of its files want the name {by_digest}")),
        };
        folders.extend(ancestors(&name).map(str::to_owned));
        files.insert(name.clone());
        found.push((name, layer));
    }
    Ok(found)
}

fn name_of(digest: &Digest) -> String {
    format!("sha256-{}", digest.hex())
}

/// A plain name, or a relative path that stays below where it starts.
fn is_good_name(name: &str) -> bool {
    let good_part = |part: &str| {
        !matches!(part, "" | "." | "..") && part.len() <= PART_BYTES_MAX && !part.contains(char::is_control)
    };
    name.len() <= NAME_BYTES_MAX && name.split('/').count() <= PARTS_MAX && name.split('/').all(good_part)
}

/// `a`, `a/b` of `a/b/c`.
fn ancestors(name: &str) -> impl Iterator<Item = &str> {
    name.match_indices('/').map(|(at, _)| &name[..at])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(content: &str, title: Option<&str>) -> Descriptor {
        let annotations = title.map(|title| (TITLE.to_owned(), title.to_owned())).into_iter().collect();
        let digest = Digest::of(content.as_bytes());
        Descriptor { media_type: "text/plain".into(), digest, size: content.len() as u64, platform: None, annotations }
    }

    #[test]
    fn files_have_their_titles_or_their_digests() {
        let long = "x".repeat(256);
        let deep = "d/".repeat(20) + "f";
        for title in ["a", "a.txt", "dir/a", "...", "a b", "é"] {
            assert!(is_good_name(title), "{title}");
        }
        for title in ["", ".", "..", "/a", "a/", "a//b", "../a", "a/../b", "a/./b", "a\0", "a\nb", &long, &deep] {
            assert!(!is_good_name(title), "{title:?}");
        }
        let layers = [
            layer("1", Some("model/weights")),
            layer("2", Some("model")),
            layer("3", Some("model/weights/more")),
            layer("4", Some("model/weights")),
            layer("5", Some("../../etc/passwd")),
            layer("6", None),
            layer("6", None),
            layer("7", Some("other")),
            Descriptor { media_type: OCI_EMPTY.into(), ..layer("{}", None) },
        ];
        let names: Vec<String> = files_of(&layers).unwrap().into_iter().map(|(name, _)| name).collect();
        let digest = |content: &str| name_of(&Digest::of(content.as_bytes()));
        let expected = [
            "model/weights".to_owned(),
            digest("2"),
            digest("3"),
            digest("4"),
            digest("5"),
            digest("6"),
            "other".to_owned(),
        ];
        assert_eq!(names, expected);
        let squatted = [layer("8", Some(&digest("9"))), layer("9", None)];
        assert!(files_of(&squatted).unwrap_err().contains("want the name"));
    }
}
