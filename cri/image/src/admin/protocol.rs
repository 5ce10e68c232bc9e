//! What is said on the admin socket.

use std::io;
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::images::ImageRecord;
use crate::progress::PullProgress;
use crate::registry::Credentials;

/// Longest message, in bytes.
const MESSAGE_BYTES_MAX: u32 = 16 * 1024 * 1024;

/// What a client wants.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "camelCase")]
pub enum Request {
    /// Import an archive that the daemon can read by this path.
    Load {
        /// Absolute path.
        path: PathBuf,
        /// Names instead of those inside.
        names: Vec<String>,
    },
    /// Pull an image; progress comes before the end.
    Pull {
        /// Reference.
        reference: String,
        /// Credentials.
        credentials: Option<Credentials>,
    },
    /// List all images.
    List,
    /// Remove an image by name or id.
    Remove {
        /// Name or id.
        name: String,
    },
}

/// What the daemon answers. Only `Progress` is followed by more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "camelCase")]
pub enum Answer {
    /// A pull goes on.
    Progress {
        /// How far.
        progress: PullProgress,
    },
    /// Image ids of what was loaded or pulled.
    Images {
        /// `sha256:<hex>`.
        ids: Vec<String>,
    },
    /// All images.
    List {
        /// By id.
        images: Vec<ImageSummary>,
    },
    /// Whether there was something to remove.
    Removed {
        /// False: no image has the name.
        found: bool,
    },
    /// It failed.
    Failed {
        /// Why.
        message: String,
    },
}

/// One line of a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageSummary {
    /// Image id.
    pub id: String,
    /// Tags.
    pub repo_tags: Vec<String>,
    /// Digests.
    pub repo_digests: Vec<String>,
    /// Compressed size in bytes.
    pub size_bytes: u64,
}

impl From<ImageRecord> for ImageSummary {
    fn from(record: ImageRecord) -> Self {
        Self {
            id: record.id,
            repo_tags: record.repo_tags,
            repo_digests: record.repo_digests,
            size_bytes: record.size_bytes,
        }
    }
}

/// Writes one message.
pub(super) async fn write_message(to: &mut (impl AsyncWrite + Unpin), message: &impl Serialize) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    let length = u32::try_from(bytes.len()).ok().filter(|length| *length <= MESSAGE_BYTES_MAX);
    let length = length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the message is too long"))?;
    to.write_u32(length).await?;
    to.write_all(&bytes).await?;
    to.flush().await
}

/// Reads one message; none when the other side has ended.
pub(super) async fn read_message<T: DeserializeOwned>(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<T>> {
    let length = match from.read_u32().await {
        Ok(length) => length,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    if length > MESSAGE_BYTES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("message of {length} bytes, {MESSAGE_BYTES_MAX} at most"),
        ));
    }
    let mut bytes = vec![0; length as usize];
    from.read_exact(&mut bytes).await?;
    serde_json::from_slice(&bytes).map(Some).map_err(Into::into)
}
