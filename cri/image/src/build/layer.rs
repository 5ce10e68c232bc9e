//! One layer to be built: files from memory and from directories, sorted, with fixed times.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::BuildError;
use crate::digest::Digest;

/// How a built layer is packed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LayerCompression {
    /// Plain tar.
    None,
    /// gzip.
    #[default]
    Gzip,
    /// Zstandard.
    Zstd,
}

#[derive(Clone, Debug)]
enum Content {
    Bytes(Vec<u8>),
    HostFile(PathBuf),
    Directory,
    Symlink(String),
}

#[derive(Clone, Debug)]
struct Node {
    content: Content,
    mode: u32,
    owner: (u32, u32),
}

/// Collects the files of one layer. Parent directories come by themselves, with mode 0755.
#[derive(Clone, Debug, Default)]
pub struct LayerBuilder {
    nodes: BTreeMap<String, Node>,
    raw: Option<Vec<u8>>,
    compression: LayerCompression,
}

/// A packed layer.
pub(super) struct Packed {
    pub bytes: Vec<u8>,
    pub diff_id: Digest,
}

impl LayerBuilder {
    /// An empty layer.
    pub fn new() -> Self {
        Self::default()
    }

    /// A layer of these tar bytes as they are.
    pub fn from_tar(bytes: Vec<u8>) -> Self {
        Self { raw: Some(bytes), ..Self::default() }
    }

    /// Sets the packing.
    pub fn compression(mut self, compression: LayerCompression) -> Self {
        self.compression = compression;
        self
    }

    fn put(mut self, path: &str, content: Content, mode: u32, owner: (u32, u32)) -> Self {
        self.insert(path, Node { content, mode, owner });
        self
    }

    fn insert(&mut self, path: &str, node: Node) {
        let path = path.trim_matches('/');
        for (at, _) in path.match_indices('/') {
            let parent = Node { content: Content::Directory, mode: 0o755, owner: (0, 0) };
            self.nodes.entry(path[..at].to_owned()).or_insert(parent);
        }
        self.nodes.insert(path.to_owned(), node);
    }

    /// Adds a file of root with these bytes.
    pub fn file(self, path: &str, bytes: impl Into<Vec<u8>>, mode: u32) -> Self {
        self.put(path, Content::Bytes(bytes.into()), mode, (0, 0))
    }

    /// Adds a file of this user and group.
    pub fn file_owned(self, path: &str, bytes: impl Into<Vec<u8>>, mode: u32, uid: u32, gid: u32) -> Self {
        self.put(path, Content::Bytes(bytes.into()), mode, (uid, gid))
    }

    /// Adds a file of the host under another name; it is read when the layer is packed.
    pub fn host_file(self, path: &str, host_path: impl Into<PathBuf>, mode: u32) -> Self {
        self.put(path, Content::HostFile(host_path.into()), mode, (0, 0))
    }

    /// Adds a directory of root.
    pub fn directory(self, path: &str, mode: u32) -> Self {
        self.put(path, Content::Directory, mode, (0, 0))
    }

    /// Adds a symlink.
    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.put(path, Content::Symlink(target.to_owned()), 0o777, (0, 0))
    }

    /// Adds a directory of the host with everything below it, owned by root. Devices and sockets are left out.
    pub fn tree(mut self, host_path: &Path, path: &str) -> Result<Self, BuildError> {
        let mut waiting = vec![(host_path.to_path_buf(), path.trim_matches('/').to_owned())];
        while let Some((from, to)) = waiting.pop() {
            for entry in fs::read_dir(&from).map_err(BuildError::at("list", &from))? {
                let entry = entry.map_err(BuildError::at("list", &from))?;
                let (host, name) = (entry.path(), entry.file_name());
                let name = name
                    .to_str()
                    .ok_or_else(|| BuildError::at("read", &host)(io::ErrorKind::InvalidFilename.into()))?;
                let inside = if to.is_empty() { name.to_owned() } else { format!("{to}/{name}") };
                let metadata = fs::symlink_metadata(&host).map_err(BuildError::at("stat", &host))?;
                let kind = metadata.file_type();
                let content = if kind.is_dir() {
                    waiting.push((host.clone(), inside.clone()));
                    Content::Directory
                } else if kind.is_symlink() {
                    let target = fs::read_link(&host).map_err(BuildError::at("read", &host))?;
                    Content::Symlink(target.to_string_lossy().into_owned())
                } else if kind.is_char_device() || kind.is_block_device() || kind.is_fifo() || kind.is_socket() {
                    continue;
                } else {
                    Content::HostFile(host)
                };
                self.insert(&inside, Node { content, mode: metadata.mode() & 0o7777, owner: (0, 0) });
            }
        }
        Ok(self)
    }

    pub(super) fn media_type(&self, docker: bool) -> &'static str {
        match (docker, self.compression) {
            (true, LayerCompression::None) => "application/vnd.docker.image.rootfs.diff.tar",
            (true, LayerCompression::Gzip) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
            (true, LayerCompression::Zstd) => "application/vnd.docker.image.rootfs.diff.tar.zstd",
            (false, LayerCompression::None) => "application/vnd.oci.image.layer.v1.tar",
            (false, LayerCompression::Gzip) => "application/vnd.oci.image.layer.v1.tar+gzip",
            (false, LayerCompression::Zstd) => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }

    pub(super) fn pack(&self) -> Result<Packed, BuildError> {
        let plain = match &self.raw {
            Some(bytes) => bytes.clone(),
            None => self.tar()?,
        };
        let diff_id = Digest::of(&plain);
        let bytes = match self.compression {
            LayerCompression::None => plain,
            LayerCompression::Gzip => gzip(&plain).map_err(BuildError::at("compress", "layer"))?,
            LayerCompression::Zstd => {
                zstd::encode_all(plain.as_slice(), 3).map_err(BuildError::at("compress", "layer"))?
            }
        };
        Ok(Packed { bytes, diff_id })
    }

    fn tar(&self) -> Result<Vec<u8>, BuildError> {
        let mut archive = tar::Builder::new(Vec::new());
        for (path, node) in &self.nodes {
            self.append(&mut archive, path, node).map_err(BuildError::at("pack", path))?;
        }
        archive.into_inner().map_err(BuildError::at("pack", "layer"))
    }

    fn append(&self, archive: &mut tar::Builder<Vec<u8>>, path: &str, node: &Node) -> io::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_mode(node.mode);
        header.set_uid(node.owner.0.into());
        header.set_gid(node.owner.1.into());
        header.set_mtime(0);
        header.set_size(0);
        match &node.content {
            Content::Directory => {
                header.set_entry_type(tar::EntryType::Directory);
                archive.append_data(&mut header, format!("{path}/"), io::empty())
            }
            Content::Symlink(target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                archive.append_link(&mut header, path, target)
            }
            Content::Bytes(bytes) => {
                header.set_size(bytes.len() as u64);
                archive.append_data(&mut header, path, bytes.as_slice())
            }
            Content::HostFile(host) => {
                let bytes = fs::read(host)?;
                header.set_size(bytes.len() as u64);
                archive.append_data(&mut header, path, bytes.as_slice())
            }
        }
    }
}

fn gzip(bytes: &[u8]) -> io::Result<Vec<u8>> {
    // No name, no time: equal bytes stay equal.
    let mut encoder = flate2::GzBuilder::new().mtime(0).write(Vec::new(), flate2::Compression::new(6));
    encoder.write_all(bytes)?;
    encoder.finish()
}
