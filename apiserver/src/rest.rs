//! The HTTP face: an address and a method become an operation on objects, its outcome an answer.

pub mod address;
pub mod answer;
mod body;
mod create;
mod delete;
mod dispatch;
mod event_versions;
mod get;
mod pages;
pub mod parts;
mod patch;
pub mod query;
pub mod selector;
mod update;

pub use create::{Creation, create_object, random_letters};
pub use delete::{Deletion, delete_object};
pub use dispatch::{Call, handle};
pub use get::read_page;
pub use pages::{VERSION, authority};
pub use update::{Part, Update, finalize_if_done, update_object};

/// Largest body that is read, in bytes (kube-apiserver's `MaxRequestBodyBytes`).
pub const BODY_BYTES_MAX: usize = 3 << 20;
