//! Images: references, registry client, content store, unpacking, imports and garbage collection.
//!
//! Everything that comes out of a registry or an archive is hostile: sizes are bounded, digests are checked while the
//! bytes stream by, and layers are unpacked by file descriptors that never leave the layer's own directory.

pub mod admin;
pub mod build;
pub mod cli;
pub mod digest;
pub mod document;
pub mod error;
pub mod images;
mod import;
mod program;
pub mod progress;
pub mod reference;
pub mod registry;
mod store;
pub mod unpack;

pub use digest::Digest;
pub use document::ContainerDefaults;
pub use error::ImageError;
pub use images::{FsInfo, ImageConfig, ImageRecord, ImageUsage, Images, Pull, ShortNames};
pub use progress::{LayerProgress, LayerStage, PullProgress};
pub use reference::Reference;
pub use registry::{Credentials, HostConfig, RegistriesConfig};
