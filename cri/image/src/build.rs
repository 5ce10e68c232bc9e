//! Makes images without a registry: the same files give the same bytes, so the same digests.

mod layer;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::json;

pub use layer::{LayerBuilder, LayerCompression};

use crate::digest::Digest;
use crate::document::{DOCKER_CONFIG, DOCKER_MANIFEST, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, Platform};

/// An image can't be made.
#[derive(Debug, thiserror::Error)]
#[error("making an image: {operation} {path}: {source}", path = path.display())]
pub struct BuildError {
    /// What was done.
    pub operation: &'static str,
    /// The file.
    pub path: PathBuf,
    /// The cause.
    #[source]
    pub source: std::io::Error,
}

impl BuildError {
    fn at(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self { operation, path, source }
    }
}

/// Collects what an image shall be, and writes it as an OCI layout.
#[derive(Default)]
pub struct ImageBuilder {
    layers: Vec<LayerBuilder>,
    entrypoint: Vec<String>,
    cmd: Vec<String>,
    env: Vec<String>,
    user: String,
    working_dir: String,
    stop_signal: String,
    exposed_ports: BTreeSet<String>,
    volumes: BTreeSet<String>,
    labels: BTreeMap<String, String>,
    docker_types: bool,
}

/// What came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuiltImage {
    /// Digest of the configuration: the image id.
    pub id: Digest,
    /// Digest of the manifest.
    pub manifest: Digest,
}

impl ImageBuilder {
    /// An image of nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a layer on top.
    pub fn layer(mut self, layer: LayerBuilder) -> Self {
        self.layers.push(layer);
        self
    }

    /// Sets the entry point.
    pub fn entrypoint(mut self, words: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.entrypoint = words.into_iter().map(Into::into).collect();
        self
    }

    /// Sets the default arguments.
    pub fn cmd(mut self, words: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.cmd = words.into_iter().map(Into::into).collect();
        self
    }

    /// Adds an environment variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push(format!("{name}={value}"));
        self
    }

    /// Sets `USER`.
    pub fn user(mut self, user: &str) -> Self {
        self.user = user.to_owned();
        self
    }

    /// Sets the working directory.
    pub fn working_dir(mut self, path: &str) -> Self {
        self.working_dir = path.to_owned();
        self
    }

    /// Sets the signal to stop with.
    pub fn stop_signal(mut self, signal: &str) -> Self {
        self.stop_signal = signal.to_owned();
        self
    }

    /// Declares a port, `8080/tcp`.
    pub fn expose(mut self, port: &str) -> Self {
        self.exposed_ports.insert(port.to_owned());
        self
    }

    /// Declares a volume.
    pub fn volume(mut self, path: &str) -> Self {
        self.volumes.insert(path.to_owned());
        self
    }

    /// Adds a label.
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Uses Docker's media types instead of OCI's.
    pub fn docker_types(mut self) -> Self {
        self.docker_types = true;
        self
    }

    /// Writes an OCI layout directory; `name` becomes the image's name, as a full reference.
    pub fn write_layout_dir(&self, directory: &Path, name: &str) -> Result<BuiltImage, BuildError> {
        let (built, members) = self.members(name)?;
        for (member, bytes) in members {
            let path = directory.join(&member);
            let parent = path.parent().unwrap_or(directory);
            fs::create_dir_all(parent).map_err(BuildError::at("create", parent))?;
            fs::write(&path, bytes).map_err(BuildError::at("write", &path))?;
        }
        Ok(built)
    }

    /// Writes an OCI layout as one tar file, whole or not at all.
    pub fn write_layout_tar(&self, path: &Path, name: &str) -> Result<BuiltImage, BuildError> {
        let (built, members) = self.members(name)?;
        let temporary = path.with_extension("partial");
        let written = (|| {
            let mut archive = tar::Builder::new(fs::File::create(&temporary)?);
            for (member, bytes) in &members {
                let mut header = tar::Header::new_ustar();
                header.set_size(bytes.len() as u64);
                header.set_mode(0o644);
                header.set_mtime(0);
                header.set_uid(0);
                header.set_gid(0);
                archive.append_data(&mut header, member, bytes.as_slice())?;
            }
            archive.into_inner()?.flush()?;
            fs::rename(&temporary, path)
        })();
        written.map_err(BuildError::at("write", path))?;
        Ok(built)
    }

    /// All files of the layout, by name.
    fn members(&self, name: &str) -> Result<(BuiltImage, BTreeMap<String, Vec<u8>>), BuildError> {
        let mut members = BTreeMap::new();
        let mut add = |bytes: Vec<u8>| {
            let (digest, size) = (Digest::of(&bytes), bytes.len());
            members.insert(format!("blobs/sha256/{}", digest.hex()), bytes);
            (digest, size)
        };
        let (mut layers, mut diff_ids) = (Vec::new(), Vec::new());
        for layer in &self.layers {
            let packed = layer.pack()?;
            diff_ids.push(packed.diff_id);
            let (digest, size) = add(packed.bytes);
            layers.push(json!({"mediaType": layer.media_type(self.docker_types), "digest": digest, "size": size}));
        }
        let (config_type, manifest_type) =
            if self.docker_types { (DOCKER_CONFIG, DOCKER_MANIFEST) } else { (OCI_CONFIG, OCI_MANIFEST) };
        let (id, config_size) = add(self.configuration(&diff_ids).to_string().into_bytes());
        let config = json!({"mediaType": config_type, "digest": id, "size": config_size});
        let manifest = json!({"schemaVersion": 2, "mediaType": manifest_type, "config": config, "layers": layers});
        let (manifest, manifest_size) = add(manifest.to_string().into_bytes());
        let platform = Platform::host();
        let entry = json!({
            "mediaType": manifest_type, "digest": manifest, "size": manifest_size, "platform": platform,
            "annotations": {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name},
        });
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]});
        members.insert("index.json".into(), index.to_string().into_bytes());
        members.insert("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec());
        Ok((BuiltImage { id, manifest }, members))
    }

    fn configuration(&self, diff_ids: &[Digest]) -> serde_json::Value {
        let set = |names: &BTreeSet<String>| {
            names.iter().map(|name| (name.clone(), json!({}))).collect::<serde_json::Map<_, _>>()
        };
        let mut config = serde_json::Map::new();
        let mut put = |key: &str, value: serde_json::Value, there: bool| {
            if there {
                config.insert(key.to_owned(), value);
            }
        };
        put("User", json!(self.user), !self.user.is_empty());
        put("Env", json!(self.env), !self.env.is_empty());
        put("Entrypoint", json!(self.entrypoint), !self.entrypoint.is_empty());
        put("Cmd", json!(self.cmd), !self.cmd.is_empty());
        put("WorkingDir", json!(self.working_dir), !self.working_dir.is_empty());
        put("StopSignal", json!(self.stop_signal), !self.stop_signal.is_empty());
        put("ExposedPorts", set(&self.exposed_ports).into(), !self.exposed_ports.is_empty());
        put("Volumes", set(&self.volumes).into(), !self.volumes.is_empty());
        put("Labels", json!(self.labels), !self.labels.is_empty());
        let platform = Platform::host();
        json!({
            "architecture": platform.architecture, "os": platform.os, "created": "1970-01-01T00:00:00Z",
            "config": config, "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": diff_ids.iter().map(|_| json!({"created": "1970-01-01T00:00:00Z", "created_by": "orlop"})).collect::<Vec<_>>(),
        })
    }
}
