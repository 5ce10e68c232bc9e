//! The large layer: files of this machine's `/usr`, in the order of their names, as an OCI layout with one image.

use std::path::{Path, PathBuf};
use std::process::Command;

use orlop_tests::world::{read, run};
use serde_json::json;
use sha2::{Digest, Sha256};

/// Bytes of files that are taken.
const BYTES: u64 = 750_000_000;
/// Entries that are taken.
const ENTRIES: usize = 20_000;
/// Larger files are left out, so that the layer is one of many files.
const FILE_BYTES: u64 = 32_000_000;

/// A layer and the image that consists of it.
pub struct Layer {
    /// The OCI layout; its image is `big`.
    pub layout: PathBuf,
    /// The layer, packed by gzip.
    pub packed: PathBuf,
    /// How long it is.
    pub packed_bytes: u64,
    /// How long the tar stream is.
    pub bytes: u64,
    /// What is in it.
    pub entries: usize,
}

/// Makes the layout in `folder`.
pub fn make(folder: &Path) -> Layer {
    let layout = folder.join("layout");
    let blobs = layout.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).expect("make the layout");
    let mut names = Vec::new();
    gather(Path::new("/usr"), &mut names, &mut 0);
    let (list, tar) = (folder.join("names"), folder.join("layer.tar"));
    std::fs::write(&list, names.join("\n")).expect("write the names");
    let mut pack = Command::new("tar");
    pack.args(["--create", "--format=gnu", "--no-recursion", "--numeric-owner", "--directory=/", "--file"]).arg(&tar);
    run(pack.arg("--files-from").arg(&list));
    let bytes = length(&tar);
    let diff_id = digest(&tar);
    run(Command::new("gzip").args(["-6", "--no-name"]).arg(&tar));
    let packed = folder.join("layer.tar.gz");
    let layer = digest(&packed);
    std::fs::rename(&packed, blobs.join(&layer)).expect("move the layer");
    let packed = blobs.join(&layer);
    let packed_bytes = length(&packed);
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers",
        "diff_ids": [format!("sha256:{diff_id}")]},
    });
    let (config, config_bytes) = store(&blobs, &config);
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
                   "digest": format!("sha256:{config}"), "size": config_bytes},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                    "digest": format!("sha256:{layer}"), "size": packed_bytes}],
    });
    let (manifest, manifest_bytes) = store(&blobs, &manifest);
    let index = json!({
        "schemaVersion": 2,
        "manifests": [{"mediaType": "application/vnd.oci.image.manifest.v1+json",
                       "digest": format!("sha256:{manifest}"), "size": manifest_bytes,
                       "annotations": {"org.opencontainers.image.ref.name": "big"}}],
    });
    std::fs::write(layout.join("index.json"), index.to_string()).expect("write the index");
    std::fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).expect("write the layout's mark");
    Layer { layout, packed, packed_bytes, bytes, entries: names.len() }
}

/// Adds what is in a folder, until there is enough.
fn gather(folder: &Path, names: &mut Vec<String>, bytes: &mut u64) {
    let mut entries: Vec<_> = std::fs::read_dir(folder).into_iter().flatten().flatten().collect();
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let (path, Ok(about)) = (entry.path(), entry.metadata()) else { continue };
        let Some(name) = path.to_str().filter(|name| !name.contains(['\n', '\\'])) else { continue };
        if names.len() == ENTRIES || *bytes > BYTES || about.len() > FILE_BYTES {
            continue;
        }
        if about.is_dir() || about.is_file() || about.is_symlink() {
            names.push(name.trim_start_matches('/').to_string());
            *bytes += if about.is_file() { about.len() } else { 0 };
        }
        if about.is_dir() {
            gather(&path, names, bytes);
        }
    }
}

/// Writes a document under its digest; the digest and how long it is.
fn store(blobs: &Path, document: &serde_json::Value) -> (String, usize) {
    let text = document.to_string();
    let digest = hex::encode(Sha256::digest(&text));
    std::fs::write(blobs.join(&digest), &text).expect("write a document");
    (digest, text.len())
}

fn digest(file: &Path) -> String {
    read(Command::new("sha256sum").arg(file))[..64].to_string()
}

fn length(file: &Path) -> u64 {
    file.metadata().expect("look at a file").len()
}
