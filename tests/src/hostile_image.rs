//! Images whose configuration says what no honest builder writes, as an OCI layout put together by hand.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::images::compile;
use crate::place::busybox_root;
use crate::world::{World, run};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// One root file system under many names, each with a configuration of its own.
pub struct HostileImages {
    folder: tempfile::TempDir,
    manifests: Vec<Value>,
    layer: Option<(String, usize)>,
}

impl Default for HostileImages {
    fn default() -> HostileImages {
        HostileImages::new()
    }
}

impl HostileImages {
    /// Begins with busybox.
    ///
    /// # Panics
    /// When files can't be written.
    #[must_use]
    pub fn new() -> HostileImages {
        let folder = tempfile::tempdir().unwrap();
        busybox_root(&folder.path().join("root"));
        std::fs::create_dir_all(folder.path().join("layout/blobs/sha256")).unwrap();
        HostileImages { folder, manifests: Vec::new(), layer: None }
    }

    /// The root file system, which can be changed until the first image is added.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    /// Compiles a static program into the root file system.
    ///
    /// # Panics
    /// When it can't be compiled.
    pub fn compile(&self, source: &str, place: &str) {
        compile(source, &self.root().join(place));
    }

    /// Adds an image with this `config` in its configuration.
    ///
    /// # Panics
    /// When files can't be written.
    pub fn add(&mut self, name: &str, config: &Value) {
        let (layer, size) = self.layer();
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": config, "rootfs": {"type": "layers", "diff_ids": [layer]},
        });
        let (config, config_size) = self.write(config.to_string().as_bytes());
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": config_size},
            "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer, "size": size}],
        });
        let (digest, size) = self.write(manifest.to_string().as_bytes());
        let annotations = json!({"org.opencontainers.image.ref.name": name});
        self.manifests.push(json!({"mediaType": MANIFEST, "digest": digest, "size": size, "annotations": annotations}));
    }

    /// Loads all of them.
    ///
    /// # Panics
    /// When they are refused.
    pub fn load(&self, world: &World) {
        let layout = self.folder.path().join("layout");
        let index = json!({"schemaVersion": 2, "manifests": self.manifests});
        std::fs::write(layout.join("index.json"), index.to_string()).unwrap();
        std::fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        run(world.orlop().args(["image", "load"]).arg(&layout));
    }

    fn layer(&mut self) -> (String, usize) {
        if self.layer.is_none() {
            let tar = run(Command::new("tar").arg("-C").arg(self.root()).args(["--numeric-owner", "-cf", "-", "."]));
            self.layer = Some(self.write(&tar.stdout));
        }
        self.layer.clone().unwrap()
    }

    fn write(&self, bytes: &[u8]) -> (String, usize) {
        let hex = hex::encode(Sha256::digest(bytes));
        let blobs: &Path = &self.folder.path().join("layout/blobs/sha256");
        std::fs::write(blobs.join(&hex), bytes).unwrap();
        (format!("sha256:{hex}"), bytes.len())
    }
}
